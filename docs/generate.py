"""Write the pages of the documentation that are made from the code: `docs/generate.py`, or `--check` whether they are.

`PAGES` names them. With `--check` nothing is written, and the exit status is 1 if a page is stale.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import configuration
import fields
import metrics
import pictures

from dlm_serve.seams import Seam
from dlm_serve.sglang.compat import SUPPORTED_VERSIONS
from dlm_serve.sglang.ledger import ENTRY_HOOKS, HOOKS, Hook
from dlm_serve.sglang.seams import ENTRY_SEAMS, SEAMS

DOCS = Path(__file__).parent


def hooks_page() -> str:
    """Return docs/hooks.md."""
    return f"""# What is changed in SGLang

Written by `docs/generate.py` from `ledger.py` and `seams.py` in `dlm_serve/sglang`; do not edit.

dlm-serve changes no file of SGLang's ({", ".join(SUPPORTED_VERSIONS)} is supported). It uses the seams that SGLang
offers to plugins; the rest are hooks, installed by SGLang's own `HookRegistry`.

## Registered through SGLang's own seams

{_table(("seam", "what"), REGISTERED)}

## Hooks

The hooks for *every* process are installed wherever the plugin is loaded, and do nothing where another model is
served. The others are installed only in a process that serves one of our models and has the role named here. A start
fails, with the names of the hooks concerned, unless all hooks of the process's role are in place.

{_table(("process", "target", "hook", "why", "until"), map(_hook_row, (*ENTRY_HOOKS, *HOOKS)))}

Looked at and not used:

{_list(NOT_USED)}

## Probed

The hooks' targets and the following names are looked up, with the parameters named, before a server of ours starts
another process. If one is missing the start fails and says which.

{_table(("name", "parameters"), map(_seam_row, (*ENTRY_SEAMS, *SEAMS)))}
"""


REGISTERED = (
    ("entry point `sglang.srt.plugins`", "`plugin.register`, in every process"),
    (
        "entry point `sglang.srt.platforms`",
        "the plain-PyTorch platform, only without an accelerator or with `DLM_SERVE_PLATFORM=cpu`",
    ),
    ("`SpeculativeAlgorithm.register`", "the algorithm `DLM`, whose worker is `DlmWorker`"),
    (
        "`SGLANG_EXTERNAL_MODEL_PACKAGE`, or `ModelRegistry.register` where the user has named a package there",
        "`dlm_serve.models`",
    ),
    ("`AutoConfig.register`", "the configuration classes"),
    ("`TokenizerManager.init_model_config`", "the sampling defaults of chats"),
    (
        "`http_server.app`",
        "`Bodies`, an ASGI middleware that reads our options on all routes and gives errors one shape; handlers of "
        "errors over what a request says; `/v1/models` with a name for each mode; the routes `/dlm/status` and "
        "`/dlm/routing`",
    ),
    (
        "`Scheduler.get_internal_state` and `.set_internal_state`",
        "what the router does, in `/server_info` and `/dlm/status`; what `/dlm/routing` pins it to, on all ranks",
    ),
    (
        "`Scheduler.init_request_dispatcher`",
        "decisions of the router are handled as SGLang's own messages are; the first rank adds them where it adds "
        "aborts of requests that waited too long (`Scheduler._poll_timeout_aborts`), before the broadcast",
    ),
    (
        "`Scheduler.init_weight_updater`",
        "`DlmWeightUpdater`, which checks new weights before it replaces any, and replaces the draft adapter's too",
    ),
    (
        "`Scheduler.init_batch_result_processor`",
        "`DlmBatchResultProcessor`, which gives prompts their log-probabilities, and ends answers with their grammar",
    ),
    (
        "`Scheduler.init_metrics_collector`, `.process_batch_result` and `.send_abort_output`",
        "our metrics, registered beside SGLang's and exported once a second",
    ),
    (
        "`Scheduler.init_metrics_reporter`",
        "`DlmMetricsReporter`, which reports tokens of answers and no acceptance of drafts",
    ),
    (
        "`Scheduler.get_output_streamer_class`",
        "`DlmOutputStreamer`, which reports `meta_info.dlm` and sends no empty chunk",
    ),
    ("`SRTPlatform.get_kv_pool_cls`", "SGLang's KV pool without its Triton warm-up"),
    ("`ModelRunner.sampler`", "SGLang's sampler with our way of drawing"),
    (
        "`ModelRunner.spec_algorithm`",
        "none: SGLang's runner prefills and decodes, and captures its own graphs of that; block steps run beside it",
    ),
    (
        "`cuda_graph_config.prefill`, as `get_exec` has it",
        "prefills of one token are captured too, and with FlashAttention-3 and one rank each prefill in one graph, "
        "unless the user has said how",
    ),
    ("`LogitsProcessor`", "a subclass that leaves the logits of block rows in the model's precision"),
    (
        "`Ministral3Attention`",
        "the scale of queries is computed by the first layer and shared, by module hooks of PyTorch",
    ),
)

NOT_USED = (
    "`SpeculativeAlgorithm.register(validate_server_args=...)` to refuse flags: it is called when SGLang has filled "
    "most fields, so that a user's flag and a default look alike, and after SGLang's own errors about the same flags.",
    "`register_model_override` for defaults: it is called when the model's configuration has been read. Path, "
    "tokenizer, architecture and algorithm must be set before, by the hook on `resolve_once`; so is the rest.",
    "`TokenizerManager.model_config_class` for the defaults of chats: `ModelConfig.from_server_args` is static and "
    "never makes a subclass.",
    "`CustomSpecAlgo.resolve_max_speculative_num_draft_tokens` for the size of rows: it raises the reserve of each "
    "step as much as the row.",
    "`SpecInput.prepare_for_decode` in place of the hook on `assign_req_to_token_pool_func`: SGLang calls it for its "
    "own DFlash and UNO only.",
)


def _hook_row(hook: Hook) -> tuple[str, ...]:
    name = hook.hook.removeprefix("dlm_serve.")
    return str(hook.role), _code(hook.target), f"{hook.kind} `{name}`", hook.why, hook.until


def _seam_row(seam: Seam) -> tuple[str, ...]:
    return _code(seam.target), ", ".join(f"`{name}`" for name in seam.parameters)


def _code(target: str) -> str:
    return f"`{target.removeprefix('sglang.srt.')}`"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


PAGES: dict[str, Callable[[], str]] = {
    "hooks.md": hooks_page,
    **configuration.PAGES,
    **fields.PAGES,
    **metrics.PAGES,
    **pictures.PAGES,
}
"""Files in this folder, and the functions that return their text."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write all pages that are stale, or only name them; return the exit status."""
    parser = argparse.ArgumentParser(description="Write the generated pages of the documentation.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is stale")
    check = parser.parse_args(arguments).check
    stale = [name for name, page in PAGES.items() if not _is(DOCS / name, page())]
    for name in stale:
        if check:
            sys.stderr.write(f"docs/{name} is stale: run docs/generate.py\n")
        else:
            (DOCS / name).write_text(PAGES[name]())
    return int(check and bool(stale))


def _is(file: Path, text: str) -> bool:
    return file.is_file() and file.read_text() == text


if __name__ == "__main__":
    sys.exit(main())
