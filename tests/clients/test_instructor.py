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


WAYS: list[tuple[instructor.Mode, type[BaseModel], dict[str, Any], str]] = [
    (instructor.Mode.JSON_SCHEMA, Person, {}, "response_format"),
    (instructor.Mode.TOOLS, Visit, {"parallel_tool_calls": False}, "tools"),
]
way_table = pytest.mark.parametrize(("way", "model", "more", "field"), WAYS, ids=["schema", "tool"])


def ask(url: str, way: instructor.Mode, model: type[BaseModel], name: str, **more: Any) -> BaseModel:
    """What instructor makes of the answer to the question."""
    client = instructor.from_openai(openai.OpenAI(base_url=f"{url}/v1", api_key="none"), mode=way)
    messages = [{"role": "user", "content": QUESTION}]
    found: BaseModel = client.chat.completions.create(
        model=name, messages=messages, response_model=model, max_tokens=96, temperature=0, max_retries=0, **more
    )
    return found


@way_table
@pytest.mark.parametrize("mode", ["auto", "self_speculation", "autoregressive"])
def test_a_model_of_pydantic(
    url: str, mode: str, way: instructor.Mode, model: type[BaseModel], more: dict[str, Any], field: str
) -> None:
    assert isinstance(ask(url, way, model, f"nano:{mode}", **more), model)


@way_table
def test_diffusion_refuses_it(
    url: str, way: instructor.Mode, model: type[BaseModel], more: dict[str, Any], field: str
) -> None:
    with pytest.raises(Exception, match=f"does not support {field}"):
        ask(url, way, model, "nano:diffusion", **more)
