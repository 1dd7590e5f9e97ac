"""The server file: defaults of requests, and what the server prepares for."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path

import yaml
from pydantic import Field

from dlm_serve.decoding import Mode, PromptMask, Speculation
from dlm_serve.decoding.one_forward import GroupForm
from dlm_serve.errors import ConfigError
from dlm_serve.options.fields import Budget, Flag, Frozen, Nats, Probability, Width, validate

CONFIG_VARIABLE = "DLM_SERVE_CONFIG"


class GenerationConfig(Frozen):
    """Defaults for requests that do not say otherwise."""

    mode: Mode = Mode.AUTO
    """How requests decode; `auto` leaves it to `routing`, among the modes that can do what the request asks for."""
    block_length: Width | None = None
    """Tokens; None is the checkpoint's `block_size`."""
    threshold: Probability | None = 0.9
    """Confidence at which diffusion fixes a token; None is the fixed schedule of `steps`."""
    draft_threshold: Probability = 0.0
    """The same for the drafts of self-speculation in turn; 0 fills all masks of a draft at once."""
    speculation: Speculation | None = None
    """How self-speculation drafts and verifies: in turn (`linear`), or in one forward; None leaves it to `routing` for
    requests with mode `auto`, and is `linear` for others."""
    budget: Budget = 64
    """Tokens of a request in a forward that verifies a draft and drafts the next, where `routing` does not choose."""
    group_form: GroupForm = GroupForm.MASKS
    """What such a forward puts behind a likely stop: masks, or a copy of the token that they stand behind as well."""
    steps: Width | None = None
    """Most denoising forwards per block; None is the block length."""
    convergence_threshold: Nats | None = None
    """Change of the mean entropy, in nats, below which denoising stops early; None never does."""
    prefill: PromptMask | None = None
    """The mask of prompts, for a family that supports several (Efficient-DLM); None is the family's own."""
    allow_lossy: Flag = False
    """Whether requests with mode `auto` may also decode by diffusion, whose answers are not the autoregressive ones."""


class RoutingPolicy(StrEnum):
    """Who decides how requests with mode `auto` decode."""

    MEASURED = "measured"
    RULES = "rules"
    FIXED = "fixed"


class RulesConfig(Frozen):
    """What policy `rules` goes by."""

    short_answer: int = Field(default=64, ge=0, strict=True)
    """Tokens; requests with a smaller `max_new_tokens` decode autoregressively."""
    most_in_blocks: int = Field(default=8, ge=0, strict=True)
    """Requests that run, above which all decode autoregressively."""


class RoutingConfig(Frozen):
    """How requests with mode `auto` decode, and which block widths the server prepares for."""

    policy: RoutingPolicy = RoutingPolicy.MEASURED
    """`measured` finds the split of the running requests with the most tokens per second, from measured step times and
    acceptance; `rules` goes by `routing.rules`; with `fixed` a request decodes to its end as it starts."""
    hysteresis: Probability = 0.03
    """By how much, as a proportion of tokens per second, another split must be better to be changed to."""
    trial_share: Probability = 0.01
    """The most time, as a proportion, that may be lost by trials of blocks, or of longer ones, which may be faster."""
    latency_slo_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Milliseconds that a step should take at most, where some split of the requests does; None is no limit."""
    rules: RulesConfig = RulesConfig()
    """For policy `rules`."""

    widths: tuple[Width, ...] = Field(default=(4, 8, 16, 32), min_length=1)
    """Tokens of a row for which CUDA graphs are captured; the largest bounds the blocks of a request."""
    budgets: tuple[Budget, ...] = (16, 32, 64, 96, 128)
    """The same of rows that speculate in one forward, for few requests; none by default without a GPU."""
    graph_memory_gb: float = Field(default=1.1, gt=0, allow_inf_nan=False)
    """Gigabytes (1e9 bytes) for the CUDA graphs of block steps; larger steps run without one."""

    @property
    def max_width(self) -> int:
        """Return the most tokens of a row; `Commit.longest_block` says how long its blocks may be."""
        return max(self.widths)


class LoraConfig(Frozen):
    """The adapter that drafts in self-speculation."""

    draft_adapter: str = "auto"
    """`auto` loads `linear_spec_lora/` beside the weights if it exists, `none` nothing, else a folder."""


class ServerConfig(Frozen):
    """The YAML file given with `--dllm-algorithm-config` or `DLM_SERVE_CONFIG`."""

    generation: GenerationConfig = GenerationConfig()
    routing: RoutingConfig = RoutingConfig()
    lora: LoraConfig = LoraConfig()

    @classmethod
    def load(cls, path: str | None) -> ServerConfig:
        """Return the configuration in the file at `path`, else at `DLM_SERVE_CONFIG`, else the defaults.

        Raises ConfigError if the file cannot be read, or says something unknown or out of range.
        """
        path = path_of(path)
        if path is None:
            return cls()
        try:
            content = yaml.safe_load(Path(path).read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(
                "server config", path, f"cannot be read ({error})", "give the path of a YAML file"
            ) from error
        config = validate(cls, {} if content is None else content, ConfigError, path)
        if (config.generation.block_length or 1) > config.routing.max_width:
            raise ConfigError(
                f"{path}.generation.block_length",
                config.generation.block_length,
                f"at most {config.routing.max_width}, the largest of routing.widths",
                "lower it, or add this width to routing.widths",
            )
        return config

    def without_a_gpu(self) -> ServerConfig:
        """Return what holds on a CPU: no budgets, unless the file names some.

        A forward there costs what its tokens cost. It has no room to spare for the next draft.
        """
        if "budgets" in self.routing.model_fields_set:
            return self
        routing = self.routing.model_copy(update={"budgets": ()})
        routing.model_fields_set.discard("budgets")  # still a default, as `origins` shall say
        return self.model_copy(update={"routing": routing})

    def origins(self, path: str | None) -> dict[str, str]:
        """Return where each option is from, by names such as `generation.steps`: the file at `path`, or a default."""
        return {
            f"{section}.{name}": f"server file {path}" if name in options.model_fields_set else "default"
            for section, options in self
            for name in type(options).model_fields
        }


def path_of(flag: str | None) -> str | None:
    """Return the path of the server file: the flag's value, else the environment's; None if there is neither."""
    return flag or os.environ.get(CONFIG_VARIABLE) or None
