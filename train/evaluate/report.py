"""`python -m train report RUN...`: runs side by side, with mean and spread over seeds, paired by patient, and drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from train.evaluate import paper, tables
from train.evaluate.curves import draw
from train.evaluate.paired import Paired, compare, find
from train.evaluate.pictures import save_figure
from train.evaluate.runs import Half, check_cases, check_distinct, group, read_run, told
from train.files import there, write_atomically

FORMATS = (".pdf", ".png", ".svg")
TABLES = {".csv": "run,seeds", ".patients.csv": "run,against", ".md": paper.MARKDOWN, ".tex": paper.LATEX}
PATIENTS = {
    "all": "all validation patients",
    "first": "first half of the validation patients",
    "second": "second half of the validation patients",
}


@dataclass(frozen=True)
class Config:
    """Compare runs: tables with mean and spread over seeds, paired differences by patient, and a figure."""

    #: Run folders; those that differ only in their seed make one line, and one that has not ended has its own.
    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN...")]]
    #: The figure, .png, .pdf or .svg; the tables go beside it as .csv, .md and .tex.
    output: Path = Path("report.png")
    #: Compare with these runs patient by patient: a method's name, a line's whole name, or a run folder.
    against: str | None = None
    #: Whose Dice. first: of the validation patients that choose between variants, the 1st, 3rd, ... by name; second: of
    #: those that confirm the choice, the 2nd, 4th, ...
    patients: Half = "all"


def main(config: Config) -> None:
    if not config.runs:
        raise ValueError("runs: give at least one run folder")
    if config.output.suffix.lower() not in FORMATS:
        raise ValueError(f"output must end in {', '.join(FORMATS)}, got {config.output}")
    check_replaceable(config.output)
    runs = [read_run(folder) for folder in config.runs]
    check_distinct(runs)
    validated = [run for run in runs if run.validations]
    if not validated:
        raise ValueError(f"runs: none has a validation yet; {runs[0].folder.metrics} has none")
    groups = group(told(validated, config.patients))
    compared: list[Paired] = []
    if config.against is not None:
        check_cases(validated)
        reference = find(groups, config.against)
        results = {each.name: compare(each, reference) for each in groups if each is not reference}
        compared = [result for result in results.values() if isinstance(result, Paired)]
        if not compared:
            reasons = "; ".join(f"{name}: {result}" for name, result in results.items()) or "there is no other"
            raise ValueError(f"against: nothing can be compared with {reference.name}: {reasons}")
    for run in runs:
        if run not in validated:
            print(f"left out: {run.folder} has {run.unfinished}")
    whose = PATIENTS[config.patients]
    print(tables.text(groups, whose))
    if compared:
        print(f"\n{tables.paired_text(compared, whose)}")
        for name, result in results.items():
            if isinstance(result, str):
                print(f"not compared: {name}, {result}")
    table = paper.table(groups, compared, whose)
    texts = {".csv": tables.as_csv(groups, config.patients)}
    if compared:
        texts[".patients.csv"] = tables.paired_csv(compared)
    texts |= {".md": paper.markdown(table), ".tex": paper.latex(table)}
    save_figure(config.output, draw(groups, whose))
    for suffix, content in texts.items():
        write_atomically(config.output.with_suffix(suffix), content.encode(errors="surrogateescape"))
    print(f"\nfigure: {config.output}\ntables: {', '.join(str(config.output.with_suffix(suffix)) for suffix in texts)}")


def check_replaceable(output: Path) -> None:
    """Raises ValueError, naming it, if a file under a table's name is something else."""
    for suffix, start in TABLES.items():
        path = output.with_suffix(suffix)
        if there(path) and not (path.is_file() and path.read_bytes().startswith(start.encode())):
            raise ValueError(f"output {output}: {path} is there and no table of report; give another name")
