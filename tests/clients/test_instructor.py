"""instructor fills a model of pydantic, by a schema."""

from __future__ import annotations

from typing import Any

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


def ask(url: str, way: instructor.Mode, model: type[BaseModel], name: str, **more: Any) -> BaseModel:
    """What instructor makes of the answer to the question."""
    client = instructor.from_openai(openai.OpenAI(base_url=f"{url}/v1", api_key="none"), mode=way)
    messages = [{"role": "user", "content": QUESTION}]
    found: BaseModel = client.chat.completions.create(
        model=name, messages=messages, response_model=model, max_tokens=96, temperature=0, max_retries=0, **more
    )
    return found


@pytest.mark.parametrize("mode", ["auto", "self_speculation", "autoregressive"])
def test_a_model_of_pydantic(url: str, mode: str) -> None:
    person = ask(url, instructor.Mode.JSON_SCHEMA, Person, f"nano:{mode}")
    assert isinstance(person, Person)


def test_diffusion_refuses_it(url: str) -> None:
    with pytest.raises(Exception, match="does not support response_format"):
        ask(url, instructor.Mode.JSON_SCHEMA, Person, "nano:diffusion")
