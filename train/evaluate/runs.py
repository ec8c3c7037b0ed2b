"""Run folders read back: what a run logged, and which runs differ in their seed alone."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from train.data.layout import enumerated, patient_of
from train.data.summary import read_summary
from train.run.config import FitConfig, flatten
from train.run.config_file import from_json
from train.run.folder import RunFolder
from train.run.monitor import Row, read_rows
from train.run.recipes import configure
from train.run.schedule import length

BIN = 100  # steps whose mean is a point of what is measured on single batches
LAST = 4  # validations whose mean is steadier than the last one
CASE = "case/"  # what the name of a volume's own Dice starts with in a validation row
SAME = ("seed", "output", "device")  # what runs of one group may differ in
LENGTHS = ("iterations", "epochs")  # a run has one of them
UNLABELLED = {  # what is logged of the unlabelled slices, and its column
    "pseudo_dice": "pseudo-label Dice",
    "accepted": "accepted",
    "mixed": "mixed",
    "masked": "masked",
    "foreground_masked": "foreground masked",
}

Half = Literal["first", "second", "all"]


@dataclass(frozen=True)
class Run:
    folder: RunFolder
    config: FitConfig
    rows: list[Row]
    length: int | None  # steps; None: an old run of epochs, which does not say how many slices it has
    labelled: int  # patients
    patients: frozenset[str] | None = None  # whose Dice is told; None: all of the validation

    @property
    def unfinished(self) -> str | None:
        """How far a run is that has not ended, in words."""
        if not self.validations:
            return "no validation yet"
        step = self.validations[-1]["step"]
        if self.length is None:
            return None if self.folder.validation.is_file() else f"step {step}"
        return None if step >= self.length else f"step {step} of {self.length}"

    @cached_property
    def validations(self) -> list[Row]:
        return [row for row in self.rows if row["kind"] == "validation" and row.get("dice_mean") is not None]

    def cases(self, row: Row) -> dict[str, float]:
        """Mean Dice of the classes of each volume in a validation row, of the patients that are told."""
        cases = {name.removeprefix(CASE): row[name] for name in row if name.startswith(CASE)}
        return {
            name: dice for name, dice in cases.items() if self.patients is None or patient_of(name) in self.patients
        }

    def dice(self, row: Row) -> dict[str, float]:
        """{"Dice 1": ..., "Dice mean": ...}; of some of the patients the mean alone, a row has no more of a volume."""
        if self.patients is not None:
            return {"Dice mean": fmean(self.cases(row).values())}
        scores = {name.removeprefix("dice_"): row[name] for name in row if name.startswith("dice_")}
        return {f"Dice {name}": value for name, value in scores.items() if value is not None}

    def best_and_last(self) -> tuple[Row, Row]:
        """The validations that the checkpoints of these names are of; all patients choose the best."""
        return max(self.validations, key=lambda row: float(row["dice_mean"])), self.validations[-1]

    def last_validations(self) -> list[Row]:
        """LAST of them; none where there are fewer."""
        return self.validations[-LAST:] if len(self.validations) >= LAST else []

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """The steps and values of a number of the train rows, or "dice_mean", of the patients that are told."""
        if name == "dice_mean":
            return [row["step"] for row in self.validations], [self.dice(row)["Dice mean"] for row in self.validations]
        seen = [(row["step"], row[name]) for row in self.rows if row.get(name) is not None]
        return [step for step, _ in seen], [value for _, value in seen]

    def binned(self, name: str) -> tuple[list[int], list[float]]:
        """Means over each BIN steps, at the last of these."""
        bins: dict[int, list[float]] = defaultdict(list)
        for step, value in zip(*self.curve(name), strict=True):
            bins[-(-step // BIN) * BIN].append(value)
        return list(bins), [fmean(values) for values in bins.values()]

    def last_tenth(self, name: str) -> list[float]:
        """The values of a number of the train rows in the last tenth of the steps that are logged."""
        end = max((row["step"] for row in self.rows), default=0)
        return [value for step, value in zip(*self.curve(name), strict=True) if step > 0.9 * end]

    def summary(self) -> dict[str, float]:
        """The numbers of a run by their column."""
        best, last = self.best_and_last()
        numbers = {f"last {name}": value for name, value in self.dice(last).items()}
        four = [self.dice(row) for row in self.last_validations()]
        if four:
            names = [name for name in four[0] if all(name in dice for dice in four)]
            numbers |= {f"last four {name}": fmean(dice[name] for dice in four) for name in names}
        numbers |= {f"best {name}": value for name, value in self.dice(best).items()} | {"best step": best["step"]}
        for name, column in UNLABELLED.items():
            values = self.last_tenth(name)
            if values:
                numbers[column] = fmean(values)
        unmasked = self.last_tenth("images_unmasked")
        if unmasked:
            numbers["images unmasked"] = fmean(unmasked) / self.config.schedule.unlabelled_batch
        return numbers


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone; a run that has not ended is a group of its own."""

    runs: list[Run]
    settings: dict[str, str]  # what tells it from the other groups, beside the method

    @property
    def method(self) -> str:
        return self.runs[0].config.method

    @property
    def unfinished(self) -> str | None:
        return self.runs[0].unfinished

    @property
    def name(self) -> str:
        words = [self.method, *(f"{name}={value}" for name, value in self.settings.items())]
        if self.unfinished:
            words.append(f"seed={self.runs[0].config.seed} (unfinished: {self.unfinished})")
        return " ".join(words)

    @property
    def seeds(self) -> int:
        """How many runs have ended."""
        return 0 if self.unfinished else len(self.runs)


def read_run(path: Path) -> Run:
    """Raises FileNotFoundError or ValueError, naming the folder, if it holds no run."""
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise FileNotFoundError(f"{folder} is not a run folder: {folder.config} does not exist")
    config = from_json(folder.config.read_text(encoding="utf-8", errors="replace"), folder.config)
    wanted, labelled = config.schedule.iterations, config.data.labelled
    if folder.data.is_file():
        summary = read_summary(folder.data)
        labelled = len(summary["labelled_patients"])  # a method of all labels has more than the setting says
        wanted = wanted or length(config, summary["labelled_slices"])
    return Run(folder, config, read_rows(folder.metrics), wanted, labelled)


def compared(run: Run) -> dict[str, Any]:
    """The settings that tell a group of runs from others."""
    return {name: value for name, value in flatten(run.config).items() if name not in SAME}


def check_distinct(runs: Sequence[Run]) -> None:
    """Raises ValueError if a run is there twice, itself or copied: it is no further seed."""
    seen: dict[str, Run] = {}
    for run in runs:
        key = json.dumps([compared(run), run.config.seed], default=str, sort_keys=True)
        if key in seen:
            raise ValueError(
                f"runs: {seen[key].folder} and {run.folder} are the same run (all settings and the seed are equal): "
                "give one of them"
            )
        seen[key] = run


def check_cases(runs: Sequence[Run]) -> None:
    """Raises ValueError unless every validation has the Dice of each volume, and of the same ones in all runs."""
    first = list(runs[0].cases(runs[0].validations[0]))
    for run in runs:
        for row in run.validations:
            cases = run.cases(row)
            where = f"{run.folder.metrics}, validation of step {row['step']}"
            if not cases or None in cases.values():
                raise ValueError(
                    f"{where}: there must be the Dice of each volume for --patients and --against; "
                    "a run of an older version lacks it"
                )
            if set(cases) != set(first):
                raise ValueError(
                    f"{where}: the volumes must be those of {runs[0].folder} ({enumerated(first)}), "
                    f"got {enumerated(list(cases))}"
                )


def told(runs: Sequence[Run], half: Half) -> list[Run]:
    """The runs with the Dice of these validation patients: of the 1st, 3rd, ... by name, of the 2nd, 4th, ..., or all.

    Data sets often number the patients by their disease, so that every other one has more of each than the first half.

    Raises:
        ValueError: as check_cases, or there is one patient.
    """
    if half == "all":
        return list(runs)
    check_cases(runs)
    patients = sorted({patient_of(name) for name in runs[0].cases(runs[0].validations[0])})
    if len(patients) < 2:
        raise ValueError(f"patients = {half}: there must be two validation patients or more, got {patients[0]} alone")
    chosen = frozenset(patients[half == "second" :: 2])
    return [replace(run, patients=chosen) for run in runs]


def group(runs: Sequence[Run]) -> list[Group]:
    """Of what differs between groups a name has only the settings that are not the method's and recipe's own."""
    groups: dict[str, list[Run]] = defaultdict(list)
    settings: dict[str, dict[str, Any]] = {}
    for run in runs:
        flat = compared(run)
        key = json.dumps([flat, run.config.seed if run.unfinished else None], default=str, sort_keys=True)
        settings[key] = flat
        groups[key].append(run)
    named = []
    for key, members in groups.items():
        flat = settings[key]
        usual = flatten(configure(flat["method"], flat["recipe"])) | {"recipe": None}
        telling = {
            name: short(value)
            for name, value in flat.items()
            if name != "method"
            and value != usual.get(name)
            and not (value is None and name in LENGTHS)
            and any(other.get(name) != value for other in settings.values())
        }
        named.append(Group(members, telling))
    return named


def short(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
