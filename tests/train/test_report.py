"""`python -m train report`: which runs make a line, and what a line says."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from tiny import command, tiny_config, write_tiny

from train.__main__ import main
from train.evaluate.report import Run, group
from train.run.config_file import to_json
from train.run.folder import RunFolder
from train.run.recipes import configure

DICE = {"dice_1": 0.25, "dice_2": 0.75}


def test_report_names_groups_by_what_tells_them_apart() -> None:
    def run(**changes: object) -> Run:
        config = configure(**{"recipe": "reduced", "autocast": "bf16", **changes})
        rows = [{"kind": "train", "step": s, "masked": s / 100} for s in (1, 99, 100, 101)]
        return Run(RunFolder(Path()), config, [*rows, {"kind": "validation", "step": 30_000, "dice_mean": 0.5}], 1500)

    runs = [
        run(method="mcl"), run(), run(seed=1, output=Path("a")), run(scope="batch"), run(ratio=(0.1, 0.5), hint=0.1),
    ]  # fmt: skip
    names = {name: len(members) for name, members in group(runs).items()}
    hinted = "entropy-topr ratio=0.1,0.5 hint=0.1"
    assert names == {"mcl": 1, "entropy-topr": 2, "entropy-topr scope=batch": 1, hinted: 1}
    assert set(group([run(), run(recipe="iterations")])) == {
        "entropy-topr recipe=reduced",
        "entropy-topr recipe=iterations",
    }
    steps, values = runs[0].binned("masked")
    assert steps == [100, 200] and values == pytest.approx([2 / 3, 1.01])


def write_run(folder: Path, means: dict[int, float], **changes: object) -> str:
    """A run folder with these validations; a run of 400 steps, or of 2 epochs that ends with a table."""
    config = configure(**{"recipe": "quick", "iterations": 400, **changes})
    rows = [{"kind": "train", "step": 1, "masked": 0.2, "images_unmasked": 1.0, "threshold": 0.75}]
    rows += [{"kind": "validation", "step": step, **DICE, "dice_mean": mean} for step, mean in means.items()]
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
    """One validation and one logged threshold: where each curve is, something is drawn in the run's colour."""
    run = write_run(tmp_path / "a", {400: 0.5})
    assert main(["report", run, "--output", str(tmp_path / "r.png")]) == 0
    picture = imread(tmp_path / "r.png")[..., :3]
    blue = np.abs(picture - np.array([0x1F, 0x77, 0xB4]) / 255).sum(-1) < 0.3
    height, width = blue.shape
    for name, at in {"dice": (0, 0), "masked": (1, 0), "threshold": (2, 1)}.items():
        top, bottom = ((0.05, 0.45), (0.47, 0.71), (0.72, 1.0))[at[0]]
        left, right = ((0.0, 0.5), (0.5, 1.0))[at[1]]
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
