"""The model families that are served, each described in a file of its own. Imports no SGLang."""

from __future__ import annotations

from dlm_serve.families.bd3lm import BD3LM
from dlm_serve.families.efficient_dlm import EFFICIENT_DLM
from dlm_serve.families.family import Config, Family
from dlm_serve.families.nemotron_labs_diffusion import NEMOTRON_LABS_DIFFUSION
from dlm_serve.families.sdar import SDAR
from dlm_serve.families.sdlm import SDLM

FAMILIES: tuple[Family, ...] = (NEMOTRON_LABS_DIFFUSION, EFFICIENT_DLM, SDLM, BD3LM, SDAR)


def family_of(config: Config) -> Family | None:
    """Return the family of a checkpoint with this `config.json`, if it is one of ours."""
    return next((family for family in FAMILIES if family.matches(config)), None)


def image_family_of(config: Config) -> Family | None:
    """Return the family of ours behind the image encoder of a model with this `config.json`, if there is one."""
    return next((family for family in FAMILIES if family.sees_images(config)), None)


__all__ = [
    "BD3LM",
    "EFFICIENT_DLM",
    "FAMILIES",
    "NEMOTRON_LABS_DIFFUSION",
    "SDAR",
    "SDLM",
    "Config",
    "Family",
    "family_of",
    "image_family_of",
]
