"""`python -m train fit`: what a run leaves, its settings, schedules, warnings, and bad input."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from tiny import command, tiny_config, write_h5, write_tiny

from train.__main__ import main
from train.data.batches import LABELLED, UNLABELLED, Batches, Slices
from train.evaluate.report import read_run
from train.networks.unet import UNet
from train.ramps import ramped, sigmoid_ramp
from train.run import checkpoint, losses
from train.run.config import flatten
from train.run.config_file import from_json, to_json
from train.run.fit import fit
from train.run.monitor import read_rows
from train.run.recipes import configure
from train.run.schedule import Schedule
from train.run.step import Trainer


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("fit") / "data")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_a_run_leaves_everything(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    config = tiny_config(root, folder, panel_every=4)
    assert main(command(config)) == 0
    out = capsys.readouterr().out
    data = "labelled: 2 patients, 6 slices; unlabelled: 2 patients, 6 slices; validation: 1 volumes; intensities: none"
    for said in (data, "validation Dice of the student", "time a step", "panels/step_000008.png", str(folder)):
        assert said in out
    assert (folder / "validation.txt").read_text() in out
    assert from_json((folder / "config.json").read_text(), folder) == config
    assert sorted(p.name for p in (folder / "panels").iterdir()) == ["step_000004.png", "step_000008.png"]
    assert list((folder / "tensorboard").iterdir())
    rows = read_rows(folder / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "validation"] == [4, 8]
    logged = [row for row in rows if "above_threshold" in row]
    assert [row["step"] for row in logged] == [3, 6, 8] and all("tied" in row for row in logged)
    assert all({"pseudo_dice", "foreground_masked"} <= row.keys() for row in logged)

    for which, of in (("judged", "student"), ("teacher", "teacher")):
        network, saved = checkpoint.load_network(folder / "checkpoints" / "last.pt", which)
        assert saved == config and not network.training
        state = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
        assert state["data_set"] == {"scaling": "none", "classes": []}
        state = state[of]
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert read_run(folder).summary()["masked"] == 0.5

    assert main(["report", str(folder), "--output", str(tmp_path / "report.png")]) == 0
    assert "entropy-topr" in capsys.readouterr().out
    assert (tmp_path / "report.png").stat().st_size > 10_000 and (tmp_path / "report.csv").is_file()


def test_supervised_all_uses_every_label(root: Path, tmp_path: Path) -> None:
    seen = []
    real = Slices.__init__

    def spy(self: Slices, root: Path, names: list[str], *rest: object) -> None:
        seen.append(len(names))
        real(self, root, names, *rest)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Slices, "__init__", spy)
        fit(tiny_config(root, tmp_path / "few", method="supervised", iterations=1))
        fit(tiny_config(root, tmp_path / "all", method="supervised-all", iterations=1))
        fit(tiny_config(root, tmp_path / "topr", iterations=1))
    assert seen == [6, 12, 6, 6]


@pytest.mark.parametrize(("autocast", "mode"), [("no", "eval"), ("bf16", "eval"), ("no", "train")])
def test_teacher_is_the_moving_average_of_the_student(root: Path, autocast: str, mode: str) -> None:
    """Its batch-norm statistics too: in train mode its own forward passes do not move them."""
    config = tiny_config(root, Path("run"), autocast=autocast, teacher_mode=mode, ema_decay=0.6, consistency_from=0)
    names = (root / "train_slices.list").read_text().split()
    slices = Slices(root, names, 4, torch.device("cpu"))
    streams = [Batches(slices, 4, config.data.size, "nearest", 0, stream) for stream in (LABELLED, UNLABELLED)]
    trainer = Trainer(config, 8, *streams, torch.device("cpu"))
    average = {k: v.double().clone() for k, v in trainer.student.state_dict().items()}
    for index in range(5):
        trainer.step(index)
        decay = min(1 - 1 / (index + 1), 0.6)
        for key, value in trainer.student.state_dict().items():
            average[key] = decay * average[key] + (1 - decay) * value if value.is_floating_point() else value.clone()
    for key, value in trainer.teacher.state_dict().items():
        torch.testing.assert_close(value.double(), average[key].double(), rtol=1e-5, atol=1e-6)
    assert trainer.teacher.training == (mode == "train") and trainer.student.training


def test_schedules() -> None:
    schedule = Schedule(30_000, configure("entropy-count", "iterations"))
    assert schedule.lr(0) == 0.01 and schedule.lr(15_000) == pytest.approx(0.01 * 0.5**0.9)
    assert schedule.consistency_weight(999) == 0.0 and 0 < schedule.consistency_weight(1000) < 0.001
    assert schedule.consistency_weight(29_999) == 0.1
    assert [schedule.ema_decay(t) for t in (0, 1, 3, 10_000)] == [0.0, 0.5, 0.75, 0.99]
    assert schedule.config.strategy.at(0.0) == schedule.config.strategy.at(0.999) == {"ratio": 0.5, "threshold": 0.75}
    mcl = Schedule(1000, configure("mcl", "epochs"))
    assert mcl.consistency_from == 100 and mcl.lr(999) == pytest.approx(0.001)
    assert ramped((0.75, 0.6), 1.0) == pytest.approx(0.6)
    assert ramped((0.75, 0.95), 0.5) == pytest.approx(0.75 + 0.2 * math.exp(-1.25))
    assert sigmoid_ramp(-1.0) == pytest.approx(math.exp(-5)) and sigmoid_ramp(2.0) == 1.0


def test_help_shows_the_defaults_of_method_and_recipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--recipe=epochs", "--method", "mcl", "--help"])
    said = " ".join(re.sub("[│─╭╮╰╯]", " ", capsys.readouterr().out).split())
    for default in ("0.4", "0.6", "1000", "256 256", "500"):
        assert f"(default: {default})" in said
    assert said.count("(default: None)") == 5  # root, output, min_confidence, max_entropy, iterations


def test_method_comes_before_recipe_and_the_user_before_both() -> None:
    flat = flatten(configure("mcl", "iterations"))
    assert (flat["ce_weight"], flat["consistency_from"], flat["labelled_batch"]) == (0.4, 0.1, 12)
    flat = flatten(configure("mcl", ce_weight=0.3, epochs=5))
    assert (flat["ce_weight"], flat["dice_weight"], flat["epochs"], flat["iterations"]) == (0.3, 0.6, 5, None)
    config = configure("topr", root="data", ratio=[0.1, 0.5])
    assert config.data.root == Path("data") and from_json(to_json(config), "") == config


@pytest.mark.parametrize("up", ["bilinear", "transposed"])
def test_unet(up: str) -> None:
    network = UNet(up=up)  # type: ignore[arg-type]
    assert network(torch.zeros(2, 1, 48, 32)).shape == (2, 4, 48, 32)
    assert sum(p.numel() for p in network.parameters()) == {"bilinear": 1_813_764, "transposed": 1_944_324}[up]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    real = losses.supervised_loss
    calls = []

    def breaks(*arguments: object) -> object:
        calls.append(1)
        loss = real(*arguments)  # type: ignore[arg-type]
        return loss._replace(total=loss.total * float("nan")) if len(calls) == 6 else loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "supervised_loss", breaks)
        assert main(command(tiny_config(root, folder))) == 1
    error = capsys.readouterr().err
    assert "loss is nan at step 6" in error and "last.pt is from before" in error and "--lr" in error
    assert torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["step"] == 4
    rows = read_rows(folder / "metrics.jsonl")
    assert rows[-1]["kind"] == "stopped" and rows[-2]["loss"] is None
    assert main(command(tiny_config(root, folder))) == 0  # and it can go on
    assert [row["step"] for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "train"] == list(range(1, 9))


BAD = {
    "method": ({"method": "nonsense"}, "method must be one of adamix, bcp"),
    "labelled": ({"labelled": 99}, "99"),
    "no unlabelled": ({"labelled": 4}, "leaves no unlabelled slice"),
    "size": ({"size": (30, 33)}, "size must be positive multiples of 2"),
    "ratio": ({"ratio": (1.5,)}, "ratio must be one number or two in [0, 1]"),
    "iterations": ({"iterations": 0}, "iterations must be at least 1"),
    "both lengths": ({"epochs": 3}, "iterations and epochs exclude each other"),
    "odd pairs": ({"method": "pair-shuffle", "unlabelled_batch": 3}, "unlabelled_batch must be a multiple of 2, pairs"),
    "teacher": ({"ema_buffers": False}, "teacher_mode must be train"),
    "fp16": ({"autocast": "fp16"}, "fp16 needs CUDA"),
    "device": ({"device": "cuda:77"}, "cuda:77"),
    "classes": ({"classes": 3}, "'label' must be whole numbers in [0, 3)"),
    "patch": ({"patch_size": 0}, "patch_size must be at least 1"),
    "infinite": ({"mask_weight": math.inf}, "mask_weight must be finite, got inf"),
    "NaN": ({"threshold": (0.5, math.nan)}, "threshold must be finite, got (0.5, nan)"),
    "seed": ({"seed": 12345678901234567890123}, "seed must be in [0, 2^63)"),
    "beyond float32": ({"lr": 1e300}, "lr must be in the range of float32, got 1e+300"),
    "a weight beyond float32": ({"mask_weight": 1e39}, "mask_weight must be in the range of float32, got 1e+39"),
    "beyond int64": ({"iterations": 10**400}, "iterations must be in [0, 2^63)"),
    "no memory": ({"device": "meta"}, "device 'meta' is not usable here: "),
    "not built": ({"device": "mps"}, "device 'mps' is not usable here: "),
    "sync": ({"sync_batch_norm": True}, "sync_batch_norm needs CUDA"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_named_before_anything_is_written(
    name: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, message = BAD[name]
    method = str(changes.get("method", "topr"))
    arguments = command(
        tiny_config(root, tmp_path / "run", "topr", **{k: v for k, v in changes.items() if k != "method"})
    )
    assert main([*arguments, "--method", method]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "run").exists()


def test_a_name_whose_settings_are_not_its_own(root: Path, tmp_path: Path) -> None:
    config = tiny_config(root, tmp_path / "run", method="random")
    with pytest.raises(ValueError, match=r"^strategy must be TwoWayPaste, the settings of method bcp, got Composed"):
        fit(replace(config, method="bcp"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("missing", ["train.list", "train_slices.list", "val.list", "data/slices", "data", "image"])
def test_missing_data_is_named_before_anything_is_written(
    missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_tiny(tmp_path / "data")
    if missing.endswith(".list"):
        (root / missing).unlink()
        named = missing
    elif missing == "image":
        file = next((root / "data" / "slices").glob("*.h5"))
        with h5py.File(file, "a") as h5:
            del h5["image"]
        named = file.name
    else:
        file = next((root / missing).glob("*.h5"))
        file.unlink()
        named = file.name
    assert main(command(tiny_config(root, tmp_path / "run"))) == 1
    assert named in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_keeps_what_it_is_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And goes on with that alone."""
    root, folder = write_tiny(tmp_path / "data"), tmp_path / "run"
    arguments = command(tiny_config(root, folder, iterations=2))
    (root / "test.list").write_text("patient003_frame02\npatient009_frame01\n")
    assert main(arguments) == 0
    shared = "train.list and test.list share patient003: these patients are not unseen"
    assert f"warning: {root}/{shared}" in capsys.readouterr().out
    kept = json.loads((folder / "data.json").read_text())
    assert kept == {
        "labelled_patients": ["patient001", "patient002"], "labelled_slices": 6,
        "unlabelled_patients": ["patient003", "patient004"], "unlabelled_slices": 6,
        "validation_volumes": ["patient005_frame01"], "scaling": "none", "warnings": [f"{root}/{shared}"],
    }  # fmt: skip
    (root / "test.list").unlink()
    assert main(arguments) == 0
    slices = (root / "train_slices.list").read_text()
    (root / "train_slices.list").write_text(slices.replace("patient002_frame01_slice_2\n", ""))
    capsys.readouterr()
    assert main(arguments) == 1
    assert f"{folder / 'data.json'} is of other data, labelled_slices 6 -> 5" in capsys.readouterr().err
    (root / "train_slices.list").write_text(slices)
    for damaged in ("{", "[]", "[" * 100_000, json.dumps({**kept, "labelled_patients": [1, 2]})):
        (folder / "data.json").write_text(damaged)
        assert main(arguments) == 1
        assert capsys.readouterr().err.startswith(f"error: {folder / 'data.json'} is damaged: remove it")
    (folder / "data.json").unlink()
    assert main(arguments) == 0 and (folder / "data.json").is_file()


@pytest.mark.parametrize("where", ["slices", "val"])
def test_images_of_another_range_than_stated(where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_tiny(tmp_path / "data")
    for file in (root / "data").rglob("*.h5"):
        with h5py.File(file, "a") as h5:
            image, label = np.clip(h5["image"][()], 0, 1), h5["label"][()]
        image[..., :2, 0] = 0, 1
        write_h5(file, image * (255 if where == "slices" or file.parent.name == "data" else 1), label)
    (root / "data_set.json").unlink()
    assert main(command(tiny_config(root, tmp_path / "run"))) == 1
    error = capsys.readouterr().err
    named = "patient001_frame01_slice_1.h5" if where == "slices" else "patient005_frame01.h5"
    assert named in error and "scaling min-max, got [0, 255]; state its scaling in" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_wrong_labels_name_their_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_tiny(tmp_path / "data")
    file = sorted((root / "data" / "slices").glob("*.h5"))[-1]
    write_h5(file, np.zeros((9, 9), np.float32), np.full((9, 9), 4, np.uint8))
    assert main(command(tiny_config(root, tmp_path / "run"))) == 1
    assert file.name in capsys.readouterr().err


def test_numbers_as_a_notebook_has_them() -> None:
    config = configure("random", ratio=0.3, labelled=np.int64(2), lr=np.float32(0.5))
    assert config == configure("random", ratio=(0.3,), labelled=2, lr=0.5) and type(config.data.labelled) is int
    for name, value in (("size", 256), ("channels", "x"), ("root", 123), ("output", 5), ("labelled", 1.5)):
        with pytest.raises(ValueError, match=name) as error:
            configure("random", **{name: value})
        assert "\n" not in str(error.value)
