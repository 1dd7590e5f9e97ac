"""What this process serves: the checkpoint and the server's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dlm_serve.config import ServerConfig
from dlm_serve.decoding import Policy, Prefill
from dlm_serve.errors import ConfigError
from dlm_serve.models.checkpoint import Checkpoint
from dlm_serve.options.request_rules import RequestRules


@dataclass(frozen=True)
class Serving:
    """A checkpoint of ours with the configuration it is served under."""

    checkpoint: Checkpoint
    config: ServerConfig

    @cached_property
    def policy(self) -> Policy:
        """How its family decodes, as the configuration chooses."""
        return self.config.policy_of(self.checkpoint.family)

    @cached_property
    def request_rules(self) -> RequestRules:
        """Return what requests may ask for."""
        return RequestRules(
            config=self.config,
            family=self.checkpoint.family,
            block_size=self.checkpoint.block_size,
            vocab_size=self.checkpoint.vocab_size,
            mask_token_id=self.checkpoint.mask_token_id,
            allows_mask=not self.policy.is_anchored,
            encodes_whole_prompts=self.policy.prefill is Prefill.BIDIRECTIONAL,
        )


_current: Serving | None = None


def find_serving(server_args: Any) -> Serving | None:
    """What SGLang's `server_args` ask to serve, kept for `current`; None if it is no model of ours.

    Raises CheckpointError or ConfigError if it is one that cannot be served.
    """
    global _current
    checkpoint = Checkpoint.find(server_args.model_path, server_args.revision)
    if checkpoint is None:
        _current = None
        return None
    config = ServerConfig.load(server_args.dllm_algorithm_config)
    config.check(checkpoint.family, checkpoint.block_size)
    _current = Serving(checkpoint, config)
    return _current


def load_serving(server_args: Any) -> Serving:
    """The same where it must be ours. Raises ConfigError if it is not."""
    serving = find_serving(server_args)
    if serving is None:
        raise ConfigError(
            "--speculative-algorithm", "DLM", "serves diffusion language models only", "leave it out for other models"
        )
    return serving


def current() -> Serving:
    """What this process serves, for SGLang's callbacks that are handed no server arguments."""
    if _current is None:
        raise RuntimeError("nothing is served in this process yet")
    return _current
