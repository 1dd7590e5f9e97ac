"""Chat with a running server and switch decode modes at any time."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import closing, suppress

from rich.console import Console

from dlm_serve.cli import add_server_arguments, positive
from dlm_serve.client import MODES, Answer, Client, Message, printable
from dlm_serve.errors import ServerError, nearest

_MODES = ("auto", *MODES)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this subcommand to `parser`."""
    add_server_arguments(parser)
    parser.add_argument("--mode", choices=_MODES, default="auto", help="to begin with (%(default)s)")
    parser.add_argument("--max-new-tokens", type=positive, metavar="N", help="per answer (as many as fit)")


def run(args: argparse.Namespace) -> None:
    """Chat until the input ends."""
    with suppress(ImportError):
        import readline  # noqa: F401  # lines can then be edited, where the platform has it
    client = Client(args.url, args.api_key)
    client.about()
    Chat(client, Console(highlight=False), args.mode, args.max_new_tokens).loop()


class Chat:
    """A conversation and its slash commands."""

    def __init__(self, client: Client, console: Console, mode: str, max_new_tokens: int | None) -> None:
        self._client, self._console = client, console
        self._mode, self._max_new_tokens = mode, max_new_tokens
        self._messages: list[Message] = []
        self._template_options: dict[str, object] = {}
        self._is_over = False
        self._commands: dict[str, tuple[Callable[[str], None], str]] = {
            "/mode": (self._set_mode, f"NAME  decode as: {', '.join(_MODES)}"),
            "/reset": (self._reset, "forget the conversation"),
            "/help": (self._help, "show this"),
            "/quit": (self._quit, "end; so does the end of input"),
        }
        if self._has_thinking_switch():
            self._commands["/think"] = (self._think, "on | off  whether answers begin with reasoning")

    def loop(self) -> None:
        """Chat until the end of input or /quit."""
        self._console.print(f"Mode {self._mode}. /help shows the commands; Ctrl-C stops an answer.", style="dim")
        while not self._is_over:
            try:
                line = self._console.input("> ").strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                self._console.print("\n/quit ends the chat", style="dim")
                continue
            if line.startswith("/"):
                name, _, argument = line.partition(" ")
                self._command(name, argument.strip())
            elif line:
                self._turn(line)

    def _turn(self, line: str) -> None:
        """Ask one question and show its answer. A question that the server rejects is dropped from the conversation."""
        self._messages.append({"role": "user", "content": line})
        try:
            answer = self._stream()
        except ServerError as error:
            self._messages.pop()
            self._console.print(str(error), style="red", markup=False)
            return
        self._messages.append({"role": "assistant", "content": answer.text.rpartition("</think>")[2].strip()})

    def _stream(self) -> Answer:
        """Show the answer as it streams, until it ends or Ctrl-C stops it, and return it."""
        prompt_ids = self._client.tokenize(self._messages, **self._template_options)
        options = {"mode": self._mode}
        # Where it reasons, the tags that end the reasoning are shown.
        skip_special = not self._template_options.get("enable_thinking", False)
        stream = self._client.stream(prompt_ids, options, self._max_new_tokens, skip_special=skip_special)
        shown, answer, remark = 0, None, ""
        with closing(stream):
            try:
                for answer in stream:
                    self._console.file.write(printable(answer.text[shown:]))
                    self._console.file.flush()
                    shown = len(answer.text)
            except KeyboardInterrupt:
                remark = ", stopped"
        if answer is None:
            raise ServerError("there is no answer.")
        self._console.print(f"\n{_summary(answer)}{remark}", style="dim", soft_wrap=True)
        return answer

    def _command(self, name: str, argument: str) -> None:
        if name in self._commands:
            self._commands[name][0](argument)
        else:
            self._console.print(f"unknown command {name}: {nearest(name, self._commands)}", style="red", markup=False)

    def _set_mode(self, name: str) -> None:
        if name in _MODES:
            self._mode = name
            self._console.print(f"mode {name}", style="dim")
        else:
            self._console.print(f"unknown mode {name!r}: {nearest(name, _MODES)}", style="red", markup=False)

    def _think(self, switch: str) -> None:
        if switch not in ("on", "off"):
            self._console.print("/think on or /think off", style="red")
            return
        self._template_options = {"enable_thinking": switch == "on"}
        self._console.print(f"thinking {switch}", style="dim")

    def _reset(self, _: str) -> None:
        self._messages.clear()
        self._console.print("the conversation is forgotten", style="dim")

    def _help(self, _: str) -> None:
        for name, (_command, text) in self._commands.items():
            self._console.print(f"{name} {text}", markup=False)

    def _quit(self, _: str) -> None:
        self._is_over = True

    def _has_thinking_switch(self) -> bool:
        """Return whether the checkpoint's chat template reacts to `enable_thinking`."""
        probe = [{"role": "user", "content": "?"}]
        on, off = (self._client.tokenize(probe, enable_thinking=value) for value in (True, False))
        return on != off


def _summary(answer: Answer) -> str:
    """Return what the answer cost, in one line."""
    statistics = answer.statistics
    parts = [statistics.mode, f"{len(answer.token_ids)} tokens", f"{statistics.nfe} forward passes"]
    if statistics.tokens_per_forward is not None:
        parts.append(f"{statistics.tokens_per_forward:.2f} tokens per forward")
    if statistics.acceptance_length is not None:
        parts.append(f"acceptance length {statistics.acceptance_length:.2f}")
    parts.append(f"{answer.seconds:.2f} s")
    if answer.is_cut:
        parts.append("cut at the limit of tokens")
    return ", ".join(parts)
