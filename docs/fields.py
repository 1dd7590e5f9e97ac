"""Generate docs/fields.md: which fields of a request each mode of each family honours.

The tests send each of `CASES` to the server's main process, so what stands here is what it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from string import Template
from typing import Any

from dlm_serve.decoding import Mode
from dlm_serve.families import BD3LM, EFFICIENT_DLM, NEMOTRON_LABS_DIFFUSION, SDAR, SDLM, Family

TEXT = Template("""# Fields

Written by `docs/generate.py` from `docs/fields.py`, each of whose cases is a test; do not edit.

What a request may ask for, by the model's [family](models.md) and the mode in which the request decodes:

| | |
|---|---|
| $yes | honoured |
| $autoregressive, $diffusion | honoured, and `auto` decodes the request in that mode |
| $refused | refused with HTTP 400, which names the field |

$tables

A mode that a family does not have is refused. Fields of SGLang's that are not listed, such as `rid` or `priority`, say
nothing about how a request decodes. [api.md](api.md#logits) says how the modes honour what they do.
""")


class Verdict(StrEnum):
    """What becomes of a request."""

    YES = "yes"
    AUTOREGRESSIVE = "autoregressive"
    DIFFUSION = "diffusion"
    REFUSED = "400"


YES, AR, DIFFUSION, REFUSED = Verdict


@dataclass(frozen=True)
class Column:
    """Modes of a family that honour the same."""

    family: Family
    modes: tuple[Mode, ...]


COLUMNS = (
    *(Column(NEMOTRON_LABS_DIFFUSION, (mode,)) for mode in (Mode.AUTO, *NEMOTRON_LABS_DIFFUSION.modes)),
    *(Column(SDLM, (mode,)) for mode in (Mode.AUTO, *SDLM.modes)),
    *(Column(family, (Mode.AUTO, Mode.DIFFUSION)) for family in (EFFICIENT_DLM, BD3LM, SDAR)),
)

EVERYWHERE = (YES,) * len(COLUMNS)
"""In the order of `COLUMNS`."""
NOWHERE = (REFUSED,) * len(COLUMNS)
TOKEN_BY_TOKEN = (YES, YES, REFUSED, YES, AR, REFUSED, YES, REFUSED, REFUSED, REFUSED)
"""What depends on one token following another: verified drafts have it, denoised blocks do not."""
SCORED = (YES, YES, YES, YES, AR, REFUSED, YES, REFUSED, REFUSED, REFUSED)
"""What a forward over decided tokens gives, too."""
ONE_AT_A_TIME = (AR, REFUSED, REFUSED, YES, AR, REFUSED, YES, REFUSED, REFUSED, REFUSED)

CHAT, COMPLETIONS, GENERATE = "/v1/chat/completions", "/v1/completions", "/generate"

BODIES: Mapping[str, Mapping[str, Any]] = {
    CHAT: {"model": "default", "messages": [{"role": "user", "content": "hi"}]},
    COMPLETIONS: {"model": "default", "prompt": "hi"},
    GENERATE: {"text": "hi"},
}
"""A body for each route, that asks for nothing else."""

_SCHEMA = {"type": "object", "properties": {}}
_TOOLS = [{"type": "function", "function": {"name": "f", "parameters": _SCHEMA}}]


@dataclass(frozen=True)
class Case:
    """A field of a request, or several that belong together."""

    verdicts: tuple[Verdict, ...]
    """In the order of `COLUMNS`."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What is sent."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What is sent in `custom_params.dlm`."""
    path: str = CHAT
    shown: str | None = None
    """How the page names it, where not by the names of the fields."""

    @property
    def name(self) -> str:
        """Return how the page names it."""
        return self.shown or ", ".join(f"`{name}`" for name in (*self.fields, *self.options))

    def body(self, mode: Mode) -> dict[str, Any]:
        """Return the body of a request that asks for it in `mode`."""
        return {**BODIES[self.path], **self.fields, "custom_params": {"dlm": {"mode": str(mode), **self.options}}}


def _each(verdicts: tuple[Verdict, ...], path: str = CHAT, **fields: Any) -> list[Case]:
    """Return a case for each of `fields`."""
    return [Case(verdicts, {name: value}, path=path) for name, value in fields.items()]


CASES: Mapping[str, list[Case]] = {
    "How tokens are drawn, and where an answer ends": [
        *_each(EVERYWHERE, temperature=0.5, top_p=0.5, top_k=4, min_p=0.1, seed=3, n=2),
        *_each(EVERYWHERE, max_tokens=4, stop=["a"], stop_regex="a", stop_token_ids=[5], ignore_eos=True),
        *_each(TOKEN_BY_TOKEN, min_tokens=2),
    ],
    "Grammars and tools": [
        Case(
            TOKEN_BY_TOKEN,
            {"response_format": {"type": "json_object"}},
            shown="`response_format` with `json_object`",
        ),
        Case(
            TOKEN_BY_TOKEN,
            {"response_format": {"type": "json_schema", "json_schema": {"name": "f", "schema": _SCHEMA}}},
            shown="`response_format` with `json_schema`",
        ),
        Case(
            TOKEN_BY_TOKEN,
            {
                "response_format": {
                    "type": "structural_tag",
                    "structures": [{"begin": "<f>", "schema": _SCHEMA, "end": "</f>"}],
                    "triggers": ["<f>"],
                }
            },
            shown="`response_format` with `structural_tag`",
        ),
        *_each(TOKEN_BY_TOKEN, regex="a+", ebnf='root ::= "a"'),
        Case(EVERYWHERE, {"tools": _TOOLS}, shown="`tools`, `tool_choice` `auto` or `none`"),
        Case(TOKEN_BY_TOKEN, {"tools": _TOOLS, "tool_choice": "required"}, shown="`tools`, `tool_choice` `required`"),
        Case(
            TOKEN_BY_TOKEN,
            {"tools": _TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}},
            shown="`tools`, `tool_choice` of a function",
        ),
    ],
    "Penalties and biases": [
        *_each(TOKEN_BY_TOKEN, frequency_penalty=0.5, presence_penalty=0.5, repetition_penalty=1.2),
        *_each(TOKEN_BY_TOKEN, logit_bias={"5": 1.0}),
        Case(ONE_AT_A_TIME, {"custom_logit_processor": "as SGLang writes one"}),
    ],
    "Log-probabilities": [
        Case(SCORED, {"logprobs": True}),
        Case(SCORED, {"logprobs": True, "top_logprobs": 2}),
        Case(SCORED, {"logprobs": 2}, path=COMPLETIONS, shown="`logprobs` of completions"),
        Case(SCORED, {"logprobs": 2, "echo": True}, path=COMPLETIONS, shown="`logprobs` with `echo`"),
        Case(SCORED, {"return_logprob": True, "logprob_start_len": 0}, path=GENERATE),
        Case(SCORED, {"return_logprob": True, "token_ids_logprob": [5]}, path=GENERATE),
    ],
    "What is sent and how it comes back": [
        *_each(EVERYWHERE, stream=True, return_meta_info=True, chat_template_kwargs={"enable_thinking": True}),
        Case(EVERYWHERE, {"prompt": ["a", "b"]}, path=COMPLETIONS, shown="`prompt`, several"),
        *_each(EVERYWHERE, path=COMPLETIONS, echo=True),
    ],
    "Options in `custom_params.dlm`": [
        Case((YES, YES, YES, REFUSED, YES, YES, REFUSED, YES, REFUSED, YES), options={"threshold": 0.8}),
        Case(
            (DIFFUSION, REFUSED, YES, REFUSED, REFUSED, REFUSED, REFUSED, YES, YES, YES),
            options={"steps": 4},
        ),
        Case(
            (DIFFUSION, YES, YES, REFUSED, REFUSED, REFUSED, REFUSED, YES, YES, YES),
            options={"convergence_threshold": 0.1},
        ),
        Case(
            (YES, YES, YES, REFUSED, YES, YES, REFUSED, YES, REFUSED, REFUSED),
            options={"block_length": 4},
            shown="`block_length`, another than the checkpoint's",
        ),
        Case(EVERYWHERE, options={"history": True}),
        Case(SCORED, options={"max_thinking_tokens": 4, "end_think_token_id": 13}),
    ],
    "Refused": [
        *_each(NOWHERE, beam_width=2, use_beam_search=True, session_params={"id": "a"}, thinking_budget=4),
        *_each(NOWHERE, return_hidden_states=True, watermark={"enabled": True}),
        *_each(NOWHERE, functions=[{"name": "f"}], function_call="f", audio={"voice": "a"}, web_search_options={}),
        *_each(NOWHERE, structured_outputs={"json": {}}, guided_json={}, guided_regex="a", guided_choice=["a"]),
        *_each(NOWHERE, bad_words=["a"], min_new_tokens=2, top_logprobs=2),
        *_each(NOWHERE, path=COMPLETIONS, suffix="a", best_of=2),
        Case(NOWHERE, {"text": None, "input_embeds": [[0.5]]}, path=GENERATE, shown="`input_embeds`"),
    ],
}
"""By what they are about."""


def page() -> str:
    """Return the text of docs/fields.md."""
    return TEXT.substitute(
        yes=YES,
        autoregressive=AR,
        diffusion=DIFFUSION,
        refused=REFUSED,
        tables="\n\n".join(f"## {about}\n\n{_table(cases)}" for about, cases in CASES.items()),
    )


def _table(cases: Iterable[Case]) -> str:
    head = [
        "field",
        *(f"{column.family.name} {' or '.join(f'`{mode}`' for mode in column.modes)}" for column in COLUMNS),
    ]
    lines = [head, ["---"] * len(head), *([case.name, *case.verdicts] for case in cases)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


PAGES: dict[str, Callable[[], str]] = {"fields.md": page}
"""Files in this folder, and the functions that return their text."""
