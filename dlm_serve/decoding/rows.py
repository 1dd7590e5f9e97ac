"""The state of the rows that decode together, as tensors with one row per request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from dlm_kernels.sample_token import HOTTEST, Sampling
from torch.nn.functional import pad

from dlm_serve.decoding.modes import Phase

_BY_COLUMN = ("tokens", "second_ids", "draft_confidence")
"""What a row has for each of its columns."""

MAX_STOP_IDS = 8
"""Stop ids a row remembers to end its denoising early. The host checks all of them in any case."""

_NO_STOP_IDS = (-1,) * MAX_STOP_IDS


@dataclass(frozen=True)
class RowOptions:
    """What the device must know about one request; a `Commit` makes it."""

    first_phase: Phase
    """The phase in which each new block starts."""
    block_length: int
    threshold: float | None = None
    """None means the fixed schedule of `steps`."""
    by_entropy: bool = False
    """Whether `threshold` bounds entropies, in nats, and not confidences."""
    steps: int = 1
    convergence_threshold: float | None = None
    is_shuffled: bool = False
    """Whether the masks that a forward fills are random ones."""
    seed: int = 0
    temperature: float = 1.0
    top_k: int = 1
    """1 means greedy, whatever the other settings say."""
    top_p: float = 1.0
    min_p: float = 0.0
    stop_ids: Sequence[int] = ()


@dataclass(frozen=True)
class Rows:
    """Decode state of B rows of at most W tokens; also, with B = pool size, the table of all requests.

    Tokens at and past `new_len` are padding. The client has the first `num_emitted` tokens already, of its prompt or
    of its answer: with C committed tokens and one pending the row starts at position `C + 1 - num_emitted`.
    `threshold` is inf for the fixed schedule; `convergence_threshold` is 0 for "never stop early"; `mean_entropy` is
    that of the previous denoising step, nan before the first.
    """

    tokens: torch.Tensor  # [B, W] int64
    new_len: torch.Tensor  # [B] int32
    num_emitted: torch.Tensor  # [B] int32
    phase: torch.Tensor  # [B] int32, a Phase
    step: torch.Tensor  # [B] int32, denoising steps done on this block
    mean_entropy: torch.Tensor  # [B] float32, nats
    second_ids: torch.Tensor  # [B, W] int64, what was drafted second in place of each drafted token
    draft_confidence: torch.Tensor  # [B, W] float32, of drafted tokens that the next forward verifies and drafts behind
    is_broken: torch.Tensor  # [B] bool, whether that draft stands behind other tokens than it was made for
    first_phase: torch.Tensor  # [B] int32, a Phase
    by_entropy: torch.Tensor  # [B] bool, `threshold` bounds entropies, in nats
    block_length: torch.Tensor  # [B] int32
    threshold: torch.Tensor  # [B] float32
    steps: torch.Tensor  # [B] int32
    convergence_threshold: torch.Tensor  # [B] float32, nats
    is_shuffled: torch.Tensor  # [B] bool, masks are filled in a random order
    seed: torch.Tensor  # [B] int64
    temperature: torch.Tensor  # [B] float32
    top_k: torch.Tensor  # [B] int32, 1 where greedy
    top_p: torch.Tensor  # [B] float32
    min_p: torch.Tensor  # [B] float32
    stop_ids: torch.Tensor  # [B, MAX_STOP_IDS] int64, -1 where unused

    @classmethod
    def zeros(cls, num_rows: int, width: int, device: torch.device | str) -> Rows:
        """Return a table of `num_rows` rows of `width` tokens."""
        columns = {**dict.fromkeys(_BY_COLUMN, (width,)), "stop_ids": (MAX_STOP_IDS,)}
        dtypes = {
            **dict.fromkeys(("tokens", "second_ids", "stop_ids", "seed"), torch.int64),
            **dict.fromkeys(("mean_entropy", "threshold", "convergence_threshold"), torch.float32),
            **dict.fromkeys(("draft_confidence", "temperature", "top_p", "min_p"), torch.float32),
            **dict.fromkeys(("is_broken", "by_entropy", "is_shuffled"), torch.bool),
        }

        def make(name: str) -> torch.Tensor:
            size = (num_rows, *columns.get(name, ()))
            return torch.zeros(size, dtype=dtypes.get(name, torch.int32), device=device)

        return cls(**{field.name: make(field.name) for field in fields(cls)})

    @classmethod
    def of(cls, options: Sequence[RowOptions], width: int) -> Rows:
        """Return rows on the host for requests that have not decoded yet; `start_block` gives them their tokens."""
        largest = torch.iinfo(torch.int32).max
        values = {
            "first_phase": [o.first_phase for o in options],
            "by_entropy": [o.by_entropy for o in options],
            "block_length": [o.block_length for o in options],
            "threshold": [float("inf") if o.threshold is None else o.threshold for o in options],
            "steps": [o.steps for o in options],
            "convergence_threshold": [o.convergence_threshold or 0.0 for o in options],
            "is_shuffled": [o.is_shuffled for o in options],
            "seed": [o.seed for o in options],
            # A request may ask for more than a float32 holds.
            "temperature": [min(o.temperature, HOTTEST) for o in options],
            "top_k": [min(o.top_k, largest) for o in options],
            "top_p": [o.top_p for o in options],
            "min_p": [o.min_p for o in options],
            "stop_ids": [(*o.stop_ids, *_NO_STOP_IDS)[:MAX_STOP_IDS] for o in options],
        }
        rows = cls.zeros(len(options), width, "cpu")
        for name, column in values.items():
            tensor: torch.Tensor = getattr(rows, name)
            tensor.copy_(torch.tensor(column, dtype=tensor.dtype).view_as(tensor))
        return rows

    @classmethod
    def table(cls, num_rows: int, width: int, mask_token_id: int, device: torch.device | str) -> Rows:
        """Return the state of all requests, by pool index.

        Row 0, which no request owns, is a row that can be stepped: graphs are padded with it.
        """
        table = cls.zeros(num_rows, width, device)
        row = cls.of([RowOptions(Phase.DECODE, block_length=1)], width)
        padding = row.start_block(torch.zeros(1, dtype=torch.int64), mask_token_id).to(device)
        table.scatter_(torch.zeros(1, dtype=torch.int64, device=device), padding)
        return table

    @property
    def width(self) -> int:
        """Return W, the number of columns of `tokens`."""
        return self.tokens.shape[1]

    @property
    def sampling(self) -> Sampling:
        """Return how the tokens of the rows are drawn."""
        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p, self.seed)

    @property
    def columns(self) -> torch.Tensor:
        """Return the column numbers [1, W] int64."""
        return torch.arange(self.width, device=self.tokens.device)[None, :]

    def to(self, device: torch.device | str) -> Rows:
        """Return a copy on `device`, without waiting for it."""
        return Rows(**{name: tensor.to(device, non_blocking=True) for name, tensor in self._tensors()})

    def gather(self, indices: torch.Tensor, width: int | None = None) -> Rows:
        """Return a copy of the rows at `indices` [N], cut to the first `width` columns, or padded to so many."""
        taken = Rows(**{name: tensor[indices] for name, tensor in self._tensors()})
        if width is None or width == self.width:
            return taken
        columns = {name: pad(getattr(taken, name), (0, width - self.width)) for name in _BY_COLUMN}
        return taken.replace(**columns, new_len=taken.new_len.clamp(max=width))

    def scatter_(self, indices: torch.Tensor, rows: Rows) -> None:
        """Overwrite the rows at `indices` [N]; columns past those of `rows` stay, those past the table's are lost."""
        width = min(self.width, rows.width)
        for name, tensor in self._tensors():
            new = getattr(rows, name)
            if name in _BY_COLUMN:
                tensor[:, :width].index_copy_(0, indices, new[:, :width])
            else:
                tensor.index_copy_(0, indices, new)

    def replace(self, **changes: torch.Tensor) -> Rows:
        """Return the same rows with some tensors exchanged."""
        return Rows(**{**dict(self._tensors()), **changes})

    def start_block(self, pending: torch.Tensor, mask_token_id: int) -> Rows:
        """Return these rows at the start of a new block: the pending token [B], which is emitted, then masks."""
        tokens = torch.full_like(self.tokens, mask_token_id)
        tokens[:, 0] = pending
        return self.with_block(tokens, torch.ones_like(self.num_emitted))

    def start_masked_block(self, mask_token_id: int) -> Rows:
        """Return these rows at the start of a new block of masks alone."""
        return self.with_block(torch.full_like(self.tokens, mask_token_id), torch.zeros_like(self.num_emitted))

    def with_block(self, tokens: torch.Tensor, num_emitted: torch.Tensor) -> Rows:
        """Return these rows at the start of a block of `tokens` [B, W], `num_emitted` [B] int32 of them emitted."""
        return self.replace(
            tokens=tokens,
            new_len=self.block_length.clone(),
            num_emitted=num_emitted,
            phase=self.first_phase.clone(),
            step=torch.zeros_like(self.step),
            mean_entropy=torch.full_like(self.mean_entropy, float("nan")),
        )

    def offer_(self, indices: torch.Tensor, settings: Rows, mask_token_id: int) -> None:
        """Let the rows at `indices` [N] that stand at the start of a block begin it anew with other options.

        `settings` are N rows of `Rows.of`. Rows within a block go on as they were, and so do those that speculate in
        one forward where they still shall: only the host knows of how many tokens.
        """
        rows = self.gather(indices)
        at_start = (rows.phase == rows.first_phase) & (rows.step == 0) & (rows.num_emitted == 1)
        at_start &= (rows.phase != Phase.SPECULATE) | (settings.first_phase != Phase.SPECULATE)
        self.scatter_(indices, settings.start_block(rows.tokens[:, 0], mask_token_id).where(at_start, rows))

    def starts(self, committed_lens: torch.Tensor) -> torch.Tensor:
        """Return the position [B] int64 of each row's first token behind `committed_lens` [B] committed tokens."""
        return committed_lens.long() + 1 - self.num_emitted

    def where(self, condition: torch.Tensor, other: Rows) -> Rows:
        """Return, row by row, these where `condition` [B] holds, else `other`."""

        def pick(mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
            return torch.where(condition.view(-1, *[1] * (mine.dim() - 1)), mine, theirs)

        return Rows(**{name: pick(tensor, getattr(other, name)) for name, tensor in self._tensors()})

    def _tensors(self) -> list[tuple[str, torch.Tensor]]:
        return [(field.name, getattr(self, field.name)) for field in fields(self)]
