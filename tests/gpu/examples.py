"""Checkpoints of the families beside Nemotron-Labs-Diffusion, and requests that use all their ways to decode."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from golden import BD3LM, DATA, EFFICIENT_DLM, SDLM, Golden
from sdar import write_checkpoint
from serving import generate_body


@dataclass(frozen=True)
class Example:
    """A checkpoint and greedy requests to it."""

    model: Path
    bodies: list[dict[str, Any]]


def recorded(golden: Golden, model: str) -> Example:
    """The requests of a family's recorded cases."""
    folder = golden.file.parent / model
    return Example(folder, [golden.body_of(case) for case in golden.cases(folder)])


def sdar(folder: Path) -> Example:
    """Prompts without the mask, which the first block would fill."""
    write_checkpoint(folder)
    mask_token_id = json.loads((folder / "config.json").read_text())["mask_token_id"]
    prompts = [case["prompt_ids"] for case in EFFICIENT_DLM.cases(DATA / "efficient_dlm" / "edlm-b8")]
    allowed = zip(itertools.cycle((0.5, 0.7, 0.9)), [ids for ids in prompts if mask_token_id not in ids], strict=False)
    return Example(folder, [generate_body(ids, 40, dlm={"threshold": threshold}) for threshold, ids in allowed])


EXAMPLES: dict[str, Callable[[Path], Example]] = {
    "efficient-dlm": lambda _: recorded(EFFICIENT_DLM, "edlm-b8"),
    "sdlm": lambda _: recorded(SDLM, "sdlm-d4-tied"),
    "bd3lm": lambda _: recorded(BD3LM, "bd3lm-b8"),
    "sdar": sdar,
}
"""By family; each is given an empty folder."""
