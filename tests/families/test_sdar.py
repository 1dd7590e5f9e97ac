"""SDAR against its decoding written out over Transformers' Qwen3: the family that is one description and no more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sdar import write_checkpoint
from serving import RETRACTIONS, Server, generate_body
from transformers import Qwen3Config, Qwen3ForCausalLM

BLOCK, NUM_TOKENS = 8, 40
PROMPTS = [[106, 132, 199, 50, 7, 9, 30, 31, 32, 33, 34, 35][:length] for length in (1, 5, 8, 11, 12)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdar")
    write_checkpoint(folder)
    # As Qwen's releases have it; it is no wish to decode one token at a time, which SDAR cannot.
    (folder / "generation_config.json").write_text('{"repetition_penalty": 1.05}')
    return folder


@pytest.fixture(scope="module")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server.launch(checkpoint, log=tmp_path_factory.mktemp("log") / "log") as started:
        yield started


class Reference:
    """Blocks on a grid from position 0, without a cache: every forward runs over all tokens so far."""

    def __init__(self, checkpoint: Path) -> None:
        config = json.loads((checkpoint / "config.json").read_text())
        self.mask_token_id: int = config["mask_token_id"]
        fields = {name: value for name, value in config.items() if name not in ("model_type", "architectures")}
        self.model = Qwen3ForCausalLM(Qwen3Config(**fields)).float().eval()
        self.model.load_state_dict(load_file(checkpoint / "model.safetensors"), strict=False)

    @torch.no_grad()
    def logits(self, ids: list[int]) -> torch.Tensor:
        """Of all positions [L, V], each of which sees its own block and those before it."""
        block = torch.arange(len(ids)) // BLOCK
        hidden = torch.zeros(len(ids), len(ids)).masked_fill(block[None, :] > block[:, None], float("-inf"))
        output = self.model(torch.tensor([ids]), attention_mask=hidden[None, None], use_cache=False)
        logits: torch.Tensor = output.logits[0].float()
        return logits

    def answer(self, prompt: list[int], threshold: float) -> tuple[list[int], int]:
        """The tokens, and the forward passes: those that denoise, and a commit of each block but the last."""
        ids, num_denoising, num_blocks = list(prompt), 0, 0
        while len(ids) < len(prompt) + NUM_TOKENS:
            start = len(ids) // BLOCK * BLOCK
            given = len(ids) - start
            row = torch.tensor([*ids[start:], *[self.mask_token_id] * (BLOCK - given)])
            masked = torch.arange(BLOCK) >= given
            while masked.any():
                probs = self.logits([*ids[:start], *row.tolist()])[start:].softmax(-1)
                probs[:, self.mask_token_id] = -1
                confidence, choice = probs.max(-1)
                confidence = confidence.masked_fill(~masked, -1)
                fixed = masked & ((confidence >= threshold) | (torch.arange(BLOCK) == confidence.argmax()))
                row, masked = torch.where(fixed, choice, row), masked & ~fixed
                num_denoising += 1
            ids[start:] = row.tolist()
            num_blocks += 1
        return ids[len(prompt) : len(prompt) + NUM_TOKENS], num_denoising + num_blocks - 1


def request(prompt: list[int], threshold: float) -> dict[str, Any]:
    return generate_body(prompt, NUM_TOKENS, dlm={"threshold": threshold}, ignore_eos=True)


@pytest.mark.parametrize("threshold", [0.5, 0.9])
def test_answers_are_the_references(server: Server, checkpoint: Path, threshold: float) -> None:
    """For prompts that end on the grid and between its lines, all in one batch."""
    reference = Reference(checkpoint)
    answers = server.generate_all([request(prompt, threshold) for prompt in PROMPTS], len(PROMPTS))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert (answer["output_ids"], answer["meta_info"]["dlm"]["nfe"]) == reference.answer(prompt, threshold)


def test_answers_retracted_in_chunks_and_from_the_cache(checkpoint: Path, tmp_path: Path) -> None:
    """The same, of prompts of several chunks, three times each, in a pool too small for all and on two ranks."""
    prompts = [(PROMPTS[-1] * 6)[: 23 + 9 * i] for i in range(6)]
    reference = Reference(checkpoint)
    expected = [reference.answer(prompt, 0.9)[0] for prompt in prompts]
    flags = ("--max-total-tokens", "700", "--chunked-prefill-size", "24", "--schedule-conservativeness", "0.05")
    with Server.launch(checkpoint, "--tp", "2", *flags, log=tmp_path / "log", env=RETRACTIONS) as crowded:
        answers = crowded.generate_all([request(prompt, 0.9) for prompt in prompts * 3], 18)
        crowded.assert_nothing_leaked()
    assert [answer["output_ids"] for answer in answers] == expected * 3
    assert sum(answer["meta_info"]["num_retractions"] for answer in answers) > 0
    cached = [answer["meta_info"]["cached_tokens"] for answer in answers]
    assert any(cached)
    assert all(length % BLOCK == 0 for length in cached)


def test_what_it_has_not_is_refused(server: Server) -> None:
    response = server.post("/generate", generate_body(PROMPTS[0], 8, mode="autoregressive"))
    assert response.status_code == 400
    assert "SDAR's tokens attend to their whole block, so it cannot decode one token at a time" in response.text
