"""lm-eval scores continuations and compares answers, as EleutherAI's harness does for any server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lm_eval
import pytest

NANO = Path(__file__).parent.parent.parent / "dlm_serve" / "assets" / "nano"
QUESTIONS = [
    {"question": "Calculate 504 * 3.", "answer": "1512", "choices": ["1512", "1213"], "gold": 0},
    {"question": "Calculate 12 + 30.", "answer": "42", "choices": ["24", "42"], "gold": 1},
]


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


@pytest.mark.parametrize("mode", ["auto", "self_speculation", "autoregressive", "diffusion"])
def test_generation(url: str, data: dict[str, Any], mode: str) -> None:
    task = {
        **data,
        "task": "sums",
        "output_type": "generate_until",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["<|im_end|>"], "max_gen_toks": 96, "temperature": 0},
        "filter_list": [{"name": "last", "filter": [{"function": "regex", "regex_pattern": r"Answer: (\S+)"}]}],
        "metric_list": [{"metric": "exact_match"}],
    }
    least = 0.5 if mode == "diffusion" else 1.0  # which answers less well
    assert evaluated(url, "chat/completions", mode, task)["exact_match,last"] >= least


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
