"""The cases that the original implementations produced, and how our answers are compared with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from serving import Server, generate_body

DATA = Path(__file__).parent.parent / "data"
CONCURRENCY = 32

TRAINED = DATA / "nld-trained-b8"
RANDOM = DATA / "nld-random-b8"
WITH_ADAPTER = DATA / "nld-trained-b32-lora"

MODES = {"ar": "autoregressive", "diffusion": "diffusion", "linear_spec": "self_speculation"}

Case = dict[str, Any]
Answer = dict[str, Any]


@dataclass(frozen=True)
class Golden:
    """The cases of one family: what its reference was asked, and what it answered."""

    file: Path
    body_of: Callable[[Case], dict[str, Any]]
    """The request that a case stands for."""
    expected_ids: Callable[[Case], list[int]]
    expected_nfe: Callable[[Case], int]
    """The reference's forward passes, counted our way."""

    def cases(self, model: Path, *modes: str) -> list[Case]:
        """Those of one checkpoint, in some modes of the reference or in all."""
        found = json.loads(self.file.read_text())
        return [case for case in found if case["variant"] == model.name and (not modes or case["mode"] in modes)]

    def ask(self, server: Server, cases: list[Case], concurrency: int = CONCURRENCY) -> list[Answer]:
        """The server's answers to `cases`; the longest are asked first, so that few run alone at the end."""
        order = sorted(range(len(cases)), key=lambda i: -self.expected_nfe(cases[i]))
        answers = server.generate_all([self.body_of(cases[i]) for i in order], concurrency)
        return [answer for _, answer in sorted(zip(order, answers, strict=True), key=itemgetter(0))]

    def differences(self, cases: list[Case], answers: list[Answer]) -> list[str]:
        """The cases whose ids or forward passes are not the reference's, in words.

        Each retraction saves a commit, when the prefill that follows writes that block, or repeats the forward
        passes of one block, which are no more than its tokens.
        """
        found = []
        for case, answer in zip(cases, answers, strict=True):
            statistics, retractions = answer["meta_info"]["dlm"], answer["meta_info"]["num_retractions"]
            excess = statistics["nfe"] - self.expected_nfe(case)
            counted = -retractions <= excess <= retractions * statistics["block_length"]
            if answer["output_ids"] != self.expected_ids(case) or not counted:
                ours, theirs = (answer["output_ids"], statistics["nfe"]), (case["output_ids"], case["nfe"])
                found.append(f"{case['id']}: {ours} instead of {theirs}")
        return found


# --- Nemotron-Labs-Diffusion ---


def _nld_body(case: Case) -> dict[str, Any]:
    params = case["params"]
    names = ("block_length", "threshold", "max_thinking_tokens", "end_think_token_id")
    options = {name: params[name] for name in names if name in params}
    ignore: dict[str, Any] = {"ignore_eos": True} if params.get("eos_token_id") == -1 else {}
    return generate_body(case["prompt_ids"], params["max_new_tokens"], mode=MODES[case["mode"]], dlm=options, **ignore)


def _nld_ids(case: Case) -> list[int]:
    """The reference may finish its last accepted run beyond the limit."""
    ids: list[int] = case["output_ids"][: case["params"]["max_new_tokens"]]
    return ids


def _nld_nfe(case: Case) -> int:
    """Theirs include the prefill, except in diffusion, where they run one more block behind a seed that ends it."""
    nfe: int = case["nfe"]
    if case["mode"] != "diffusion":
        return nfe - 1
    ends_on_seed = case["finish"] == "eos" and (len(case["output_ids"]) - 1) % case["params"]["block_length"] == 0
    return nfe - 2 if ends_on_seed else nfe


NEMOTRON_LABS_DIFFUSION = Golden(DATA / "nld_cases.json", _nld_body, _nld_ids, _nld_nfe)
THINKING = Golden(DATA / "nld_thinking_cases.json", _nld_body, _nld_ids, _nld_nfe)
"""Cases with a thinking budget."""


def vllm_request_of(case: Case) -> tuple[list[int], dict[str, Any]]:
    """The prompt of a case of Nemotron-Labs-Diffusion's, and the arguments of vLLM's SamplingParams."""
    sampling = NEMOTRON_LABS_DIFFUSION.body_of(case)["sampling_params"]
    options = sampling.pop("custom_params")["dlm"]
    return case["prompt_ids"], {
        "max_tokens": sampling["max_new_tokens"],
        "ignore_eos": sampling.get("ignore_eos", False),
        "extra_args": options,
        "detokenize": False,
    }


def by_adapter(cases: list[Case], *, adapter: bool) -> list[Case]:
    """Those whose drafts come with the adapter, or without; only self-speculation drafts."""
    return [case for case in cases if case["mode"] != "linear_spec" or (case["lora"] is not None) == adapter]


# --- Efficient-DLM ---


def _efficient_dlm_body(case: Case) -> dict[str, Any]:
    """The reference's `steps` are those of all blocks together."""
    params = case["params"]
    options = {name: params[name] for name in ("block_length", "threshold")}
    if params["threshold"] is None:
        options["steps"] = params["steps"] // (params["max_new_tokens"] // params["block_length"])
    ends: dict[str, Any] = {"ignore_eos": True} if params["eos_token_id"] is None else {}
    return generate_body(case["prompt_ids"], params["max_new_tokens"], dlm=options, **ends)


def _all_ids(case: Case) -> list[int]:
    ids: list[int] = case["output_ids"]
    return ids


def _efficient_dlm_nfe(case: Case) -> int:
    """The reference runs the commit of the block that ends a request, too."""
    nfe: int = case["nfe"]
    return nfe - 1


EFFICIENT_DLM = Golden(DATA / "efficient_dlm" / "cases.json", _efficient_dlm_body, _all_ids, _efficient_dlm_nfe)


# --- SDLM ---


def _sdlm_body(case: Case) -> dict[str, Any]:
    """One token of each window is what a threshold of 1 takes."""
    params = case["params"]
    options = {"algorithm": params["alg"], "block_length": params["n_future_tokens"]}
    if "threshold" in params:
        options["threshold"] = 1.0 if params.get("only_first_token_keep") else params["threshold"]
    return generate_body(case["prompt_ids"], params["max_gen_len"], mode="diffusion", dlm=options)


def _sdlm_ids(case: Case) -> list[int]:
    """With the token that stopped the reference; its last window may go past the limit."""
    stop = [] if case["stop_token"] is None else [case["stop_token"]]
    ids: list[int] = case["output_ids"] + stop
    return ids[: case["params"]["max_gen_len"]]


def _sdlm_nfe(case: Case) -> int:
    nfe: int = case["nfe"]
    return nfe


SDLM = Golden(DATA / "sdlm" / "cases.json", _sdlm_body, _sdlm_ids, _sdlm_nfe)


# --- BD3-LM ---


def _bd3lm_body(case: Case) -> dict[str, Any]:
    params = case["params"]
    options = {name: params[name] for name in ("algorithm", "threshold", "block_length") if name in params}
    ignore: dict[str, Any] = {"ignore_eos": True} if params["ignore_eos"] else {}
    return generate_body(case["prompt_ids"], params["max_new_tokens"], dlm=options, **ignore)


def _bd3lm_nfe(case: Case) -> int:
    """Theirs leave commits out; the block that ends a request has none here."""
    nfe: int = case["nfe"] + case["commits"] - 1
    return nfe


BD3LM = Golden(DATA / "bd3lm" / "cases.json", _bd3lm_body, _all_ids, _bd3lm_nfe)
