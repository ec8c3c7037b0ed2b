"""The table of `python -m train report` as papers have it, in Markdown and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from train.data.description import read_description
from train.data.phantom import ROOT
from train.evaluate.paired import Paired
from train.evaluate.pictures import class_names
from train.evaluate.runs import Group
from train.evaluate.tables import columns_of, mean_and_spread

MARKDOWN = "<!-- python -m train report -->"  # how the files start
LATEX = "% python -m train report"
ESCAPED = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    c: rf"\{c}" for c in "&%$#_{}"
}


@dataclass(frozen=True)
class Percent:
    """Mean, and standard deviation over seeds where there are several, with two digits."""

    mean: str
    spread: str | None
    best: bool


@dataclass(frozen=True)
class Interval:
    mean: str
    low: str
    high: str


Cell = str | Percent | Interval | None  # None: not known


@dataclass(frozen=True)
class Table:
    """A block for each number of labelled patients, in which the best of a column is marked."""

    header: list[str]
    blocks: list[list[list[Cell]]]
    note: str


def table(groups: Sequence[Group], compared: Sequence[Paired], patients: str) -> Table:
    """patients: whose Dice it is, in words."""
    columns = columns_of(groups)
    classes = [name for name in columns if re.fullmatch(r"last Dice \d+", name)]
    shown = [*classes, "last Dice mean", "last four Dice mean"]
    differences: dict[str, Cell] = {pair.group.name: interval(pair) for pair in compared}
    blocks = []
    for labelled in sorted({each.runs[0].labelled for each in groups}):
        members = [each for each in groups if each.runs[0].labelled == labelled]
        dice = [percents(columns.get(name, {}), members) for name in shown]
        block: list[list[Cell]] = []
        for i, each in enumerate(members):
            block.append([paper_name(each), str(labelled), str(each.seeds), *(column[i] for column in dice)])
            if compared:
                block[-1].append(differences.get(each.name))
        blocks.append(block)
    names = [names_of(groups)[int(name.split()[-1])] for name in classes]
    header = ["Method", "Labelled", "Seeds", *names, "Mean", "Mean of last four"]
    note = (
        "Dice in %, mean and standard deviation over seeds, of the last checkpoint and of the last four validations; "
    )
    if compared:
        header.append(f"Difference to {paper_name(compared[0].reference)}")
        note += "difference in points of the mean of the last four, paired by patient, with its 95 % interval; "
    return Table(header, blocks, note + patients)


def paper_name(group: Group) -> str:
    """Without the number of labelled patients, which has its column."""
    return replace(group, settings={k: v for k, v in group.settings.items() if k != "labelled"}).name


def names_of(groups: Sequence[Group]) -> tuple[str, ...]:
    """Of the classes, as the data set of the runs names them; numbers where it is not there, or they have several."""
    data = {(run.config.data.root or ROOT, run.config.data.classes) for each in groups for run in each.runs}
    found = {class_names(read_description(root, classes).classes, classes) for root, classes in data}
    return found.pop() if len(found) == 1 else class_names((), max(map(len, found)))


def percents(values: dict[str, list[float]], groups: Sequence[Group]) -> list[Percent | None]:
    """The cell of each group; values: of its runs, by its name."""
    means = {each.name: f"{100 * mean_and_spread(values[each.name])[0]:.2f}" for each in groups if each.name in values}
    ended = [float(means[each.name]) for each in groups if each.name in means and not each.unfinished]
    best = max(ended) if len(ended) > 1 else None
    cells: list[Percent | None] = []
    for each in groups:
        if each.name not in means:
            cells.append(None)
            continue
        spread = mean_and_spread(values[each.name])[1]
        marked = not each.unfinished and float(means[each.name]) == best
        cells.append(Percent(means[each.name], None if spread is None else f"{100 * spread:.2f}", marked))
    return cells


def interval(pair: Paired) -> Interval:
    mean, low, high = (f"{100 * value:+.2f}" for value in (pair.mean, *pair.interval))
    return Interval(mean, low, high)


def markdown(table: Table) -> str:
    def cell(value: Cell) -> str:
        if value is None:
            return "-"
        if isinstance(value, str):
            return re.sub(r"([\\`*_{}\[\]<>#|~$&])", r"\\\1", " ".join(value.split()))
        if isinstance(value, Interval):
            return f"{value.mean} ({value.low} to {value.high})"
        mean = f"**{value.mean}**" if value.best else value.mean
        return mean if value.spread is None else f"{mean} ± {value.spread}"

    lines: list[Sequence[Cell]] = [table.header, *(line for block in table.blocks for line in block)]
    rows = [f"| {' | '.join(map(cell, line))} |" for line in lines]
    rows.insert(1, "|---" + "|---:" * (len(table.header) - 1) + "|")
    return "\n".join([MARKDOWN, "", *rows, "", f"{table.note}.", ""])


def latex(table: Table) -> str:
    def cell(value: Cell) -> str:
        if value is None:
            return "--"
        if isinstance(value, str):
            return "".join(ESCAPED.get(c, c) for c in " ".join(value.split()))
        if isinstance(value, Interval):
            return f"${value.mean}$ (${value.low}$ to ${value.high}$)"
        mean = rf"\textbf{{{value.mean}}}" if value.best else value.mean
        return mean if value.spread is None else rf"{mean} $\pm$ {value.spread}"

    def row(line: Sequence[Cell]) -> str:
        return rf"{' & '.join(map(cell, line))} \\"

    lines = [f"{LATEX}: {table.note}; needs \\usepackage{{booktabs}}"]
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}", r"\toprule", row(table.header)]
    for block in table.blocks:
        lines += [r"\midrule", *map(row, block)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])
