"""What changes from step to step: learning rate, consistency weight, the teacher's decay."""

from __future__ import annotations

from dataclasses import dataclass

from train.ramps import sigmoid_ramp
from train.run.config import FitConfig


def length(config: FitConfig, labelled: int) -> int:
    """Steps of the run, given the number of labelled slices."""
    schedule = config.schedule
    if schedule.iterations is not None:
        return schedule.iterations
    assert schedule.epochs is not None
    return schedule.epochs * max(1, labelled // schedule.labelled_batch)


@dataclass(frozen=True)
class Schedule:
    iterations: int
    config: FitConfig

    @property
    def consistency_from(self) -> int:
        start = self.config.schedule.consistency_from
        return round(start * self.iterations) if start < 1 else round(start)

    def at(self, step: int) -> dict[str, float]:
        """What is in force at a step, by name: the rates and, once there is consistency, the strategy's settings."""
        weight = self.consistency_weight(step) if self.config.strategy.unlabelled else 0.0
        values = {"lr": self.lr(step), "consistency_weight": weight}
        return values | self.config.strategy.at(self.time(step)) if weight > 0 else values

    def time(self, step: int) -> float:
        """How far the run is, in [0, 1)."""
        return step / self.iterations

    def lr(self, step: int) -> float:
        """lr (1 - step / iterations)^0.9, floored."""
        s = self.config.schedule
        return s.lr * max((1.0 - self.time(step)) ** 0.9, s.lr_floor)

    def consistency_weight(self, step: int) -> float:
        """0 before consistency_from, then the ramp to the full weight."""
        since = step - self.consistency_from
        if since < 0:
            return 0.0
        length = self.config.schedule.rampup * self.iterations
        return self.config.loss.consistency_weight * (sigmoid_ramp(since / length) if length > 0 else 1.0)

    def ema_decay(self, step: int) -> float:
        """min(1 - 1 / (t + 1), ema_decay): a plain mean at first, so that the random start is soon forgotten."""
        return min(1.0 - 1.0 / (step + 1), self.config.teacher.ema_decay)
