"""`dlm-serve bench`: what clients of a server get, by mode and concurrency."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_server import BLOCK_LENGTH, FORWARDS, FakeServer

from dlm_serve import cli

WHOLE = "seventeen"
ANSWER_SECONDS = 0.05
SHORT = ["--seconds", "0.4", "--warm-up", "0.1", "--concurrency", "2", "1"]


def test_what_it_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Clients ask one after another, so tokens per second follow from the time of an answer."""
    out, prompts = tmp_path / "bench.json", tmp_path / "prompts"
    prompts.write_text("why?\n\nhow?\n")
    with FakeServer(lambda question, options: WHOLE, delay=ANSWER_SECONDS) as server:
        server.api_key = "secret"
        flags = ["--url", server.url, "--api-key", "secret", "--prompts", str(prompts), "--out", str(out), *SHORT]
        assert cli.main(["bench", *flags]) == 0
        asked = {prompt.split("]")[1].split("\n")[0] for prompt in server.prompts()}
    assert asked == {"why?", "how?"}
    cells = json.loads(out.read_text())["cells"]
    modes = ["auto", "autoregressive", "diffusion", "self_speculation"]
    assert [(number, list(row)) for number, row in cells.items()] == [("1", modes), ("2", modes)]
    for number, row in cells.items():
        for figures in row.values():
            assert figures["seconds_median"] >= ANSWER_SECONDS
            assert 0 < figures["tokens_per_s"] <= int(number) * len(WHOLE) / ANSWER_SECONDS
    assert cells["1"]["diffusion"]["tokens_per_forward"] == pytest.approx((1 + BLOCK_LENGTH) / FORWARDS["diffusion"])
    assert out.with_suffix(".png").stat().st_size > 1000
    shown = capsys.readouterr().out
    assert all(shown.count(f" {mode} ") == 2 for mode in modes)
    assert "…" not in shown


def test_a_refusal_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer(lambda question, options: WHOLE) as server:
        flags = ["--url", server.url, "--max-new-tokens", "1001", "--out", str(tmp_path / "bench.json"), *SHORT]
        assert cli.main(["bench", *flags]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "at most 1000" in error


@pytest.mark.parametrize(("content", "limit"), [("\n", "is empty"), (None, "cannot be read")])
def test_prompts_that_are_none(
    content: str | None, limit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts"
    if content is not None:
        file.write_text(content)
    with FakeServer(lambda question, options: WHOLE) as server:
        assert cli.main(["bench", "--url", server.url, "--prompts", str(file)]) == 2
    assert limit in capsys.readouterr().err


def test_help_says_where_another_benchmark_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["bench", "--help"])
    assert "ITL" in capsys.readouterr().out
