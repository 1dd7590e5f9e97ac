"""What a request may ask for, and how that and the server file become the plan of its decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dlm_serve.config import GenerationConfig, ServerConfig
from dlm_serve.decoding import ConcreteMode, Mode, StopRule, Unmasking
from dlm_serve.decoding.fused import WindowAlgorithm
from dlm_serve.errors import OptionError
from dlm_serve.families import Family
from dlm_serve.limits import NO_SCHEDULE, ONE_FORWARD, REFINING_ONLY, listed, longest_because, on_grid, use_one_of
from dlm_serve.validation import Flag, Frozen, Nats, Probability, Width, validate

OPTIONS_FIELD = "custom_params.dlm"


class RequestOptions(Frozen):
    """`custom_params.dlm` of a request. Absent and null are different."""

    mode: Mode | None = None
    algorithm: str | None = None
    """Within mode diffusion, one of the family's; None is its default."""
    block_length: Width | None = None
    threshold: Probability | None = None
    steps: Width | None = None
    convergence_threshold: Nats | None = None
    stop_rule: StopRule | None = None
    """One of the family's; None is its default."""
    shift_logits: Flag | None = None
    """As on Efficient-DLM's card; only what the family does in any case."""

    @property
    def wants_diffusion(self) -> bool:
        """Whether they ask for what only diffusion has: its fixed schedule, or stopping by convergence."""
        has_threshold = "threshold" in self.model_fields_set
        wants_schedule = self.threshold is None if has_threshold else self.steps is not None
        return wants_schedule or self.convergence_threshold is not None

    @classmethod
    def parse(cls, raw: object) -> RequestOptions:
        """The options in `raw`, a mapping or None. Raises OptionError."""
        return validate(cls, {} if raw is None else raw, OptionError, OPTIONS_FIELD)


class DecodePlan(Frozen):
    """How one request decodes, with nothing left open. Travels to the scheduler in place of the options."""

    mode: ConcreteMode
    block_length: int
    threshold: float | None = None
    steps: int = 1
    convergence_threshold: float | None = None
    algorithm: str | None = None
    """One of the family's, None where it has no choice."""
    stop_rule: StopRule = StopRule.EOS

    @property
    def is_shuffled(self) -> bool:
        """Whether the masks that a forward fills are random ones."""
        return self.algorithm == Unmasking.FIRST_HITTING

    @property
    def verifies_windows(self) -> bool:
        """Whether a window behind each token of its drafts says how many are taken."""
        return self.algorithm == WindowAlgorithm.SELF_SPECULATIVE

    @classmethod
    def resolve(
        cls,
        options: RequestOptions,
        config: ServerConfig,
        family: Family,
        block_size: int,
        autoregressive_only: Sequence[str],
    ) -> DecodePlan:
        """The plan of a request with `options` on a checkpoint of `family` and `block_size`.

        `autoregressive_only` names what the request asks for that only the autoregressive mode honours.
        Raises OptionError if the options exclude each other, exceed the server's widths, or are not the family's.
        """
        _check_shift(options, family)
        mode = _resolve_mode(options, config.generation.mode, family, autoregressive_only)
        stop_rule = _resolve_stop_rule(options, family)
        if mode is Mode.AUTOREGRESSIVE:
            _refuse_block_options(options, autoregressive_only)
            return cls(mode=mode, block_length=1, stop_rule=stop_rule)
        algorithm = _resolve_algorithm(options, family, mode)
        block_length = _resolve_block_length(options, config, family, block_size)
        if family.policy.refines:
            is_scheduled = algorithm in family.scheduled
            refinement = _resolve_refinement(options, config.generation, mode, is_scheduled, block_length)
        else:
            refinement = _Refinement(_resolve_threshold_of_runs(options, config.generation, algorithm))
        return cls(
            mode=mode,
            block_length=block_length,
            algorithm=algorithm,
            stop_rule=stop_rule,
            **refinement._asdict(),
        )


class _Refinement(NamedTuple):
    """How a block's tokens are fixed; the fields are the plan's."""

    threshold: float | None
    steps: int = 1
    convergence_threshold: float | None = None


def _resolve_block_length(options: RequestOptions, config: ServerConfig, family: Family, block_size: int) -> int:
    longest = family.policy.longest_block(block_size, config.routing.max_width)
    block_length = options.block_length or config.generation.block_length or min(block_size, longest)
    if block_length > longest:
        raise OptionError(
            f"{OPTIONS_FIELD}.block_length",
            block_length,
            f"at most {longest}, {longest_because(family)}",
            "lower it, or start the server with a wider one",
        )
    if family.policy.is_anchored and block_length != block_size:
        raise OptionError(f"{OPTIONS_FIELD}.block_length", block_length, *on_grid(family, block_size))
    return block_length


def _resolve_refinement(
    options: RequestOptions, defaults: GenerationConfig, mode: Mode, is_scheduled: bool, block_length: int
) -> _Refinement:
    """That of a family whose blocks take several forwards."""
    given = options.model_fields_set
    threshold = _resolve_threshold(options, defaults, mode, is_scheduled)
    if mode is Mode.SELF_SPECULATION and threshold is None:
        name = "threshold" if "threshold" in given else "steps"
        raise OptionError(
            f"{OPTIONS_FIELD}.{name}",
            getattr(options, name),
            "self_speculation drafts by confidence and has no fixed schedule",
            "give a threshold (0 drafts in one forward), or use mode diffusion",
        )
    steps = options.steps if "steps" in given else defaults.steps and min(defaults.steps, block_length)
    if steps is not None and steps > block_length:
        raise OptionError(
            f"{OPTIONS_FIELD}.steps",
            steps,
            f"at most the block length, {block_length}",
            "lower it, or raise block_length",
        )
    converges = options if "convergence_threshold" in given else defaults
    return _Refinement(threshold, steps or block_length, converges.convergence_threshold)


def _resolve_threshold_of_runs(
    options: RequestOptions, defaults: GenerationConfig, algorithm: str | None
) -> float | None:
    """The threshold of a family whose blocks are not refined. Raises OptionError for what only refining has."""
    for name in REFINING_ONLY:
        value = getattr(options, name)
        if value is not None:
            raise OptionError(f"{OPTIONS_FIELD}.{name}", value, ONE_FORWARD, "leave it out")
    is_given = "threshold" in options.model_fields_set
    if algorithm == WindowAlgorithm.SELF_SPECULATIVE:
        if is_given:
            raise OptionError(
                f"{OPTIONS_FIELD}.threshold",
                options.threshold,
                "self_speculative verifies its drafts and has no threshold",
                "leave it out, or use another algorithm",
            )
        return None
    if is_given and options.threshold is None:
        raise OptionError(
            f"{OPTIONS_FIELD}.threshold",
            None,
            NO_SCHEDULE,
            "give a number (1 takes one token at a time)",
        )
    return options.threshold if is_given else defaults.threshold


def _resolve_threshold(
    options: RequestOptions, defaults: GenerationConfig, mode: Mode, is_scheduled: bool
) -> float | None:
    """The confidence at which tokens are fixed, None for a fixed schedule."""
    if is_scheduled and options.threshold is not None:
        raise OptionError(
            f"{OPTIONS_FIELD}.threshold",
            options.threshold,
            "the algorithm fixes as many tokens per forward as its schedule says",
            "leave it out, or use algorithm threshold",
        )
    if "threshold" in options.model_fields_set:
        return options.threshold
    if is_scheduled or (options.steps is not None and options.algorithm is None):
        return None
    return defaults.draft_threshold if mode is Mode.SELF_SPECULATION else defaults.threshold


def _resolve_mode(
    options: RequestOptions, default: Mode, family: Family, autoregressive_only: Sequence[str]
) -> ConcreteMode:
    """A concrete mode. `auto` and the server's default give way to what the request needs; a pinned mode does not."""
    mode = default if options.mode is None else options.mode
    if mode not in (Mode.AUTO, *family.modes):
        raise OptionError(f"{OPTIONS_FIELD}.mode", str(mode), family.refusals[mode], use_one_of(family))
    if not autoregressive_only:
        if mode is not Mode.AUTO:
            return mode
        return Mode.DIFFUSION if options.wants_diffusion else family.auto
    if Mode.AUTOREGRESSIVE not in family.modes:
        raise OptionError(
            autoregressive_only[0],
            "<as sent>",
            f"needs mode autoregressive: {family.refusals[Mode.AUTOREGRESSIVE]}",
            "leave it out",
        )
    if options.mode not in (None, Mode.AUTO, Mode.AUTOREGRESSIVE):
        raise OptionError(
            f"{OPTIONS_FIELD}.mode",
            str(mode),
            f"cannot honour {', '.join(autoregressive_only)}",
            "leave that out, or use mode auto or autoregressive",
        )
    return Mode.AUTOREGRESSIVE


def _check_shift(options: RequestOptions, family: Family) -> None:
    shifts = family.policy.shifts_logits
    if options.shift_logits not in (None, shifts):
        raise OptionError(
            f"{OPTIONS_FIELD}.shift_logits",
            options.shift_logits,
            f"the logits of {family.name} stand for {'the next position' if shifts else 'their own positions'}",
            "leave it out",
        )


def _resolve_algorithm(options: RequestOptions, family: Family, mode: Mode) -> str | None:
    """One of the family's algorithms, where it has several and the mode is diffusion."""
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
            str(options.stop_rule),
            f"{family.name} has {listed(family.stop_rules)}",
            "use one of these",
        )
    return options.stop_rule or family.stop_rules[0]


def _refuse_block_options(options: RequestOptions, autoregressive_only: Sequence[str]) -> None:
    """Raises OptionError where a request that decodes without blocks says how its blocks should be."""
    for name in sorted(options.model_fields_set - {"mode", "shift_logits", "stop_rule"}):
        because = f", which {', '.join(autoregressive_only)} needs," if autoregressive_only else ""
        raise OptionError(
            f"{OPTIONS_FIELD}.{name}",
            getattr(options, name),
            f"mode autoregressive{because} decodes without blocks",
            "leave one of them out",
        )
