"""Peers of one workload timed in turns, so that what disturbs the machine disturbs them all alike."""

import gc
import math
import statistics
from dataclasses import dataclass

from benchmarks.clock import Call, Clock

_SAMPLE_SECONDS = 100e-6  # a sample of a warm call lasts so long at least: far above what reading the clock takes
_FEWEST, _MOST = 5, 101  # samples of a peer


@dataclass(frozen=True)
class Sample:
    """Seconds a call."""

    median: float
    quartile_1: float
    quartile_3: float
    samples: int
    calls: int
    """Calls that one sample is the mean of."""


def measure(calls: dict[str, Call], clock: Clock, cold: bool, seconds: float) -> dict[str, Sample]:
    """Times each call in about so many seconds all told, slow ones with fewer samples, five at least.

    Warm: a call runs right before the one that is timed. Cold: the caches were overwritten right before.
    """
    cost = {name: _estimate(call, clock) for name, call in calls.items()}
    repeat = {name: 1 if cold else max(1, math.ceil(_SAMPLE_SECONDS / cost[name])) for name in calls}
    flush = clock.time(clock.flush, 3) if cold else 0.0
    share = seconds / len(calls)
    wanted = {}
    for name in calls:
        each = cost[name] + flush if cold else cost[name] * (repeat[name] + 1)
        wanted[name] = min(_MOST, max(_FEWEST, round(share / each)))

    rounds = max(wanted.values())
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            order = order[1:] + order[:1]
            for name in order:
                # A slow peer's few turns are spread evenly over all rounds.
                if (turn + 1) * wanted[name] // rounds == turn * wanted[name] // rounds:
                    continue
                if cold:
                    clock.flush()
                else:
                    calls[name]()
                times[name].append(clock.time(calls[name], repeat[name]))
    finally:
        if collecting:
            gc.enable()
    return {name: _summary(times[name], repeat[name]) for name in calls}


def fastest(calls: dict[str, Call], clock: Clock) -> str:
    """Name of the fastest, of five turns each."""
    best = dict.fromkeys(calls, math.inf)
    for call in calls.values():
        call()
    for _ in range(5):
        for name, call in calls.items():
            best[name] = min(best[name], clock.time(call, 1))
    return min(best, key=best.__getitem__)


def _estimate(call: Call, clock: Clock) -> float:
    call()
    call()
    clock.settle()
    return max(1e-7, min(clock.time(call, 1) for _ in range(2)))


def _summary(times: list[float], calls: int) -> Sample:
    quartile_1, median, quartile_3 = statistics.quantiles(times, n=4, method="inclusive")
    return Sample(median, quartile_1, quartile_3, len(times), calls)
