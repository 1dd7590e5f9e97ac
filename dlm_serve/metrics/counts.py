"""Count in plain numbers; whoever exports them reads them when it likes."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field, replace

from dlm_serve.metrics.registry import METRICS, Kind, Metric

Key = tuple[Metric, tuple[str, ...]]
"""A metric and the values of its labels."""


@dataclass
class Distribution:
    """The values of a histogram that were observed."""

    buckets: list[int]
    """By the first upper bound that is not below the value; the last is for values above all."""
    total: float = 0.0
    """Their sum."""


@dataclass
class Counts:
    """Counters and histograms."""

    totals: defaultdict[Key, int] = field(default_factory=lambda: defaultdict(int))
    distributions: dict[Key, Distribution] = field(default_factory=dict)

    def copy(self) -> Counts:
        """Return what is counted by now, to count on from there."""
        distributions = {key: replace(found, buckets=[*found.buckets]) for key, found in self.distributions.items()}
        return Counts(self.totals.copy(), distributions)

    def add(self, metric: Metric, *labels: str, by: int = 1) -> None:
        """Raise a counter."""
        self.totals[metric, labels] += by

    def observe(self, metric: Metric, value: float, *labels: str, times: int = 1) -> None:
        """Add a value to a histogram, as often as it occurred."""
        found = self.distributions.get((metric, labels))
        if found is None:
            found = self.distributions[metric, labels] = Distribution([0] * (len(metric.buckets) + 1))
        found.buckets[bisect_left(metric.buckets, value)] += times
        found.total += value * times

    def report(self) -> dict[str, dict[str, int]]:
        """Return all counters, by name and by the values of their labels, such as `diffusion/denoise`."""
        found: dict[str, dict[str, int]] = {metric.name: {} for metric in METRICS if metric.kind is Kind.COUNTER}
        for (metric, labels), number in self.totals.items():
            found[metric.name]["/".join(labels)] = number
        return found
