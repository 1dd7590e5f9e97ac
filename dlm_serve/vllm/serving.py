"""What an engine serves: the checkpoint, and the server file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from dlm_serve.decoding import Commit, Speculation, TokenChoice
from dlm_serve.errors import ConfigError
from dlm_serve.models.checkpoint import Checkpoint
from dlm_serve.options.file_rules import check_file, commit_of
from dlm_serve.options.server_file import RoutingPolicy, ServerConfig, path_of


@dataclass(frozen=True)
class Serving:
    """A checkpoint of ours with the configuration it is served under."""

    checkpoint: Checkpoint
    config: ServerConfig

    @cached_property
    def commit(self) -> Commit:
        """Return how its family commits, as the configuration chooses."""
        return commit_of(self.config, self.checkpoint.family)

    @cached_property
    def token_choice(self) -> TokenChoice:
        """Return its family's rules for choosing tokens."""
        return self.checkpoint.family.token_choice(self.checkpoint.mask_token_id)

    @property
    def width(self) -> int:
        """Return the most tokens of a row."""
        return self.config.routing.max_width


def serving_of(model_config: Any) -> Serving:
    """Return what vLLM's ModelConfig asks to serve. Raises CheckpointError or ConfigError if it cannot be served."""
    return _serving(model_config.model, model_config.revision)


@lru_cache(8)
def _serving(model: str, revision: str | None) -> Serving:
    checkpoint = Checkpoint.find(model, revision)
    if checkpoint is None:
        raise ConfigError("--model", model, "is no checkpoint that dlm-serve knows", "complete its config.json")
    config = ServerConfig.load(path_of(None))
    check_file(config, checkpoint.family, checkpoint.block_size)
    if config.generation.speculation is Speculation.ONE_FORWARD:
        limit = "not supported on vLLM"
        raise ConfigError("generation.speculation", Speculation.ONE_FORWARD, limit, "leave it out, or use linear")
    # Nothing moves requests from one mode to another here: each decodes to its end as it starts.
    routing = config.routing.model_copy(update={"policy": RoutingPolicy.FIXED})
    return Serving(checkpoint, config.model_copy(update={"routing": routing}))
