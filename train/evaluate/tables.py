"""The table of `python -m train report`, for the eye and as CSV."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence

from train.evaluate.paired import Paired
from train.evaluate.runs import Group

BLOCKS = {  # what the columns of a block start with, and its title
    "last four ": "mean of the last four validations",
    "last ": "last checkpoint",
    "best ": "best checkpoint",
    "": "unlabelled slices, means over the last tenth of the steps",
}


def columns_of(groups: Sequence[Group]) -> dict[str, dict[str, list[float]]]:
    """The values of the runs of each group, by column and the group's name; no runs, no values."""
    columns: dict[str, dict[str, list[float]]] = {}
    for each in groups:
        for run in each.runs:
            for column, value in run.summary().items():
                columns.setdefault(column, {}).setdefault(each.name, []).append(value)
    return columns


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Standard deviation between the seeds (n - 1); none of a single one."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def text(groups: Sequence[Group], patients: str) -> str:
    """A block for each of BLOCKS that has columns; seeds counts the runs that have ended. patients: whose Dice."""
    columns = columns_of(groups)
    blocks = []
    for prefix, title in BLOCKS.items():
        mine = [name for name in columns if block_of(name) == prefix]
        if not mine:
            continue
        lines = [["run", "seeds", *(name.removeprefix(prefix) for name in mine)]]
        for each in groups:
            cells = []
            for name in mine:
                digits = 0 if name == "best step" else 4
                values = columns[name].get(each.name)
                mean, spread = mean_and_spread(values) if values else (None, None)
                end = "" if spread is None else f" +- {spread:.{digits}f}"
                cells.append("-" if mean is None else f"{mean:.{digits}f}{end}")
            lines.append([each.name, str(each.seeds), *cells])
        blocks.append(f"{title}{f', {patients}' if prefix else ''}\n{aligned(lines)}")
    return "\n\n".join(blocks)


def block_of(column: str) -> str:
    return next(prefix for prefix in BLOCKS if column.startswith(prefix))


def paired_text(compared: Sequence[Paired], patients: str) -> str:
    lines = [["run", "seeds", "mean", "95 % interval", "patients better"]]
    for pair in compared:
        low, high = pair.interval
        differences = pair.differences.values()
        better = f"{sum(d > 0 for d in differences)} of {len(differences)}"
        seeds = ",".join(map(str, pair.seeds))
        lines.append(
            [pair.group.name, seeds, f"{100 * pair.mean:+.2f}", f"{100 * low:+.2f} to {100 * high:+.2f}", better]
        )
    title = f"difference of Dice to {compared[0].reference.name} in points, paired by patient"
    return f"{title}, {BLOCKS['last four ']}, {patients}\n{aligned(lines)}"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def as_csv(groups: Sequence[Group], patients: str) -> str:
    """A line a group: every column's mean and standard deviation, to the last digit."""
    columns = columns_of(groups)
    lines = [["run", "seeds", "patients", *(f"{c}{s}" for c in columns for s in ("", " sd"))]]
    for each in groups:
        line = [each.name, str(each.seeds), patients]
        for values in columns.values():
            mean, spread = mean_and_spread(values[each.name]) if each.name in values else (None, None)
            line += ["" if number is None else repr(number) for number in (mean, spread)]
        lines.append(line)
    return written(lines)


def paired_csv(compared: Sequence[Paired]) -> str:
    """A line a group and patient: the difference of Dice."""
    lines = [["run", "against", "seeds", "patient", "difference"]]
    for pair in compared:
        seeds = " ".join(map(str, pair.seeds))
        for patient, difference in pair.differences.items():
            lines.append([pair.group.name, pair.reference.name, seeds, patient, repr(difference)])
    return written(lines)


def written(lines: Sequence[Sequence[str]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(lines)
    return file.getvalue()
