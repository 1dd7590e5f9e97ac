"""lm-eval scores continuations and compares answers, as EleutherAI's harness does for any server."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import requests

NANO = Path(__file__).parent.parent.parent / "dlm_serve" / "assets" / "nano"
QUESTIONS = [
    {"question": "Calculate 504 * 3.", "answer": "1512", "choices": ["1512", "1213"], "gold": 0},
    {"question": "Calculate 12 + 30.", "answer": "42", "choices": ["24", "42"], "gold": 1},
]
ANSWER = r"Answer: (\S+)"
SAID: dict[str, Any] = {"temperature": 0, "stop": ["<|im_end|>"], "max_tokens": 96}


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    """A data set of questions, as lm-eval's tasks name it."""
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, QUESTIONS)))
    return {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(tmp_path)},
        "test_split": "test",
        "doc_to_text": "{{question}}",
    }


def evaluated(url: str, route: str, mode: str, task: dict[str, Any]) -> dict[str, Any]:
    """What lm-eval finds of one task in one mode."""
    kind = "local-chat-completions" if route == "chat/completions" else "local-completions"
    found = lm_eval.simple_evaluate(
        model=kind,
        model_args={
            "model": f"nano:{mode}",
            "base_url": f"{url}/v1/{route}",
            "tokenizer": str(NANO),
            "num_concurrent": 2,
            "max_length": 512,
            "max_retries": 1,
        },
        tasks=[task],
        apply_chat_template=True,
        bootstrap_iters=0,
    )
    return {"samples": found["samples"][task["task"]], **found["results"][task["task"]]}


def plainly(url: str, mode: str, question: str) -> str:
    """The answer without lm-eval."""
    body = {"model": f"nano:{mode}", "messages": [{"role": "user", "content": question}], **SAID}
    response = requests.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


@pytest.mark.parametrize("mode", ["auto", "self_speculation", "autoregressive", "diffusion"])
def test_generation(url: str, data: dict[str, Any], mode: str) -> None:
    """It has the model's own answers, and scores them."""
    task = {
        **data,
        "task": "sums",
        "output_type": "generate_until",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": SAID["stop"], "max_gen_toks": SAID["max_tokens"], "temperature": 0},
        "filter_list": [{"name": "last", "filter": [{"function": "regex", "regex_pattern": ANSWER}]}],
        "metric_list": [{"metric": "exact_match"}],
    }
    found = evaluated(url, "chat/completions", mode, task)
    answers = {sample["doc"]["question"]: sample["resps"][0][0] for sample in found["samples"]}
    assert answers == {asked["question"]: plainly(url, mode, asked["question"]) for asked in QUESTIONS}
    right = [re.findall(ANSWER, answers[asked["question"]])[:1] == [asked["answer"]] for asked in QUESTIONS]
    assert found["exact_match,last"] == sum(right) / len(right)
    if mode != "diffusion":  # which answers less well
        assert all(right)


@pytest.mark.parametrize("mode", ["auto", "self_speculation", "diffusion"])
def test_loglikelihood(url: str, data: dict[str, Any], mode: str) -> None:
    """Of the answer's choices behind a question; the prompt is scored causally in every mode."""
    task = {
        **data,
        "task": "choices",
        "output_type": "multiple_choice",
        "doc_to_target": "gold",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc"}],
    }
    expected = evaluated(url, "completions", "autoregressive", task)["samples"]
    assert loglikelihoods(evaluated(url, "completions", mode, task)["samples"]) == pytest.approx(
        loglikelihoods(expected), abs=1e-3
    )


def loglikelihoods(samples: list[dict[str, Any]]) -> list[float]:
    """Those of all choices of all questions."""
    found = [float(response[0][0]) for sample in samples for response in sample["resps"]]
    assert len(found) == sum(len(question["choices"]) for question in QUESTIONS)
    assert all(number < 0 for number in found)
    return found
