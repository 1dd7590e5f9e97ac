"""Resolve what a request, the server file and a family say into the decode plan of the request.

Where a mode is chosen for a request: `_start_mode`, and `_permitted` for those among which the router moves it
(`routing`). Which forward its rows take in a step is `scheduling.step_plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dlm_serve.decoding import ConcreteMode, DecodePlan, Mode, ModeSettings, StopRule
from dlm_serve.errors import OptionError
from dlm_serve.families import Family
from dlm_serve.options.block_rules import rules_of
from dlm_serve.options.limits import listed, on_grid, use_one_of
from dlm_serve.options.needs import THINKING_BUDGET, Need, honours
from dlm_serve.options.request import OPTIONS_FIELD, RequestOptions
from dlm_serve.options.server_file import RoutingPolicy, ServerConfig

_FASTEST_FIRST: tuple[ConcreteMode, ...] = (Mode.SELF_SPECULATION, Mode.AUTOREGRESSIVE)
"""The modes that honour what depends on one token following another."""

_FOR_EVERY_MODE = {"mode", "shift_logits", "stop_rule", "history", "max_thinking_tokens", "end_think_token_id"}
"""Options that requests without blocks may have, too."""

_LOSSLESS = {Mode.SELF_SPECULATION: Mode.AUTOREGRESSIVE}
"""Modes whose answers are those of another mode."""


def resolve(
    options: RequestOptions,
    config: ServerConfig,
    family: Family,
    block_size: int,
    needs: Sequence[Need],
) -> DecodePlan:
    """Return the plan of a request with `options` on a checkpoint of `family` and `block_size`.

    `needs` is what it asks for besides. Raises OptionError if the options exclude each other or a need, exceed the
    server's widths, or are not the family's.
    """
    _check_shift(options, family)
    if options.max_thinking_tokens is not None:
        needs = (*needs, Need(THINKING_BUDGET, f"{OPTIONS_FIELD}.{THINKING_BUDGET}"))
    start = _start_mode(options, config.generation.mode, family, needs)
    stop_rule = _resolve_stop_rule(options, family)
    if start is Mode.AUTOREGRESSIVE:
        _refuse_block_options(options, needs)
    permitted = _permitted(start, options.mode or config.generation.mode, config, family)
    modes = [mode for mode in permitted if not _unmet(mode, needs, family)]
    _check_speculation(options, modes, family)
    settings = [_settings(mode, options, config, family, block_size) for mode in modes]
    if settings[0].block_length not in config.routing.widths:
        settings = settings[:1]  # the router knows no costs of such blocks
    elif len(settings) > 1 and config.routing.policy is RoutingPolicy.MEASURED:
        settings = [narrow for one in settings for narrow in _narrowed(one, options, config)]
    return DecodePlan(tuple(settings), stop_rule, keeps_history=options.history)


def _permitted(start: ConcreteMode, asked: Mode, config: ServerConfig, family: Family) -> tuple[ConcreteMode, ...]:
    """Return the modes in which a request may decode: where it was not asked for, also those with the same answers.

    Diffusion joins them where the server file allows other answers.
    """
    same = _LOSSLESS.get(start)
    if asked is start or same not in family.modes or config.routing.policy is RoutingPolicy.FIXED:
        return (start,)
    return (start, same, *((Mode.DIFFUSION,) if config.generation.allow_lossy else ()))


def _narrowed(settings: ModeSettings, options: RequestOptions, config: ServerConfig) -> list[ModeSettings]:
    """Return the settings with each block length or budget that the router may choose.

    Without another answer drafts may be shorter than the longest block, or be verified by the forward that makes the
    next, unless something else was asked for.
    """
    if settings.mode is not Mode.SELF_SPECULATION:
        return [settings]
    budgets = config.routing.budgets if options.budget is None else (options.budget,)
    speculating = [replace(settings, budget=budget) for budget in sorted(budgets, reverse=True)]
    if settings.budget is not None:
        return speculating or [settings]
    is_asked = options.block_length is not None or config.generation.block_length is not None
    widths = () if is_asked else config.routing.widths
    shorter = sorted({width for width in widths if 1 < width < settings.block_length}, reverse=True)
    linear = [settings, *(replace(settings, block_length=width, steps=min(settings.steps, width)) for width in shorter)]
    asks_in_turn = is_asked or bool(options.speculation or config.generation.speculation or settings.threshold)
    return linear if asks_in_turn else [*linear, *speculating]


def _check_speculation(options: RequestOptions, modes: Sequence[Mode], family: Family) -> None:
    """Refuse what only self-speculation reads where a request does not decode by it."""
    for name in ("speculation", "budget"):
        value = getattr(options, name)
        if value is not None and Mode.SELF_SPECULATION not in modes:
            limit, remedy = "only mode self_speculation has it", "leave it out"
            if Mode.SELF_SPECULATION in family.modes:
                remedy += ", or use that mode"
            raise OptionError(f"{OPTIONS_FIELD}.{name}", value, limit, remedy)


def _settings(
    mode: ConcreteMode, options: RequestOptions, config: ServerConfig, family: Family, block_size: int
) -> ModeSettings:
    """Return how the request decodes in `mode`."""
    if mode is Mode.AUTOREGRESSIVE:
        return ModeSettings(mode, block_length=1)
    algorithm = _resolve_algorithm(options, family, mode)
    block_length = _resolve_block_length(options, config, family, block_size)
    return rules_of(family).settings(options, config.generation, mode, algorithm, block_length)


def _resolve_block_length(options: RequestOptions, config: ServerConfig, family: Family, block_size: int) -> int:
    longest = family.commit.longest_block(block_size, config.routing.max_width)
    block_length = options.block_length or config.generation.block_length or min(block_size, longest)
    if block_length > longest:
        raise OptionError(
            f"{OPTIONS_FIELD}.block_length",
            block_length,
            f"at most {longest}, {rules_of(family).longest_because}",
            "lower it, or start the server with a wider one",
        )
    if family.commit.on_grid and block_length != block_size:
        raise OptionError(f"{OPTIONS_FIELD}.block_length", block_length, *on_grid(family, block_size))
    return block_length


def _start_mode(options: RequestOptions, default: Mode, family: Family, needs: Sequence[Need]) -> ConcreteMode:
    """Return the mode in which a request starts.

    `auto` and the server's default give way to what the request needs; a pinned mode does not.
    """
    asked = default if options.mode is None else options.mode
    if asked not in (Mode.AUTO, *family.modes):
        raise OptionError(f"{OPTIONS_FIELD}.mode", asked, family.refusals[asked], use_one_of(family))
    by_options = family.auto if options.diffusion_only is None else Mode.DIFFUSION
    mode = by_options if asked is Mode.AUTO else asked
    unmet = _unmet(mode, needs, family)
    if not unmet:
        return mode
    if options.mode not in (None, Mode.AUTO):
        raise OptionError(
            f"{OPTIONS_FIELD}.mode",
            str(asked),
            f"does not support {', '.join(unmet)}",
            "leave them out" + (", or use mode auto or autoregressive" if Mode.AUTOREGRESSIVE in family.modes else ""),
        )
    if options.diffusion_only is not None:
        raise OptionError(
            f"{OPTIONS_FIELD}.{options.diffusion_only}",
            getattr(options, options.diffusion_only),
            f"only mode diffusion has it, which does not support {', '.join(unmet)}",
            "leave one of them out",
        )
    fitting = [mode for mode in _FASTEST_FIRST if mode in family.modes and not _unmet(mode, needs, family)]
    if not fitting:
        raise OptionError(
            unmet[0],
            "<as sent>",
            f"needs mode autoregressive: {family.refusals[Mode.AUTOREGRESSIVE]}",
            "leave it out",
        )
    return fitting[0]


def _unmet(mode: ConcreteMode, needs: Sequence[Need], family: Family) -> list[str]:
    """Return, as the request names it, what it needs and `mode` does not honour."""
    return [need.written for need in needs if not honours(mode, need, family)]


def _check_shift(options: RequestOptions, family: Family) -> None:
    shifts = family.commit.predicts_next
    if options.shift_logits not in (None, shifts):
        raise OptionError(
            f"{OPTIONS_FIELD}.shift_logits",
            options.shift_logits,
            f"the logits of {family.name} stand for {'the next position' if shifts else 'their own positions'}",
            "leave it out",
        )


def _resolve_algorithm(options: RequestOptions, family: Family, mode: Mode) -> str | None:
    """Return one of the family's algorithms, where it has several and the mode is diffusion."""
    known = family.algorithms if mode is Mode.DIFFUSION else ()
    if options.algorithm is None:
        return known[0] if known else None
    if options.algorithm not in known:
        of = f"mode {mode} of {family.name}"
        raise OptionError(
            f"{OPTIONS_FIELD}.algorithm",
            options.algorithm,
            f"{of} has {listed(known)}" if known else f"{of} has a single algorithm",
            "use one of these" if known else "leave it out",
        )
    return options.algorithm


def _resolve_stop_rule(options: RequestOptions, family: Family) -> StopRule:
    if options.stop_rule not in (None, *family.stop_rules):
        raise OptionError(
            f"{OPTIONS_FIELD}.stop_rule",
            options.stop_rule,
            f"{family.name} has {listed(family.stop_rules)}",
            "use one of these",
        )
    return options.stop_rule or family.stop_rules[0]


def _refuse_block_options(options: RequestOptions, needs: Sequence[Need]) -> None:
    """Raise OptionError where a request that decodes without blocks says how its blocks should be."""
    for name in sorted(options.model_fields_set - _FOR_EVERY_MODE):
        because = f", which {', '.join(need.written for need in needs)} needs," if needs else ""
        raise OptionError(
            f"{OPTIONS_FIELD}.{name}",
            getattr(options, name),
            f"mode autoregressive{because} decodes without blocks",
            "leave one of them out",
        )
