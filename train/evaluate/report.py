"""`python -m train report RUN...`: runs side by side with mean and spread over seeds, and a figure of how they went."""

from __future__ import annotations

import io
import json
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from train.files import write_atomically
from train.run.config import FitConfig, flatten
from train.run.config_file import from_json
from train.run.folder import RunFolder
from train.run.monitor import Row, read_rows
from train.run.recipes import configure

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


@dataclass(frozen=True)
class Config:
    """Compare runs: a table with mean and spread over seeds, and a figure."""

    #: Run folders; those that differ only in their seed make one line.
    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN...")]]
    #: The figure; the table goes beside it as .csv.
    output: Path = Path("report.png")


@dataclass(frozen=True)
class Run:
    config: FitConfig
    rows: list[Row]

    def kind(self, kind: str) -> list[Row]:
        return [row for row in self.rows if row["kind"] == kind]

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        seen = [(row["step"], row[name]) for row in self.rows if row.get(name) is not None]
        return [step for step, _ in seen], [value for _, value in seen]

    def binned(self, name: str) -> tuple[list[int], list[float]]:
        """Means over each BIN steps, at the last of these."""
        bins: dict[int, list[float]] = defaultdict(list)
        for step, value in zip(*self.curve(name), strict=True):
            bins[-(-step // BIN) * BIN].append(value)
        return list(bins), [statistics.fmean(values) for values in bins.values()]

    def summary(self) -> dict[str, float]:
        validations = self.kind("validation")
        best = max(validations, key=lambda row: float(row["dice_mean"]))
        last = validations[-1]
        numbers = {f"Dice {name.removeprefix('dice_')}": best[name] for name in best if name.startswith("dice_")}
        numbers |= {"best step": best["step"], "last Dice": last["dice_mean"]}
        masked = self.curve("masked")[1]
        if masked:
            images = flatten(self.config)["unlabelled_batch"] * len(masked)
            unmasked = self.curve("images_unmasked")[1]
            numbers |= {"masked": statistics.fmean(masked), "images unmasked": sum(unmasked) / images}
            foreground = self.curve("foreground_masked")[1]
            if foreground:
                numbers["foreground masked"] = statistics.fmean(foreground)
        return numbers


def read_run(path: Path) -> Run:
    """Raises FileNotFoundError or ValueError, naming the folder, if it holds no run with a validation."""
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise FileNotFoundError(f"{folder} is not a run folder: {folder.config} does not exist")
    run = Run(from_json(folder.config.read_text(), folder.config), read_rows(folder.metrics))
    if not run.kind("validation"):
        raise ValueError(f"{folder} has no validation yet in {folder.metrics}")
    return run


def group(runs: list[Run]) -> dict[str, list[Run]]:
    """Runs that differ in their seed alone, under the method's name and what tells the group from the others.

    Of what differs between groups a name lists only the settings that are not the method's and recipe's own.
    """
    groups: dict[str, list[Run]] = defaultdict(list)
    settings: dict[str, dict[str, Any]] = {}
    for run in runs:
        flat = {k: v for k, v in flatten(run.config).items() if k not in SAME}
        key = json.dumps(flat, default=str, sort_keys=True)
        settings[key] = flat
        groups[key].append(run)
    named: dict[str, list[Run]] = {}
    for key, members in groups.items():
        flat = settings[key]
        usual = flatten(configure(flat["method"], flat["recipe"])) | {"recipe": None}
        telling = [
            name
            for name, value in flat.items()
            if name != "method" and value != usual[name] and any(other[name] != value for other in settings.values())
        ]
        named[" ".join([flat["method"], *(f"{name}={short(flat[name])}" for name in telling)])] = members
    return named


def short(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def table(groups: dict[str, list[Run]]) -> tuple[str, str]:
    """The table for the eye, and the same as CSV."""
    summaries = {name: [run.summary() for run in runs] for name, runs in groups.items()}
    columns = list(dict.fromkeys(c for runs in summaries.values() for summary in runs for c in summary))
    lines, csv = [["run", "seeds", *columns]], [["run", "seeds", *(f"{c}{s}" for c in columns for s in ("", " sd"))]]
    for name, runs in summaries.items():
        line, record = [name, str(len(runs))], [name.replace(",", ";"), str(len(runs))]
        for column in columns:
            values = [summary[column] for summary in runs if column in summary]
            if not values:
                line.append("-")
                record += ["", ""]
                continue
            digits = 0 if column == "best step" else 4
            mean = statistics.fmean(values)
            spread = statistics.stdev(values) if len(values) > 1 else None
            line.append(f"{mean:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}"))
            record += [repr(mean), "" if spread is None else repr(spread)]
        lines.append(line)
        csv.append(record)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
    return text, "\n".join(",".join(record) for record in csv) + "\n"


def figure(groups: dict[str, list[Run]]) -> bytes:
    """Dice, pseudo-labels, coverage and threshold over the steps; a colour a group, a line a seed."""
    heights = (1.8, 1.0, 1.0)  # where many lines run close together, more
    picture = Figure(figsize=(11, 2.5 * sum(heights) + 0.15 * len(groups)), layout="constrained")
    FigureCanvasAgg(picture)
    axes = picture.subplots(len(heights), 2, sharex=True, height_ratios=heights)
    for axis, (curve, title) in zip(axes.flat, CURVES.items(), strict=True):
        for i, (name, runs) in enumerate(groups.items()):
            style = {"color": f"C{i % 10}", "ls": ("-", "--", ":")[i // 10 % 3], "lw": 1.2, "alpha": 0.85}
            for j, run in enumerate(runs):
                points = run.curve(curve) if curve == "dice_mean" else run.binned(curve)
                axis.plot(*points, **style, label=name if j == 0 else None)
        axis.set_title(title, fontsize=10)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("step")
    picture.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=9)
    buffer = io.BytesIO()
    picture.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def main(config: Config) -> None:
    if not config.runs:
        raise ValueError("runs: give at least one run folder")
    groups = group([read_run(folder) for folder in config.runs])
    text, csv = table(groups)
    write_atomically(config.output, figure(groups))
    write_atomically(config.output.with_suffix(".csv"), csv.encode())
    print(text)
    print(f"figure: {config.output}\ntable:  {config.output.with_suffix('.csv')}")
