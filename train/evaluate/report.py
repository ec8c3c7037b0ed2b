"""`python -m train report RUN...`: runs side by side with mean and spread over seeds, and a figure of how they went."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from matplotlib.figure import Figure

from train.data.summary import read_summary
from train.evaluate.pictures import new_figure, save_figure
from train.files import write_atomically
from train.run.config import FitConfig, flatten
from train.run.config_file import from_json
from train.run.folder import RunFolder
from train.run.monitor import Row, read_rows
from train.run.recipes import configure
from train.run.schedule import length

BIN = 100  # steps whose mean is a point of what is measured on single batches
CURVES = {
    "dice_mean": "validation Dice",
    "pseudo_dice": "Dice of the pseudo-labels",
    "masked": "share of patches masked",
    "foreground_masked": "share of the teacher's foreground that is masked",
    "above_threshold": "share of pixels above the threshold",
    "threshold": "threshold",
}
SAME = ("seed", "output", "device")  # what runs of one group may differ in
FORMATS = (".pdf", ".png", ".svg")


@dataclass(frozen=True)
class Config:
    """Compare runs: a table with mean and spread over seeds, and a figure."""

    #: Run folders; those that differ only in their seed make one line, and one that has not ended has its own.
    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN...")]]
    #: The figure, .png, .pdf or .svg; the table goes beside it as .csv.
    output: Path = Path("report.png")


@dataclass(frozen=True)
class Run:
    folder: RunFolder
    config: FitConfig
    rows: list[Row]
    length: int | None  # steps; None: an old run of epochs, which does not say how many slices it has

    @property
    def unfinished(self) -> str | None:
        """How far a run is that has not ended, in words."""
        validations = self.validations
        if not validations:
            return "no validation yet"
        step = validations[-1]["step"]
        if self.length is None:
            return None if self.folder.validation.is_file() else f"step {step}"
        return None if step >= self.length else f"step {step} of {self.length}"

    @property
    def validations(self) -> list[Row]:
        return [row for row in self.rows if row["kind"] == "validation" and isinstance(row.get("dice_mean"), float)]

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        seen = [(row["step"], row[name]) for row in self.rows if row.get(name) is not None]
        return [step for step, _ in seen], [value for _, value in seen]

    def binned(self, name: str) -> tuple[list[int], list[float]]:
        """Means over each BIN steps, at the last of these."""
        bins: dict[int, list[float]] = defaultdict(list)
        for step, value in zip(*self.curve(name), strict=True):
            bins[-(-step // BIN) * BIN].append(value)
        return list(bins), [statistics.fmean(values) for values in bins.values()]

    def best_and_last(self) -> tuple[Row, Row]:
        """The validations that the checkpoints of these names are of."""
        validations = self.validations
        return max(validations, key=lambda row: float(row["dice_mean"])), validations[-1]

    def summary(self) -> dict[str, float]:
        best, last = self.best_and_last()
        numbers = {f"best Dice {name.removeprefix('dice_')}": best[name] for name in best if name.startswith("dice_")}
        numbers |= {"best step": best["step"], "last Dice mean": last["dice_mean"]}
        masked = self.curve("masked")[1]
        if masked:
            images = self.config.schedule.unlabelled_batch * len(masked)
            unmasked = self.curve("images_unmasked")[1]
            numbers |= {"masked": statistics.fmean(masked), "images unmasked": sum(unmasked) / images}
            foreground = self.curve("foreground_masked")[1]
            if foreground:
                numbers["foreground masked"] = statistics.fmean(foreground)
        return numbers


def read_run(path: Path) -> Run:
    """Raises FileNotFoundError or ValueError, naming the folder, if it holds no run."""
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise FileNotFoundError(f"{folder} is not a run folder: {folder.config} does not exist")
    config = from_json(folder.config.read_text(encoding="utf-8", errors="replace"), folder.config)
    wanted = config.schedule.iterations
    if wanted is None and folder.data.is_file():
        wanted = length(config, read_summary(folder.data)["labelled_slices"])
    return Run(folder, config, read_rows(folder.metrics), wanted)


def compared(run: Run) -> dict[str, Any]:
    """The settings that tell a group of runs from others."""
    return {name: value for name, value in flatten(run.config).items() if name not in SAME}


def check_distinct(runs: list[Run]) -> None:
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


def group(runs: list[Run]) -> dict[str, list[Run]]:
    """Runs that differ in their seed alone, under the method's name and what tells the group from the others.

    Of what differs between groups a name lists only the settings that are not the method's and recipe's own. A run
    that has not ended is a group of its own, whose name says how far it is.
    """
    groups: dict[str, list[Run]] = defaultdict(list)
    settings: dict[str, dict[str, Any]] = {}
    for run in runs:
        flat = compared(run)
        key = json.dumps([flat, run.config.seed if run.unfinished else None], default=str, sort_keys=True)
        settings[key] = flat
        groups[key].append(run)
    named: dict[str, list[Run]] = {}
    for key, members in groups.items():
        flat = settings[key]
        usual = flatten(configure(flat["method"], flat["recipe"])) | {"recipe": None}
        telling = [
            name
            for name, value in flat.items()
            if name != "method"
            and value not in (None, usual.get(name))
            and any(other.get(name) != value for other in settings.values())
        ]
        words = [flat["method"], *(f"{name}={short(flat[name])}" for name in telling)]
        if members[0].unfinished:
            words.append(f"seed={members[0].config.seed} (unfinished: {members[0].unfinished})")
        named[" ".join(words)] = members
    return named


def short(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def table(groups: dict[str, list[Run]]) -> tuple[str, str]:
    """The table for the eye, and the same as CSV; seeds counts the runs that have ended."""
    summaries = {name: [run.summary() for run in runs] for name, runs in groups.items()}
    columns = list(dict.fromkeys(c for runs in summaries.values() for summary in runs for c in summary))
    lines = [["run", "seeds", *columns]]
    records = [["run", "seeds", *(f"{c}{s}" for c in columns for s in ("", " sd"))]]
    for name, runs in summaries.items():
        seeds = str(sum(not run.unfinished for run in groups[name]))
        line, record = [name, seeds], [name, seeds]
        for column in columns:
            values = [summary[column] for summary in runs if column in summary]
            if not values:
                line.append("-")
                record += ["", ""]
                continue
            digits = 0 if column == "best step" else 4
            mean = statistics.fmean(values)
            spread = statistics.stdev(values) if len(values) > 1 else None
            line.append(f"{mean:.{digits}f}" + ("" if spread is None else f" +- {spread:.{digits}f}"))
            record += [repr(mean), "" if spread is None else repr(spread)]
        lines.append(line)
        records.append(record)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows(records)
    return text, written.getvalue()


def draw(groups: dict[str, list[Run]]) -> Figure:
    """Dice, pseudo-labels, coverage and threshold over the steps; a colour per group.

    The validations of the best and the last checkpoint are marked, and so is a curve of a single point.
    """
    heights = (1.8, 1.0, 1.0)  # where many lines run close together, more
    picture = new_figure((11, 2.5 * sum(heights) + 0.15 * len(groups)))
    axes = picture.subplots(len(heights), 2, sharex=True, height_ratios=heights)
    for axis, (curve, title) in zip(axes.flat, CURVES.items(), strict=True):
        for i, (name, runs) in enumerate(groups.items()):
            style = {"color": f"C{i % 10}", "ls": ("-", "--", ":")[i // 10 % 3], "lw": 1.2, "alpha": 0.85}
            for j, run in enumerate(runs):
                steps, values = run.curve(curve) if curve == "dice_mean" else run.binned(curve)
                dot = "." if len(steps) == 1 else None
                axis.plot(steps, values, **style, marker=dot, label=name if j == 0 else None)
                if curve == "dice_mean":
                    best, last = run.best_and_last()
                    axis.plot(last["step"], last[curve], "s", color=style["color"], mfc="white", ms=6)
                    axis.plot(best["step"], best[curve], "o", color=style["color"], ms=5)
        axis.set_title(title, fontsize=10)
        if not any(len(line.get_xdata()) for line in axis.lines):
            axis.text(0.5, 0.5, "not logged", transform=axis.transAxes, ha="center", va="center", color="grey")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes.flat[0].set_title(f"{CURVES['dice_mean']} (dot: best checkpoint, square: last)", fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel("step")
    picture.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=9)
    return picture


def main(config: Config) -> None:
    if not config.runs:
        raise ValueError("runs: give at least one run folder")
    if config.output.suffix.lower() not in FORMATS:
        raise ValueError(f"output must end in {', '.join(FORMATS)}, got {config.output}")
    runs = [read_run(folder) for folder in config.runs]
    check_distinct(runs)
    validated = [run for run in runs if run.validations]
    if not validated:
        raise ValueError(f"runs: none has a validation yet; {runs[0].folder.metrics} has none")
    for run in runs:
        if run not in validated:
            print(f"left out: {run.folder} has {run.unfinished}")
    groups = group(validated)
    text, values = table(groups)
    print(text)
    save_figure(config.output, draw(groups))
    write_atomically(config.output.with_suffix(".csv"), values.encode(errors="surrogateescape"))
    print(f"figure: {config.output}\ntable:  {config.output.with_suffix('.csv')}")
