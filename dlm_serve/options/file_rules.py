"""Check a server file against the checkpoint that it is for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dlm_serve.decoding import CausalCommit, Commit, Mode, Speculation
from dlm_serve.errors import ConfigError
from dlm_serve.families import Family
from dlm_serve.options.block_rules import rules_of
from dlm_serve.options.fields import Frozen
from dlm_serve.options.limits import listed, on_grid, use_one_of
from dlm_serve.options.server_file import RoutingPolicy, ServerConfig


def check_file(config: ServerConfig, family: Family, block_size: int) -> None:
    """Raise ConfigError if `config` asks for what a checkpoint of `family` and `block_size` does not have."""
    mode = config.generation.mode
    if mode not in (Mode.AUTO, *family.modes):
        raise ConfigError("generation.mode", mode, family.refusals[mode], use_one_of(family))
    if family.commit.on_grid:
        _check_grid(config, family, block_size)
    if Mode.SELF_SPECULATION not in family.modes:
        _check_no_drafts(config, family)
    _check_speculation(config)
    _check_routing(config, family)
    commit_of(config, family)
    rules_of(family).check_file(config, block_size)


def commit_of(config: ServerConfig, family: Family) -> Commit:
    """Return the way to commit of `family` that `config` chooses. Raises ConfigError if it has none such."""
    commits = {commit.prompt_mask: commit for commit in (family.commit, *family.other_commits)}
    mask = config.generation.prefill or family.commit.prompt_mask
    if mask not in commits:
        raise ConfigError("generation.prefill", mask, f"{family.name} has {listed(list(commits))}", "leave it out")
    commit = commits[mask]
    return replace(commit, group_form=config.generation.group_form) if isinstance(commit, CausalCommit) else commit


def _check_grid(config: ServerConfig, family: Family, block_size: int) -> None:
    """Raise ConfigError if blocks could not lie on the grid that they have to lie on."""
    if config.generation.block_length not in (None, block_size):
        raise ConfigError("generation.block_length", config.generation.block_length, *on_grid(family, block_size))
    if block_size > config.routing.max_width:
        raise ConfigError(
            "routing.widths",
            list(config.routing.widths),
            f"must include a width of at least the checkpoint's block size, {block_size}",
            "add one",
        )


_READ_BY = {
    "hysteresis": RoutingPolicy.MEASURED,
    "trial_share": RoutingPolicy.MEASURED,
    "latency_slo_ms": RoutingPolicy.MEASURED,
    "rules": RoutingPolicy.RULES,
}
"""Options of `routing`, and the policy that reads each."""


def _check_routing(config: ServerConfig, family: Family) -> None:
    """Raise ConfigError for what nothing would read: options of another policy, or of any where none moves requests."""
    routing, given = config.routing, config.routing.model_fields_set
    if Mode.SELF_SPECULATION not in family.modes:
        why = f"requests with mode auto always decode by {family.auto} with {family.name}"
        if config.generation.allow_lossy:
            raise ConfigError("generation.allow_lossy", True, why, "leave it out")
        for name in sorted(given & {"policy", *_READ_BY}):
            raise ConfigError(f"routing.{name}", _plain(getattr(routing, name)), why, "leave it out")
    if config.generation.allow_lossy and routing.policy is RoutingPolicy.FIXED:
        raise ConfigError("generation.allow_lossy", True, "routing.policy fixed moves no request", "leave one out")
    for name in sorted(given & _READ_BY.keys()):
        if _READ_BY[name] is not routing.policy:
            why = f"only routing.policy {_READ_BY[name]} reads it, and the policy is {routing.policy}"
            raise ConfigError(f"routing.{name}", _plain(getattr(routing, name)), why, "leave it out")


def _plain(value: Any) -> Any:
    """Return an option as the file says it."""
    return value.model_dump(mode="json") if isinstance(value, Frozen) else value


_ONLY_TO_SPECULATE = ("speculation", "budget", "group_form")
"""Options of `generation` that only self-speculation reads."""


def _check_speculation(config: ServerConfig) -> None:
    """Raise ConfigError for drafts that one forward does not make."""
    generation = config.generation
    if generation.speculation is Speculation.ONE_FORWARD and generation.draft_threshold:
        limit, remedy = "speculation one_forward drafts all masks at once", "leave it out, or use speculation linear"
        raise ConfigError("generation.draft_threshold", generation.draft_threshold, limit, remedy)


def _check_no_drafts(config: ServerConfig, family: Family) -> None:
    """Raise ConfigError for what only self-speculation reads."""
    why = f"{family.name} has no self-speculation"
    if config.lora.draft_adapter not in ("auto", "none"):
        raise ConfigError("lora.draft_adapter", config.lora.draft_adapter, why, "leave it out")
    if config.generation.draft_threshold:
        raise ConfigError("generation.draft_threshold", config.generation.draft_threshold, why, "leave it out")
    for section, names in (("generation", _ONLY_TO_SPECULATE), ("routing", ("budgets",))):
        options = getattr(config, section)
        for name in names:
            if name in options.model_fields_set:
                value = getattr(options, name)
                raise ConfigError(f"{section}.{name}", value, why, "leave it out")
