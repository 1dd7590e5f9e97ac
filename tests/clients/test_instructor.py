"""instructor fills a model of pydantic, by a schema and by a tool."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import instructor
import openai
import pytest
from instructor.dsl.partial import PartialLiteralMixin
from pydantic import BaseModel

QUESTION = "Extract name, age, city and job as JSON: Paul is a 34-year-old baker from Rome."


class Person(BaseModel):
    """Somebody."""

    name: str
    age: int
    city: str
    job: str


class Visit(BaseModel, PartialLiteralMixin):
    """Go somewhere, as far as it is known."""

    city: Literal["Lima", "Rome"]
    unit: Literal["C"]


WAYS: dict[str, tuple[instructor.Mode, type[BaseModel], dict[str, Any]]] = {
    "response_format": (instructor.Mode.JSON_SCHEMA, Person, {}),
    "tools": (instructor.Mode.TOOLS, Visit, {"parallel_tool_calls": False}),
}
"""By the field of a request that holds the model of pydantic."""


def completions(url: str, field: str) -> Any:
    """What instructor asks by the `field` with."""
    return instructor.from_openai(
        openai.OpenAI(base_url=f"{url}/v1", api_key="none"), mode=WAYS[field][0]
    ).chat.completions


def arguments(field: str, name: str) -> dict[str, Any]:
    """What it is asked, of the model `name`."""
    _, model, more = WAYS[field]
    messages = [{"role": "user", "content": QUESTION}]
    common = {"max_tokens": 96, "temperature": 0, "max_retries": 0}
    return {"model": name, "messages": messages, "response_model": model, **common, **more}


def ask(url: str, field: str, name: str) -> BaseModel:
    """What instructor makes of the answer to the question."""
    found: BaseModel = completions(url, field).create(**arguments(field, name))
    return found


@pytest.mark.parametrize("mode", ["auto", "self_speculation", "autoregressive"])
@pytest.mark.parametrize("field", WAYS)
def test_a_model_of_pydantic(url: str, field: str, mode: str) -> None:
    _, model, _ = WAYS[field]
    assert isinstance(ask(url, field, f"nano:{mode}"), model)


@pytest.mark.parametrize("field", WAYS)
def test_a_model_that_fills_while_it_streams(url: str, field: str) -> None:
    """Each has what the one before had, and the last is the whole one."""
    name = "nano:self_speculation"
    found = [partial.model_dump() for partial in completions(url, field).create_partial(**arguments(field, name))]
    assert found[-1] == ask(url, field, name).model_dump()
    filled = [{key for key, value in partial.items() if value is not None} for partial in found]
    assert all(later >= earlier for earlier, later in pairwise(filled))
    assert len(filled[0]) < len(filled[-1])


@pytest.mark.parametrize("field", WAYS)
def test_diffusion_refuses_it(url: str, field: str) -> None:
    with pytest.raises(Exception, match=f"does not support {field}"):
        ask(url, field, "nano:diffusion")
