"""`dlm-serve chat`: a conversation, commands that begin with a slash, and an answer that can be stopped."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from functools import partial

import pytest
from fake_server import Body, FakeServer

from dlm_serve import cli

ENOUGH_SECONDS = 30


def echo(question: str, options: Body) -> str:
    return f"You say {question!r}."


def chat(
    server: FakeServer, lines: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *flags: str
) -> str:
    """What a chat with these lines of input prints, which must end well."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert cli.main(["chat", "--url", server.url, *flags]) == 0
    return capsys.readouterr().out


def test_a_conversation(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each question is asked with all that was said before it; the end of input ends the chat."""
    with FakeServer(echo) as server:
        shown = chat(server, "one\n\n  two  \n", monkeypatch, capsys)
        assert server.prompts() == [
            "[user]one\n[assistant]",
            "[user]one\n[assistant]You say 'one'.\n[user]two\n[assistant]",
        ]
    assert "> You say 'one'.\n" in shown
    assert "> You say 'two'.\n" in shown


def test_what_an_answer_took(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """14 tokens, of which the prefill gives one: 4 drafts of at most 4, with a verification each."""
    with FakeServer(echo) as server:
        shown = chat(server, "one\n", monkeypatch, capsys)
    expected = "self_speculation, 14 tokens, 8 forward passes, 1.75 tokens per forward, acceptance length 4.00, "
    assert expected in shown
    assert "cut" not in shown


def test_a_limit_of_tokens(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Is asked for, and said where it was reached; without one the server is asked for as many as fit."""
    with FakeServer(echo) as server:
        assert "cut at the limit" in chat(server, "one\n", monkeypatch, capsys, "--max-new-tokens", "3")
        chat(server, "one\n", monkeypatch, capsys)
    assert [body["sampling_params"]["max_new_tokens"] for body in server.requests] == [3, None]


def test_modes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It begins with that of the command line; a name that is none changes nothing."""
    with FakeServer(echo) as server:
        lines = "one\n/mode diffusion\ntwo\n/mode autoregresive\nthree\n/mode\nfour\n"
        shown = chat(server, lines, monkeypatch, capsys, "--mode", "autoregressive")
    asked = [body["sampling_params"]["custom_params"]["dlm"]["mode"] for body in server.requests]
    assert asked == ["autoregressive", "diffusion", "diffusion", "diffusion"]
    assert "did you mean 'autoregressive'" in shown
    assert "diffusion, 14 tokens" in shown


def test_reset(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer(echo) as server:
        chat(server, "one\n/reset\ntwo\n", monkeypatch, capsys)
    assert server.prompts()[-1] == "[user]two\n[assistant]"


def test_quit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer(echo) as server:
        chat(server, "/quit\none\n", monkeypatch, capsys)
    assert server.requests == []


def test_help_and_unknown_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer(echo) as server:
        shown = chat(server, "/help\n/rest\n", monkeypatch, capsys)
    for name in ("/mode NAME", "/reset", "/help", "/quit"):
        assert f"\n{name}" in shown.replace("> ", "\n")
    assert "did you mean '/reset'" in shown
    assert server.requests == []


def test_thinking(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Reasoning is shown, with the tag that ends it, and is no part of the conversation."""

    def reason(question: str, options: Body) -> str:
        return "Hm.</think>\nYes."

    with FakeServer(reason, can_think=True) as server:
        shown = chat(server, "one\n/think on\ntwo\n/think off\nthree\n/think maybe\n", monkeypatch, capsys)
    ends = [prompt.rpartition("[assistant]")[2] for prompt in server.prompts()]
    assert ends == ["<think></think>", "<think>", "<think></think>"]
    assert "Hm.</think>" in shown
    assert all("Hm." not in prompt for prompt in server.prompts())
    skips = [body["sampling_params"]["skip_special_tokens"] for body in server.requests]
    assert skips == [True, False, True]


def test_thinking_is_offered_only_where_the_template_heeds_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeServer(echo) as server:
        shown = chat(server, "/help\n/think on\n", monkeypatch, capsys)
    assert "/think on |" not in shown
    assert "unknown command /think" in shown


def test_refused_question_is_forgotten(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The server's words are shown, and the chat goes on."""
    with FakeServer(echo) as server:
        shown = chat(server, "one\n", monkeypatch, capsys, "--max-new-tokens", "1001")
        assert "at most 1000; ask for fewer" in " ".join(shown.split())
        server.has_plugin = False
        shown = chat(server, "one\ntwo\n", monkeypatch, capsys)
    assert shown.count("without dlm-serve") == 2
    assert server.prompts() == ["[user]one\n[assistant]", "[user]two\n[assistant]"]


def test_control_c_stops_the_answer_and_not_the_program() -> None:
    """What was shown of it stays in the conversation, and the server is told that nobody listens."""
    long = "x" * 500
    with FakeServer(lambda question, options: long if question == "one" else "done", delay=0.02) as server:
        command = [sys.executable, "-m", "dlm_serve", "chat", "--url", server.url, "--mode", "autoregressive"]
        # A shell that runs the tests in the background has them ignore the signal, and they would pass that on.
        heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=heed
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("one\n")
            process.stdin.flush()
            shown = ""
            while "xxx" not in shown:
                shown += process.stdout.read(1)
            process.send_signal(signal.SIGINT)
            rest, _ = process.communicate("two\n", timeout=ENOUGH_SECONDS)
        assert process.returncode == 0
    said, _, summary = (shown + rest).partition("> ")[2].partition("\n")
    assert summary.partition("\n")[0].endswith(", stopped")
    assert 3 <= len(said) < 500
    assert "> done" in rest
    first, second = server.prompts()
    kept = second.removeprefix(first).removesuffix("\n[user]two\n[assistant]")
    assert kept in (said, f"{said}x")  # the last token may have come without being shown
    assert server.num_abandoned == 1
