"""instructor fills a model of pydantic, by a schema and by a tool."""

from __future__ import annotations

from typing import Any, Literal

import instructor
import openai
import pytest
from pydantic import BaseModel

QUESTION = "Extract name, age, city and job as JSON: Paul is a 34-year-old baker from Rome."


class Person(BaseModel):
    """Somebody."""

    name: str
    age: int
    city: str
    job: str


class Visit(BaseModel):
    """Go somewhere."""

    city: Literal["Lima", "Rome"]
    unit: Literal["C"]


WAYS: dict[str, tuple[instructor.Mode, type[BaseModel], dict[str, Any]]] = {
    "response_format": (instructor.Mode.JSON_SCHEMA, Person, {}),
    "tools": (instructor.Mode.TOOLS, Visit, {"parallel_tool_calls": False}),
}
"""By the field of a request that holds the model of pydantic."""


def ask(url: str, field: str, name: str) -> BaseModel:
    """What instructor makes of the answer to the question."""
    way, model, more = WAYS[field]
    client = instructor.from_openai(openai.OpenAI(base_url=f"{url}/v1", api_key="none"), mode=way)
    messages = [{"role": "user", "content": QUESTION}]
    found: BaseModel = client.chat.completions.create(
        model=name, messages=messages, response_model=model, max_tokens=96, temperature=0, max_retries=0, **more
    )
    return found


@pytest.mark.parametrize("mode", ["auto", "self_speculation", "autoregressive"])
@pytest.mark.parametrize("field", WAYS)
def test_a_model_of_pydantic(url: str, field: str, mode: str) -> None:
    _, model, _ = WAYS[field]
    assert isinstance(ask(url, field, f"nano:{mode}"), model)


@pytest.mark.parametrize("field", WAYS)
def test_diffusion_refuses_it(url: str, field: str) -> None:
    with pytest.raises(Exception, match=f"does not support {field}"):
        ask(url, field, "nano:diffusion")
