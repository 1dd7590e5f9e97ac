"""Run by test_kernels_compile.py: prints the shared memory of each kernel on each card, in bytes."""

from __future__ import annotations

import json
import sys

import torch
from compile_only import CAPABILITIES, compiled
from dlm_kernels.block_advance import triton as block_advance
from dlm_kernels.draft_adapter import triton as draft_adapter
from dlm_kernels.sample_token import triton as sample_token
from dlm_kernels.sample_token.sampling import Sampling

from dlm_serve.decoding import Rows

MASK, VOCAB_SIZE, NUM_REQUESTS, WIDTH = 3, 131072, 2, 32


def advance() -> None:
    """Rows of the width that Nemotron-Labs-Diffusion denoises."""
    table, indices = Rows.table(NUM_REQUESTS, WIDTH, MASK, "cpu"), torch.arange(NUM_REQUESTS)
    ids, (confidence, entropy) = torch.zeros(NUM_REQUESTS, WIDTH).long(), torch.zeros(2, NUM_REQUESTS, WIDTH)
    block_advance.advance_(table, indices, ids, confidence, entropy, MASK)


def logits() -> torch.Tensor:
    """Rows of which each request has several."""
    return torch.zeros(2 * NUM_REQUESTS, VOCAB_SIZE, dtype=torch.bfloat16)


def sample() -> None:
    """Rows that are drawn and filtered."""
    ones, positions = torch.ones(NUM_REQUESTS), torch.zeros(2 * NUM_REQUESTS).long()
    sampling = Sampling(temperature=ones, top_k=ones.int(), top_p=ones, min_p=ones, seed=ones.long())
    sample_token.sample_token(logits(), positions, sampling, exclude_id=MASK)


def add_low_rank(num_tokens: int) -> None:
    """The adapter of the 8B model."""
    both, lora_b = (torch.zeros(shape, dtype=torch.bfloat16) for shape in ((num_tokens, 4096 + 128), (4096, 128)))
    draft_adapter.add_low_rank(both[:, :4096], both[:, 4096:], lora_b, torch.ones(num_tokens, dtype=torch.bool))


LAUNCHES = {
    "block_advance": advance,
    "draft_adapter, 4 tokens": lambda: add_low_rank(4),
    "draft_adapter, 256 tokens": lambda: add_low_rank(256),
    "sample_token, greedy": lambda: sample_token.sample_token(logits(), exclude_id=MASK),
    "sample_token": sample,
}

if __name__ == "__main__":
    shared = {
        f"{name} on sm_{capability}": {kernel.name: kernel.metadata.shared for kernel in compiled(launch, capability)}
        for name, launch in LAUNCHES.items()
        for capability in CAPABILITIES
    }
    sys.stdout.write("\n" + json.dumps(shared) + "\n")
