"""Times several calls in turns, so that whatever else the machine does falls on all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

# A sample is the mean of the calls that fill this long.
SAMPLE_SECONDS = 0.02
# A shorter call is made once, untimed, to take the caches and the cores back from the one before.
LONG_SECONDS = 0.2
# For a longer call a few turns say enough.
VERY_LONG_SECONDS = 1.5
FEW_TURNS = 3


@dataclass(frozen=True)
class Timing:
    """Seconds a call takes: the median of the samples and their quartiles."""

    median: float
    low: float
    high: float


def sample(call: Callable[[], object]) -> float:
    start, calls, elapsed = time.perf_counter(), 0, 0.0
    while elapsed < SAMPLE_SECONDS:
        call()
        calls += 1
        elapsed = time.perf_counter() - start
    return elapsed / calls


def interleave(calls: dict[str, Callable[[], object]], turns: int) -> dict[str, Timing]:
    """Samples of every call once a turn, at least two turns, in an order that shifts by one from turn to turn."""
    usual = {name: sample(call) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(turns):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            if usual[name] > VERY_LONG_SECONDS and turn >= FEW_TURNS:
                continue
            if usual[name] < LONG_SECONDS:
                calls[name]()
            samples[name].append(sample(calls[name]))
    return {name: summarize(taken) for name, taken in samples.items()}


def summarize(samples: list[float]) -> Timing:
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median, low, high)
