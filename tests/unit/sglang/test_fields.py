"""What each mode of each family makes of a field is what docs/fields.md says, one test for each of its cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fields import CASES, COLUMNS, Case, Column, Verdict
from golden import DATA
from processes import output_of
from sdar import write_checkpoint

from dlm_serve.decoding import Mode
from dlm_serve.families import BD3LM, EFFICIENT_DLM, NEMOTRON_LABS_DIFFUSION, SDAR, SDLM

SCRIPT = Path(__file__).parent / "front_end.py"
MODELS = {
    NEMOTRON_LABS_DIFFUSION.name: DATA / "nld-trained-b8",
    SDLM.name: DATA / "sdlm" / "sdlm-d4-tied",
    EFFICIENT_DLM.name: DATA / "efficient_dlm" / "edlm-b8",
    BD3LM.name: DATA / "bd3lm" / "bd3lm-b8",
}

CELLS = [
    (case, column, verdict, mode)
    for cases in CASES.values()
    for case in cases
    for column, verdict in zip(COLUMNS, case.verdicts, strict=True)
    for mode in column.modes
]
ANSWERS = [(case, mode) for cases in CASES.values() for case in cases for mode in Mode]

LATE = [
    (path, {**body, **fields, "stream": stream})
    for path, body in (
        ("/v1/responses", {"model": "default", "input": "hi"}),
        ("/v1/messages", {"model": "default", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}),
    )
    for fields in ({"top_p": 3.0}, {"temperature": -1.0})
    for stream in (False, True)
]
"""Requests of which SGLang finds only when it has begun to stream that they cannot be answered."""

Found = dict[tuple[str, str, Mode], Any]
"""What became of requests, by family, case and mode."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    sdar = tmp_path_factory.mktemp("sdar")
    write_checkpoint(sdar)
    models = {**MODELS, SDAR.name: sdar}
    bodies = [*((case.path, case.body(mode)) for case, mode in ANSWERS), *LATE]
    answers = json.loads(output_of(SCRIPT, json.dumps([[*map(str, models.values())], bodies])).splitlines()[-1])
    return {
        (family, case.name, mode): answer
        for family, model in models.items()
        for (case, mode), answer in zip(ANSWERS, answers[str(model)], strict=False)
    } | {("late", str(number), Mode.AUTO): answer for number, answer in enumerate(answers[str(sdar)][len(ANSWERS) :])}


@pytest.mark.parametrize("number", range(len(LATE)))
def test_what_is_found_after_a_stream_began(found: Found, number: int) -> None:
    """SGLang's first events are held back until the request is admitted."""
    status, answer = found["late", str(number), Mode.AUTO]
    assert status == 400
    assert next(name for name in ("top_p", "temperature") if name in LATE[number][1]) in answer


@pytest.mark.parametrize(
    ("case", "column", "verdict", "mode"),
    CELLS,
    ids=[f"{case.name}-{column.family.name}-{mode}" for case, column, _, mode in CELLS],
)
def test_a_field(found: Found, case: Case, column: Column, verdict: Verdict, mode: Mode) -> None:
    status, answer = found[column.family.name, case.name, mode]
    if verdict is Verdict.REFUSED:
        assert status == 400, answer
        assert any(name in answer.replace(" ", "_") for name in (*case.fields, *case.options)), answer
        return
    assert status == 200, answer
    asked = column.family.auto if mode is Mode.AUTO else mode
    assert answer[0] == (asked if verdict is Verdict.YES else verdict)
