"""What a server file and a request may say, and how the two become the plan of one request."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from dlm_serve.decoding import ConcreteMode, Mode, Policy, Prefill
from dlm_serve.decoding.fused import WindowAlgorithm
from dlm_serve.errors import ConfigError, InvalidValueError, OptionError, nearest
from dlm_serve.families import Family

CONFIG_VARIABLE = "DLM_SERVE_CONFIG"
OPTIONS_FIELD = "custom_params.dlm"

Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)]
Width = Annotated[int, Field(ge=1, le=64, strict=True)]
Nats = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GenerationConfig(_Frozen):
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


class RoutingConfig(_Frozen):
    """Which block widths the server prepares for."""

    widths: tuple[Width, ...] = Field(default=(4, 8, 16, 32), min_length=1)
    graph_memory_gb: float = Field(default=1.1, gt=0, allow_inf_nan=False)
    """Gigabytes (1e9 bytes) for the CUDA graphs of block steps; larger steps run without one."""

    @property
    def max_width(self) -> int:
        """The largest block length that a request may ask for."""
        return max(self.widths)


class LoraConfig(_Frozen):
    """The adapter that drafts in self-speculation."""

    draft_adapter: str = "auto"
    """`auto` is `linear_spec_lora/` beside the weights if there is one; `none`; or a folder."""


class ServerConfig(_Frozen):
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
        """Raises ConfigError if this asks for what `family`, trained with `block_size`, has not."""
        mode = self.generation.mode
        if mode not in (Mode.AUTO, *family.modes):
            raise ConfigError("generation.mode", str(mode), family.refusals[mode], _use_one_of(family))
        self.policy_of(family)
        if not family.policy.refines:
            self._check_runs(family, block_size)

    def policy_of(self, family: Family) -> Policy:
        """The policy of `family` that this chooses. Raises ConfigError if it has none such."""
        policies = {policy.prefill: policy for policy in (family.policy, *family.other_policies)}
        prefill = self.generation.prefill or family.policy.prefill
        if prefill not in policies:
            raise ConfigError(
                "generation.prefill", str(prefill), f"{family.name} has {_listed(list(policies))}", "leave it out"
            )
        return policies[prefill]

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
                f"at most {longest}, {_longest_because(family)}",
                "lower it or add a wider width",
            )
        if self.generation.threshold is None:
            raise ConfigError("generation.threshold", None, "there is no fixed schedule", "give a number")
        for name in ("steps", "convergence_threshold"):
            if getattr(self.generation, name) is not None:
                value = getattr(self.generation, name)
                raise ConfigError(f"generation.{name}", value, "each block takes one forward", "leave it out")


class RequestOptions(_Frozen):
    """`custom_params.dlm` of a request. Absent and null are different."""

    mode: Mode | None = None
    algorithm: str | None = None
    """Within mode diffusion, one of the family's; None is its default."""
    block_length: Width | None = None
    threshold: Probability | None = None
    steps: Width | None = None
    convergence_threshold: Nats | None = None
    shift_logits: bool | None = None
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


class DecodePlan(_Frozen):
    """How one request decodes, with nothing left open. Travels to the scheduler in place of the options."""

    mode: ConcreteMode
    block_length: int
    threshold: float | None
    steps: int
    convergence_threshold: float | None
    algorithm: str | None = None
    """One of the family's, None where it has no choice."""

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
        defaults = config.generation
        mode = _resolve_mode(options, defaults.mode, family, autoregressive_only)
        if mode is Mode.AUTOREGRESSIVE:
            _refuse_block_options(options, autoregressive_only)
            return cls(mode=mode, block_length=1, threshold=None, steps=1, convergence_threshold=None)
        algorithm = _resolve_algorithm(options, family, mode)
        longest = family.policy.longest_block(block_size, config.routing.max_width)
        block_length = options.block_length or defaults.block_length or min(block_size, longest)
        if block_length > longest:
            raise OptionError(
                f"{OPTIONS_FIELD}.block_length",
                block_length,
                f"at most {longest}, {_longest_because(family)}",
                "lower it, or start the server with a wider one",
            )
        if not family.policy.refines:
            threshold = _threshold_of_runs(options, defaults, algorithm)
            return cls(
                mode=mode,
                block_length=block_length,
                threshold=threshold,
                steps=1,
                convergence_threshold=None,
                algorithm=algorithm,
            )
        given = options.model_fields_set
        threshold = options.threshold if "threshold" in given else _default_threshold(options, defaults, mode)
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
        convergence = "convergence_threshold"
        return cls(
            mode=mode,
            block_length=block_length,
            threshold=threshold,
            steps=steps or block_length,
            convergence_threshold=getattr(options if convergence in given else defaults, convergence),
            algorithm=algorithm,
        )


def _longest_because(family: Family) -> str:
    if family.policy.refines:
        return "the largest of the server's routing.widths"
    return "twice the checkpoint's block_size and half the largest of the server's routing.widths, whichever is less"


def _threshold_of_runs(options: RequestOptions, defaults: GenerationConfig, algorithm: str | None) -> float | None:
    """The threshold of a family whose blocks are not refined. Raises OptionError for what only refining has."""
    for name in ("steps", "convergence_threshold"):
        if getattr(options, name) is not None:
            raise OptionError(
                f"{OPTIONS_FIELD}.{name}", getattr(options, name), "each block takes one forward", "leave it out"
            )
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
            "there is no fixed schedule: a block is cut where its confidence ends",
            "give a number (1 takes one token at a time)",
        )
    return options.threshold if is_given else defaults.threshold


def _default_threshold(options: RequestOptions, defaults: GenerationConfig, mode: Mode) -> float | None:
    if options.steps is not None:
        return None
    return defaults.draft_threshold if mode is Mode.SELF_SPECULATION else defaults.threshold


def _resolve_mode(
    options: RequestOptions, default: Mode, family: Family, autoregressive_only: Sequence[str]
) -> ConcreteMode:
    """A concrete mode. `auto` and the server's default give way to what the request needs; a pinned mode does not."""
    mode = default if options.mode is None else options.mode
    if mode not in (Mode.AUTO, *family.modes):
        raise OptionError(f"{OPTIONS_FIELD}.mode", str(mode), family.refusals[mode], _use_one_of(family))
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
            f"{of} has {_listed(known)}" if known else f"{of} has a single algorithm",
            "use one of these" if known else "leave it out",
        )
    return options.algorithm


def _use_one_of(family: Family) -> str:
    return f"use {_listed((Mode.AUTO, *family.modes))}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(str(name) for name in names)


def _refuse_block_options(options: RequestOptions, autoregressive_only: Sequence[str]) -> None:
    """Raises OptionError where a request that decodes without blocks says how its blocks should be."""
    for name in sorted(options.model_fields_set - {"mode", "shift_logits"}):
        because = f", which {', '.join(autoregressive_only)} needs" if autoregressive_only else ""
        raise OptionError(
            f"{OPTIONS_FIELD}.{name}",
            getattr(options, name),
            f"mode autoregressive{because} decodes without blocks",
            "leave one of them out",
        )


# The names that an article on such a server uses, and ours in a file and in a request.
_ARTICLE_NAMES = {
    "refinement_steps": ("generation.steps", "steps"),
    "early_stop_enabled": ("generation.convergence_threshold", "convergence_threshold"),
    "auto_switch_token_threshold": ("generation.mode: auto", "mode: auto"),
    "fallback_to_ar_on_timeout": ("generation.mode: auto", "mode: auto"),
    "timeout_ms": ("none: requests are not timed out",) * 2,
}

Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], raw: object, error_type: type[InvalidValueError], source: str) -> Model:
    """`raw` as a `model`, or the first thing wrong with it as an `error_type`."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise _explain(error.errors()[0], model, error_type, source) from None


def _explain(
    detail: ErrorDetails, model: type[BaseModel], error_type: type[InvalidValueError], source: str
) -> InvalidValueError:
    location = [part for part in detail["loc"] if isinstance(part, str)]
    field = ".".join([source, *location])
    if detail["type"] == "extra_forbidden":
        ours = _ARTICLE_NAMES.get(name := location[-1])
        in_request = error_type is OptionError
        remedy = f"ours is {ours[in_request]}" if ours else nearest(name, _fields(model, location))
        return error_type(field, detail["input"], "unknown option", remedy)
    message = "must be a mapping of options" if detail["type"] == "model_type" else detail["msg"]
    return error_type(field, detail["input"], message[0].lower() + message[1:], "correct it or leave it out")


def _fields(model: type[BaseModel], location: list[str]) -> list[str]:
    """The fields that could stand where the last part of `location` does."""
    for part in location[:-1]:
        annotation: Any = model.model_fields[part].annotation
        model = annotation
    return list(model.model_fields)
