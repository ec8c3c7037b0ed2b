"""Where a step's time goes, measured without making the host wait for the device."""

from __future__ import annotations

import time

import torch

PARTS = ("data", "teacher", "mask", "student", "loss", "backward", "optimizer")  # of a step, in its order


class StepTimer:
    """Call start() at the beginning of a step and mark(part) at the end of each part of it; totals are in seconds."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.totals = dict.fromkeys(PARTS, 0.0)
        self.steps = 0
        self.pending: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def now(self) -> float | torch.cuda.Event:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def start(self) -> None:
        self.steps += 1
        self.last = self.now()

    def mark(self, name: str) -> None:
        now = self.now()
        if isinstance(now, float):
            assert isinstance(self.last, float)
            self.totals[name] += now - self.last
        else:
            assert not isinstance(self.last, float)
            self.pending.append((name, self.last, now))
        self.last = now

    def collect(self) -> None:
        """Reads the device's events; call it where the host has just waited for the device."""
        for name, begin, end in self.pending:
            end.synchronize()
            self.totals[name] += begin.elapsed_time(end) / 1000
        self.pending.clear()

    def table(self) -> str:
        self.collect()
        total = sum(self.totals.values())
        lines = ["time a step:"]
        spent = {name: seconds for name, seconds in self.totals.items() if seconds > 0}
        for name, seconds in {**spent, "all": total}.items():
            each = 1000 * seconds / max(self.steps, 1)
            lines.append(f"  {name:<10}{each:9.2f} ms  {seconds / max(total, 1e-12):6.1%}")
        return "\n".join(lines)
