"""The readable block attention against a softmax written out in float64, one query at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from dlm_kernels.block_attention import Visible, block_attention

HEAD_DIM, NUM_SLOTS, MAX_LEN = 8, 240, 40
SCALE = HEAD_DIM**-0.5


Seen = tuple[int, int, int]
"""What one query sees of the new keys: those below `prefix`, and those from `lo` to below `hi`."""


@dataclass(frozen=True)
class Row:
    """One row: how much is committed, and how its new tokens see each other."""

    prefix_len: int
    causal_len: int
    new_len: int

    def visible(self, width: int) -> list[Seen]:
        return [(min(i + 1, self.new_len) if i < self.causal_len else self.new_len, 0, 0) for i in range(width)]


@dataclass(frozen=True)
class Branches:
    """A row of a causal chain, then what `groups` say: where each branches off, and how many tokens it has.

    A group sees itself and the chain up to where it branches off. The last group branches off the one before it, and
    sees that, too.
    """

    prefix_len: int
    chain: int
    groups: tuple[tuple[int, int], ...]

    def visible(self, width: int) -> list[Seen]:
        seen: list[Seen] = [(i + 1, 0, 0) for i in range(self.chain)]
        for i, (anchor, size) in enumerate(self.groups):
            lo = len(seen) - (self.groups[i - 1][1] if i == len(self.groups) - 1 > 0 else 0)
            seen += [(anchor + 1, lo, len(seen) + size)] * size
        return [*seen, *[(0, 0, 0)] * (width - len(seen))]


@dataclass
class Inputs:
    """The arguments of `block_attention`, in its order."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    slot_table: torch.Tensor
    slot_rows: torch.Tensor
    prefix_lens: torch.Tensor
    visible: Visible

    def run(self) -> torch.Tensor:
        out: torch.Tensor = block_attention(**vars(self), scale=SCALE)
        return out

    def alone(self, row: int) -> Inputs:
        """The same tables with only this row."""
        one = slice(row, row + 1)
        names = ("q", "k", "v", "slot_rows", "prefix_lens")
        visible = Visible(*(tensor[one] for tensor in self.visible))
        return replace(self, **{name: getattr(self, name)[one] for name in names}, visible=visible)

    def seen(self, row: int, query: int) -> list[int]:
        """The new keys that a query sees."""
        prefix, lo, hi = (int(tensor[row, query]) for tensor in self.visible)
        return [j for j in range(self.q.shape[1]) if j < prefix or lo <= j < hi]

    def padding(self) -> list[tuple[int, int]]:
        """The rows and columns that no query sees."""
        return [
            (row, j)
            for row in range(len(self.q))
            for j in range(self.q.shape[1])
            if all(j not in self.seen(row, i) for i in range(self.q.shape[1]))
        ]


def inputs_of(rows: Sequence[Row | Branches], width: int, heads: int = 4, kv_heads: int = 2, seed: int = 0) -> Inputs:
    """Random inputs. Slots are shuffled; those that no row owns are nan; the padding of k and v is huge."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    slot_table = 1 + torch.randperm(NUM_SLOTS - 1, generator=generator)[: (len(rows) + 1) * MAX_LEN].view(-1, MAX_LEN)
    slot_rows = torch.arange(len(rows), 0, -1)
    owned = torch.cat([slot_table[r, : row.prefix_len] for r, row in zip(slot_rows.tolist(), rows, strict=True)])
    unowned = torch.ones(NUM_SLOTS, dtype=torch.bool)
    unowned[owned] = False
    k_cache, v_cache = random(NUM_SLOTS, kv_heads, HEAD_DIM), random(NUM_SLOTS, kv_heads, HEAD_DIM)
    k_cache[unowned] = v_cache[unowned] = float("nan")
    k, v = random(len(rows), width, kv_heads, HEAD_DIM), random(len(rows), width, kv_heads, HEAD_DIM)
    q = random(len(rows), width, heads, HEAD_DIM)
    prefix_lens = torch.tensor([row.prefix_len for row in rows], dtype=torch.int32)
    visible = torch.tensor([row.visible(width) for row in rows], dtype=torch.int32)
    tables = (k_cache, v_cache, slot_table.int(), slot_rows, prefix_lens)
    inputs = Inputs(q, k, v, *tables, Visible(*(part.contiguous() for part in visible.unbind(-1))))
    for i, j in inputs.padding():
        k[i, j] = v[i, j] = 1e4
    return inputs


def attend(inputs: Inputs, row: int, query: int, head: int) -> list[float]:
    """One query of one head, in Python floats."""
    kv_head = head // (inputs.q.shape[2] // inputs.k.shape[2])
    slots = inputs.slot_table[int(inputs.slot_rows[row]), : int(inputs.prefix_lens[row])].tolist()
    keys = [inputs.k_cache[slot, kv_head].tolist() for slot in slots]
    values = [inputs.v_cache[slot, kv_head].tolist() for slot in slots]
    for new in inputs.seen(row, query):
        keys.append(inputs.k[row, new, kv_head].tolist())
        values.append(inputs.v[row, new, kv_head].tolist())
    asked = inputs.q[row, query, head].tolist()
    scores = [SCALE * math.fsum(a * b for a, b in zip(asked, key, strict=True)) for key in keys]
    weights = [math.exp(score - max(scores)) for score in scores]
    total = math.fsum(weights)
    return [
        math.fsum(weight * value[d] for weight, value in zip(weights, values, strict=True)) / total
        for d in range(HEAD_DIM)
    ]


def float32_slack(inputs: Inputs) -> float:
    """How far float32 may be off: rounded scores move every weight, rounded sums of n terms the rest.

    A score is off by at most (D + 2) eps |q||k| scale, a weight relatively by twice that plus 4 eps, and
    the weighted mean of values by its largest value times that plus 2 n eps.
    """
    eps = torch.finfo(torch.float32).eps
    k, v = (torch.nan_to_num(cache).abs().max() for cache in (inputs.k_cache, inputs.v_cache))
    real = torch.ones(inputs.q.shape[:2], dtype=torch.bool)
    for row, column in inputs.padding():
        real[row, column] = False
    k, v = torch.maximum(k, inputs.k[real].abs().max()), torch.maximum(v, inputs.v[real].abs().max())
    score = (HEAD_DIM + 2) * eps * HEAD_DIM * float(inputs.q.abs().max() * k) * SCALE
    terms = int(inputs.prefix_lens.max()) + inputs.q.shape[1]
    slack: float = float(v) * (2 * score + 4 * eps + 2 * terms * eps)
    return slack


def check(inputs: Inputs) -> None:
    """Every query that sees something against the oracle; the others are finite."""
    out = inputs.run()
    assert out.shape == inputs.q.shape
    assert out.isfinite().all()
    slack = float32_slack(inputs)
    for row, query, head in itertools.product(*map(range, out.shape[:3])):
        if inputs.prefix_lens[row] or inputs.seen(row, query):
            assert out[row, query, head].tolist() == pytest.approx(attend(inputs, row, query, head), rel=0, abs=slack)


@pytest.mark.parametrize("width", [1, 3, 5, 8])
@pytest.mark.parametrize("prefix_len", [0, 1, 7, 33])
@pytest.mark.parametrize("kind", ["bidirectional", "causal", "in-between"])
def test_one_row(width: int, prefix_len: int, kind: str) -> None:
    causal_len = {"bidirectional": 0, "causal": width, "in-between": width // 2}[kind]
    check(inputs_of([Row(prefix_len, causal_len, width)], width))


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (4, 1), (6, 2)], ids=["one", "mha", "mqa", "gqa"])
def test_heads_share_kv_in_groups(heads: int, kv_heads: int) -> None:
    check(inputs_of([Row(5, 0, 3), Row(2, 3, 3)], 3, heads, kv_heads))


MIXED = [
    Row(prefix_len=0, causal_len=0, new_len=7),
    Row(prefix_len=13, causal_len=7, new_len=7),
    Row(prefix_len=6, causal_len=3, new_len=7),
    Row(prefix_len=0, causal_len=7, new_len=1),
]
SHORT = [Row(9, 0, 4), Row(1, 7, 6), Row(31, 2, 5), Row(0, 0, 1)]
BRANCHED = [Branches(0, 3, ((2, 2), (0, 2))), Branches(12, 2, ((1, 1), (1, 3))), Branches(0, 4, ()), Row(5, 0, 7)]


@pytest.mark.parametrize("rows", [MIXED, SHORT, BRANCHED], ids=["whole-rows", "short-rows", "branches"])
def test_rows_of_all_kinds_together(rows: Sequence[Row | Branches]) -> None:
    check(inputs_of(rows, 7))


@pytest.mark.parametrize("rows", [MIXED, SHORT, BRANCHED], ids=["whole-rows", "short-rows", "branches"])
def test_a_batch_attends_as_each_row_alone(rows: Sequence[Row | Branches]) -> None:
    inputs = inputs_of(rows, 7, seed=1)
    out = inputs.run()
    for row in range(len(rows)):
        assert torch.equal(out[row], inputs.alone(row).run()[0])


def test_the_kinds_differ() -> None:
    """A later token changes an earlier query's answer where the row is bidirectional, and only there."""
    for causal_len, changed in ((0, [True] * 4), (2, [False, False, True, True]), (4, [False] * 3 + [True])):
        inputs = inputs_of([Row(5, causal_len, 4)], 4)
        before = inputs.run()
        inputs.k[:, 3] += 1.0
        assert (inputs.run() != before).flatten(2).any(-1)[0].tolist() == changed


def test_padding_is_not_read() -> None:
    inputs = inputs_of(SHORT, 7)
    before = inputs.run()
    assert len(inputs.padding()) == 12
    for row, column in inputs.padding():
        inputs.k[row, column] = inputs.v[row, column] = -3.0
    assert torch.equal(before, inputs.run())


def test_a_cache_of_lower_precision_is_read_as_it_is() -> None:
    inputs = inputs_of([Row(11, 0, 3), Row(4, 3, 3)], 3)
    check(replace(inputs, k_cache=inputs.k_cache.bfloat16(), v_cache=inputs.v_cache.bfloat16()))


def test_rows_may_share_a_prefix() -> None:
    """Two rows over the same slots, as requests with a common cached prompt have them."""
    inputs = inputs_of([Row(10, 0, 3), Row(10, 3, 3)], 3)
    inputs.slot_table[int(inputs.slot_rows[1])] = inputs.slot_table[int(inputs.slot_rows[0])]
    check(inputs)
