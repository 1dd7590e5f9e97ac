"""Describe a model family: all that has to be said to serve it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dlm_serve.decoding import BlockAlgorithm, Commit, ConcreteMode, Mode, Nucleus, StopRule, TokenChoice

Config = Mapping[str, Any]
"""The content of a `config.json`."""

LLAMA_LAYER = (
    "input_layernorm.weight",
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.o_proj.weight",
    "post_attention_layernorm.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
)
"""The tensors of a layer of Llama and of most that came after it."""


@dataclass(frozen=True)
class Tensors:
    """What the tensors of a checkpoint are called."""

    outer: tuple[str, ...]
    """Those outside of the layers."""
    layers: str
    """What stands before the number of a layer."""
    layer: tuple[str, ...]
    """What stands behind it."""
    untied: tuple[str, ...] = ()
    """Those of `outer` that a checkpoint with tied embeddings may leave out."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Outermost modules, and what the backbone calls them."""

    def names(self, num_layers: int) -> list[str]:
        """Return all names in a checkpoint of `num_layers` layers."""
        return [*self.outer, *(f"{self.layers}{i}.{name}" for i in range(num_layers) for name in self.layer)]

    def rename(self, name: str) -> str:
        """Return the backbone's name for a tensor or module."""
        return _with_root(name, self.renamed)

    def original(self, name: str) -> str:
        """Return the checkpoint's name for a tensor or module of the backbone."""
        return _with_root(name, {ours: theirs for theirs, ours in self.renamed.items()})

    def rename_pattern(self, pattern: str) -> str:
        """Return what matches the backbone's modules as `pattern`, a regular expression or glob, matches these."""
        for theirs, ours in self.renamed.items():
            # As a word of its own, of which the letter of an escape is no part.
            pattern = re.sub(rf"(?:(?<!\w)|(?<=\\\w)){theirs}(?!\w)", ours, pattern)
        return pattern


def _with_root(name: str, roots: Mapping[str, str]) -> str:
    root, dot, rest = name.partition(".")
    return roots.get(root, root) + dot + rest


def as_it_is(config: Config) -> dict[str, Any]:
    """Return `config`, for families whose `config.json` has our names."""
    return dict(config)


def rope_parameters(config: Config) -> dict[str, Any]:
    """Return `rope_parameters` made of the fields that it took the place of, where they are there."""
    if "rope_theta" not in config:
        return {}
    scaling = config.get("rope_scaling") or {"rope_type": "default"}
    return {"rope_parameters": {"rope_theta": config["rope_theta"], **scaling}}


@dataclass(frozen=True)
class Family:
    """A model family: how a checkpoint of it is recognised, built, loaded and decoded."""

    name: str
    """In one word."""
    architecture: str
    """The name under which SGLang finds its model class."""
    backbone: str
    """`module:class` of SGLang's model, or of one of ours, that it adds decoding to."""
    tensors: Tensors
    commit: Commit
    """How it decodes, unless the server file chooses another."""
    modes: tuple[ConcreteMode, ...]
    """Those it offers; the first is what `auto` stands for."""
    refusals: Mapping[Mode, str] = field(default_factory=dict)
    """Reason each missing mode is rejected."""
    released_as: str | None = None
    """The architecture that its checkpoints name, where that is another's."""
    marks: tuple[str, ...] = ()
    """Fields of `config.json` that tell it from others of that architecture."""
    model_type: str | None = None
    """The `model_type` of its `config.json`, where transformers does not know it,"""
    configured_as: str | None = None
    """and the one that transformers knows, whose configuration it shares."""
    normalise: Callable[[Config], dict[str, Any]] = as_it_is
    """`config.json` with the names of the fields of `models.checkpoint.Checkpoint`. What is missing stays so."""
    other_commits: tuple[Commit, ...] = ()
    """What the server file may choose, by the mask of prompts."""
    mask_in_denominator: bool = True
    nucleus: Nucleus = Nucleus.REACHING
    """See `TokenChoice`."""
    algorithms: tuple[str, ...] = ()
    """Those of mode diffusion, the default first; none where there is no choice."""
    scheduled: tuple[str, ...] = ()
    """Those of the algorithms that know no threshold: they fix as many tokens per forward as the steps require."""
    stop_rules: tuple[StopRule, ...] = (StopRule.EOS,)
    """What may end a request, the default first."""
    begins_with_eos: bool = False
    """Whether every sequence begins with the end-of-sequence token, which the tokenizer does not add to a text."""
    tokenizer: str | None = None
    """The hub id of the one to use where a checkpoint has none."""
    temperature: float = 0.0
    """Where neither the request nor `generation_config.json` says."""
    reasoning_parser: str | None = None
    """SGLang's for its chat template, where the one that SGLang would choose takes answers for thinking."""
    floats_only: str | None = None
    """Reason its weights cannot be quantised, where they cannot."""

    @property
    def auto(self) -> ConcreteMode:
        """Return the mode that `auto` stands for."""
        return self.modes[0]

    @property
    def threshold_algorithm(self) -> str | None:
        """Return the algorithm of diffusion that a threshold needs, None where the default knows one."""
        if not self.algorithms or self.algorithms[0] not in self.scheduled:
            return None
        return next(algorithm for algorithm in self.algorithms if algorithm not in self.scheduled)

    def token_choice(self, mask_token_id: int) -> TokenChoice:
        """Return its rules for choosing tokens."""
        may_shuffle = BlockAlgorithm.FIRST_HITTING in self.algorithms
        with_second = Mode.SELF_SPECULATION in self.modes
        return TokenChoice(mask_token_id, self.mask_in_denominator, self.nucleus, may_shuffle, with_second)

    def matches(self, config: Config) -> bool:
        """Return whether a checkpoint with this `config.json` is of this family."""
        architecture = self.released_as or self.architecture
        return architecture in (config.get("architectures") or ()) and all(mark in config for mark in self.marks)

    def sees_images(self, config: Config) -> bool:
        """Return whether `config` is that of a model with an image encoder in front of one of this family."""
        if "vision_config" not in config:
            return False
        if self.matches(config) or self.matches({**config, **(config.get("text_config") or {})}):
            return True
        stem = (self.released_as or self.architecture).removesuffix("Model").removesuffix("ForCausalLM")
        architectures = config.get("architectures") or ()
        return not self.marks and any(stem.lower() in str(name).lower() for name in architectures)
