"""Run by test_bd3lm_reference.py: BD3-LM's model, attention and decoding against the reference's records.

The model is loaded by SGLang's own runner; blocks are run and advanced by the same functions as in the server.
"""

from __future__ import annotations

import json
import sys
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dlm_kernels.sample_token.reference import kept_scores
from in_process import model_runner_of

from dlm_serve.decoding import Mode, ModeSettings, Phase, Rows, Sampling, TokenChoice
from dlm_serve.decoding.stop_rules import ended_length, is_degenerate
from dlm_serve.sglang.engine.attention import DlmAttentionBackend
from dlm_serve.sglang.engine.block_step import BlockStep
from dlm_serve.sglang.serving import current

DATA = Path(__file__).parent.parent / "data" / "bd3lm"
ROW, MAX_LEN = 1, 512
PROBABILITY_ERROR = 1e-4
SLIDING_PROBABILITY_ERROR = 5e-4  # past the window the reference rounds other rotary angles

Case = dict[str, Any]


class Decoder:
    """One request: its sequence so far, block by block."""

    def __init__(self, model: Path) -> None:
        runner = model_runner_of(model)
        self.checkpoint = current().checkpoint
        self.mask, self.eos = self.checkpoint.mask_token_id, self.checkpoint.eos_token_ids[0]
        self._commit = self.checkpoint.family.commit
        self.choice = self.checkpoint.family.token_choice(self.mask)
        if not isinstance(runner.attn_backend, DlmAttentionBackend):
            runner.attn_backend = DlmAttentionBackend(runner, runner.attn_backend, self._commit)
        slot_table = runner.req_to_token_pool.req_to_token
        slot_table[ROW, :MAX_LEN] = torch.arange(1, MAX_LEN + 1)
        self._table = Rows.table(slot_table.shape[0], self.checkpoint.block_size, self.mask, "cpu")
        self._step = BlockStep(runner, self._table, self._commit, self.choice)
        self._at = torch.tensor([ROW])
        self._committed: list[int] = []
        self.start([], [])

    def start(self, context: list[int], block: list[int]) -> None:
        """Begin a sequence with the blocks of `context`, committed one by one, and the first tokens of the next.

        The KV of blocks that the sequence before began with, too, is there.
        """
        size = self.checkpoint.block_size
        settings = ModeSettings(Mode.DIFFUSION, size, 1.0, size)
        self._rows = Rows.of([self._commit.row_options(settings, 0, (), self.checkpoint.vocab_size)], size)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(context, self._committed, strict=False)))
        self._committed = self._committed[: shared // size * size]
        for i in range(self.position, len(context), size):
            self._set(context[i : i + size])
            self.commit()
        self._set(block)

    @property
    def tokens(self) -> list[int]:
        """Those of the block."""
        tokens: list[int] = self._table.tokens[ROW].tolist()
        return tokens

    @property
    def is_full(self) -> bool:
        """Whether the block has no masks left."""
        return bool(self._table.phase[ROW] == Phase.COMMIT)

    @property
    def position(self) -> int:
        """Where the block starts."""
        return len(self._committed)

    def _set(self, tokens: list[int]) -> None:
        block = torch.full((1, self.checkpoint.block_size), self.mask)
        block[0, : len(tokens)] = torch.tensor(tokens)
        rows = self._rows.with_block(block, torch.zeros(1, dtype=torch.int32))
        if self.mask not in block:
            rows = rows.replace(phase=torch.tensor([Phase.COMMIT], dtype=torch.int32))
        self._table.scatter_(self._at, rows)

    def forward(self) -> torch.Tensor:
        """Logits [B, V] of the block as it is."""
        committed = self.position - 1 + self._table.num_emitted[self._at].long()
        rows = self._table.gather(self._at)
        spec = self._commit.attention_spec(rows, committed, self.mask)
        logits, self._prediction = self._step.run(rows, self._at, spec)
        self._anchors = spec.anchors
        return logits[0]

    def fix(self, fixed: list[list[Any]]) -> None:
        """Advance the block after `forward`, which decided the `fixed` [position, token, ...] and nothing else."""
        ids, confidence = torch.zeros(2, 1, self.checkpoint.block_size)
        for position, token, *_ in fixed:
            ids[0, position - self.position], confidence[0, position - self.position] = token, 1
        self._prediction.ids.copy_(ids)
        self._prediction.confidence.copy_(confidence)
        self._prediction.entropy.zero_()
        self._step.advance(self._at, self._anchors, self._prediction)

    def commit(self) -> torch.Tensor:
        """The clean pass over the full block; then a new block of masks. Returns its logits [B, V]."""
        logits, block = self.forward(), self.tokens
        self._step.advance(self._at, self._anchors, self._prediction)
        self._committed += block
        return logits


def probabilities(logits: torch.Tensor, nucleus_p: float, choice: TokenChoice) -> torch.Tensor:
    """What is drawn from at temperature 1, [B, V]."""
    ones = torch.ones(len(logits))
    sampling = Sampling(
        temperature=ones,
        top_k=torch.full_like(ones, logits.shape[1], dtype=torch.int32),
        top_p=ones * nucleus_p,
        min_p=torch.zeros_like(ones),
        seed=torch.zeros_like(ones, dtype=torch.int64),
    )
    allowed = logits.float().clone()
    allowed[:, choice.mask_token_id] = float("-inf")
    return kept_scores(allowed, sampling, choice.nucleus).double().softmax(-1)


def check_forward(decoder: Decoder, case: Case, recorded: Any) -> str | None:
    decoder.start(case["context_ids"], case["noisy_block"])
    error = np.abs(decoder.forward().numpy() - recorded[case["key"]]).max()
    return None if error <= case["tolerance"] else f"logits differ by {error}"


def check_replay(decoder: Decoder, case: Case) -> str | None:
    ids, steps = list(case["prompt_ids"]), case["replay"]["steps"]
    whole = len(ids) // decoder.checkpoint.block_size * decoder.checkpoint.block_size
    decoder.start(ids[:whole], ids[whole:])
    tolerance = SLIDING_PROBABILITY_ERROR if case["mode"] == "sliding" else PROBABILITY_ERROR
    for number, fixed in enumerate(steps):
        found = probabilities(decoder.forward(), case["params"]["nucleus_p"], decoder.choice)
        for position, token, probability in fixed:
            error = abs(found[position - decoder.position, token].item() - probability)
            if error > tolerance:
                return f"step {number}: the probability of {token} at {position} differs by {error}"
        decoder.fix(fixed)
        if decoder.is_full:
            ids = ids[: decoder.position] + decoder.tokens
            decoder.commit()
    if case["finish"] == "discarded":
        return None if is_degenerate(ids) else "not discarded"
    if case["params"].get("var_length"):
        ids = ids[: ended_length(ids, decoder.eos)]
    if case["nfe"] != len(steps):
        return f"{len(steps)} forwards instead of {case['nfe']}"
    expected = case["prompt_ids"] + case["output_ids"]
    return None if ids == expected else f"{ids} instead of {expected}"


def check_nucleus(decoder: Decoder, case: Case) -> str | None:
    decoder.start(case["context_ids"], case["noisy_block"])
    found = probabilities(decoder.forward(), case["params"]["nucleus_p"], decoder.choice)
    for column, kept in case["kept"]:
        ours = {i: found[column, i].item() for i in found[column].nonzero().flatten().tolist()}
        theirs = dict(kept)
        if ours.keys() != theirs.keys():
            return f"column {column}: keeps {sorted(ours)} instead of {sorted(theirs)}"
        if any(abs(ours[token] - theirs[token]) > PROBABILITY_ERROR for token in theirs):
            return f"column {column}: {ours} instead of {theirs}"
    return None


def cases(file: str, variant: str) -> list[Case]:
    return [case for case in json.loads((DATA / file).read_text()) if case["variant"] == variant]


def main(variant: str) -> None:
    decoder = Decoder(DATA / variant)
    recorded = np.load(DATA / f"forward_{variant}.npz")
    results = {case["id"]: check_forward(decoder, case, recorded) for case in cases("forward_cases.json", variant)}
    results |= {case["id"]: check_replay(decoder, case) for case in cases("replay_cases.json", variant)[::3]}
    rules = [case for case in cases("rule_cases.json", variant) if case["mode"] == "nucleus"]
    results |= {case["id"]: check_nucleus(decoder, case) for case in rules}
    wrong = {name: result for name, result in results.items() if result}
    sys.stdout.write(f"{len(results) - len(wrong)} of {len(results)} cases agree\n")
    for name, result in wrong.items():
        sys.stderr.write(f"{name}: {result}\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main(sys.argv[1])
