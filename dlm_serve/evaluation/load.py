"""Keep a running server busy, and measure what its clients get."""

from __future__ import annotations

import http.client
import itertools
import json
import random
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Any
from urllib.parse import urlsplit

from dlm_serve.errors import ServerError

MAX_NEW_TOKENS = 256
_TIMEOUT = 300.0
"""Seconds."""
_SETTLING = 0.5
"""Seconds in which the step that overlapped the last answer ends: weights are not replaced before."""
_FEWEST_PROMPTS = 16
_PASSES = 50
"""How often the prompts are shuffled, before their order repeats."""


@dataclass
class Cell:
    """What clients of one way to decode, at one concurrency, have seen."""

    seconds: float = 0.0
    tokens: float = 0.0
    statistics: list[dict[str, Any]] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    """Seconds of each answer, from the request to its end."""

    @property
    def tokens_per_s(self) -> float:
        """Return output tokens per second, of all clients together."""
        return self.tokens / self.seconds

    def summary(self) -> dict[str, Any]:
        """Return the figures of the cell; None where there is no answer that has them."""
        accepted = [s["acceptance_length"] for s in self.statistics if s["acceptance_length"]]
        latencies = sorted(self.latencies)
        by_choice: dict[str, int] = {}
        for of_request in self.statistics:
            for name, number in of_request["tokens"].items():
                by_choice[name] = by_choice.get(name, 0) + number
        return {
            "tokens_per_s": round(self.tokens_per_s, 1),
            "requests": len(self.statistics),
            "seconds_median": round(statistics.median(latencies), 4) if latencies else None,
            "seconds_p95": round(latencies[int(0.95 * (len(latencies) - 1))], 4) if latencies else None,
            "tokens_per_forward": round(
                statistics.mean([s["tokens_per_forward"] or 0 for s in self.statistics] or [0]), 3
            ),
            "acceptance_length": round(statistics.mean(accepted), 2) if accepted else None,
            "tokens": by_choice,
            "mode_switches": sum(s["mode_switches"] for s in self.statistics),
        }


class Clients:
    """Clients that ask one request after another, as many at once as they are told. All methods raise ServerError."""

    def __init__(
        self,
        url: str,
        prompts: Sequence[list[int]],
        request: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Let them ask the server at `url` the `prompts`, greedily unless the `sampling_params` of `request` differ."""
        request = request or {}
        self._address = urlsplit(url)
        self._prompts = prompts
        self._headers = {"Content-Type": "application/json", **(headers or {})}
        self._sampling = {"temperature": 0, "max_new_tokens": MAX_NEW_TOKENS, **request.get("sampling_params", {})}
        self._request = {name: value for name, value in request.items() if name != "sampling_params"}

    def measure(
        self,
        cell: Cell,
        options: Mapping[str, Any],
        concurrency: int,
        seconds: float,
        warm_up: float,
    ) -> None:
        """Add to `cell` what `concurrency` clients get in so many seconds, once `warm_up` seconds are over.

        An answer counts for the part of its time that lies within those seconds. Clients begin one after another
        during the warm-up. A cell that is measured again goes on where it was in the order of prompts. Answers that
        are not over at the end are waited for.
        """
        lock = Lock()
        order = self._order(concurrency)
        numbers = itertools.count(len(cell.statistics))
        start = time.perf_counter() + warm_up
        end = start + seconds

        def client(number: int) -> None:
            connection = self._connection()
            time.sleep(warm_up * number / concurrency)
            while (sent := time.perf_counter()) < end:
                meta = self._ask(connection, order[next(numbers) % len(order)], options)
                received = time.perf_counter()
                share = (min(received, end) - max(sent, start)) / (received - sent)
                with lock:
                    if share > 0:
                        cell.tokens += share * meta["completion_tokens"]
                        cell.statistics.append(meta["dlm"])
                        cell.latencies.append(received - sent)
            connection.close()

        with ThreadPoolExecutor(concurrency) as pool:
            list(pool.map(client, range(concurrency)))
        cell.seconds += seconds

    @contextmanager
    def busy(self, options: Mapping[str, Any], concurrency: int) -> Iterator[None]:
        """Let `concurrency` clients ask until this context ends; it waits for the answers that they have asked for."""
        order, numbers, is_over = self._order(concurrency), itertools.count(), Event()

        def client() -> None:
            connection = self._connection()
            while not is_over.is_set():
                self._ask(connection, order[next(numbers) % len(order)], options)
            connection.close()

        with ThreadPoolExecutor(concurrency) as pool:
            clients = [pool.submit(client) for _ in range(concurrency)]
            try:
                yield
            finally:
                is_over.set()
        for each in clients:
            each.result()

    def _order(self, concurrency: int) -> list[list[int]]:
        """Return the prompts in the order in which they are asked: the same for all ways to decode.

        They are few enough that every way gets to all of them, and as many as clients. Each pass over them is shuffled:
        in a fixed order, answers would end together, or never, for as long as it is repeated.
        """
        chance = random.Random(concurrency)
        first, number = chance.randrange(len(self._prompts)), max(_FEWEST_PROMPTS, concurrency)
        chosen = [self._prompts[(first + i) % len(self._prompts)] for i in range(number)]
        return [prompt for _ in range(_PASSES) for prompt in chance.sample(chosen, len(chosen))]

    def load(self, checkpoint: str) -> None:
        """Make the server load the weights of another checkpoint."""
        time.sleep(_SETTLING)
        answer = self._post(self._connection(), "/update_weights_from_disk", {"model_path": checkpoint})
        if not answer["success"]:
            raise ServerError(answer["message"])

    def _connection(self) -> http.client.HTTPConnection:
        is_https = self._address.scheme == "https"
        connect = http.client.HTTPSConnection if is_https else http.client.HTTPConnection
        return connect(self._address.hostname or "", self._address.port, timeout=_TIMEOUT)

    def _ask(self, connection: http.client.HTTPConnection, prompt: list[int], options: Mapping[str, Any]) -> Any:
        """Return the `meta_info` of an answer."""
        sampling = {**self._sampling, "custom_params": {"dlm": options}}
        body = {"input_ids": prompt, "sampling_params": sampling, **self._request}
        return self._post(connection, "/generate", body)["meta_info"]

    def _post(self, connection: http.client.HTTPConnection, path: str, body: Mapping[str, Any]) -> Any:
        """Return the answer to a body. Raises ServerError, with the server's words, unless it is 200."""
        try:
            connection.request("POST", path, json.dumps(body), self._headers)
            response = connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"{self._address.geturl()}: {error or type(error).__name__}") from None
        if response.status != http.client.OK:
            raise ServerError(text.decode())
        return json.loads(text) if text else None
