"""The Triton kernels of one-forward self-speculation against the reference: in the interpreter, or on a GPU."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from dlm_kernels.block_advance.triton import advance_ as advance_blocks
from dlm_kernels.one_forward.advance import advance_ as advance_groups
from dlm_kernels.one_forward.layout import lay_out

from dlm_serve.decoding import CausalCommit, ConcreteMode, Mode, ModeSettings, Phase, Prediction, Rows
from dlm_serve.decoding.one_forward import LONGEST_CHAIN, GroupForm
from dlm_serve.decoding.one_forward.plan import CHOSEN

MASK, VOCAB_SIZE, TABLE_WIDTH, NUM_ROWS = 3, 7, 32, 12
OTHERS: dict[ConcreteMode, tuple[Phase, ...]] = {
    Mode.AUTOREGRESSIVE: (Phase.DECODE,),
    Mode.DIFFUSION: (Phase.DENOISE, Phase.COMMIT),
    Mode.SELF_SPECULATION: (Phase.DRAFT, Phase.VERIFY),
}


def random_table(commit: CausalCommit, generator: torch.Generator) -> Rows:
    """Three of four rows speculate, with drafts of every length; few ids, so that stops and agreement are common."""

    def draw(high: int, size: tuple[int, ...] = (), low: int = 0) -> torch.Tensor:
        return torch.randint(low, high, size, generator=generator)

    options = []
    for i in range(NUM_ROWS):
        block_length = int(draw(16 if i % 4 == 0 else TABLE_WIDTH, low=2))
        mode = list(OTHERS)[i // 4 % 3] if i % 4 == 0 else Mode.SELF_SPECULATION
        settings = ModeSettings(mode, block_length, 0.0, budget=None if i % 4 == 0 else 64)
        found = commit.row_options(settings, i, draw(VOCAB_SIZE, (int(draw(3)),)).tolist(), VOCAB_SIZE)
        options.append(found if i % 4 else replace(found, first_phase=OTHERS[mode][i // 12 % len(OTHERS[mode])]))
    rows = Rows.of(options, TABLE_WIDTH).start_block(draw(VOCAB_SIZE, (NUM_ROWS,), MASK + 1), MASK)
    drafted = torch.arange(TABLE_WIDTH) < draw(TABLE_WIDTH + 1, (NUM_ROWS, 1), 1)
    return rows.replace(
        tokens=torch.where(drafted, draw(VOCAB_SIZE, rows.tokens.shape, MASK + 1), MASK),
        second_ids=draw(VOCAB_SIZE, rows.tokens.shape, MASK + 1),
        draft_confidence=torch.rand(rows.tokens.shape, generator=generator) ** 0.2,
        is_broken=draw(2, (NUM_ROWS,)).bool(),
    )


@pytest.mark.parametrize("form", GroupForm)
@pytest.mark.parametrize("width", [16, 96])
def test_equals_reference(width: int, form: GroupForm, device: torch.device) -> None:
    commit, generator = CausalCommit(group_form=form), torch.Generator().manual_seed(width)
    table = random_table(commit, generator)
    indices = torch.randperm(NUM_ROWS, generator=generator)[: NUM_ROWS - 1]
    rows, committed_lens = table.gather(indices, width), torch.randint(50, 90, (len(indices),), generator=generator)
    spec = commit.attention_spec(rows, committed_lens, MASK)
    speculating = rows.phase == Phase.SPECULATE
    # What the groups of a row and its chain may see is not what rows of other phases see, in every column.
    found = lay_out(rows.to(device), rows.starts(committed_lens).to(device), LONGEST_CHAIN, form.num_copies, MASK)
    real = (spec.visible.prefix > 0) | (spec.visible.hi > spec.visible.lo)
    wanted = (spec.tokens, spec.positions, spec.anchors, *spec.visible, spec.shift, spec.kept, spec.lora_on)
    for name, got, want in zip(found._fields, found, wanted, strict=True):
        seen = real if name in ("tokens", "positions", "shift", "anchors") else torch.ones_like(real)
        assert torch.equal(got.cpu()[seen], want[seen]), name

    # What a forward says: in half of the rows what is drafted, up to some column.
    ids = torch.randint(MASK + 1, VOCAB_SIZE, spec.tokens.shape, generator=generator)
    follows = torch.where(spec.tokens.roll(-1, 1) == MASK, ids, spec.tokens.roll(-1, 1))
    ids = torch.where(torch.rand(spec.tokens.shape, generator=generator) < 0.9, follows, ids)
    confidence, entropy = torch.rand(2, *ids.shape, generator=generator)
    second_ids = torch.randint(MASK + 1, VOCAB_SIZE, ids.shape, generator=generator)
    prediction = Prediction(ids, confidence, entropy, second_ids)
    expected = table.gather(torch.arange(NUM_ROWS))
    output = commit.advance_(expected, indices, spec.anchors, prediction, MASK)

    after, at = table.to(device).gather(torch.arange(NUM_ROWS, device=device)), indices.to(device)
    predicted = (prediction.ids.to(device), prediction.confidence.to(device))
    emitted = advance_blocks(after, at, *predicted, prediction.entropy.to(device), MASK)
    advance_groups(after, at, spec.anchors.to(device), *predicted, second_ids.to(device), MASK, emitted)
    assert torch.equal(emitted[1].cpu(), output.lens)
    is_emitted = torch.arange(output.tokens.shape[1]) < output.lens[:, None]
    assert torch.equal(emitted[0].cpu()[is_emitted], output.tokens[is_emitted])
    for field in fields(expected):
        got, want = getattr(after, field.name).cpu(), getattr(expected, field.name)
        if field.name in ("draft_confidence", "second_ids"):
            drafted = torch.arange(TABLE_WIDTH) < expected.new_len[:, None]
            got, want = got[drafted], want[drafted]
        torch.testing.assert_close(got, want, equal_nan=True, msg=field.name)
    assert output.lens[speculating].max() > 3, "drafts must hold at times"
    assert width < 96 or (expected.draft_confidence == CHOSEN).any(), "and second choices"
