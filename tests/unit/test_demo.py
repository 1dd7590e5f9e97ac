"""`dlm-serve demo`: the same questions in each mode, what that took, and one line that says what was seen."""

from __future__ import annotations

import io
import re

import pytest
from fake_server import BLOCK_LENGTH, Body, FakeServer
from rich.console import Console

from dlm_serve import cli
from dlm_serve.cli import demo
from dlm_serve.client import MODES, Client
from dlm_serve.training.tasks import TASKS

WHOLE = "seventeen and four is twenty-one."
NUM_TOKENS = len(WHOLE)


def answers(question: str, options: Body) -> str:
    """Diffusion gets the second question wrong."""
    return "no idea" if "two" in question and options["mode"] == "diffusion" else WHOLE


def rows(shown: str, name: str) -> list[list[str]]:
    """The values in each row called `name`."""
    return [re.split(r"\s{2,}", line.strip())[1:] for line in shown.splitlines() if line.strip().startswith(name)]


def test_what_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    """Not a terminal: a plain table of what was measured, once per question."""
    with FakeServer(answers) as server:
        assert cli.main(["demo", "--url", server.url, "--prompt", "one?", "--prompt", "two?"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    header = ["autoregressive", "diffusion", "self_speculation"]
    assert [line.split() for line in shown.splitlines() if "self_speculation  " in line] == [header] * 2
    # 33 tokens, of which the prefill gives one: 32 forwards; 4 blocks of 3; 8 drafts with a verification each.
    assert rows(shown, "forward passes") == [["32", "12", "16"], ["32", "3", "16"]]
    assert rows(shown, "tokens per forward") == [["1.03", "2.75", "2.06"], ["1.03", "2.33", "2.06"]]
    assert all(float(value) >= 0 for row in rows(shown, "seconds") for value in row)
    assert shown.splitlines()[-1] == (
        "Against the answers of autoregressive, diffusion: 1 of 2 the same, 4.3 times fewer forward passes; "
        "self_speculation: 2 of 2 the same, 2.0 times fewer forward passes."
    )


def test_the_answers_stand_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer(lambda question, options: f"I am {options['mode'][:4]}") as server:
        assert cli.main(["demo", "--url", server.url, "--prompt", "who?"]) == 0
    assert rows(capsys.readouterr().out, "answer") == [["I am auto", "I am diff", "I am self"]]


def test_fewer_modes(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a family that lacks some: the first is what the others are compared with, and one alone with none."""
    with FakeServer(answers) as server:
        asked = ["demo", "--url", server.url, "--prompt", "one?", "--modes", "diffusion"]
        assert cli.main([*asked, "autoregressive"]) == 0
        two = capsys.readouterr().out
        assert cli.main(asked) == 0
        one = capsys.readouterr().out
        assert {body["sampling_params"]["custom_params"]["dlm"]["mode"] for body in server.requests} == {
            "diffusion",
            "autoregressive",
        }
    assert rows(two, "forward passes") == [["12", "32"]]
    assert two.splitlines()[-1] == (
        "Against the answers of diffusion, autoregressive: 1 of 1 the same, 2.7 times more forward passes."
    )
    assert rows(one, "forward passes") == [["12"]]
    assert "Against" not in one


def test_its_own_questions_are_held_out(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer(answers) as server:
        assert cli.main(["demo", "--url", server.url]) == 0
    asked = [prompt.removeprefix("[user]").removesuffix("\n[assistant]") for prompt in server.prompts()]
    assert set(asked) == {
        next(TASKS[name].examples("heldout", 1, seed=0)).prompt for name in ("arithmetic", "sorting", "json", "python")
    }


def test_no_mode_pays_for_the_prompt_alone() -> None:
    """The prompt is in the prefix cache before the first mode is timed."""
    with FakeServer(answers) as server:
        demo.ask(Console(file=io.StringIO()), Client(server.url), "one?", MODES, 40)
    sent = [(body["sampling_params"]["max_new_tokens"], body.get("stream", False)) for body in server.requests]
    assert sent == [(1, False), (40, True), (40, True), (40, True)]


def test_blocks_fill_in_live() -> None:
    """On a terminal, an answer is seen before it is whole: a block at a time, each of another colour."""
    terminal, whole = io.StringIO(), "QWERTYUIOPASDFGHJ"
    with FakeServer(lambda question, options: whole if options["mode"] == "diffusion" else "", delay=0.2) as server:
        console = Console(file=terminal, force_terminal=True, color_system="standard", width=200)
        demo.ask(console, Client(server.url), "one?", MODES, 100)
    frames = re.split(r"one\?", terminal.getvalue())
    shown = [max((n for n in range(len(whole) + 1) if whole[:n] in plain(frame)), default=0) for frame in frames]
    assert set(shown) == {0, 1, 1 + BLOCK_LENGTH, 1 + 2 * BLOCK_LENGTH}
    assert shown == sorted(shown)
    assert "\x1b[33mWERTYUIO\x1b[0m\x1b[1;36mPASDFGHJ\x1b[0m" in frames[-1]


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_the_model_does_not_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer(lambda question, options: "\x1b[2J[bold]hi[/bold]") as server:
        assert cli.main(["demo", "--url", server.url, "--prompt", "clear?"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "[bold]hi" in shown


@pytest.mark.parametrize(
    ("whole", "words"),
    [("y", "0 forward passes against 0"), ("yes", "1.5 times more forward passes")],
    ids=["one-token", "three-tokens"],
)
def test_verdict_on_short_answers(whole: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is divided by zero, and more is not called fewer: three tokens take 2 forwards, or one block of 3."""
    with FakeServer(lambda question, options: whole) as server:
        assert cli.main(["demo", "--url", server.url, "--prompt", "one?"]) == 0
    assert f"diffusion: 1 of 1 the same, {words};" in capsys.readouterr().out
