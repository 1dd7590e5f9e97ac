"""What a server file may say, and what a family makes of it."""

from __future__ import annotations

import os
from pathlib import Path

import yaml
from pydantic import Field

from dlm_serve.decoding import Mode, Policy, Prefill
from dlm_serve.errors import ConfigError
from dlm_serve.families import Family
from dlm_serve.limits import NO_SCHEDULE, ONE_FORWARD, REFINING_ONLY, listed, longest_because, on_grid, use_one_of
from dlm_serve.validation import Frozen, Nats, Probability, Width, validate

CONFIG_VARIABLE = "DLM_SERVE_CONFIG"


class GenerationConfig(Frozen):
    """Defaults for requests that do not say otherwise."""

    mode: Mode = Mode.AUTO
    block_length: Width | None = None
    """Tokens; None is the checkpoint's `block_size`."""
    threshold: Probability | None = 0.9
    """Confidence at which diffusion fixes a token; None is the fixed schedule of `steps`."""
    draft_threshold: Probability = 0.0
    """The same for the drafts of self-speculation; 0 drafts in one forward."""
    steps: Width | None = None
    """Most refining forwards per block; None is the block length."""
    convergence_threshold: Nats | None = None
    """Nats; None never stops refining early."""
    prefill: Prefill | None = None
    """How prompts are encoded, where the family can be served in several ways; None is its own."""


class RoutingConfig(Frozen):
    """Which block widths the server prepares for."""

    widths: tuple[Width, ...] = Field(default=(4, 8, 16, 32), min_length=1)
    graph_memory_gb: float = Field(default=1.1, gt=0, allow_inf_nan=False)
    """Gigabytes (1e9 bytes) for the CUDA graphs of block steps; larger steps run without one."""

    @property
    def max_width(self) -> int:
        """The largest block length that a request may ask for."""
        return max(self.widths)


class LoraConfig(Frozen):
    """The adapter that drafts in self-speculation."""

    draft_adapter: str = "auto"
    """`auto` is `linear_spec_lora/` beside the weights if there is one; `none`; or a folder."""


class ServerConfig(Frozen):
    """The YAML file given with `--dllm-algorithm-config` or `DLM_SERVE_CONFIG`."""

    generation: GenerationConfig = GenerationConfig()
    routing: RoutingConfig = RoutingConfig()
    lora: LoraConfig = LoraConfig()

    @classmethod
    def load(cls, path: str | None) -> ServerConfig:
        """The configuration in the file at `path`, else at `DLM_SERVE_CONFIG`, else the defaults.

        Raises ConfigError if the file cannot be read or says something unknown or out of range.
        """
        path = path or os.environ.get(CONFIG_VARIABLE)
        if not path:
            return cls()
        try:
            content = yaml.safe_load(Path(path).read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError("server config", path, f"cannot be read ({error})", "give a YAML file") from error
        config = validate(cls, {} if content is None else content, ConfigError, path)
        if (config.generation.block_length or 1) > config.routing.max_width:
            raise ConfigError(
                f"{path}.generation.block_length",
                config.generation.block_length,
                f"at most {config.routing.max_width}, the largest of routing.widths",
                "lower it or add its width",
            )
        return config

    def check(self, family: Family, block_size: int) -> None:
        """Raises ConfigError if this asks for what a checkpoint of `family` and `block_size` has not."""
        mode = self.generation.mode
        if mode not in (Mode.AUTO, *family.modes):
            raise ConfigError("generation.mode", str(mode), family.refusals[mode], use_one_of(family))
        self._check_grid(family, block_size)
        if Mode.SELF_SPECULATION not in family.modes:
            self._check_no_drafts(family)
        self.policy_of(family)
        if not family.policy.refines:
            self._check_runs(family, block_size)

    def policy_of(self, family: Family) -> Policy:
        """The policy of `family` that this chooses. Raises ConfigError if it has none such."""
        policies = {policy.prefill: policy for policy in (family.policy, *family.other_policies)}
        prefill = self.generation.prefill or family.policy.prefill
        if prefill not in policies:
            raise ConfigError(
                "generation.prefill", str(prefill), f"{family.name} has {listed(list(policies))}", "leave it out"
            )
        return policies[prefill]

    def _check_grid(self, family: Family, block_size: int) -> None:
        """Raises ConfigError if blocks could not lie on a grid that they have to lie on."""
        if not family.policy.is_anchored:
            return
        if self.generation.block_length not in (None, block_size):
            raise ConfigError("generation.block_length", self.generation.block_length, *on_grid(family, block_size))
        if block_size > self.routing.max_width:
            raise ConfigError(
                "routing.widths",
                list(self.routing.widths),
                f"must reach the checkpoint's block size, {block_size}",
                "add its width",
            )

    def _check_no_drafts(self, family: Family) -> None:
        """Raises ConfigError for what only self-speculation reads."""
        why = f"{family.name} has no self-speculation"
        if self.lora.draft_adapter not in ("auto", "none"):
            raise ConfigError("lora.draft_adapter", self.lora.draft_adapter, why, "leave it out")
        if self.generation.draft_threshold:
            raise ConfigError("generation.draft_threshold", self.generation.draft_threshold, why, "leave it out")

    def _check_runs(self, family: Family, block_size: int) -> None:
        """Raises ConfigError for what only families have that refine their blocks."""
        longest = family.policy.longest_block(block_size, self.routing.max_width)
        if longest < 1:
            limit = f"the largest must be at least {family.policy.row_width(1)}"
            raise ConfigError("routing.widths", self.routing.widths, limit, "add a wider one")
        if (self.generation.block_length or 1) > longest:
            raise ConfigError(
                "generation.block_length",
                self.generation.block_length,
                f"at most {longest}, {longest_because(family)}",
                "lower it or add a wider width",
            )
        if self.generation.threshold is None:
            raise ConfigError("generation.threshold", None, NO_SCHEDULE, "give a number")
        for name in REFINING_ONLY:
            value = getattr(self.generation, name)
            if value is not None:
                raise ConfigError(f"generation.{name}", value, ONE_FORWARD, "leave it out")
