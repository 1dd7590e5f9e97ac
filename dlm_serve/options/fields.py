"""Validate options from outside: the types of their fields, and what is wrong with them in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from dlm_serve.errors import InvalidValueError, OptionError, nearest
from dlm_serve.options.article_names import Renamed, renamed_options

Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)]
MAX_BUDGET = 192
Budget = Annotated[int, Field(ge=8, le=MAX_BUDGET, strict=True)]
Width = Annotated[int, Field(ge=1, le=64, strict=True)]
Length = Annotated[int, Field(ge=0, le=(1 << 31) - 1, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Nats = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]


class Frozen(BaseModel):
    """Options: they do not change, and unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], raw: object, error_type: type[InvalidValueError], source: str) -> Model:
    """Return `raw` as a `model`.

    Raises an `error_type` that says the first thing wrong with it, or all options that an article names otherwise.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        details = error.errors()
    if renamed := [found for detail in details if _is_unknown(detail) for found in _renamed(detail)]:
        raise _answer(renamed, error_type, source)
    raise _explain(details[0], model, error_type, source)


def _answer(renamed: list[Renamed], error_type: type[InvalidValueError], source: str) -> InvalidValueError:
    """Return a refusal of the first of these options that has our names for all of them."""
    names = [found.ours.in_request if error_type is OptionError else found.ours.in_file for found in renamed]
    others = [f"for {'.'.join(found.location)} it is {name}" for found, name in zip(renamed, names, strict=True)]
    field = ".".join((source, *renamed[0].location))
    return error_type(field, renamed[0].value, "unknown option", "; ".join((f"ours is {names[0]}", *others[1:])))


def _explain(
    detail: ErrorDetails, model: type[BaseModel], error_type: type[InvalidValueError], source: str
) -> InvalidValueError:
    location = _location(detail)
    field = ".".join((source, *location))
    if _is_unknown(detail):
        return error_type(field, detail["input"], "unknown option", nearest(location[-1], _fields(model, location)))
    message = "must be a mapping of options" if detail["type"] == "model_type" else detail["msg"]
    return error_type(field, detail["input"], message[0].lower() + message[1:], "correct it or leave it out")


def _is_unknown(detail: ErrorDetails) -> bool:
    return detail["type"] == "extra_forbidden"


def _renamed(detail: ErrorDetails) -> Iterator[Renamed]:
    return renamed_options(_location(detail), detail["input"])


def _location(detail: ErrorDetails) -> tuple[str, ...]:
    return tuple(part for part in detail["loc"] if isinstance(part, str))


def _fields(model: type[BaseModel], location: tuple[str, ...]) -> list[str]:
    """Return the fields that could stand where the last part of `location` does."""
    for part in location[:-1]:
        annotation: Any = model.model_fields[part].annotation
        model = annotation
    return list(model.model_fields)
