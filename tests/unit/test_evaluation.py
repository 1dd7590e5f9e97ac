"""`dlm-serve eval`: its figures are those of the answers, and it writes down how they came about."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fake_server import BLOCK_LENGTH, Body, FakeServer

from dlm_serve import cli
from dlm_serve.client import Answer, Statistics
from dlm_serve.evaluation.measure import Figures, Question, Setting, Trial, loss_by_position, settings
from dlm_serve.training.tasks import TASKS, Example

COUNT, SEED = 3, 5
KNOWN = {
    example.prompt: (name, number, example.answer)
    for name, task in TASKS.items()
    for number, example in enumerate(dict.fromkeys(task.examples("heldout", COUNT, SEED)))
}
AUTOREGRESSIVE, DIFFUSION = "autoregressive", "diffusion"


def answers(question: str, options: Body) -> str:
    """Right but for: the first question on dates; diffusion at 0.5, also all of sorting."""
    name, number, answer = KNOWN[question]
    is_wrong = (name, number) == ("dates", 0) or (options.get("threshold") == 0.5 and name == "sorting")
    return "I do not know" if is_wrong else answer


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The JSON of one evaluation of all modes, with `path` and `server` as it ended."""
    path = tmp_path_factory.mktemp("eval") / "out.json"
    flags = ["--count", str(COUNT), "--seed", str(SEED), "--concurrency", "4", "--thresholds", "0.9", "0.5", "0.9"]
    with FakeServer(answers, delay=0.005) as server:
        assert cli.main(["eval", "--url", server.url, *flags, "--out", str(path)]) == 0
    return {**json.loads(path.read_text()), "path": path, "fake": server}


def result(measured: dict[str, Any], mode: str, threshold: float | None = None) -> dict[str, Any]:
    (found,) = [one for one in measured["results"] if (one["mode"], one["threshold"]) == (mode, threshold)]
    return found  # type: ignore[no-any-return]  # it is JSON


def test_each_threshold_is_measured_once(measured: dict[str, Any]) -> None:
    order = [(one["mode"], one["threshold"]) for one in measured["results"]]
    assert order == [(AUTOREGRESSIVE, None), (DIFFUSION, 0.5), (DIFFUSION, 0.9), ("self_speculation", None)]
    sent = [body["sampling_params"]["custom_params"]["dlm"] for body in measured["fake"].requests]
    assert {json.dumps(options) for options in sent} == {
        '{"mode": "autoregressive"}',
        '{"mode": "diffusion", "threshold": 0.5}',
        '{"mode": "diffusion", "threshold": 0.9}',
        '{"mode": "self_speculation"}',
    }


def test_accuracy(measured: dict[str, Any]) -> None:
    """Of a task the share of right answers; of all tasks the mean of their shares."""
    dates = sum(name == "dates" for name, _, _ in KNOWN.values())
    right = 1 - 1 / dates
    for mode, threshold, sorting in [(AUTOREGRESSIVE, None, 1), (DIFFUSION, 0.5, 0), (DIFFUSION, 0.9, 1)]:
        found = result(measured, mode, threshold)
        assert found["tasks"]["dates"]["accuracy"] == pytest.approx(right)
        assert found["tasks"]["sorting"]["accuracy"] == sorting
        assert found["tasks"]["python"]["accuracy"] == 1
        assert found["figures"]["accuracy"] == pytest.approx((len(TASKS) - 2 + right + sorting) / len(TASKS))


def test_what_it_took(measured: dict[str, Any]) -> None:
    """Counted from the answers: the prefill gives one token, each further one takes a forward; a block takes three."""
    lengths = [len(answers(question, {})) for question in KNOWN]
    found = result(measured, AUTOREGRESSIVE)["figures"]
    num_forwards = sum(length - 1 for length in lengths)
    assert found["answers"] == len(KNOWN)
    assert found["forward_passes"] == pytest.approx(num_forwards / len(KNOWN))
    assert found["tokens_per_forward"] == pytest.approx(sum(lengths) / num_forwards)
    assert found["acceptance_length"] is None
    blocks = sum(-(-(length - 1) // BLOCK_LENGTH) for length in lengths)
    assert result(measured, DIFFUSION, 0.9)["figures"]["tokens_per_forward"] == pytest.approx(
        sum(lengths) / (3 * blocks)
    )
    assert result(measured, "self_speculation")["figures"]["acceptance_length"] == 4


def test_answers_equal_to_the_autoregressive_ones(measured: dict[str, Any]) -> None:
    sorting = sum(name == "sorting" for name, _, _ in KNOWN.values())
    for mode, threshold, different in [
        (AUTOREGRESSIVE, None, 0),
        (DIFFUSION, 0.5, sorting),
        ("self_speculation", None, 0),
    ]:
        assert result(measured, mode, threshold)["equal_to_autoregressive"] == len(KNOWN) - different


def test_loss_at_each_position_inside_a_block(measured: dict[str, Any]) -> None:
    """The server says 1 for the first token of each block of an answer and 0.25 for the others."""
    for one in measured["results"]:
        assert one["loss_by_position"] == [1.0] + [0.25] * (BLOCK_LENGTH - 1)
    assert measured["block_length"] == BLOCK_LENGTH


def test_how_it_came_about(measured: dict[str, Any]) -> None:
    assert measured["versions"]["sglang"] == "9.9.9"
    assert measured["server"]["model_path"] == "tiny"
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", measured["commit"])
    assert measured["plan"] == {
        "modes": [AUTOREGRESSIVE, DIFFUSION, "self_speculation"],
        "thresholds": [0.9, 0.5, 0.9],
        "count": COUNT,
        "seed": SEED,
        "max_new_tokens": 256,
        "concurrency": 4,
        "algorithm": None,
    }


def test_several_answers_at_a_time(measured: dict[str, Any]) -> None:
    assert 1 < measured["fake"].most_at_a_time <= 4


def test_the_picture(measured: dict[str, Any]) -> None:
    picture: bytes = measured["path"].with_suffix(".png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    width, height = int.from_bytes(picture[16:20], "big"), int.from_bytes(picture[20:24], "big")
    assert width > height > 500


def test_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A figure that was not measured is a dash."""
    with FakeServer(lambda question, options: "a") as server:
        flags = ["--count", "1", "--modes", "diffusion", "--thresholds", "0.7", "--out", str(tmp_path / "e.json")]
        assert cli.main(["eval", "--url", server.url, *flags]) == 0
    shown = capsys.readouterr().out
    row = next(line.split() for line in shown.splitlines() if "diffusion 0.7" in line)
    assert row == ["diffusion", "0.7", "0.0%", "0.0", "-", "-", "-", "0"]
    assert all(name in shown for name in TASKS)
    assert str(tmp_path / "e.png") in shown
    written = json.loads((tmp_path / "e.json").read_text())["results"][0]
    assert written["equal_to_autoregressive"] is None
    assert written["loss_by_position"] == [1.0] + [None] * (BLOCK_LENGTH - 1)


def test_thresholds_are_measured_by_an_algorithm_that_knows_them(tmp_path: Path) -> None:
    """Unless another is asked for."""
    flags = ["--count", "1", "--modes", "diffusion", "--thresholds", "0.7", "--out", str(tmp_path / "e.json")]
    with FakeServer(lambda question, options: "a") as server:
        server.threshold_algorithm = "threshold"
        assert cli.main(["eval", "--url", server.url, *flags]) == 0
        assert cli.main(["eval", "--url", server.url, *flags, "--algorithm", "other"]) == 0
    sent = [body["sampling_params"]["custom_params"]["dlm"]["algorithm"] for body in server.requests]
    assert sent == ["threshold"] * len(TASKS) + ["other"] * len(TASKS)


def test_cut_answers_are_counted(tmp_path: Path) -> None:
    out = tmp_path / "e.json"
    with FakeServer(lambda question, options: "abcd") as server:
        flags = ["--count", "1", "--modes", "autoregressive", "--max-new-tokens", "3", "--out", str(out)]
        assert cli.main(["eval", "--url", server.url, *flags]) == 0
    figures = json.loads(out.read_text())["results"][0]["figures"]
    assert (figures["answers"], figures["cut"], figures["forward_passes"]) == (len(TASKS), len(TASKS), 2)


# --- figures by hand ---


def trial(task: str, text: str, nfe: int, losses: tuple[float, ...] = (), acceptance: float | None = None) -> Trial:
    """An answer of as many tokens as it has letters, to a question whose answer is `yes`."""
    statistics = Statistics(
        mode=DIFFUSION, nfe=nfe, tokens_per_forward=None, acceptance_length=acceptance, block_length=BLOCK_LENGTH
    )
    question = Question(TASKS[task], Example("?", "yes"), (1,))
    answer = Answer(text, tuple(text.encode()), statistics, seconds=1.0, is_cut=False)
    return Trial(question, answer, tuple(-loss for loss in losses))


def test_tokens_per_forward_is_of_all_tokens() -> None:
    """Not the mean of the answers' own: a long answer counts for more."""
    figures = Figures.of([trial("json", "yes", 1), trial("json", "nononono", 8), trial("dates", "no", 0, (), 3.0)])
    assert figures.tokens_per_forward == pytest.approx((3 + 8 + 2) / 9)
    assert figures.forward_passes == pytest.approx(3)
    assert figures.acceptance_length == 3
    assert figures.accuracy == pytest.approx((1 / 2 + 0) / 2)


def test_losses_are_counted_from_the_first_token_of_the_answer() -> None:
    """Two answers of five and two tokens, blocks of three; then blocks longer than any answer."""
    trials = [trial("json", "", 1, (1.0, 2.0, 3.0, 5.0, 6.0)), trial("json", "", 1, (9.0, 4.0))]
    assert loss_by_position(trials, 3) == [(1 + 5 + 9) / 3, (2 + 6 + 4) / 3, 3]
    assert loss_by_position(trials, 7) == [5, 3, 3, 5, 6, None, None]


def test_only_diffusion_has_thresholds() -> None:
    assert settings([DIFFUSION, AUTOREGRESSIVE], [0.9, 0.5]) == [
        Setting(AUTOREGRESSIVE),
        Setting(DIFFUSION, 0.5),
        Setting(DIFFUSION, 0.9),
    ]
