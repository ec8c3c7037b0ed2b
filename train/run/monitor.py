"""The numbers of a run: gathered on the device, brought over every n steps, written to one file and to TensorBoard.

metrics.jsonl holds one JSON object a line: {"kind": "train", "step": ...} for every step, "validation", "warning" and
"stopped" rows in between. A number that is not finite is null there.
"""

from __future__ import annotations

import json
import math
import sys
from collections import deque
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from train.files import parse_json, sync, write_atomically
from train.parts import Strategy
from train.run.folder import RunFolder
from train.run.processes import Processes

Row = dict[str, Any]
WINDOW = 100  # steps that a warning looks back over
TIED_LOGS = 5  # logged steps in a row with mostly tied scores
WORDS = ("kind", "about", "text", "network")
LOSSES = {"loss": "loss", "supervised": "supervised loss", "consistency": "consistency loss"}


class NotFinite(ValueError):
    """A loss became NaN or infinite."""


def read_rows(path: Path, warn: bool = True) -> list[Row]:
    """The rows of a metrics file. A damaged line is named and left out; a killed run's torn last one just left out."""
    rows: list[Row] = []
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            row = parse_json(line)
            if not is_row(row):
                raise ValueError
            rows.append(row)
        except ValueError:
            if warn and line.endswith(b"\n"):
                print(f"warning: {path}: line {number} is damaged and left out", file=sys.stderr)
    return rows


def is_row(row: Any) -> bool:
    """Of a kind and a step, its words text and all else numbers."""
    return (
        isinstance(row, dict)
        and isinstance(row.get("kind"), str)
        and type(row.get("step")) is int
        and all(isinstance(row.get(name, ""), str) for name in WORDS)
        and all(value is None or type(value) in (int, float) for name, value in row.items() if name not in WORDS)
    )


class Watch:
    """Turns rows into warnings, each given once; it sees row after row, so a resumed run warns as an unbroken one."""

    def __init__(self, strategy: Strategy, images: int) -> None:
        self.strategy, self.images = strategy, images
        self.unmasked: deque[float] = deque(maxlen=WINDOW)
        self.tied: deque[float] = deque(maxlen=TIED_LOGS)
        self.given: set[str] = set()

    def see(self, row: Row) -> list[Row]:
        found = []
        if row.get("images_unmasked") is not None:
            self.unmasked.append(row["images_unmasked"] / self.images)
            share = sum(self.unmasked) / WINDOW
            if len(self.unmasked) == WINDOW and share > 0.5:
                found.append(("vanished", self.vanished(share)))
        if self.strategy.by_rank and row.get("tied") is not None:
            self.tied.append(row["tied"])
            if len(self.tied) == TIED_LOGS and min(self.tied) > 0.5:
                found.append(("tied", self.ties()))
        rows = [
            {"kind": "warning", "step": row["step"], "about": about, "text": text}
            for about, text in found
            if about not in self.given
        ]
        self.given.update(about for about, _ in found)
        return rows

    def vanished(self, share: float) -> str:
        seen = f"{share:.0%} of the images of the last {WINDOW} steps have no masked patch"
        return f"the mask has vanished: {seen}; {self.strategy.remedy}"

    def ties(self) -> str:
        return (
            f"most scores tie ({min(self.tied):.0%} or more in the last {TIED_LOGS} logged steps): the teacher "
            "is saturated, and tied patches are taken from the top left on; let consistency set in earlier "
            "(--consistency-from), use --teacher-mode train, or mask at random"
        )


class Monitor:
    """Collects each step's numbers; flush() is the only place where the host waits for them."""

    def __init__(self, folder: RunFolder, processes: Processes, watch: Watch, resumed_at: int = 0) -> None:
        """resumed_at: steps the checkpoint has; rows beyond it are cut off."""
        self.processes, self.watch = processes, watch
        self.pending: list[tuple[int, dict[str, float], tuple[str, ...], Tensor]] = []
        self.path = folder.metrics
        self.latest: Row = {}
        kept = [row for row in read_rows(self.path, processes.writes) if row["step"] <= resumed_at]
        if resumed_at and not kept and processes.writes:
            print(f"warning: {self.path} has no rows of steps 1 to {resumed_at}; the run goes on", file=sys.stderr)
        for row in kept:
            watch.see(row)
        if processes.writes:
            write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in kept).encode())
            self.file = self.path.open("a")
            self.board = SummaryWriter(str(folder.tensorboard), purge_step=resumed_at + 1)

    def add(self, step: int, host: dict[str, float], device: dict[str, Tensor]) -> None:
        """step: how many steps are done with this one; device: 0-d tensors."""
        self.pending.append((step, host, tuple(device), torch.stack([v.float() for v in device.values()])))

    def flush(self) -> list[Row]:
        """Writes the pending steps' rows and returns them with the warnings.

        Raises:
            NotFinite: on every process, after writing, if a loss is not finite.
        """
        if not self.pending:
            return []
        flat = self.processes.gather(torch.cat([values for *_, values in self.pending])).cpu()
        rows: list[Row] = []
        trouble = None
        at = 0
        for step, host, names, values in self.pending:
            block = flat[:, at : at + len(values)]
            at += len(values)
            row: Row = {"kind": "train", "step": step, **host}
            row |= {name: combine(name, block[:, i]) for i, name in enumerate(names)}
            bad = [name for name in LOSSES if not math.isfinite(row.get(name, 0.0))]
            rows.append(row)
            rows += self.watch.see(row)
            if bad:
                trouble = f"the {LOSSES[bad[0]]} is {row[bad[0]]} at step {step}"
                rows.append({"kind": "stopped", "step": step, "text": trouble})
                break
        self.pending.clear()
        self.latest = next((row for row in reversed(rows) if row["kind"] == "train"), self.latest)
        self.write(rows)
        if trouble:
            raise NotFinite(trouble)
        return rows

    def write(self, rows: list[Row]) -> None:
        if not self.processes.writes:
            return
        for row in rows:
            self.file.write(json.dumps({k: finite(v) for k, v in row.items()}) + "\n")
            for name, value in row.items():
                if isinstance(value, float):
                    self.board.add_scalar(f"{row['kind']}/{name}", value, row["step"])
        sync(self.file)

    def close(self) -> None:
        if self.processes.writes:
            self.file.close()
            self.board.close()


def combine(name: str, values: Tensor) -> float:
    """One number of all processes' (size,)."""
    if name == "masked_least":
        return values.min().item()
    if name == "masked_most":
        return values.max().item()
    if name == "images_unmasked":
        return values.sum().item()
    return values.mean().item()


def finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
