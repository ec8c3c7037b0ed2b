"""A run folder: whose it is, what a second start makes of it, and what damage costs."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import command, tiny_config, write_tiny

from train import files
from train.__main__ import main
from train.run import checkpoint
from train.run.config_file import from_json, to_json
from train.run.fit import fit
from train.run.folder import PATTERNS
from train.run.monitor import read_rows
from train.run.recipes import configure
from train.run.step import Trainer


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("folder") / "data")


@pytest.fixture(scope="module")
def finished(root: Path) -> Path:
    """A run of eight steps, as tiny_config makes it."""
    return fit(tiny_config(root, root.parent / "finished"))


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"step": 1})

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*last.pt'"):
        checkpoint.save(path, {"step": 2})
    assert torch.load(path, weights_only=True) == {"step": 1} and list(tmp_path.iterdir()) == [path]


def test_output_that_cannot_be_written(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main(command(tiny_config(root, tmp_path / "file" / "run"))) == 1
    assert f"output {tmp_path / 'file' / 'run'}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1, "hint": 0.1}, "holds a run with other settings (seed 0 -> 1; hint 0.0 -> 0.1)"),
        ({"iterations": 9}, "with 9 the lr of step 2, which is done, would have been"),
        ({"iterations": 7}, "has 8 steps already, more than the 7 asked for"),
    ],
)
def test_a_folder_of_another_run_is_not_overwritten(
    changes: dict[str, Any], message: str, root: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(command(tiny_config(root, folder, **changes))) == 1
    assert message in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_a_run_may_change_on_its_way(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How often it looks; how its data are named; its length, where the schedule does not depend on that."""
    constant = {"method": "random", "lr_floor": 1.0, "rampup": 0.0}
    fit(tiny_config(root, tmp_path / "whole", **constant, iterations=12))
    fit(tiny_config(root, tmp_path / "long", **constant))
    monkeypatch.chdir(root.parent)
    longer = {"log_every": 5, "validate_every": 6, "panel_every": 3, "iterations": 12}
    fit(tiny_config(Path(root.name), tmp_path / "long", **constant, **longer))
    assert (tmp_path / "long" / "panels" / "step_000009.png").is_file()
    assert json.loads((tmp_path / "long" / "config.json").read_text())["data"]["root"] == str(root)
    one, other = (
        torch.load(tmp_path / name / "checkpoints" / "last.pt", weights_only=True) for name in ("whole", "long")
    )
    assert one["step"] == other["step"] == 12
    assert all(torch.equal(one["student"][key], other["student"][key]) for key in one["student"])


def test_an_interrupted_run_goes_on_in_the_same_process(root: Path, tmp_path: Path) -> None:
    """As in a notebook, where the traceback keeps the run alive; paths are given as text."""
    settings = {"labelled": 2, "size": (32, 32), "iterations": 8, "validate_every": 4, "device": "cpu"}
    config = configure(
        "random", root=str(root), output=str(tmp_path / "run"), channels=(4, 8), dropout=(0, 0), **settings
    )
    real = Trainer.step

    def interrupted(self: Trainer, index: int, log: bool = False) -> object:
        if index == 5:
            raise KeyboardInterrupt
        return real(self, index, log)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        with pytest.raises(KeyboardInterrupt) as kept:
            fit(config)
    assert fit(config) == tmp_path / "run" and kept.traceback
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)["step"] == 8


def test_one_process_at_a_time(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with files.locked(tmp_path / "run" / ".lock"):
        assert main(command(tiny_config(root, tmp_path / "run", iterations=1))) == 1
    assert f"output {tmp_path / 'run'}: another process is training there" in capsys.readouterr().err
    assert main(command(tiny_config(root, tmp_path / "run", iterations=1))) == 0


def test_settings_are_compared_under_the_lock(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A start that was quicker by a moment has written its settings when this one gets the lock."""
    fit(tiny_config(root, tmp_path / "quicker", iterations=1, seed=1))
    folder = tmp_path / "run"

    @contextlib.contextmanager
    def late(path: Path, busy: str) -> Iterator[None]:
        shutil.copytree(tmp_path / "quicker", folder)
        yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.run.fit.locked", late)
        assert main(command(tiny_config(root, folder, iterations=1))) == 1
    assert "other settings (seed 1 -> 0)" in capsys.readouterr().err


def test_file_systems_without_locks_and_promises(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(number: int) -> Callable[..., None]:
        def refusing(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        return refusing

    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    monkeypatch.setattr(os, "fsync", refuse(errno.EINVAL))
    assert main(command(tiny_config(root, tmp_path / "run", iterations=1))) == 0
    error = capsys.readouterr().err
    assert f"warning: {tmp_path / 'run' / '.lock'}: no locks here" in error and "another process" not in error


@pytest.mark.parametrize("damage", ["missing", "one line"])
@pytest.mark.parametrize("steps", [4, 8], ids=["half-way", "finished"])
def test_damaged_metrics_cost_no_more_than_the_damage(
    damage: str, steps: int, root: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied
    table = (folder / "validation.txt").read_text()
    metrics, last = folder / "metrics.jsonl", folder / "checkpoints" / "last.pt"
    if steps == 4:
        state = torch.load(last, weights_only=True)
        torch.save({**state, "step": 4}, last)
    lines = metrics.read_text().splitlines(keepends=True)
    if damage == "missing":
        metrics.unlink()
    else:
        metrics.write_text("".join(["{" + lines[0], *lines[1:]]))
    capsys.readouterr()
    fit(tiny_config(root, folder))
    said = capsys.readouterr().err
    rows = read_rows(metrics)
    if damage == "missing":
        assert f"{metrics} has no rows of steps 1 to {steps}" in said
        assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(steps + 1, 9))
    else:
        assert said.count("is damaged and left out") == 1 and f"{metrics}: line 1 is damaged" in said
        assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(2, 9))
    if steps == 8:
        assert (folder / "validation.txt").read_text() == table


FIELDS = {
    "empty": (lambda values: "", "config.json: the configuration of a run is not JSON"),
    "a list": (lambda values: "[]", "config.json: the configuration of a run must be a JSON object, got list"),
    "older": (lambda values: values["teacher"].pop("judge"), "config.json: .*field 'teacher.judge' is missing"),
    "newer": (lambda values: values["loss"].update(focal=1), "config.json: .*focal"),
    "a number": (lambda values: values.update(strategy=3), "config.json: .*field 'strategy' must be an object, got 3"),
    "a list for text": (
        lambda values: values.update(method=[3]),
        r"config.json: .*field 'method' must be text, got \[3\]",
    ),
    "an object as recipe": (
        lambda values: values.update(recipe={}),
        "config.json: .*field 'recipe' must be text, got {}",
    ),
    "deep": (
        lambda values: "[" * 100_000,
        "config.json: .* is not JSON: values are nested too deep",
    ),
    "text": (lambda values: values["schedule"].update(lr="fast"), "config.json: .*schedule.lr.*fast"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_configuration_of_another_version_names_the_field(name: str, root: Path, tmp_path: Path) -> None:
    change, message = FIELDS[name]
    config = tiny_config(root, tmp_path)
    values = json.loads(to_json(config))
    text = change(values)
    (tmp_path / "config.json").write_text(text if isinstance(text, str) and text != "student" else json.dumps(values))
    with pytest.raises(ValueError, match=f"^{tmp_path}/{message}") as error:
        fit(config)
    assert "\n" not in str(error.value)


def test_a_configuration_of_the_first_version_is_read(root: Path) -> None:
    values = json.loads(to_json(tiny_config(root, Path("run"))))
    del values["architecture"], values["sync_batch_norm"]
    assert from_json(json.dumps(values), "") == tiny_config(root, Path("run"))


@pytest.mark.parametrize("part", ["step", "best", "optimizer", "student", "config"])
def test_a_checkpoint_that_lacks_a_part_names_it(part: str, root: Path, copied: Path) -> None:
    config = tiny_config(root, copied)
    path = copied / "checkpoints" / "last.pt"
    state = torch.load(path, weights_only=True)
    torch.save({name: value for name, value in state.items() if name != part}, path)
    with pytest.raises(ValueError, match=f"^checkpoint {path} lacks '{part}'"):
        fit(config)
    if part in ("student", "optimizer"):
        torch.save({**state, part: {"other": torch.zeros(1)}}, path)
        with pytest.raises(ValueError, match=f"^checkpoint {path}: '{part}' does not fit: ") as error:
            fit(config)
        assert "\n" not in str(error.value)


def test_a_damaged_checkpoint_is_named(root: Path, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copied / "checkpoints" / "last.pt"
    path.write_bytes(path.read_bytes()[:1000])
    assert main(command(tiny_config(root, copied))) == 1
    assert f"checkpoint {path} cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--output", "--root"])
@pytest.mark.parametrize("joined", [True, False])
def test_an_empty_path_is_not_the_current_folder(
    flag: str,
    joined: bool,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As an unset shell variable gives it."""
    monkeypatch.chdir(tmp_path)
    arguments = [*command(tiny_config(root, tmp_path / "run", iterations=1)), *([f"{flag}="] if joined else [flag, ""])]
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith(f"error: {flag} must have a value, got an empty one")
    with pytest.raises(ValueError, match=f"^{flag[2:]} must name a folder, got ''$"):
        configure("random", **{flag[2:]: ""})
    assert not list(tmp_path.iterdir())


def test_a_positional_argument_that_is_empty(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", ""]) == 1
    assert capsys.readouterr().err.startswith("error: an argument must have a value, got an empty one")


LOST = {
    "last": (["checkpoints/last.pt"], "has best.pt but no {}/checkpoints/last.pt: put it back, copy best.pt there, "),
    "a link to it": ([], "checkpoint {}/checkpoints/last.pt does not exist"),
    "both": (["checkpoints"], "has 8 steps in metrics.jsonl but no {}/checkpoints/last.pt: put it back, "),
    "both, before the end": (["checkpoints", "validation.txt"], "has 8 steps in metrics.jsonl but no "),
    "all but the table": (["checkpoints", "metrics.jsonl"], "has 0 steps in metrics.jsonl but no "),
    "what names the run": (
        ["checkpoints", "config.json"],
        "has data.json, metrics.jsonl, tensorboard, validation.txt, panels but neither config.json nor ",
    ),
}


@pytest.mark.parametrize("name", LOST)
def test_a_run_that_lost_its_checkpoint_is_not_overwritten(
    name: str, root: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost, message = LOST[name]
    for each in map(copied.joinpath, lost):
        shutil.rmtree(each) if each.is_dir() else each.unlink()
    if not lost:
        (copied / "checkpoints" / "last.pt").unlink()
        (copied / "checkpoints" / "last.pt").symlink_to(copied / "elsewhere.pt")
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(command(tiny_config(root, copied))) == 1
    said = capsys.readouterr().err
    assert message.format(copied) in said and str(copied) in said and said.count("\n") == 1
    assert before == {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}


def test_a_folder_of_somebody_else(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "validation.txt").write_text("theirs")
    assert main(command(tiny_config(root, tmp_path, iterations=1))) == 1
    assert f"output {tmp_path} has validation.txt but neither config.json nor" in capsys.readouterr().err
    assert (tmp_path / "validation.txt").read_text() == "theirs" and len(list(tmp_path.iterdir())) == 1


def test_a_lost_best_checkpoint(root: Path, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is written again if the last is the best, and missed in words if not."""
    best, last = (copied / "checkpoints" / name for name in ("best.pt", "last.pt"))
    state = torch.load(last, weights_only=True)
    for step in (8, 4):
        best.unlink()
        torch.save(state | {"best": {**state["best"], "step": step}}, last)
        fit(tiny_config(root, copied))
        assert best.exists() == (step == 8)
        assert (f"warning: {best} (step 4) does not exist" in capsys.readouterr().out) == (step == 4)


def test_only_own_parts_are_removed(root: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / ".phantom.part").mkdir(parents=True)
    theirs = [tmp_path / name for name in (".film.mp4.part", "data/.x.h5.0a1b2c3d.part", ".config.json.mine.part")]
    ours = [tmp_path / name for name in (".config.json.0a1b2c3d.part", "panels/.step_000008.png.00000000.part")]
    for path in theirs + ours:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    files.remove_parts(tmp_path, PATTERNS)
    assert all(path.exists() for path in theirs) and not any(path.exists() for path in ours)
    assert (tmp_path / "data" / ".phantom.part").is_dir()


def test_a_run_that_was_stopped_at_its_new_end_is_judged_there(root: Path, tmp_path: Path) -> None:
    settings = {"method": "random", "lr_floor": 1.0, "rampup": 0.0}
    fit(tiny_config(root, tmp_path / "whole", **settings, iterations=5))
    real = Trainer.step

    def stopping(self: Trainer, index: int, log: bool = False) -> object:
        if index == 4:
            signal.raise_signal(signal.SIGINT)
        return real(self, index, log)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "step", stopping)
        fit(tiny_config(root, tmp_path / "run", **settings))
    fit(tiny_config(root, tmp_path / "run", **settings, iterations=5))
    table = (tmp_path / "run" / "validation.txt").read_text()
    assert table == (tmp_path / "whole" / "validation.txt").read_text()
    validated = [row["step"] for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "validation"]
    assert validated == [4, 5]


def test_a_checkpoint_of_another_run(root: Path, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copied / "checkpoints" / "last.pt"
    state = torch.load(path, weights_only=True)
    torch.save(state | {"config": to_json(tiny_config(root, copied, seed=5))}, path)
    for arguments, change in (
        (command(tiny_config(root, copied)), "seed 5 -> 0"),
        (["evaluate", str(copied), "--device", "cpu"], "seed 0 -> 5"),
    ):
        assert main(arguments) == 1
        assert f"other settings ({change})" in capsys.readouterr().err
