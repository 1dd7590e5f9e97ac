"""`dlm-serve demo`, `chat` and `eval` against a real server of the bundled model, whose answers are right."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from serving import ANSWER_SECONDS, Server

from dlm_serve.client import Client

MAX_NEW_TOKENS = 200
QUESTION, RESULT = "Calculate 504 * 3.", "1512"


def dlm_serve(command: str, server: Server, *flags: str, typed: str = "") -> str:
    """What a command prints, which must succeed."""
    limit = ("--max-new-tokens", str(MAX_NEW_TOKENS))
    done = subprocess.run(
        [sys.executable, "-m", "dlm_serve", command, "--url", server.url, *limit, *flags],
        input=typed,
        capture_output=True,
        text=True,
        timeout=ANSWER_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_demo(nano: Server) -> None:
    """The same answers in fewer forward passes, and the first question's is right in each mode."""
    shown = dlm_serve("demo", nano)
    assert re.findall(r"Answer: (\d+)", shown)[:3] == [RESULT] * 3
    verdict = shown.splitlines()[-1]
    found = re.search(r"self_speculation: (\d) of (\d) the same, ([\d.]+) times fewer forward passes", verdict)
    assert found is not None, verdict
    assert found[1] == found[2] == "4"
    assert float(found[3]) > 3


def test_chat(nano: Server) -> None:
    """The second answer is that to the whole conversation, in the mode that was switched to."""
    client = Client(nano.url)
    asked = {"role": "user", "content": QUESTION}
    ids = client.tokenize([asked])
    first = client.generate(ids, {"mode": "autoregressive"}, MAX_NEW_TOKENS).text
    said = [asked, {"role": "assistant", "content": first.strip()}, {"role": "user", "content": "and?"}]
    second = client.generate(client.tokenize(said), {"mode": "diffusion"}, MAX_NEW_TOKENS)
    shown = dlm_serve("chat", nano, "--mode", "autoregressive", typed=f"{QUESTION}\n/mode diffusion\nand?\n")
    assert f"Answer: {RESULT}" in shown
    summaries = re.findall(r"^(\w+), (\d+) tokens, (\d+) forward passes", shown, flags=re.MULTILINE)
    assert [summary[0] for summary in summaries] == ["autoregressive", "diffusion"]
    assert summaries[1][1:] == (str(len(second.token_ids)), str(second.statistics.nfe))


def test_the_thinking_switch_is_that_of_the_template(nano: Server) -> None:
    assert "thinking on" in dlm_serve("chat", nano, typed=f"/think on\n{QUESTION}\n")


def test_eval(nano: Server, tmp_path: Path) -> None:
    """Held-out questions are answered right in each mode; the exact one answers as autoregression does."""
    out = tmp_path / "eval.json"
    shown = dlm_serve("eval", nano, "--count", "1", "--thresholds", "0.3", "0.9", "--out", str(out))
    assert str(out.with_suffix(".png")) in shown
    assert out.with_suffix(".png").stat().st_size > 1000
    report = json.loads(out.read_text())
    assert report["versions"]["sglang"] == "0.5.23"
    assert report["server"]["device"] == "cpu"
    assert report["block_length"] == 32
    exact, fast, slow, speculative = report["results"]
    assert [fast["threshold"], slow["threshold"]] == [0.3, 0.9]
    answers = exact["figures"]["answers"]
    assert exact["equal_to_autoregressive"] == speculative["equal_to_autoregressive"] == answers
    assert exact["figures"]["accuracy"] == speculative["figures"]["accuracy"] == 1
    assert slow["figures"]["accuracy"] >= 0.8
    assert speculative["loss_by_position"] == pytest.approx(exact["loss_by_position"], abs=0.02)  # in bfloat16
    assert fast["figures"]["forward_passes"] < slow["figures"]["forward_passes"]
    assert min(result["figures"]["tokens_per_forward"] for result in (fast, slow, speculative)) > 3
    assert speculative["figures"]["acceptance_length"] > 5
    assert exact["figures"]["acceptance_length"] is None
