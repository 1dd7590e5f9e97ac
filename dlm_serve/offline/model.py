"""A model in this process, with the functions of the model cards, on SGLang's engine."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor

from dlm_serve import bundled
from dlm_serve.client import Statistics
from dlm_serve.errors import CheckpointError, OptionError
from dlm_serve.models.checkpoint import Checkpoint
from dlm_serve.offline.conventions import CONVENTIONS, Decoded

NO_END = -1
"""The `eos_token_id` by which no token stops an answer."""

Prompts = Tensor | Sequence[int] | Sequence[Sequence[int]]
"""Token ids: a tensor (batch, length) or (length), one list, or lists of any lengths."""


class DiffusionLM:
    """A model that decodes in this process; use as a context manager, or call `close`.

    All functions return `(out_ids, nfe)`: int64 (batch, length) on the device of the prompts, each row a prompt and
    its answer, shorter ones padded on the right with an end-of-sequence token, or masks where there is none; and the
    forward passes as the family's reference counts them, of a batch those of the row that took most. They raise
    OptionError.
    """

    def __init__(self, engine: Any, checkpoint: Checkpoint) -> None:
        """Decode with SGLang's `engine`, which has loaded `checkpoint`."""
        self._engine, self._checkpoint = engine, checkpoint
        self._convention = CONVENTIONS[checkpoint.family.name]

    @classmethod
    def from_pretrained(cls, model_path: str, *, revision: str | None = None, **engine_options: Any) -> DiffusionLM:
        """Load the model at `model_path`: a folder, a hub id or `nano`.

        `engine_options` are those of `sglang.Engine`, the flags of its server, such as `tp_size` or `dtype`. Raises
        CheckpointError or ConfigError.
        """
        folder = bundled.expand(str(model_path))
        checkpoint = Checkpoint.find(folder, revision)
        if checkpoint is None:
            limit = f"must be a checkpoint of one of these families: {', '.join(CONVENTIONS)}"
            raise CheckpointError("model_path", str(model_path), limit, "check the name, and that it can be fetched")
        import sglang

        options = {"log_level": "error", **engine_options}
        with _script_left_alone():
            return cls(sglang.Engine(model_path=folder, revision=revision, **options), checkpoint)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the engine's processes and free their memory."""
        self._engine.shutdown()

    @property
    def device(self) -> torch.device:
        """Return where prompts may lie: anywhere, so on the CPU."""
        return torch.device("cpu")

    def cuda(self) -> Self:
        """Return the model, which is on the engine's device already."""
        return self

    def eval(self) -> Self:
        """Return the model, which is never trained."""
        return self

    def to(self, *_: object, **__: object) -> Self:
        """Return the model as it was loaded; `device` and `dtype` are options of `from_pretrained`."""
        return self

    # --- The functions of the cards ---

    def generate(
        self,
        prompt_ids: Prompts,
        max_new_tokens: int = 128,
        block_length: int | None = None,
        steps: int | None = None,
        threshold: float | None = None,
        temperature: float = 0.0,
        eos_token_id: int | None = None,
        *,
        algorithm: str | None = None,
        shift_logits: bool | None = None,
        causal_context: bool | None = None,
        mask_token_id: int | None = None,
        max_thinking_tokens: int | None = None,
        end_think_token_id: int | None = None,
        seed: int | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
    ) -> tuple[Tensor, int]:
        """Decode by block diffusion.

        `steps` are those of all blocks together. Without `threshold` each block takes an even schedule of them, or the
        family's own algorithm where it has several. `causal_context` and `mask_token_id` must be the model's own.
        """
        self._check_own("causal_context", causal_context, self._checkpoint.family.commit.prompt_mask.is_causal)
        self._check_own("mask_token_id", mask_token_id, self._checkpoint.mask_token_id)
        block_length = block_length or self._checkpoint.block_size
        options = {"mode": "diffusion", "block_length": block_length}
        options |= _given(algorithm=algorithm, shift_logits=shift_logits)
        options |= _given(max_thinking_tokens=max_thinking_tokens, end_think_token_id=end_think_token_id)
        if threshold is not None or not self._checkpoint.family.algorithms:
            options["threshold"] = threshold
        if steps is not None:
            options["steps"] = min(_steps_per_block(steps, max_new_tokens, block_length), block_length)
        sampling = _given(temperature=temperature, sampling_seed=seed, top_p=top_p, top_k=top_k)
        return self._decode(prompt_ids, max_new_tokens, options, eos_token_id, sampling)

    def ar_generate(
        self,
        prompt_ids: Prompts,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        eos_token_id: int | None = None,
        *,
        max_thinking_tokens: int | None = None,
        end_think_token_id: int | None = None,
        seed: int | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
    ) -> tuple[Tensor, int]:
        """Decode one token per forward."""
        options: dict[str, object] = {"mode": "autoregressive"}
        options |= _given(max_thinking_tokens=max_thinking_tokens, end_think_token_id=end_think_token_id)
        sampling = _given(temperature=temperature, sampling_seed=seed, top_p=top_p, top_k=top_k)
        return self._decode(prompt_ids, max_new_tokens, options, eos_token_id, sampling)

    def linear_spec_generate(
        self,
        prompt_ids: Prompts,
        max_new_tokens: int = 128,
        block_length: int | None = None,
        temperature: float = 0.0,
        mask_token_id: int | None = None,
        eos_token_id: int | None = None,
        max_thinking_tokens: int | None = None,
        end_think_token_id: int | None = None,
        threshold: float = 0.0,
        *,
        seed: int | None = None,
    ) -> tuple[Tensor, int]:
        """Decode by self-speculation; the draft adapter beside the weights is used, if there is one.

        Answers end at `max_new_tokens`, where the reference goes on to the end of its last accepted run.
        """
        self._check_own("mask_token_id", mask_token_id, self._checkpoint.mask_token_id)
        options = {"mode": "self_speculation", "threshold": threshold, **_given(block_length=block_length)}
        options |= _given(max_thinking_tokens=max_thinking_tokens, end_think_token_id=end_think_token_id)
        sampling = _given(temperature=temperature, sampling_seed=seed)
        return self._decode(prompt_ids, max_new_tokens, options, eos_token_id, sampling)

    def SDLM_generate(  # noqa: N802  # as the authors call it
        self,
        prompt_ids: Prompts,
        max_gen_len: int = 1024,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        threshold: float = 0.9,
        n_future_tokens: int = 4,
        only_first_token_keep: bool = False,
        use_cache: bool = True,
        alg: str = "prob_conf",
    ) -> tuple[Tensor, int]:
        """Decode windows of `n_future_tokens`, of which `alg` keeps a part; the token that ends an answer is dropped.

        There always is a cache, with or without `use_cache`: the tokens are the same.
        """
        options, sampling = sdlm_options(
            temperature, top_k, top_p, threshold, n_future_tokens, only_first_token_keep, alg
        )
        return self._decode(prompt_ids, max_gen_len, options, None, sampling)

    # --- How they decode ---

    def growing(
        self, prompt_ids: Sequence[int], max_new_tokens: int, options: Mapping[str, object], sampling: dict[str, Any]
    ) -> Generator[list[int]]:
        """Yield the new tokens of one prompt's answer as they grow, the last time all of them."""
        request = self._sampling_params(max_new_tokens, options, None, sampling)
        stream = self._engine.generate(input_ids=list(prompt_ids), sampling_params=request, stream=True)
        for chunk in stream:
            yield list(self._kept(self._decoded(chunk, len(prompt_ids))))

    def _decode(
        self,
        prompt_ids: Prompts,
        max_new_tokens: int,
        options: Mapping[str, object],
        eos_token_id: int | None,
        sampling: dict[str, Any],
    ) -> tuple[Tensor, int]:
        prompts = _rows(prompt_ids)
        request = self._sampling_params(max_new_tokens, options, eos_token_id, sampling)
        answers = self._engine.generate(input_ids=prompts, sampling_params=[request] * len(prompts))
        decoded = [self._decoded(answer, len(ids)) for answer, ids in zip(answers, prompts, strict=True)]
        rows = [[*ids, *self._kept(row)] for ids, row in zip(prompts, decoded, strict=True)]
        padding = next(iter(self._checkpoint.eos_token_ids), self._checkpoint.mask_token_id)
        longest = max(map(len, rows))
        device = prompt_ids.device if isinstance(prompt_ids, Tensor) else self.device
        out_ids = torch.tensor([row + [padding] * (longest - len(row)) for row in rows], device=device)
        return out_ids, max(map(self._convention.nfe, decoded))

    def _sampling_params(
        self, max_new_tokens: int, options: Mapping[str, object], eos_token_id: int | None, sampling: dict[str, Any]
    ) -> dict[str, Any]:
        """Return SGLang's parameters. Any other `eos_token_id` than the model's stops answers besides these."""
        ends: dict[str, Any] = {}
        if eos_token_id == NO_END or (eos_token_id is None and not self._convention.has_default_end):
            ends["ignore_eos"] = True
        elif eos_token_id is not None:
            ends["stop_token_ids"] = [int(eos_token_id)]
        return {"max_new_tokens": max_new_tokens, "custom_params": {"dlm": dict(options)}, **sampling, **ends}

    def _kept(self, decoded: Decoded) -> tuple[int, ...]:
        drops_last = decoded.is_stopped and not self._convention.keeps_end
        return decoded.ids[:-1] if drops_last else decoded.ids

    @staticmethod
    def _decoded(answer: Mapping[str, Any], num_prompt: int) -> Decoded:
        about = answer["meta_info"]
        is_stopped = (about["finish_reason"] or {}).get("type") == "stop"
        statistics = Statistics.model_validate(about["dlm"])
        return Decoded(num_prompt, tuple(answer["output_ids"]), is_stopped, statistics)

    @staticmethod
    def _check_own(name: str, value: object, own: object) -> None:
        if value is not None and value != own:
            raise OptionError(name, value, f"the model's is {own!r}", "leave it out")


@contextmanager
def _script_left_alone() -> Iterator[None]:
    """Keep processes that start meanwhile from running the caller's script: those of the cards guard nothing."""
    script = sys.modules["__main__"]
    spec, file = script.__spec__, script.__dict__.pop("__file__", None)
    script.__spec__ = None
    try:
        yield
    finally:
        script.__spec__ = spec
        if file is not None:
            script.__file__ = file


def sdlm_options(
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    threshold: float,
    n_future_tokens: int,
    only_first_token_keep: bool,
    alg: str,
) -> tuple[dict[str, object], dict[str, Any]]:
    """Return the options of a request, and its sampling, that the parameters of `SDLM_generate` stand for."""
    sampling = _given(temperature=temperature, top_k=top_k, top_p=top_p)
    if n_future_tokens == 1:
        return {"mode": "autoregressive"}, sampling
    options: dict[str, object] = {"mode": "diffusion", "algorithm": alg, "block_length": n_future_tokens}
    if alg != "self_speculative":  # one token of each window is what a threshold of 1 takes
        options["threshold"] = 1.0 if only_first_token_keep else threshold
    return options, sampling


def _rows(prompt_ids: Prompts) -> list[list[int]]:
    """Return prompts as lists of token ids."""
    rows: list[Any] = prompt_ids.tolist() if isinstance(prompt_ids, Tensor) else list(prompt_ids)
    if not rows:
        raise OptionError("prompt_ids", rows, "there must be a prompt", "give token ids")
    return [rows] if isinstance(rows[0], int) else [list(map(int, row)) for row in rows]


def _steps_per_block(steps: int, max_new_tokens: int, block_length: int) -> int:
    """Return how many of all `steps` are those of a block, as references divide them. Raises OptionError."""
    num_blocks, rest = divmod(max_new_tokens, block_length)
    if rest or not num_blocks:
        limit = f"must be a multiple of block_length, {block_length}, where steps are given"
        raise OptionError("max_new_tokens", max_new_tokens, limit, "round it, or leave steps out")
    if steps % num_blocks:
        raise OptionError("steps", steps, f"must be a multiple of the {num_blocks} blocks", "round it, or leave it out")
    return steps // num_blocks


def _given(**values: Any) -> dict[str, Any]:
    """Return those that are not None."""
    return {name: value for name, value in values.items() if value is not None}
