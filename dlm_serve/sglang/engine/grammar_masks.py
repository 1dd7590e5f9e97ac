"""What grammars allow behind each token of a draft.

The grammars stand where SGLang has brought them: behind the tokens that are emitted. They are moved along the drafts
and back on the host while the forward over them runs, so that a step waits for its drafts alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sglang.srt.speculative.spec_utils import GrammarTree

from dlm_serve.sglang.protocols import GrammarLike, ReqLike


class GrammarMasks:
    """The masks of N requests with grammars for rows of W tokens, of which the first is emitted."""

    def __init__(self, reqs: Sequence[ReqLike], tokens: torch.Tensor, vocab_size: int) -> None:
        """Start to copy `tokens` [N, W] int64 to the host; do it before the forward over them is launched."""
        self._reqs = reqs
        self._vocab_size = vocab_size
        self._shape = tokens.shape
        self._chains = GrammarTree.from_linear_chain(tokens)

    def apply_(self, logits: torch.Tensor) -> None:
        """Rule out in `logits` [N, W', V], which stand behind the tokens, what the grammars do not allow there.

        Waits for the tokens. Behind a drafted token that is not allowed itself, and from W on, logits keep any value.
        """
        grammar: Any = self._reqs[0].grammar
        width = min(self._shape[1], logits.shape[1])
        masks = grammar.allocate_vocab_mask(self._vocab_size, len(self._reqs) * width, "cpu")
        *_, drafts = self._chains.resolve()
        for req, tokens, rows in zip(self._reqs, drafts[:, :width].tolist(), masks.split(width), strict=True):
            fill_along(req.grammar, tokens, rows)
        masks = grammar.move_vocab_mask(masks, logits.device)
        drafted = logits[:, :width]
        chosen = drafted.flatten(0, 1)
        grammar.apply_vocab_mask(logits=chosen, vocab_mask=masks)
        if chosen.data_ptr() != drafted.data_ptr():  # rows with more logits than these were copied
            drafted.copy_(chosen.view_as(drafted))


def fill_along(grammar: GrammarLike, tokens: Sequence[int], masks: torch.Tensor) -> None:
    """Fill `masks`, one row for each of `tokens`, with what `grammar` allows behind it.

    The grammar has accepted the first token. It ends where it began; rows behind a token that it does not accept, or
    behind the end, are left as they are.
    """
    num_accepted = 0
    for row, following in enumerate((*tokens[1:], None)):
        if grammar.is_terminated():
            break
        grammar.fill_vocab_mask(masks, row)
        if following is None or not _is_allowed(masks[row], following):
            break
        grammar.accept_token(following)
        num_accepted += 1
    if num_accepted:
        grammar.rollback(num_accepted)


def _is_allowed(mask: torch.Tensor, token_id: int) -> bool:
    """Return whether a row of a mask, 32 tokens to an int32, allows a token."""
    word, bit = divmod(token_id, 32)
    return word < len(mask) and bool(int(mask[word]) >> bit & 1)
