"""What changes from step to step: learning rate, consistency weight, ratio, threshold, the teacher's decay."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace


def sigmoid_ramp(t: float) -> float:
    """exp(-5 (1 - t)^2) for t in [0, 1], 1 beyond: the ramp of temporal ensembling (Laine and Aila, ICLR 2017)."""
    return math.exp(-5.0 * (1.0 - min(max(t, 0.0), 1.0)) ** 2)


def ramped(bounds: tuple[float, ...], t: float) -> float:
    """The only number of bounds, or the way from the first to the second at time t in [0, 1]."""
    return bounds[0] + (bounds[-1] - bounds[0]) * sigmoid_ramp(t) if len(bounds) == 2 else bounds[0]


@dataclass(frozen=True)
class Schedule:
    iterations: int
    settings: SimpleNamespace

    @property
    def consistency_from(self) -> int:
        start = self.settings.consistency_from
        return round(start * self.iterations) if start < 1 else round(start)

    def lr(self, step: int) -> float:
        """lr (1 - step / iterations)^0.9, floored."""
        s = self.settings
        return s.lr * max((1.0 - step / self.iterations) ** 0.9, s.lr_floor)

    def consistency_weight(self, step: int) -> float:
        """0 before consistency_from, then the ramp to the full weight."""
        s = self.settings
        since = step - self.consistency_from
        if since < 0:
            return 0.0
        length = s.rampup * self.iterations
        return s.consistency_weight * (sigmoid_ramp(since / length) if length > 0 else 1.0)

    def ratio(self, step: int) -> float:
        return ramped(self.settings.ratio, step / self.iterations)

    def threshold(self, step: int) -> float:
        return ramped(self.settings.threshold, step / self.iterations)

    def ema_decay(self, step: int) -> float:
        """min(1 - 1 / (t + 1), ema_decay): a plain mean at first, so that the random start is soon forgotten."""
        return min(1.0 - 1.0 / (step + 1), self.settings.ema_decay)
