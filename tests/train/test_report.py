"""`python -m train report`: which runs make a line, and what a line says."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from matplotlib.image import imread
from tiny import command, tiny_config, write_tiny

from train.__main__ import main
from train.evaluate.runs import Run, group
from train.run.config_file import to_json
from train.run.folder import RunFolder
from train.run.monitor import Row
from train.run.recipes import configure

DICE = {"dice_1": 0.25, "dice_2": 0.75}


def test_report_names_groups_by_what_tells_them_apart() -> None:
    def run(**changes: object) -> Run:
        config = configure(**{"recipe": "reduced", "autocast": "bf16", **changes})
        rows: list[Row] = [{"kind": "train", "step": s, "masked": s / 100} for s in (1, 99, 100, 101)]
        rows.append({"kind": "validation", "step": 30_000, "dice_mean": 0.5})
        return Run(RunFolder(Path()), config, rows, 1500, labelled=7)

    runs = [
        run(method="mcl"), run(), run(seed=1, output=Path("a")), run(scope="batch"), run(ratio=(0.1, 0.5), hint=0.1),
    ]  # fmt: skip
    names = {each.name: len(each.runs) for each in group(runs)}
    hinted = "entropy-topr ratio=0.1,0.5 hint=0.1"
    assert names == {"mcl": 1, "entropy-topr": 2, "entropy-topr scope=batch": 1, hinted: 1}
    pairs = {
        ("entropy-topr recipe=reduced", "entropy-topr recipe=iterations"): (run(), run(recipe="iterations")),
        ("fixmatch", "fixmatch min_confidence=None"): (
            run(method="fixmatch"),
            run(method="fixmatch", min_confidence=None),
        ),
    }
    for names, pair in pairs.items():
        assert tuple(each.name for each in group(pair)) == names
    steps, values = runs[0].binned("masked")
    assert steps == [100, 200] and values == pytest.approx([2 / 3, 1.01])


def write_run(
    folder: Path,
    means: dict[int, float],
    cases: dict[str, list[float]] | None = None,
    train: Sequence[Row] = ({"step": 1, "masked": 0.2, "images_unmasked": 1.0, "threshold": 0.75},),
    **changes: object,
) -> str:
    """A run folder with these validations; a run of 400 steps, or of 2 epochs that ends with a table.

    cases: by volume, its Dice in each of them.
    """
    config = configure(**{"recipe": "quick", "iterations": 400, **changes})
    rows: list[Row] = [{"kind": "train", **row} for row in train]
    for i, (step, mean) in enumerate(means.items()):
        each = {f"case/{name}": dice[i] for name, dice in (cases or {}).items()}
        rows.append({"kind": "validation", "step": step, **DICE, "dice_mean": mean, **each})
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(to_json(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def table_of(path: Path) -> dict[str, dict[str, str]]:
    with open(path, newline="") as file:
        return {row["run"]: row for row in csv.DictReader(file)}


def test_unfinished_runs_are_named_and_are_no_further_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        write_run(tmp_path / "a", {200: 0.9, 400: 0.5}),
        write_run(tmp_path / "b", {400: 0.7}, seed=1),
        write_run(tmp_path / "c", {200: 0.1}, seed=2),
        write_run(tmp_path / "d", {}, seed=3),
        write_run(tmp_path / "e", {300: 0.3}, iterations=None, epochs=2),
        write_run(tmp_path / "f", {300: 0.4}, iterations=None, epochs=2, seed=1),
        write_run(tmp_path / "g", {300: 0.4}, iterations=None, epochs=2, seed=2),  # an old one, without data.json
        write_run(tmp_path / "h", {300: 0.4}, iterations=None, epochs=2, seed=3),
    ]
    (tmp_path / "e" / "validation.txt").write_text("of the end, before the run was lengthened")
    for name in "ef":
        slices = 800 if name == "e" else 600  # 400 steps, 300 steps
        data = {key: [] for key in ("labelled_patients", "unlabelled_patients", "validation_volumes")}
        data |= {"labelled_slices": slices, "unlabelled_slices": 0, "scaling": "none"}
        (tmp_path / name / "data.json").write_text(json.dumps(data))
    (tmp_path / "h" / "validation.txt").write_text("of the end")
    with (tmp_path / "a" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "validation", "step": 400}\n{"kind": "validation", "step": 4')  # damaged, torn
    assert main(["report", *runs, "--output", str(tmp_path / "report.png")]) == 0
    printed = capsys.readouterr().out
    assert f"left out: {tmp_path / 'd'} has no validation yet" in printed and "0.8000 +- 0.1414" in printed
    assert printed.isascii()
    table = table_of(tmp_path / "report.csv")
    assert {name: row["seeds"] for name, row in table.items()} == {
        "entropy-topr iterations=400": "2",
        "entropy-topr iterations=400 seed=2 (unfinished: step 200 of 400)": "0",
        "entropy-topr epochs=2 seed=0 (unfinished: step 300 of 400)": "0",
        "entropy-topr epochs=2 seed=2 (unfinished: step 300)": "0",
        "entropy-topr epochs=2": "2",
    }
    row = table["entropy-topr iterations=400"]
    assert float(row["best Dice mean"]) == pytest.approx(0.8) and float(row["last Dice mean"]) == pytest.approx(0.6)
    assert float(row["best step"]) == 300 and float(row["best Dice 2"]) == 0.75


STEPS = (80, 160, 240, 320, 400)


def volume_runs(folder: Path, dice: np.ndarray, patients: Sequence[str], **changes: object) -> list[str]:
    """A run per seed; dice (seeds, 5 validations, patients, frames)."""
    folders = []
    for seed, rows in enumerate(dice):
        cases = {
            f"{patient}_frame{frame:02d}": rows[:, i, frame].tolist()
            for i, patient in enumerate(patients)
            for frame in range(rows.shape[2])
        }
        means = dict(zip(STEPS, rows.mean((1, 2)).tolist(), strict=True))
        folders.append(write_run(folder / f"{seed}", means, cases, seed=seed, **changes))
    return folders


PATIENTS = ["patient085", "patient002", "patient100", "patient028", "patient030"]  # by name 002 028 030 085 100
HALVES = {"first": [1, 4, 2], "second": [3, 0], "all": [0, 1, 2, 3, 4]}


@pytest.mark.parametrize("half", HALVES)
def test_dice_and_paired_differences_of_half_of_the_patients(
    tmp_path: Path, half: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against numpy and scipy's t-test; seeds 0 and 1 are common, the best checkpoint is of all patients."""
    rng = np.random.default_rng(3)
    mine, its = rng.uniform(0.4, 0.9, (3, 5, 5, 2)), rng.uniform(0.2, 0.8, (2, 5, 5, 2))
    runs = volume_runs(tmp_path / "random", mine, PATIENTS, method="random", ratio=0.25)
    runs += volume_runs(tmp_path / "mcl", its, PATIENTS, method="mcl", ratio=0.25)
    output = tmp_path / "report.png"
    assert main(["report", *runs, "--against", "mcl", "--patients", half, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    chosen = HALVES[half]
    row = table_of(tmp_path / "report.csv")["random"]
    four = mine[:, 1:, chosen].mean((1, 2, 3))
    best = mine.mean((2, 3)).argmax(1)
    want = {
        "last Dice mean": mine[:, -1, chosen].mean((1, 2)),
        "last four Dice mean": four,
        "best Dice mean": np.array([mine[seed, i, chosen].mean() for seed, i in enumerate(best)]),
        "best step": np.array(STEPS)[best],
    }
    for name, values in want.items():
        assert float(row[name]) == pytest.approx(values.mean(), abs=1e-12), name
        assert float(row[f"{name} sd"]) == pytest.approx(values.std(ddof=1), abs=1e-12), name
    assert ("last Dice 1" in row) == (half == "all") and row["patients"] == half

    differences = (mine[:2] - its)[:, 1:, chosen].mean((0, 1, 3))
    with open(tmp_path / "report.patients.csv", newline="") as file:
        found = {line["patient"]: float(line["difference"]) for line in csv.DictReader(file)}
    assert found == pytest.approx({PATIENTS[i]: d for i, d in zip(chosen, differences, strict=True)}, abs=1e-12)
    low, high = scipy.stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    better = f"{(differences > 0).sum()} of {len(chosen)}"
    line = f"0,1  {100 * differences.mean():+.2f}  {100 * low:+.2f} to {100 * high:+.2f} {better:>16}"
    assert " ".join(line.split()) in " ".join(printed.split())


def test_unlabelled_slices_are_told_by_the_last_tenth(tmp_path: Path) -> None:
    """Steps 361 to 400 of 400, of those that have the number, one of which is null."""
    rows: list[Row] = [
        {"step": s, "masked": s / 1000, "images_unmasked": 1.0, "accepted": s / 400 if s % 20 == 0 else None}
        for s in range(1, 401)
    ]
    rows[379]["mixed"] = 0.25
    run = write_run(tmp_path / "a", {400: 0.5}, train=rows)
    assert main(["report", run, "--output", str(tmp_path / "r.png")]) == 0
    (row,) = table_of(tmp_path / "r.csv").values()
    want = {"masked": 0.3805, "accepted": 0.975, "mixed": 0.25, "images unmasked": 0.25}
    assert {name: float(row[name]) for name in want} == pytest.approx(want)
    assert "pseudo-label Dice" not in row


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["a", "--against", "bcp"], "'bcp' names none of: entropy-topr"),
        (["open", "ratio", "few", "--against", "mcl"], "'mcl' names 2 of: mcl ratio=0.25; mcl ratio=0.125"),
        (["a", "mcl", "open", "--against", "./open/"], "mcl ratio=0.5 seed=0 (unfinished: step 80 of 400): it has not"),
        (["a", "--against", "a"], "nothing can be compared with entropy-topr: there is no other"),
        (
            ["a", "open", "--against", "a"],
            "entropy-topr: mcl ratio=0.5 seed=0 (unfinished: step 80 of 400): it has not ended",
        ),
        (["a", "seed", "--against", "a"], "mcl: it has no seed that entropy-topr has"),
        (["a", "short", "--against", "a"], "mcl: short has fewer than 4 validations"),
        (["a", "old", "--against", "a"], "old/metrics.jsonl, validation of step 80: there must be the Dice of each"),
        (["old", "--patients", "first"], "old/metrics.jsonl, validation of step 80: there must be the Dice of each"),
        (["null", "--patients", "second"], "null/metrics.jsonl, validation of step 80: there must be the Dice of each"),
        (
            ["a", "other", "--against", "a"],
            "the volumes must be those of a (p1_frame01, p2_frame01), got p1_frame01, p3",
        ),
        (["one", "--patients", "first"], "patients = first: there must be two validation patients or more, got p1"),
        (["one", "onemcl", "--against", "one"], "against: there must be two validation patients or more, got p1 alone"),
    ],
)
def test_what_cannot_be_compared(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    means = dict.fromkeys(STEPS, 0.5)
    one = {"p1_frame01": [0.5] * 5}
    two = {**one, "p2_frame01": [0.6] * 5}
    made: dict[str, tuple[dict[int, float], dict[str, Any] | None, dict[str, Any]]] = {
        "a": (means, two, {}),
        "mcl": (means, two, {"method": "mcl"}),
        "ratio": (means, two, {"method": "mcl", "ratio": 0.25}),
        "open": ({80: 0.5}, two, {"method": "mcl", "ratio": 0.5}),
        "few": (means, two, {"method": "mcl", "ratio": 0.125}),
        "seed": (means, two, {"method": "mcl", "seed": 1}),
        "short": ({80: 0.5, 160: 0.5, 400: 0.5}, two, {"method": "mcl"}),
        "old": (means, None, {"method": "mcl"}),
        "null": (means, {**one, "p2_frame01": [None] * 5}, {}),
        "other": (means, {**one, "p3_frame01": [0.6] * 5}, {"method": "mcl"}),
        "one": (means, one, {}),
        "onemcl": (means, one, {"method": "mcl"}),
    }
    for name in {"a", *arguments} & set(made):
        given, cases, changes = made[name]
        write_run(Path(name), given, cases, **changes)
    assert main(["report", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("report*"))


def test_some_are_not_compared_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dice = np.random.default_rng(0).uniform(0, 1, (1, 5, 2, 1))
    runs = [
        *volume_runs(tmp_path / "a", dice, "pq"),
        *volume_runs(tmp_path / "b", dice, "pq", method="mcl"),
        write_run(tmp_path / "c", {80: 0.5}, {f"{p}_frame00": [0.5] for p in "pq"}, method="random"),
    ]
    assert main(["report", *runs, "--against", f"{tmp_path}/a/0/", "--output", str(tmp_path / "r.png")]) == 0
    printed = capsys.readouterr().out
    assert "not compared: random seed=0 (unfinished: step 80 of 400), it has not ended" in printed
    assert "+0.00  +0.00 to +0.00" in printed


def test_tables_for_papers(tmp_path: Path) -> None:
    """Blocks by labelled patients, the best of the ended ones of a block in bold, names escaped."""
    root = tmp_path / "a_b|50%"
    root.mkdir()
    names = ["background", "right ventricle", "A&B"]
    (root / "data_set.json").write_text(json.dumps({"classes": names}))
    fixed: dict[str, Any] = {"classes": 3, "root": root}
    runs = [
        write_run(tmp_path / "0", dict.fromkeys(STEPS, 0.5), **fixed),
        write_run(tmp_path / "1", dict.fromkeys(STEPS, 0.52), seed=1, **fixed),
        write_run(tmp_path / "2", dict.fromkeys(STEPS, 0.6), method="mcl", mask_weight=2.5, **fixed),
        write_run(tmp_path / "3", dict.fromkeys(STEPS, 0.9), method="mcl", mask_weight=2.5, labelled=7, **fixed),
        write_run(tmp_path / "4", dict.fromkeys(STEPS[:4], 0.8), method="random", **fixed),
        write_run(tmp_path / "5", dict.fromkeys(STEPS, 0.3), **{**fixed, "labelled": 7, "root": tmp_path}),
    ]
    (tmp_path / "data_set.json").write_text(json.dumps({"classes": names}))
    assert main(["report", *runs, "--output", str(tmp_path / "r.png")]) == 0
    markdown, latex = (tmp_path / "r.md").read_text("utf-8"), (tmp_path / "r.tex").read_text("utf-8")
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert rows[0] == r"| Method | Labelled | Seeds | right ventricle | A\&B | Mean | Mean of last four |"
    path = re.sub(r"([_|])", r"\\\1", str(root))
    assert (
        rows[2]
        == f"| entropy-topr root={path} | 3 | 2 | **25.00** ± 0.00 | **75.00** ± 0.00 | 51.00 ± 1.41 | 51.00 ± 1.41 |"
    )
    assert "| 3 | 1 | **25.00** | **75.00** | **60.00** | **60.00** |" in markdown
    assert "| 7 | 1 | **25.00** | **75.00** | **90.00** | **90.00** |" in markdown
    assert "| 3 | 0 | 25.00 | 75.00 | 80.00 | 80.00 |" in markdown
    assert "labelled=" not in markdown  # it has its column
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert body[0] == r"Method & Labelled & Seeds & right ventricle & A\&B & Mean & Mean of last four \\"
    assert r"mask\_weight=2.5" in latex and r"a\_b|50\%" in latex
    assert r"\textbf{60.00}" in latex and r"51.00 $\pm$ 1.41" in latex
    assert latex.count(r"\midrule") == 2 and all(len(re.findall(r"(?<!\\)&", line)) == 6 for line in body)


def test_other_peoples_files_are_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "a", {400: 0.5})
    (tmp_path / "README.md").write_text("# About\n")
    assert main(["report", run, "--output", str(tmp_path / "README.png")]) == 1
    assert f"{tmp_path / 'README.md'} is there and no table of report" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == "# About\n" and not (tmp_path / "README.csv").exists()
    for _ in range(2):  # its own tables are
        assert main(["report", run, "--output", str(tmp_path / "r.png")]) == 0


@pytest.mark.parametrize("again", ["a", "./a/../a", "link", "copy"])
def test_a_run_that_is_given_twice_is_no_seed(tmp_path: Path, again: str, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_run(tmp_path / "a", {400: 0.5})
    (tmp_path / "link").symlink_to("a")
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    runs = [first, write_run(tmp_path / "b", {400: 0.7}, seed=1), f"{tmp_path}/{again}"]
    assert main(["report", *runs, "--output", str(tmp_path / "report.png")]) == 1
    assert f"{tmp_path / again} are the same run" in capsys.readouterr().err
    assert not list(tmp_path.glob("report*"))


def test_the_output_is_of_the_kind_its_name_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "a", {400: 0.5})
    for name, start in (("r.png", b"\x89PNG"), ("r.PDF", b"%PDF"), ("r.svg", b"<?xml")):
        assert main(["report", run, "--output", str(tmp_path / name)]) == 0
        assert (tmp_path / name).read_bytes().startswith(start)
    for name in ("r.csv", "report", "r.docx"):
        assert main(["report", run, "--output", str(tmp_path / name)]) == 1
        assert f"output must end in .pdf, .png, .svg, got {tmp_path / name}" in capsys.readouterr().err


def test_a_single_point_is_seen(tmp_path: Path) -> None:
    """One validation and one logged threshold: each has a panel, in which something is drawn in the run's colour."""
    run = write_run(tmp_path / "a", {400: 0.5})
    assert main(["report", run, "--output", str(tmp_path / "r.png")]) == 0
    picture = imread(tmp_path / "r.png")[..., :3]
    blue = np.abs(picture - np.array([0x1F, 0x77, 0xB4]) / 255).sum(-1) < 0.3
    height, width = blue.shape
    for name, (top, bottom, left, right) in {
        "dice": (0.1, 0.6, 0.0, 0.5), "masked": (0.1, 0.6, 0.5, 1.0), "threshold": (0.65, 1.0, 0.0, 0.5),
    }.items():  # fmt: skip
        part = blue[int(top * height) : int(bottom * height), int(left * width) : int(right * width)]
        assert part.sum() > 4, name


def test_an_ascii_terminal_and_other_alphabets_in_paths(tmp_path: Path) -> None:
    """fit where the locale has ASCII alone; that report prints nothing else is seen above."""
    folder = tmp_path / "größe 数据"
    ascii_only = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG"))},
        "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    arguments = command(tiny_config(write_tiny(folder / "data"), folder / "run", iterations=1))
    done = subprocess.run([sys.executable, "-m", "train", *arguments], env=ascii_only, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.isascii() and b"\\xf6" in done.stdout
    assert (folder / "run" / "checkpoints" / "last.pt").is_file() and list((folder / "run" / "tensorboard").iterdir())
