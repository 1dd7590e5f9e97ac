"""Decode without a server, by the functions of the model cards."""

from dlm_serve.offline.cards import SDLM_generate
from dlm_serve.offline.model import DiffusionLM

__all__ = ["DiffusionLM", "SDLM_generate"]
