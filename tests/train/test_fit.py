"""`python -m train fit`: what a run leaves, its settings, schedules, warnings, and bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from tiny import command, tiny_config, write_h5, write_tiny

from train import files
from train.__main__ import main
from train.data.batches import LABELLED, UNLABELLED, Batches, Slices, random_transforms
from train.evaluate.report import Run, group, read_run
from train.methods import METHODS
from train.networks.unet import UNet
from train.run import checkpoint, losses
from train.run.config import FitConfig, flatten, from_dict, replace_fields, to_json
from train.run.fit import fit
from train.run.folder import RunFolder
from train.run.monitor import Monitor, NotFinite, Watch, read_rows
from train.run.processes import Processes
from train.run.recipes import resolve, settings
from train.run.schedule import Schedule, ramped, sigmoid_ramp
from train.run.statistics import foreground_masked, label_dice, tied_share
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
    for said in ("validation Dice of the student", "time a step", "panels/step_000008.png", str(folder)):
        assert said in out
    assert (folder / "validation.txt").read_text() in out
    assert from_dict(json.loads((folder / "config.json").read_text())) == resolve(config)
    assert sorted(p.name for p in (folder / "panels").iterdir()) == ["step_000004.png", "step_000008.png"]
    assert list((folder / "tensorboard").iterdir())
    rows = read_rows(folder / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "validation"] == [4, 8]
    logged = [row for row in rows if "above_threshold" in row]
    assert [row["step"] for row in logged] == [3, 6, 8] and all("tied" in row for row in logged)
    assert all({"pseudo_dice", "foreground_masked"} <= row.keys() for row in logged)

    for which, of in (("judged", "student"), ("teacher", "teacher")):
        network, saved = checkpoint.load_network(folder / "checkpoints" / "last.pt", which)
        assert saved == resolve(config) and not network.training
        state = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)[of]
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert read_run(folder).summary()["masked"] == 0.5

    assert main(["report", str(folder), "--output", str(tmp_path / "report.png")]) == 0
    assert "entropy-topr" in capsys.readouterr().out
    assert (tmp_path / "report.png").stat().st_size > 10_000 and (tmp_path / "report.csv").is_file()


def test_report_names_groups_by_what_tells_them_apart() -> None:
    def run(**changes: object) -> Run:
        config = replace_fields(FitConfig(recipe="reduced", autocast="bf16"), changes)
        return Run(resolve(config), [{"kind": "train", "step": s, "masked": s / 100} for s in (1, 99, 100, 101)])

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


@pytest.mark.parametrize("autocast", ["no", "bf16"])
def test_teacher_is_the_moving_average_of_the_student(root: Path, autocast: str) -> None:
    config = resolve(tiny_config(root, Path("run"), autocast=autocast, ema_decay=0.6))
    s = settings(config)
    names = (root / "train_slices.list").read_text().split()
    slices = Slices(root, names, s.classes, torch.device("cpu"))
    streams = [Batches(slices, 4, s.size, "nearest", 0, stream) for stream in (LABELLED, UNLABELLED)]
    trainer = Trainer(config, 8, *streams, torch.device("cpu"))
    average = {k: v.double().clone() for k, v in trainer.student.state_dict().items()}
    for index in range(5):
        trainer.step(index)
        decay = min(1 - 1 / (index + 1), 0.6)
        for key, value in trainer.student.state_dict().items():
            average[key] = decay * average[key] + (1 - decay) * value if value.is_floating_point() else value.clone()
    for key, value in trainer.teacher.state_dict().items():
        torch.testing.assert_close(value.double(), average[key].double(), rtol=1e-5, atol=1e-6)
    assert not trainer.teacher.training and trainer.student.training


def test_schedules() -> None:
    schedule = Schedule(30_000, settings(resolve(FitConfig(recipe="iterations", method="entropy-count"))))
    assert schedule.lr(0) == 0.01 and schedule.lr(15_000) == pytest.approx(0.01 * 0.5**0.9)
    assert schedule.consistency_weight(999) == 0.0 and 0 < schedule.consistency_weight(1000) < 0.001
    assert schedule.consistency_weight(29_999) == 0.1
    assert [schedule.ema_decay(t) for t in (0, 1, 3, 10_000)] == [0.0, 0.5, 0.75, 0.99]
    assert schedule.threshold(0) == schedule.threshold(29_999) == 0.75
    mcl = Schedule(1000, settings(resolve(FitConfig(method="mcl", recipe="epochs"))))
    assert mcl.consistency_from == 100 and mcl.lr(999) == pytest.approx(0.001)
    assert ramped((0.75, 0.6), 1.0) == pytest.approx(0.6)
    assert ramped((0.75, 0.95), 0.5) == pytest.approx(0.75 + 0.2 * math.exp(-1.25))
    assert sigmoid_ramp(-1.0) == pytest.approx(math.exp(-5)) and sigmoid_ramp(2.0) == 1.0


def test_method_comes_before_recipe_and_the_user_before_both() -> None:
    flat = flatten(resolve(FitConfig(method="mcl", recipe="iterations")))
    assert (flat["ce_weight"], flat["consistency_from"], flat["labelled_batch"]) == (0.4, 0.1, 12)
    flat = flatten(
        resolve(tiny_config(Path("data"), Path("run"), method="mcl", ce_weight=0.3, epochs=5, iterations=None))
    )
    assert (flat["ce_weight"], flat["dice_weight"], flat["epochs"], flat["iterations"]) == (0.3, 0.6, 5, None)
    config = resolve(FitConfig(method="topr"))
    assert from_dict(json.loads(to_json(config))) == config


def test_batches_are_the_same_whoever_takes_them(root: Path) -> None:
    slices = Slices(root, (root / "train_slices.list").read_text().split(), 4, torch.device("cpu"))
    whole = Batches(slices, 4, (32, 48), "cubic", 5, UNLABELLED)
    halves = [Batches(slices, 4, (32, 48), "cubic", 5, UNLABELLED, share, 2) for share in (0, 1)]
    for step in (0, 7):
        batch = whole.at(step)
        assert batch.images.shape == (4, 1, 32, 48) and batch.labels.shape == (4, 32, 48)
        parts = [half.at(step) for half in halves]
        assert torch.equal(batch.images, torch.cat([part.images for part in parts]))
        assert torch.equal(batch.labels, torch.cat([part.labels for part in parts]))
        assert set(batch.labels.unique().tolist()) <= {0, 1, 2, 3}
    with pytest.raises(ValueError, match="unlabelled_batch must be a multiple of the 3 processes, got 4"):
        Batches(slices, 4, (32, 48), "cubic", 5, UNLABELLED, 0, 3)


def test_every_slice_comes_once_a_pass(root: Path) -> None:
    from train.data.batches import indices

    passes = [i for step in range(6) for i in indices(3, LABELLED, step, 4, 12)]
    assert sorted(passes[:12]) == sorted(passes[12:]) == list(range(12))
    assert passes[:12] != passes[12:]


def test_augmentation_turns_image_and_label_alike() -> None:
    """Quarter turns with a flip and small rotations about the centre, at the rates of the field's scripts."""
    rng = np.random.default_rng(0)
    theta = random_transforms(rng, np.tile([30, 50], (4000, 1)))[:, :, :2]
    plain = (theta == np.eye(2)).all((1, 2))
    square = (np.abs(theta).round(9) % 1 == 0).all((1, 2))
    assert np.mean(square & ~plain) == pytest.approx(0.5, abs=0.03)
    assert (
        len(np.unique(theta[square & ~plain], axis=0)) == 4
    )  # a turn and then a flip is a reflection, of which there are 4
    np.testing.assert_array_equal(np.linalg.det(theta[square & ~plain]).round(9), -1)
    assert np.mean(~square) == pytest.approx(0.25, abs=0.03)
    pixels = np.diag([49 / 2, 29 / 2])
    turned = pixels @ theta[~square] @ np.linalg.inv(pixels)  # in pixels it is a rotation
    angles = np.degrees(np.arctan2(turned[:, 1, 0], turned[:, 0, 0]))
    np.testing.assert_allclose(turned @ turned.transpose(0, 2, 1), np.broadcast_to(np.eye(2), turned.shape), atol=1e-12)
    assert 18 < np.abs(angles).max() <= 20


@pytest.mark.parametrize("up", ["bilinear", "transposed"])
def test_unet(up: str) -> None:
    network = UNet(up=up)  # type: ignore[arg-type]
    assert network(torch.zeros(2, 1, 48, 32)).shape == (2, 4, 48, 32)
    assert sum(p.numel() for p in network.parameters()) == {"bilinear": 1_813_764, "transposed": 1_944_324}[up]


def monitor_with(folder: Path, method: str) -> Monitor:
    return Monitor(RunFolder(folder), Processes(), Watch(METHODS[method], 4))


def test_a_vanished_mask_is_named_once_with_its_remedy(tmp_path: Path) -> None:
    monitor = monitor_with(tmp_path, "entropy-count")
    for step in range(1, 251):
        monitor.add(step, {}, {"loss": torch.tensor(1.0), "images_unmasked": torch.tensor(4.0 if step > 60 else 0.0)})
        if step % 20 == 0:
            monitor.flush()
    monitor.close()
    warnings = [row for row in read_rows(tmp_path / "metrics.jsonl") if row["kind"] == "warning"]
    assert [row["step"] for row in warnings] == [111]
    assert "51% of the images of the last 100 steps" in warnings[0]["text"] and "--min-patches" in warnings[0]["text"]


def test_ties_are_named_for_ranking_methods_alone(tmp_path: Path) -> None:
    for method, expected in (("entropy-topr", 1), ("entropy-count", 0)):
        monitor = monitor_with(tmp_path / method, method)
        for step in range(1, 11):
            monitor.add(step, {}, {"loss": torch.tensor(1.0), "tied": torch.tensor(0.9)})
        rows = [row for row in monitor.flush() if row["kind"] == "warning"]
        monitor.close()
        assert len(rows) == expected and all("tie" in row["text"] for row in rows)
    scores = torch.tensor([[1.0, 0.0, 0.0, 2.0], [3.0, 1.0, 2.0, 0.0]])
    assert tied_share(scores).item() == 0.25


def test_what_a_mask_covers_and_how_good_the_pseudo_labels_are() -> None:
    labels = torch.zeros(2, 6, 7, dtype=torch.uint8)
    labels[0, 0, :3], labels[1, 5, 6] = 1, 2
    patches = torch.zeros(2, 2, 2, dtype=torch.bool)  # of 4x4, cut off at the lower and right edge
    assert foreground_masked(labels, patches, 4).item() == 0.0
    patches[1, 1, 1] = True
    assert foreground_masked(labels, patches, 4).item() == 0.25
    assert foreground_masked(torch.zeros_like(labels), patches, 4).isnan()
    truth = labels.clone()
    truth[0, 0, 0] = 0
    assert label_dice(labels, truth, 4).item() == pytest.approx((2 * 2 / (3 + 2) + 1) / 2)  # class 3: neither has it
    assert label_dice(torch.zeros_like(labels), torch.zeros_like(labels), 4).isnan()


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


def test_not_finite_is_raised_after_the_rows_are_written(tmp_path: Path) -> None:
    monitor = monitor_with(tmp_path, "random")
    monitor.add(1, {}, {"loss": torch.tensor(float("inf"))})
    with pytest.raises(NotFinite, match="the loss loss is inf at step 1"):
        monitor.flush()
    assert [row["kind"] for row in read_rows(tmp_path / "metrics.jsonl")] == ["train", "stopped"]


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"step": 1})

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*last.pt'"):
        checkpoint.save(path, {"step": 2})
    assert torch.load(path, weights_only=True) == {"step": 1} and list(tmp_path.iterdir()) == [path]


BAD = {
    "method": ({"method": "nonsense"}, "method must be one of entropy-count"),
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
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_named_before_anything_is_written(
    name: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, message = BAD[name]
    config = tiny_config(root, tmp_path / "run", **changes)
    arguments = command(config)
    if name == "teacher":
        arguments = [a for a in arguments if a not in ("--ema-buffers", "False")] + ["--no-ema-buffers"]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
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


def test_wrong_labels_name_their_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_tiny(tmp_path / "data")
    file = sorted((root / "data" / "slices").glob("*.h5"))[-1]
    write_h5(file, np.zeros((9, 9), np.float32), np.full((9, 9), 4, np.uint8))
    assert main(command(tiny_config(root, tmp_path / "run"))) == 1
    assert file.name in capsys.readouterr().err


def test_output_that_cannot_be_written(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main(command(tiny_config(root, tmp_path / "file" / "run"))) == 1
    assert f"output {tmp_path / 'file' / 'run'}" in capsys.readouterr().err


def test_a_folder_of_another_run_is_not_overwritten(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main(command(tiny_config(root, folder, iterations=2))) == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(command(tiny_config(root, folder, iterations=3))) == 1
    assert "other settings (iterations 2 -> 3)" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_one_process_at_a_time(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with files.lock(tmp_path / "run"):
        assert main(command(tiny_config(root, tmp_path / "run", iterations=1))) == 1
    assert "another process is training there" in capsys.readouterr().err
    assert main(command(tiny_config(root, tmp_path / "run", iterations=1))) == 0


def test_a_damaged_checkpoint_is_named(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    fit(tiny_config(root, folder, iterations=2))
    path = folder / "checkpoints" / "last.pt"
    path.write_bytes(path.read_bytes()[:1000])
    assert main(command(tiny_config(root, folder, iterations=2))) == 1
    assert f"checkpoint {path} cannot be read" in capsys.readouterr().err
