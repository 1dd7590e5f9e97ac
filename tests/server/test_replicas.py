"""Data parallelism: replicas behind one address, each with requests, a cache and a router of its own."""

from __future__ import annotations

from pathlib import Path

import requests
from golden import NEMOTRON_LABS_DIFFUSION as GOLDEN
from golden import TRAINED
from serving import Server


def test_replicas(tmp_path: Path) -> None:
    """They share the requests, answer each as one server does, and say who they are."""
    reference = GOLDEN.cases(TRAINED)[::8]
    with Server.launch(TRAINED, "--dp", "2", log=tmp_path / "log") as server:
        answers = GOLDEN.ask(server, reference, 8)
        states = requests.get(f"{server.url}/server_info", timeout=30).json()["internal_states"]
        server.assert_nothing_leaked()
    assert GOLDEN.differences(reference, answers) == []
    assert {answer["meta_info"]["dp_rank"] for answer in answers} == {0, 1}
    assert sorted(state["dlm"]["dp_rank"] for state in states) == [0, 1]
    assert all(state["dlm"]["policy"] == "measured" for state in states)
