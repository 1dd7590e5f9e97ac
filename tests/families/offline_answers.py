"""Run by test_offline.py: the reference's cases through DiffusionLM, those of equal parameters as one batch."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable

from golden import NEMOTRON_LABS_DIFFUSION, THINKING, TRAINED, Case
from torch import Tensor

from dlm_serve import DiffusionLM


def key_of(case: Case) -> str:
    """What cases of one batch have in common."""
    return json.dumps([case["mode"], case["params"]], sort_keys=True)


def main(ids: list[str]) -> None:
    known = [*NEMOTRON_LABS_DIFFUSION.cases(TRAINED), *THINKING.cases(TRAINED)]
    cases = sorted((case for case in known if case["id"] in ids), key=key_of)
    batches = []
    with DiffusionLM.from_pretrained(str(TRAINED)) as model:
        functions: dict[str, Callable[..., tuple[Tensor, int]]] = {
            "ar": model.ar_generate,
            "diffusion": model.generate,
            "linear_spec": model.linear_spec_generate,
        }
        for _, group in itertools.groupby(cases, key_of):
            batch = list(group)
            decode = functions[batch[0]["mode"]]
            out_ids, nfe = decode([case["prompt_ids"] for case in batch], **batch[0]["params"])
            batches.append({"cases": [case["id"] for case in batch], "out_ids": out_ids.tolist(), "nfe": nfe})
        as_tensor, _ = model.ar_generate(out_ids[:1, :3], max_new_tokens=8)
        sys.stdout.write("\n" + json.dumps({"batches": batches, "shape": list(as_tensor.shape)}) + "\n")


main(sys.argv[1:])
