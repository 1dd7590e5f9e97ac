"""The cases that the original implementations produced, and how our answers are compared with them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from serving import generate_body

DATA = Path(__file__).parent.parent / "data"

TRAINED = DATA / "nld-trained-b8"
RANDOM = DATA / "nld-random-b8"
WITH_ADAPTER = DATA / "nld-trained-b32-lora"

MODES = {"ar": "autoregressive", "diffusion": "diffusion", "linear_spec": "self_speculation"}

Case = dict[str, Any]


def cases(model: Path, *, adapter: bool = False, modes: Iterable[str] = MODES) -> list[Case]:
    """The cases of one checkpoint; self-speculation with or without its adapter, the other modes never use it."""
    return [
        case
        for case in json.loads((DATA / "nld_cases.json").read_text())
        if case["variant"] == model.name
        and case["mode"] in modes
        and (case["mode"] != "linear_spec" or (case["lora"] is not None) == adapter)
    ]


def body_of(case: Case) -> dict[str, Any]:
    """The request that a case stands for."""
    params = case["params"]
    options = {name: params[name] for name in ("block_length", "threshold") if name in params}
    ignore: dict[str, Any] = {"ignore_eos": True} if params.get("eos_token_id") == -1 else {}
    return generate_body(case["prompt_ids"], params["max_new_tokens"], mode=MODES[case["mode"]], dlm=options, **ignore)


def expected_ids(case: Case) -> list[int]:
    """The reference's tokens; it may finish its last accepted run beyond the limit."""
    ids: list[int] = case["output_ids"][: case["params"]["max_new_tokens"]]
    return ids


def expected_nfe(case: Case) -> int:
    """The reference's forward passes, counted our way.

    Theirs include the prefill, except in diffusion, where they run one more block behind a seed that ends the request.
    """
    nfe: int = case["nfe"]
    if case["mode"] != "diffusion":
        return nfe - 1
    ends_on_seed = case["finish"] == "eos" and (len(case["output_ids"]) - 1) % case["params"]["block_length"] == 0
    return nfe - 2 if ends_on_seed else nfe


def differences(cases: list[Case], answers: list[dict[str, Any]]) -> list[str]:
    """The cases whose ids or forward passes are not the reference's, in words."""
    found = []
    for case, answer in zip(cases, answers, strict=True):
        ours = (answer["output_ids"], answer["meta_info"]["dlm"]["nfe"])
        theirs = (expected_ids(case), expected_nfe(case))
        if ours != theirs:
            found.append(f"{case['id']}: {ours} instead of {theirs}")
    return found
