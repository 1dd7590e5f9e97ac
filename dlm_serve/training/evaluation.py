"""Score a model where it is trained: exact match, tokens per forward, acceptance, KL to its former self."""

from __future__ import annotations

from itertools import islice
from typing import Any

from tokenizers import Tokenizer

from dlm_serve.decoding import ConcreteMode, Mode, ModeSettings, RowOptions
from dlm_serve.families import NEMOTRON_LABS_DIFFUSION
from dlm_serve.training.config import Evaluation, TrainingConfig
from dlm_serve.training.corpus import Corpus
from dlm_serve.training.losses import autoregressive_kl
from dlm_serve.training.model import DiffusionModel
from dlm_serve.training.packing import Packing
from dlm_serve.training.reference_decoder import Answer, decode
from dlm_serve.training.tasks import TASKS, Example, Task
from dlm_serve.training.tokenizer import EOS_ID, load_tokenizer, render_prompt

_KL_ROWS = 64


def measure_kl(before: DiffusionModel, after: DiffusionModel, config: TrainingConfig) -> float:
    """Return KL(before || after) of the autoregressive distributions on held-out answers, in nats per token."""
    corpus = Corpus.load(config.corpus / "heldout.npz")
    batch = Packing(corpus, _KL_ROWS, config.sequence_length, 0, config.block_size, config.seed)[0]
    batch = batch.to(after.inv_freq.device)
    return autoregressive_kl(before, after, batch, batch.layout.dense_mask())


def evaluate(model: DiffusionModel, config: TrainingConfig, options: Evaluation) -> dict[str, Any]:
    """Return scores by mode and task on held-out examples, decoded greedily."""
    tokenizer = load_tokenizer(config.corpus / "tokenizer")
    by_mode = {
        "autoregressive": _row_options(Mode.AUTOREGRESSIVE, 1, None),
        "diffusion": _row_options(Mode.DIFFUSION, config.block_size, options.threshold),
        "self_speculation": _row_options(Mode.SELF_SPECULATION, config.block_size, 0.0),
    }
    report = {name: _evaluate_mode(model, tokenizer, each, options) for name, each in by_mode.items()}
    if model.adapted()[0].scale is not None:
        with model.without_adapter():
            report["self_speculation without adapter"] = _evaluate_mode(
                model, tokenizer, by_mode["self_speculation"], options
            )
    return report


def _row_options(mode: ConcreteMode, block_length: int, threshold: float | None) -> RowOptions:
    settings = ModeSettings(mode, block_length, threshold, steps=block_length)
    return NEMOTRON_LABS_DIFFUSION.commit.row_options(settings, seed=0, stop_ids=[EOS_ID], vocab_size=0)


def _evaluate_mode(
    model: DiffusionModel, tokenizer: Tokenizer, row_options: RowOptions, options: Evaluation
) -> dict[str, Any]:
    examples = {name: list(task.examples("heldout", options.examples_per_task, seed=0)) for name, task in TASKS.items()}
    texts = [render_prompt([example.prompt]) for each in examples.values() for example in each]
    prompts = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    answers = iter(decode(model, prompts, row_options, options.max_new_tokens))
    scores: dict[str, Any] = {}
    for name, each in examples.items():
        scores[name] = _score(TASKS[name], tokenizer, each, list(islice(answers, len(each))))
    for measure in ("exact_match", "tokens_per_forward", "acceptance_length"):
        scores[f"mean {measure}"] = sum(scores[name][measure] for name in TASKS) / len(TASKS)
    return scores


def _score(task: Task, tokenizer: Tokenizer, examples: list[Example], answers: list[Answer]) -> dict[str, Any]:
    texts = [tokenizer.decode(answer.ids, skip_special_tokens=True) for answer in answers]
    correct = [task.is_correct(example, text) for example, text in zip(examples, texts, strict=True)]
    return {"exact_match": sum(correct) / len(correct), **_cost(answers), **_failure(examples, texts, correct)}


def _cost(answers: list[Answer]) -> dict[str, float]:
    tokens, nfe = sum(len(answer.ids) for answer in answers), sum(answer.nfe for answer in answers)
    accepted = [count for answer in answers for count in answer.accepted]
    return {"tokens_per_forward": tokens / max(nfe, 1), "acceptance_length": sum(accepted) / max(len(accepted), 1)}


def _failure(examples: list[Example], texts: list[str], correct: list[bool]) -> dict[str, Any]:
    """Return the first wrong answer, for inspection."""
    wrong = [i for i, is_correct in enumerate(correct) if not is_correct]
    return {"first_failure": {"prompt": examples[wrong[0]].prompt, "answer": texts[wrong[0]]}} if wrong else {}
