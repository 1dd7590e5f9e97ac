"""The Triton kernel that advances rows against `CausalCommit.advance`: in Triton's interpreter, or on a GPU."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from dlm_kernels.block_advance import triton as kernel

from dlm_serve.decoding import CausalCommit, ConcreteMode, Mode, ModeSettings, Phase, Prediction, Rows

COMMIT = CausalCommit()
MASK, VOCAB_SIZE, MAX_WIDTH, NUM_ROWS = 3, 9, 32, 37

PHASES: dict[ConcreteMode, tuple[Phase, ...]] = {
    Mode.AUTOREGRESSIVE: (Phase.DECODE,),
    Mode.DIFFUSION: (Phase.DENOISE, Phase.COMMIT),
    Mode.SELF_SPECULATION: (Phase.DRAFT, Phase.VERIFY),
}


def random_table(width: int, generator: torch.Generator) -> Rows:
    """Rows of all modes and phases in the middle of their blocks, with few ids so that stops and ties are common."""

    def draw(high: int, size: tuple[int, ...] = (), low: int = 0) -> torch.Tensor:
        return torch.randint(low, high, size, generator=generator)

    settings, phases = [], []
    for i in range(NUM_ROWS):
        mode = list(PHASES)[i % 3]
        block_length = 1 if mode is Mode.AUTOREGRESSIVE else int(draw(width + 1, low=1))
        threshold = (None, 0.0, 0.5, 0.9)[int(draw(4))]
        steps = int(draw(block_length + 1, low=1))
        convergence = (None, 0.05)[int(draw(2))]
        stop_ids = draw(VOCAB_SIZE, (int(draw(3)),)).tolist()
        settings.append(
            COMMIT.row_options(ModeSettings(mode, block_length, threshold, steps, convergence), i, stop_ids, VOCAB_SIZE)
        )
        phases.append(PHASES[mode][int(draw(len(PHASES[mode])))] if block_length > 1 else settings[-1].first_phase)
    rows = Rows.of(settings, MAX_WIDTH).start_block(draw(VOCAB_SIZE, (NUM_ROWS,)), MASK)
    filled = draw(2, rows.tokens.shape).bool() | (torch.arange(NUM_ROWS) % 4 == 0)[:, None]
    tokens = torch.where(filled, draw(VOCAB_SIZE, rows.tokens.shape), rows.tokens)
    shorter = draw(2, (NUM_ROWS,)) * draw(MAX_WIDTH, (NUM_ROWS,))
    return rows.replace(
        tokens=tokens,
        phase=torch.tensor(phases, dtype=torch.int32),
        new_len=(rows.new_len - shorter).clamp(min=1).to(torch.int32),
        step=(draw(MAX_WIDTH, (NUM_ROWS,)) % rows.steps).to(torch.int32),
        mean_entropy=torch.rand(NUM_ROWS, generator=generator),
    )


@pytest.mark.parametrize("width", [1, 2, 5, 8, 32])
def test_equals_reference(width: int, device: torch.device) -> None:
    """Every tensor of every row, and what each row emits; rows that are not named stay as they are."""
    generator = torch.Generator().manual_seed(width)
    table = random_table(width, generator).to(device)
    indices = torch.randperm(NUM_ROWS, generator=generator)[: NUM_ROWS - 7].to(device)
    shape = (len(indices), width)
    prediction = Prediction(
        torch.randint(MASK + 1, VOCAB_SIZE, shape, generator=generator).to(device),
        torch.randint(0, 5, shape, generator=generator).to(device) / 4,  # few values, so that some tie
        torch.rand(shape, generator=generator).to(device) / 2,
        torch.zeros(shape, dtype=torch.int64, device=device),
    )
    after, output = COMMIT.advance(table.gather(indices, width), prediction, MASK)
    expected = Rows(**{field.name: getattr(table, field.name).clone() for field in fields(table)})
    expected.scatter_(indices, after)

    tokens, lens = kernel.advance_(table, indices, prediction.ids, prediction.confidence, prediction.entropy, MASK)
    assert torch.equal(lens, output.lens)
    emitted = torch.arange(width, device=device) < lens[:, None]
    assert torch.equal(tokens[emitted], output.tokens[emitted])
    for field in fields(table):
        got, wanted = getattr(table, field.name), getattr(expected, field.name)
        if field.name == "tokens":
            got, wanted = got[:, :width], wanted[:, :width]
        if field.name == "mean_entropy":  # a sum, in whatever order
            torch.testing.assert_close(got, wanted, equal_nan=True)
        else:
            assert torch.equal(got, wanted), field.name


# A row of 5 whose stop id is 7: mode, tokens, predictions, confidences, and the phase that it goes on to.
STOP, SURE, UNSURE = 7, 1.0, 0.1
EARLY_STOPS: dict[str, tuple[ConcreteMode, list[int], float, Phase]] = {
    "all before the stop is known": (Mode.DIFFUSION, [4, 5, STOP, MASK, MASK], UNSURE, Phase.COMMIT),
    "a mask before the stop": (Mode.DIFFUSION, [4, MASK, STOP, MASK, MASK], UNSURE, Phase.DENOISE),
    "a draft is not cut at a stop": (Mode.SELF_SPECULATION, [4, 5, STOP, MASK, MASK], UNSURE, Phase.DRAFT),
    "nothing is left to denoise": (Mode.DIFFUSION, [4, MASK, STOP, MASK, MASK], SURE, Phase.COMMIT),
    "nothing is left to draft": (Mode.SELF_SPECULATION, [4, MASK, STOP, MASK, MASK], SURE, Phase.VERIFY),
}


@pytest.mark.parametrize("name", EARLY_STOPS)
def test_early_stops(name: str, device: torch.device) -> None:
    """One token is fixed in this step in any case: the last mask, which is the surest."""
    mode, tokens, confidence, phase = EARLY_STOPS[name]
    rows = Rows.of([COMMIT.row_options(ModeSettings(mode, 5, 0.9, 5), 1, [STOP], VOCAB_SIZE)], 5).start_block(
        torch.tensor([4]), MASK
    )
    table = rows.replace(tokens=torch.tensor([tokens])).to(device)
    confidences = torch.tensor([[confidence] * 4 + [0.2 if confidence == UNSURE else SURE]], device=device)
    ids, entropy = torch.full((1, 5), 6, device=device), torch.zeros(1, 5, device=device)
    after, _ = COMMIT.advance(table, Prediction(ids, confidences, entropy, ids), MASK)
    kernel.advance_(table, torch.zeros(1, dtype=torch.int64, device=device), ids, confidences, entropy, MASK)
    assert (table.phase.item(), after.phase.item()) == (phase, phase)
    assert torch.equal(table.tokens, after.tokens)
