"""What a run folder holds, and under which names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from train.files import there

#: Of the files that are written whole.
PATTERNS = (
    "config.json", "data.json", "metrics.jsonl", "validation.txt",
    "checkpoints/best.pt", "checkpoints/last.pt", "panels/step_*.png", "evaluation/*.csv",
)  # fmt: skip


@dataclass(frozen=True)
class RunFolder:
    path: Path

    def results(self) -> list[str]:
        """What is there under the names of what a run writes after its configuration."""
        names = ("data.json", "metrics.jsonl", "tensorboard", "validation.txt", "checkpoints", "panels", "evaluation")
        return [name for name in names if there(self.path / name)]

    def __str__(self) -> str:
        return str(self.path)

    @property
    def config(self) -> Path:
        """The whole configuration."""
        return self.path / "config.json"

    @property
    def data(self) -> Path:
        """What the run is trained on: patients, slices, scaling, see train/data/summary.py."""
        return self.path / "data.json"

    @property
    def metrics(self) -> Path:
        """A row a step, see train/run/monitor.py."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def validation(self) -> Path:
        """The table of the end."""
        return self.path / "validation.txt"

    def checkpoint(self, which: Literal["best", "last"]) -> Path:
        return self.path / "checkpoints" / f"{which}.pt"

    def panel(self, step: int) -> Path:
        """The picture of a step."""
        return self.path / "panels" / f"step_{step:06d}.png"

    def evaluation(self, name: str) -> Path:
        """A table of `python -m train evaluate`."""
        return self.path / "evaluation" / f"{name}.csv"
