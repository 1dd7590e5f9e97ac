"""Hold what this process serves: the checkpoint and the server's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version

from pydantic import BaseModel, ConfigDict

import dlm_serve
from dlm_serve.decoding import AUTOREGRESSIVELY, Choice, Commit, Mode, TokenChoice
from dlm_serve.errors import ConfigError
from dlm_serve.models.checkpoint import Checkpoint
from dlm_serve.options.file_rules import check_file, commit_of
from dlm_serve.options.misplaced import OPTIONS_KEY
from dlm_serve.options.request_rules import RequestRules
from dlm_serve.options.server_file import ServerConfig, path_of
from dlm_serve.sglang.protocols import ServerArgsLike

PIN = "dlm_pin"
"""The name under which a control request carries a number of `Serving.pins`."""


STATISTICS_KEY = "dlm"
"""Where in an answer's `meta_info` its statistics are."""


class Described(BaseModel):
    """What a server says of what it serves."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    version: str
    """Of dlm-serve."""
    sglang_version: str
    family: str
    modes: list[Mode]
    """Those of the family; the first is what `auto` begins with."""
    threshold_algorithm: str | None
    """The `algorithm` of diffusion that a threshold needs; null where the default knows one."""
    block_size: int
    """Tokens of a block that the checkpoint was trained with."""
    mask_token_id: int
    """The mask in `meta_info.dlm.history`."""
    draft_adapter: str | None
    """The folder of the adapter that drafts in self-speculation; null where none does."""
    options: ServerConfig
    """The server file in force, with all defaults."""
    origins: dict[str, str]
    """Where each of the options is from: a server file, or a default."""


@dataclass(frozen=True)
class Serving:
    """A checkpoint of ours with the configuration it is served under."""

    checkpoint: Checkpoint
    config: ServerConfig
    config_path: str | None = None
    """The server file; None where there is none."""

    @cached_property
    def commit(self) -> Commit:
        """Return how its family commits, as the configuration chooses."""
        return commit_of(self.config, self.checkpoint.family)

    @cached_property
    def token_choice(self) -> TokenChoice:
        """Return its family's rules for choosing tokens."""
        return self.checkpoint.family.token_choice(self.checkpoint.mask_token_id)

    @cached_property
    def widths(self) -> list[int]:
        """Return the tokens of a row for which the server prepares, ascending."""
        return self.commit.usable_widths(self.checkpoint.block_size, self.config.routing.widths)

    @cached_property
    def budgets(self) -> list[int]:
        """Return the same of rows that speculate in one forward; none in families that do not."""
        speculates = Mode.SELF_SPECULATION in self.checkpoint.family.modes
        return sorted({*self.config.routing.budgets, self.config.generation.budget}) if speculates else []

    @cached_property
    def choices(self) -> tuple[Choice, ...]:
        """Return the ways to decode blocks among which the router chooses; none if it has nothing to choose."""
        plan = self.request_rules.plan({"custom_params": {OPTIONS_KEY: {"mode": "auto"}}})  # whatever the default is
        return tuple(s.choice for s in plan.permitted if s.mode is not Mode.AUTOREGRESSIVE) if plan.is_free else ()

    @cached_property
    def pins(self) -> tuple[Choice | None, ...]:
        """Return what the router may be pinned to, for control requests that carry numbers; None releases it."""
        return (None, AUTOREGRESSIVELY, *self.choices)

    @cached_property
    def request_rules(self) -> RequestRules:
        """Return what requests may ask for."""
        return RequestRules(
            config=self.config,
            family=self.checkpoint.family,
            commit=self.commit,
            block_size=self.checkpoint.block_size,
            vocab_size=self.checkpoint.vocab_size,
            mask_token_id=self.checkpoint.mask_token_id,
            end_think_token_id=self.checkpoint.token_id("</think>"),
        )

    def report(self) -> Described:
        """Return what is served, and with which options."""
        family = self.checkpoint.family
        adapter = self.checkpoint.draft_adapter(self.config.lora.draft_adapter)
        return Described(
            version=dlm_serve.__version__,
            sglang_version=version("sglang"),
            family=family.name,
            modes=list(family.modes),
            threshold_algorithm=family.threshold_algorithm,
            block_size=self.checkpoint.block_size,
            mask_token_id=self.checkpoint.mask_token_id,
            draft_adapter=None if adapter is None else str(adapter),
            options=self.config,
            origins=self.config.origins(self.config_path),
        )


_current: Serving | None = None


def find_serving(server_args: ServerArgsLike) -> Serving | None:
    """Return what SGLang's `server_args` ask to serve, kept for `current`; None if it is no model of ours.

    Raises CheckpointError or ConfigError if it is one that cannot be served.
    """
    global _current
    checkpoint = Checkpoint.find(server_args.model_path, server_args.revision)
    if checkpoint is None:
        _current = None
        return None
    path = path_of(server_args.dllm_algorithm_config)
    config = ServerConfig.load(path)
    check_file(config, checkpoint.family, checkpoint.block_size)
    if server_args.device == "cpu":
        config = config.without_a_gpu()
    _current = Serving(checkpoint, config, path)
    return _current


def load_serving(server_args: ServerArgsLike) -> Serving:
    """Return the same where it must be ours. Raises ConfigError if it is not."""
    serving = find_serving(server_args)
    if serving is None:
        raise ConfigError(
            "--speculative-algorithm", "DLM", "is only for diffusion language models", "leave it out for other models"
        )
    return serving


def current() -> Serving:
    """Return what this process serves, for SGLang's callbacks that are handed no server arguments."""
    if _current is None:
        raise RuntimeError("no model is loaded in this process yet")
    return _current
