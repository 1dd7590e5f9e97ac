"""Two servers of nano behind SGLang's router: modes by the model's name, and what each server counts."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import openai
import pytest
import requests
from conftest import nano, running
from free_ports import free_port

MODES = ("self_speculation", "diffusion", "autoregressive")
QUESTIONS = [f"Calculate {number} * 3." for number in (27, 504, 118, 36)]


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[str]]]:
    """The address of the router, and those of the servers behind it."""
    folder = tmp_path_factory.mktemp("router")
    with ExitStack() as stack:
        command = nano("--dtype", "float32", "--enable-metrics")
        servers = [stack.enter_context(running(command, folder / f"server {number}")) for number in range(2)]
        router = [sys.executable, "-m", "sglang_router.launch_router", "--policy", "round_robin"]
        router += ["--prometheus-port", str(free_port()), "--worker-urls", *servers]
        yield stack.enter_context(running(router, folder / "router")), servers


def tokens_counted(server: str) -> dict[str, float]:
    """How many tokens of answers a server has counted, by mode."""
    lines = re.findall(r'^dlm_tokens_total\{.*mode="(\w+)".*\} (\S+)$', requests.get(f"{server}/metrics").text, re.M)
    return {mode: float(value) for mode, value in lines}


def test_each_server_answers_and_counts_in_the_mode_of_the_name(replicas: tuple[str, list[str]]) -> None:
    router, servers = replicas
    client = openai.OpenAI(base_url=f"{router}/v1", api_key="none")

    def answer(mode: str, question: str) -> str:
        message = {"role": "user", "content": question}
        chat = client.chat.completions.create(model=f"nano:{mode}", messages=[message], temperature=0)
        return chat.choices[0].message.content or ""

    answers = {mode: [answer(mode, question) for question in QUESTIONS] for mode in MODES}
    assert answers["self_speculation"] == answers["autoregressive"]
    assert all(answers["autoregressive"])
    for server in servers:
        counted = tokens_counted(server)
        assert all(counted[mode] > 0 for mode in MODES), counted


def test_a_name_without_such_a_mode_is_refused_by_the_server(replicas: tuple[str, list[str]]) -> None:
    router, _ = replicas
    body = {"model": "nano:nonsense", "messages": [{"role": "user", "content": "Hi"}]}
    refusal = requests.post(f"{router}/v1/chat/completions", json=body)
    assert refusal.status_code == 404
    assert "nonsense" in refusal.text
