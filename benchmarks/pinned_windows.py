"""Pin a running server's router to one way after the other, and read what the server counts meanwhile."""

from __future__ import annotations

import json
import statistics
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dlm_serve.evaluation.load_plot import AUTO
from dlm_serve.metrics.registry import FORWARD_PASSES, MODE_SWITCHES, TOKENS
from dlm_serve.scheduling.graph_shapes import MOST_SPECULATED

WIDTHS = (4, 8, 16, 32)
BUDGETS = (16, 32, 64, 96, 128)
SELF_SPECULATION = "self_speculation"
IN_TURN: dict[str, dict[str, Any]] = {
    f"{SELF_SPECULATION}/{width}": {"mode": SELF_SPECULATION, "block_length": width} for width in WIDTHS
}
IN_ONE_FORWARD: dict[str, dict[str, Any]] = {
    f"{SELF_SPECULATION}/one_forward/{budget}": {"mode": SELF_SPECULATION, "budget": budget} for budget in BUDGETS
}
AUTOREGRESSIVE = "autoregressive"
PINS: dict[str, dict[str, Any]] = {
    AUTOREGRESSIVE: {"mode": AUTOREGRESSIVE},
    **IN_TURN,
    **IN_ONE_FORWARD,
    AUTO: {"mode": AUTO},
}
"""Bodies of `POST /dlm/routing`."""


def has_graphs(budget: int | None, concurrency: int) -> bool:
    """Return whether there are CUDA graphs for so many rows: of many tokens, only as wide as blocks are."""
    return budget in (None, *WIDTHS) or budget * concurrency <= MOST_SPECULATED


class Server:
    """A server, as an operator sees it."""

    def __init__(self, url: str) -> None:
        self._url = url

    def pin(self, way: str) -> None:
        """Let requests with mode `auto` decode so."""
        self._ask("/dlm/routing", PINS[way])

    def choices(self) -> list[str]:
        """Return the ways that it can be pinned to."""
        found: list[str] = self._ask("/dlm/status")["choices"]
        return found

    def replicas(self) -> list[dict[str, Any]]:
        """Return what each replica does and has counted, by its number."""
        found: list[dict[str, Any]] = self._ask("/dlm/status")["replicas"]
        return sorted(found, key=lambda replica: replica["dp_rank"] or 0)

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)


@dataclass
class Window:
    """What a server counted while requests decoded in one way, over one or more periods."""

    seconds: float = 0.0
    tokens: int = 0
    forwards: int = 0
    verifications: int = 0
    mode_switches: int = 0
    requests: dict[str, int] = field(default_factory=dict)
    """How they decoded at the end of each period, together."""
    expected: dict[str, list[float]] = field(default_factory=dict)
    """The tokens per second that the router expected of each way then; nothing where it was pinned."""

    @property
    def tokens_per_s(self) -> float:
        """Return the output tokens per second of all requests together."""
        return self.tokens / self.seconds

    def add(self, before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> float:
        """Add the period between two states of the replicas; return its tokens per second.

        It is as long as their own clocks say: a busy server answers late, with what it counted before.
        """

        def counted(replicas: Sequence[dict[str, Any]], metric: str, named: str) -> int:
            return sum(int(n) for each in replicas for label, n in each["counters"][metric].items() if named in label)

        def grown(metric: str, named: str = "") -> int:
            return counted(after, metric, named) - counted(before, metric, named)

        took = (end["counted_at"] - start["counted_at"] for start, end in zip(before, after, strict=True))
        seconds: float = statistics.mean(took)
        tokens = grown(TOKENS.name)
        self.seconds += seconds
        self.tokens += tokens
        self.forwards += grown(FORWARD_PASSES.name)
        self.verifications += grown(FORWARD_PASSES.name, "verify")
        self.mode_switches += grown(MODE_SWITCHES.name)
        for replica in after:
            for way, number in replica["requests"].items():
                self.requests[way] = self.requests.get(way, 0) + number
        for each in {way for replica in after for way in replica["expected_of_each"]}:
            of_replicas = sum(replica["expected_of_each"].get(each, 0.0) for replica in after)
            self.expected.setdefault(each, []).append(of_replicas)
        return tokens / seconds

    def summary(self, way: str) -> dict[str, Any]:
        """Return the figures; blocks that are drafted in turn alone have an acceptance length."""
        is_in_turn = way in IN_TURN and self.verifications
        return {
            "tokens_per_s": round(self.tokens_per_s, 1),
            "tokens_per_forward": round(self.tokens / max(self.forwards, 1), 3),
            "acceptance_length": round(self.tokens / self.verifications, 2) if is_in_turn else None,
            "mode_switches": self.mode_switches,
            "requests": self.requests,
            "expected": {way: round(statistics.mean(rates), 1) for way, rates in self.expected.items()},
        }
