"""The router inside SGLang: what it is made of, what it is shown of a batch, and how ranks are told."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping

from dlm_serve.decoding import AUTOREGRESSIVELY, name_of
from dlm_serve.options.server_file import RoutingPolicy
from dlm_serve.routing.batch import RunningRequest
from dlm_serve.routing.costs import CostModel
from dlm_serve.routing.measured import MeasuredPolicy
from dlm_serve.routing.policy import Policy
from dlm_serve.routing.prefills import PrefillInterval
from dlm_serve.routing.router import Router
from dlm_serve.routing.rules import RulesPolicy
from dlm_serve.sglang.engine.requests import state_of
from dlm_serve.sglang.protocols import ReqLike
from dlm_serve.sglang.serving import Serving

logger = logging.getLogger(__name__)


class RoutingLog:
    """Writes what the router does to the log, at most once a minute and only when it has changed."""

    _SECONDS = 60.0

    def __init__(self) -> None:
        self._last_time = -math.inf
        self._last_choices: list[str] = []

    def note(self, router: Router) -> None:
        """Log what `router` has decided, if that is new."""
        now = time.monotonic()
        if router.outcome is None or now - self._last_time < self._SECONDS:
            return
        report = router.report()
        choices, expected = report["requests"], report["expected_tokens_per_s"]
        ways = sorted(choices) if isinstance(choices, Mapping) else []
        if ways == self._last_choices:
            return
        self._last_time, self._last_choices = now, ways
        each = report["expected_of_each"]
        autoregressive = each.get(name_of(AUTOREGRESSIVELY)) if isinstance(each, Mapping) else None
        why = f"{expected} tokens per second are expected, {autoregressive} autoregressively; "
        logger.info(
            "Requests with mode auto decode as %s: %s%s switches so far",
            choices,
            "" if expected is None else why,
            report["switches"],
        )


def make_router(serving: Serving, costs: CostModel, capacity: int, prefill_interval: PrefillInterval) -> Router:
    """Return the router that the server file asks for, of at most `capacity` requests."""
    routing, choices = serving.config.routing, serving.choices
    policy: Policy
    if routing.policy is RoutingPolicy.RULES:
        policy = RulesPolicy(choices, routing.rules.short_answer, routing.rules.most_in_blocks)
    else:
        policy = MeasuredPolicy(choices, capacity, routing.hysteresis, routing.trial_share, routing.latency_slo_ms)
    return Router(policy, costs, capacity, prefill_interval)


def running(reqs: Iterable[ReqLike]) -> list[RunningRequest]:
    """Return SGLang's `reqs` as the router sees them."""
    found = []
    for req in reqs:
        num_output, longest = len(req.output_ids), req.sampling_params.max_new_tokens
        context = len(req.origin_input_ids) + num_output
        found.append(RunningRequest(req.rid, state_of(req), context, longest, longest - num_output))
    return found
