"""`dlm-serve demo`, `chat` and `eval` against a real server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from golden import MODES
from serving import ANSWER_SECONDS, Server, generate_body

from dlm_serve.client import Client

MAX_NEW_TOKENS = 20


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


def test_demo(trained: Server) -> None:
    """The exact mode gives the same answers in fewer forward passes."""
    verdict = dlm_serve("demo", trained).splitlines()[-1]
    found = re.search(r"self_speculation: (\d) of (\d) the same, ([\d.]+) times fewer forward passes", verdict)
    assert found is not None, verdict
    assert found[1] == found[2] == "4"
    assert float(found[3]) > 1


def test_chat(trained: Server) -> None:
    """The second answer is that to the whole conversation, in the mode that was switched to."""
    client = Client(trained.url)
    hello = {"role": "user", "content": "hello"}
    ids = client.tokenize([hello])
    first = client.generate(ids, {"mode": "autoregressive"}, MAX_NEW_TOKENS).text
    said = [hello, {"role": "assistant", "content": first.strip()}, {"role": "user", "content": "and?"}]
    second = client.generate(client.tokenize(said), {"mode": "diffusion"}, MAX_NEW_TOKENS)
    shown = dlm_serve("chat", trained, "--mode", "autoregressive", typed="hello\n/mode diffusion\nand?\n")
    summaries = re.findall(r"^(\w+), (\d+) tokens, (\d+) forward passes", shown, flags=re.MULTILINE)
    assert [summary[0] for summary in summaries] == ["autoregressive", "diffusion"]
    assert summaries[1][1:] == (str(len(second.token_ids)), str(second.statistics.nfe))


def test_the_thinking_switch_is_that_of_the_template(trained: Server) -> None:
    assert "thinking on" in dlm_serve("chat", trained, typed="/think on\nhello\n")


def test_eval(trained: Server, tmp_path: Path) -> None:
    """One question per task: the exact mode answers as autoregression, and a high threshold takes more forwards."""
    out = tmp_path / "eval.json"
    shown = dlm_serve("eval", trained, "--count", "1", "--thresholds", "0.3", "1", "--out", str(out))
    assert str(out.with_suffix(".png")) in shown
    assert out.with_suffix(".png").stat().st_size > 1000
    report = json.loads(out.read_text())
    assert report["versions"]["sglang"] == "0.5.23"
    assert report["server"]["device"] == "cpu"
    assert report["block_length"] == 8
    exact, fast, slow, speculative = report["results"]
    assert [fast["threshold"], slow["threshold"]] == [0.3, 1]
    answers = exact["figures"]["answers"]
    assert exact["equal_to_autoregressive"] == speculative["equal_to_autoregressive"] == answers
    assert speculative["loss_by_position"] == pytest.approx(exact["loss_by_position"], abs=1e-4)
    assert fast["figures"]["forward_passes"] < slow["figures"]["forward_passes"]
    assert speculative["figures"]["acceptance_length"] >= 1
    assert exact["figures"]["acceptance_length"] is None


@pytest.mark.parametrize("mode", MODES.values())
def test_log_probabilities_are_those_of_decoding(trained: Server, mode: str) -> None:
    """An answer is scored as autoregressive decoding scores the tokens that it picks itself."""
    prompt = [145, 20, 30]
    body = generate_body(prompt, MAX_NEW_TOKENS, ignore_eos=True, request={"return_logprob": True})
    decoded = trained.post("/generate", body).json()["meta_info"]["output_token_logprobs"]
    client = Client(trained.url)
    answer = trained.generate(prompt, MAX_NEW_TOKENS, mode=mode, ignore_eos=True)["output_ids"]
    scores = client.log_probabilities(prompt, answer)
    assert len(scores) == MAX_NEW_TOKENS
    same = next((i for i, entry in enumerate(decoded) if entry[1] != answer[i]), MAX_NEW_TOKENS)
    assert same == MAX_NEW_TOKENS or mode == "diffusion"
    assert scores[:same] == pytest.approx([entry[0] for entry in decoded[:same]], abs=1e-4)
