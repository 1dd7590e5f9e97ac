"""Validate options from outside: the types of their fields, and what is wrong with them in words."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from dlm_serve.errors import InvalidValueError, OptionError, nearest

Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)]
Width = Annotated[int, Field(ge=1, le=64, strict=True)]
Length = Annotated[int, Field(ge=0, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Nats = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]


class Frozen(BaseModel):
    """Options: they do not change, and unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


# The names that an article on such a server uses, and ours in a file and in a request.
_ARTICLE_NAMES = {
    "refinement_steps": ("generation.steps", "steps"),
    "early_stop_enabled": ("generation.convergence_threshold", "convergence_threshold"),
    "auto_switch_token_threshold": ("routing.rules.short_answer, with routing.policy: rules", "mode: auto"),
    "fallback_to_ar_on_timeout": ("routing.latency_slo_ms, which bounds steps", "mode: auto"),
    "timeout_ms": ("routing.latency_slo_ms, which bounds steps", "none: requests are not timed out"),
}

Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], raw: object, error_type: type[InvalidValueError], source: str) -> Model:
    """Return `raw` as a `model`. Raises the first thing wrong with it as an `error_type`."""
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
    """Return the fields that could stand where the last part of `location` does."""
    for part in location[:-1]:
        annotation: Any = model.model_fields[part].annotation
        model = annotation
    return list(model.model_fields)
