"""How tensor-parallel ranks come to the same decisions, each of which is taken on every rank.

All of them follow from logits, and SGLang gathers those: every rank holds the same bits. What is computed from them, a
token drawn by its seed included, comes out the same again, by kernels that add in a fixed order. So decode steps,
captured or not, send nothing.

What the host reads inside an EXTEND call says how many forwards run, and ranks that ran different numbers of them
would wait for each other for ever. There, where the host waits anyway, all ranks take what the first predicts.
"""

from __future__ import annotations

from sglang.srt.runtime_context import get_parallel

from dlm_serve.decoding import Prediction


def agree_on(prediction: Prediction) -> None:
    """Overwrite `prediction`, contiguous tensors, with the first rank's; where there is one rank it stays."""
    group = get_parallel().tp_group
    for tensor in (prediction.ids, prediction.confidence, prediction.entropy):
        group.broadcast(tensor)
