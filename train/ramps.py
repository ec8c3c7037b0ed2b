"""Numbers that change over a run."""

from __future__ import annotations

import math


def sigmoid_ramp(t: float) -> float:
    """exp(-5 (1 - t)^2) for t in [0, 1], 1 beyond: the ramp of temporal ensembling (Laine and Aila, ICLR 2017)."""
    return math.exp(-5.0 * (1.0 - min(max(t, 0.0), 1.0)) ** 2)


def ramped(bounds: tuple[float, ...], t: float) -> float:
    """The only number of bounds, or the way from the first to the second at time t in [0, 1]."""
    return bounds[0] + (bounds[-1] - bounds[0]) * sigmoid_ramp(t) if len(bounds) == 2 else bounds[0]
