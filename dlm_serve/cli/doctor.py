"""Check that a server can start here: SGLang, GPU, model, server file, port and disk; each finding with what to do."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.text import Text

from dlm_serve.bundled import NAME
from dlm_serve.cli import positive

_STYLES = {"fine": "green", "warning": "yellow", "problem": "bold red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this subcommand to `parser`."""
    parser.epilog = "The exit status is 1 if there is a problem, else 0, also with warnings."
    parser.add_argument("--model-path", default=NAME, metavar="MODEL", help="to serve (%(default)s)")
    parser.add_argument("--config", metavar="FILE", help="the server file ($DLM_SERVE_CONFIG)")
    parser.add_argument("--host", default="127.0.0.1", help="to listen on (%(default)s)")
    parser.add_argument("--port", type=positive, default=30000, help="to listen on (%(default)s)")
    parser.add_argument("--answer", action="store_true", help="load the model too, and let it say one token")


def run(args: argparse.Namespace) -> int:
    """Show what each check finds. Return the exit status."""
    from dlm_serve.doctor import Plan, Verdict, examine

    console, verdicts = Console(highlight=False), []
    findings = examine(Plan(args.model_path, args.config, args.host, args.port, args.answer))
    while True:
        with console.status("checking"):
            finding = next(findings, None)
        if finding is None:
            break
        verdicts.append(finding.verdict)
        line = Text.assemble((f"{finding.verdict:8}", _STYLES[finding.verdict]), f"{finding.subject}: {finding.says}")
        console.print(line, soft_wrap=True)
        if finding.remedy:
            console.print(Text(f"{'':8}-> {finding.remedy}"), soft_wrap=True)
    return int(Verdict.PROBLEM in verdicts)
