"""Prediction of whole volumes, the tables made of them, `evaluate` and `predict` from checkpoint to files."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from functools import cache
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from matplotlib.image import imread
from scipy.ndimage import zoom
from tiny import tiny_config, write_tiny
from torch import Tensor, nn

from train.__main__ import main as command
from train.data.layout import read_volume, volume_path, write_volume
from train.data.volumes import read_split
from train.evaluate import evaluate, predict
from train.evaluate.evaluate import format_table, to_csv
from train.evaluate.metrics import METRICS
from train.evaluate.volumes import evaluate_volumes, nearest, predict_volume, resize
from train.networks import build_network
from train.run import checkpoint
from train.run.config_file import to_json
from train.run.fit import fit
from train.run.monitor import read_rows


class Reader(nn.Module):
    """Reads the label that the image's brightness tells: k / 3 is class k."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(4))
        self.modes: list[bool] = []
        self.shapes: list[torch.Size] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append(self.training)
        self.shapes.append(x.shape)
        classes = torch.arange(4.0, device=x.device)[:, None, None]
        return -((x * 3 - classes) ** 2) + self.bias[:, None, None]


def labels(seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4, shape).astype(np.uint8)


@pytest.mark.parametrize("wanted", [1, 2, 15, 16, 33, 128])
def test_resizing_is_scipys_zoom(wanted: int) -> None:
    """With mode nearest: in its default mode rounding errors make zoom fill the last row with 0 for some sizes."""
    for count in (1, 2, 3, 15, 16, 31, 154, 256, 512):
        row = np.arange(count)
        expected = zoom(row, wanted / count, order=0, mode="nearest")
        np.testing.assert_array_equal(nearest(count, wanted), expected, f"{count} {wanted}")


def test_resizing_a_volume() -> None:
    volume = labels(0, (3, 37, 50))
    there = resize(volume, (32, 64))
    np.testing.assert_array_equal(there, zoom(volume, (1, 32 / 37, 64 / 50), order=0, mode="nearest"))
    np.testing.assert_array_equal(resize(there, (37, 50)), zoom(there, (1, 37 / 32, 50 / 64), order=0, mode="nearest"))


def test_predicting_reads_every_slice() -> None:
    truth = labels(1, (7, 32, 48))
    network = Reader()
    got = predict_volume(network, truth / np.float32(3), (32, 48), batch=3)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, truth)
    assert network.shapes == [(3, 1, 32, 48), (3, 1, 32, 48), (1, 1, 32, 48)]


def test_predicting_at_another_size() -> None:
    truth = labels(2, (2, 45, 31))
    got = predict_volume(Reader(), truth / np.float32(3), (16, 64))
    there = zoom(truth, (1, 16 / 45, 64 / 31), order=0, mode="nearest")
    np.testing.assert_array_equal(got, zoom(there, (1, 45 / 16, 31 / 64), order=0, mode="nearest"))


def test_predicting_strided_volumes_in_any_precision() -> None:
    truth = labels(3, (4, 32, 32))
    view = (truth / 3.0).transpose(0, 2, 1)[:, ::-1]
    np.testing.assert_array_equal(predict_volume(Reader(), view, (32, 32)), truth.transpose(0, 2, 1)[:, ::-1])


@pytest.mark.parametrize("training", [True, False])
def test_predicting_leaves_the_mode_alone(training: bool) -> None:
    network = Reader().train(training)
    predict_volume(network, np.zeros((1, 16, 16), np.float32), (16, 16))
    assert network.modes == [False] and network.training is training
    with pytest.raises(IndexError):
        network.bias = nn.Parameter(torch.zeros(()))
        predict_volume(network, np.zeros((1, 16, 16), np.float32), (16, 16))
    assert network.training is training


def test_rows_of_volumes() -> None:
    good, lost = np.repeat(labels(4, (3, 8, 8)), 4, axis=2), np.zeros((2, 16, 32), np.uint8)
    lost[0, 4:8, 4:8], lost[1, 2:6, 2:6] = 1, 3
    images = {"good": good / np.float32(3), "lost": np.zeros(lost.shape, np.float32)}
    volumes = {"good": (images["good"], good), "lost": (images["lost"], lost)}
    first, second = evaluate_volumes(Reader(), volumes, (16, 32), 4)
    assert first["case"] == "good" and [first[f"{m}_mean"] for m in METRICS] == [1, 1, 0, 0, 1]
    assert [second[f"dice_{c}"] for c in (1, 2, 3)] == [0, 1, 0]  # class 2 is in neither
    assert all(math.isnan(second[f"hd95_{c}"]) for c in (1, 2, 3, "mean"))
    assert [second[f"empty_{c}"] for c in (1, 2, 3)] == [1, 0, 1]
    assert [second[f"absent_{c}"] for c in (1, 2, 3)] == [0, 1, 0]
    (quick,) = evaluate_volumes(Reader(), {"good": volumes["good"]}, (16, 32), 4, metrics=("dice",))
    assert [k for k in quick if k.startswith("dice_")] == ["dice_1", "dice_2", "dice_3", "dice_mean"]
    assert not any(k.startswith("hd95") for k in quick)


def test_distances_by_spacing() -> None:
    truth = np.zeros((3, 32, 32), np.uint8)
    truth[1, 8:16, 8:16] = 3
    seen = np.roll(truth, 2, 1)
    volumes = {"v": (seen / np.float32(3), truth)}
    (voxels,) = evaluate_volumes(Reader(), volumes, (32, 32), 4, ("hd95",))
    (mm,) = evaluate_volumes(Reader(), volumes, (32, 32), 4, ("hd95",), {"v": (10.0, 1.5, 1.5)})
    assert voxels["hd95_3"] == 2 and mm["hd95_3"] == 3


def test_table() -> None:
    nan = float("nan")
    rows = [
        {"case": "a", "dice_1": 0.5, "dice_2": 1.0, "dice_mean": 0.75, "hd95_1": 4.0, "hd95_2": nan, "hd95_mean": 4.0,
         "empty_1": 0.0, "absent_1": 0.0, "empty_2": 0.0, "absent_2": 1.0},
        {"case": "b", "dice_1": 0.0, "dice_2": 0.25, "dice_mean": 0.125, "hd95_1": nan, "hd95_2": nan, "hd95_mean": nan,
         "empty_1": 1.0, "absent_1": 0.0, "empty_2": 1.0, "absent_2": 0.0},
    ]  # fmt: skip
    lines = [line.split() for line in format_table(rows).splitlines()]
    assert lines == [
        ["class", "Dice", "HD95", "empty", "absent"],
        ["1", "0.2500", "4.0000", "1", "0"],
        ["2", "0.6250", "nan", "1", "1"],
        ["mean", "0.4375", "4.0000", "2", "1"],
    ]
    back = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert [row["case"] for row in back] == ["a", "b"]
    assert all(float(row[k]) == v or math.isnan(v) for row, given in zip(back, rows, strict=True)
               for k, v in given.items() if k != "case")  # fmt: skip


def test_training_volumes_are_put_together_from_slices(tmp_path: Path) -> None:
    root = write_tiny(tmp_path / "data", patients=2, slices=11)
    volumes = read_split(root, "train", 4)
    assert {name: image.shape for name, (image, _) in volumes.items()} == {
        "patient001_frame01": (11, 33, 40),
        "patient002_frame01": (11, 40, 33),
    }
    from train.data.layout import read_slice, slice_path

    image, label = read_slice(slice_path(root, "patient002_frame01_slice_10"), 4)
    np.testing.assert_array_equal(volumes["patient002_frame01"][0][9], image)
    np.testing.assert_array_equal(volumes["patient002_frame01"][1][9], label)


def test_bad_splits(tmp_path: Path) -> None:
    root = write_tiny(tmp_path / "data")
    with pytest.raises(FileNotFoundError, match=r"test\.list does not exist"):
        read_split(root, "test", 4)
    (root / "val.list").write_text("\n")
    with pytest.raises(ValueError, match=r"val\.list names nothing"):
        read_split(root, "val", 4)
    (root / "val.list").write_text("patient007_frame01\n")
    with pytest.raises(FileNotFoundError, match=r"patient007_frame01\.h5 does not exist"):
        read_split(root, "val", 4)


# --- the commands


@cache
def weights(seed: int) -> dict[str, Tensor]:
    """A random tiny network's, with the batch norm's statistics set, without which one class takes everything."""
    torch.manual_seed(seed)
    network = build_network(tiny_config(Path(), Path()).model, 4)
    nn.init.zeros_(network.head.bias)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network(torch.rand(8, 1, 32, 32))
    return network.state_dict()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a best and a last checkpoint, four networks in all, none of them trained."""
    config = tiny_config(write_tiny(tmp_path / "data"), tmp_path / "run")
    for i, name in enumerate(("best", "last")):
        state = {"student": weights(2 * i), "teacher": weights(2 * i + 1), "config": to_json(config), "step": 4 * i}
        checkpoint.save(tmp_path / "run" / "checkpoints" / f"{name}.pt", state)
    return tmp_path / "run"


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_evaluate_command(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["evaluate", str(run), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    root = run.parent / "data"
    image, label = read_volume(volume_path(root, "patient005_frame01"), 4)
    for name in ("best", "last"):
        network, _ = checkpoint.load_network(run / "checkpoints" / f"{name}.pt")
        rows = evaluate_volumes(network, {"patient005_frame01": (image, label)}, (32, 32), 4)
        about = {"checkpoint": name, "step": 4 * (name == "last"), "network": "student", "unit": "voxel", "data": root}
        assert rows_of(run / "evaluation" / f"val_{name}.csv") == [{k: str(v) for k, v in (rows[0] | about).items()}]
        assert format_table(rows) in printed
    assert rows_of(run / "evaluation" / "val_best.csv") != rows_of(run / "evaluation" / "val_last.csv")


def test_evaluate_one_checkpoint_of_the_teacher_on_train(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--split", "train", "--checkpoint", "last", "--network", "teacher", "--device", "cpu"]
    assert command(["evaluate", str(run), *options]) == 0
    assert "last.pt (step 4, teacher), 4 volumes" in capsys.readouterr().out
    assert [p.name for p in (run / "evaluation").iterdir()] == ["train_last_teacher.csv"]
    assert [row["case"] for row in rows_of(run / "evaluation" / "train_last_teacher.csv")] == [
        f"patient{i:03d}_frame01" for i in (1, 2, 3, 4)
    ]


def test_every_answer_keeps_its_file(run: Path, tmp_path: Path) -> None:
    """Another network, unit or data set writes over nothing; two folders of one name are two data sets."""
    roots = [write_tiny(tmp_path / place / "data") for place in ("here", "there")]
    for root in (run.parent / "data", *roots):
        path = volume_path(root, "patient005_frame01")
        write_volume(path, *read_volume(path, 4), (2.0, 2.0, 2.0))
    seen: dict[Path, bytes] = {}
    own = str(run.parent / "data")
    for options, about in (
        ([], ("student", "voxel", own)),
        (["--network", "teacher"], ("teacher", "voxel", own)),
        (["--unit", "mm"], ("student", "mm", own)),
        *((["--root", str(root)], ("student", "voxel", str(root))) for root in roots),
        (["--network", "teacher", "--unit", "mm", "--root", str(roots[0])], ("teacher", "mm", str(roots[0]))),
    ):
        assert command(["evaluate", str(run), "--checkpoint", "last", "--device", "cpu", *options]) == 0
        written = {path: path.read_bytes() for path in (run / "evaluation").iterdir()}
        (new,) = written.keys() - seen.keys()
        assert written.items() >= seen.items()
        (row,) = rows_of(new)
        assert (row["network"], row["unit"], row["data"]) == about and (row["checkpoint"], row["step"]) == ("last", "4")
        seen = written
    assert command(["evaluate", str(run), "--network", "student", "--root", own, "--device", "cpu"]) == 0  # the default
    assert {path.name for path in (run / "evaluation").iterdir()} == {path.name for path in seen} | {"val_best.csv"}


def test_a_run_folder_that_cannot_be_written_gives_its_answer(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "evaluation").write_text("in the way")
    assert command(["evaluate", str(run), "--device", "cpu"]) == 1
    printed = capsys.readouterr()
    assert "best.pt" in printed.out and "last.pt" in printed.out and printed.out.count("HD95") == 2
    assert "evaluation" in printed.err and "Traceback" not in printed.err


def test_evaluate_in_millimetres(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["evaluate", str(run), "--checkpoint", "best", "--unit", "mm", "--device", "cpu"]
    assert command(options) == 1
    assert "patient005_frame01.h5 has no attribute 'spacing': use --unit voxel" in capsys.readouterr().err
    assert not (run / "evaluation").exists()
    path = volume_path(run.parent / "data", "patient005_frame01")
    image, label = read_volume(path, 4)
    write_volume(path, image, label, (2.0, 2.0, 2.0))
    assert command(options) == 0
    (mm,) = rows_of(run / "evaluation" / "val_best_mm.csv")
    assert command([*options, "--unit", "voxel"]) == 0
    (voxels,) = rows_of(run / "evaluation" / "val_best.csv")
    measured = [c for c in (1, 2, 3) if not math.isnan(float(mm[f"asd_{c}"]))]
    assert measured
    for c in measured:
        assert float(mm[f"asd_{c}"]) == pytest.approx(2 * float(voxels[f"asd_{c}"])) != 0


def test_evaluate_gives_the_validations_dice_under_the_runs_autocast(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    folder, seen = tmp_path / "run", []

    def note(network: nn.Module, *_: object) -> None:
        if not network.training and torch.is_inference_mode_enabled():
            seen.append(torch.is_autocast_enabled("cpu"))

    handle = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        fit(tiny_config(write_tiny(tmp_path / "data"), folder, autocast="bf16", iterations=4, lr=0.5))
        trained = len(seen)
        assert command(["evaluate", str(folder), "--checkpoint", "last", "--device", "cpu"]) == 0
    finally:
        handle.remove()
    assert trained and len(seen) == 2 * trained and all(seen)
    (row,) = rows_of(folder / "evaluation" / "val_last.csv")
    (validation,) = (r for r in read_rows(folder / "metrics.jsonl") if r["kind"] == "validation")
    assert float(row["dice_mean"]) == validation["dice_mean"]


def test_evaluate_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["evaluate", str(tmp_path), "--device", "cpu"]) == 1
    assert "best.pt does not exist" in capsys.readouterr().err


AFFINE = np.array([[-1.5, 0.1, 0, 90], [0.1, 1.4, 0.2, -80], [0, 0.2, 9.5, 12], [0, 0, 0, 1.0]])


def write_nifti(path: Path, data: np.ndarray) -> Path:
    image = nibabel.Nifti1Image(data, AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    image.header["cal_max"] = 900
    nibabel.save(image, path)
    return path


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    data = np.random.default_rng(5).integers(-20, 900, (41, 35, 6)).astype(np.int16)
    return write_nifti(tmp_path / "scan.nii.gz", data)


def test_predict_command(run: Path, scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = run / "checkpoints" / "best.pt"
    picture = scan.with_name("overlay.png")
    assert command(["predict", str(best), str(scan), "--overlay", str(picture), "--device", "cpu"]) == 0
    source, written = nibabel.load(scan), nibabel.load(scan.with_name("scan_labels.nii.gz"))
    data = source.get_fdata().T
    network, _ = checkpoint.load_network(best)
    expected = predict_volume(network, (data - data.min()) / (data.max() - data.min()), (32, 32))
    np.testing.assert_array_equal(np.asarray(written.dataobj).T, expected)
    assert len(np.unique(expected)) > 1 and written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(written.affine, source.affine)
    for key in ("pixdim", "sform_code", "qform_code", "xyzt_units", "srow_x", "quatern_b"):
        np.testing.assert_array_equal(written.header[key], source.header[key])
    assert written.header["cal_max"] == 0
    counts = ", ".join(f"class {c} {np.count_nonzero(expected == c)} voxels" for c in range(4))
    assert counts in capsys.readouterr().out
    assert imread(picture).std() > 0.1
    assert {p.name for p in scan.parent.iterdir()} == {
        "data",
        "run",
        "scan.nii.gz",
        "scan_labels.nii.gz",
        "overlay.png",
    }


def test_predict_overwrites_no_labels_unasked(run: Path, scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = scan.with_name("scan_labels.nii.gz")
    labels.write_text("drawn by hand")
    arguments = ["predict", str(run / "checkpoints" / "best.pt"), str(scan), "--device", "cpu"]
    assert command(arguments) == 1
    assert f"output {labels} exists already" in capsys.readouterr().err and labels.read_text() == "drawn by hand"
    assert command([*arguments, "--output", str(labels)]) == 0


def test_evaluate_names_the_step_of_the_network_that_it_judged(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the run goes on meanwhile."""
    path = run / "checkpoints" / "last.pt"
    state = checkpoint.load(path, ())
    real = evaluate.read_split

    def meanwhile(*arguments: object) -> object:
        checkpoint.save(path, {**state, "step": state["step"] + 1})
        return real(*arguments)

    monkeypatch.setattr(evaluate, "read_split", meanwhile)
    assert command(["evaluate", str(run), "--checkpoint", "last", "--device", "cpu"]) == 0
    with (run / "evaluation" / "val_last.csv").open() as file:
        assert {row["step"] for row in csv.DictReader(file)} == {str(state["step"])}


def test_predict_scaled_uncompressed_by_the_teacher(run: Path, tmp_path: Path) -> None:
    data = np.random.default_rng(6).integers(0, 200, (20, 30, 3)).astype(np.uint8)
    image = nibabel.Nifti1Image(data, AFFINE)
    image.header.set_slope_inter(0.5, -7)
    nibabel.save(image, tmp_path / "scan.nii")
    output = tmp_path / "new" / "labels.nii"
    best = run / "checkpoints" / "best.pt"
    predict.main(predict.Config(best, tmp_path / "scan.nii", output, network="teacher", device="cpu"))
    written = nibabel.load(output)
    network, _ = checkpoint.load_network(best, "teacher")
    scaled = (data - data.min()) / float(data.max() - data.min())
    np.testing.assert_array_equal(np.asarray(written.dataobj).T, predict_volume(network, scaled.T, (32, 32)))
    np.testing.assert_array_equal(written.affine, nibabel.load(tmp_path / "scan.nii").affine)


@pytest.mark.parametrize("scaling", ["min-max", "z-score", "none", "not stated"])
def test_predict_scales_as_the_training_data(
    run: Path, tmp_path: Path, scaling: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = np.random.default_rng(6).uniform(-0.5, 3, (40, 30, 3)).astype(np.float32)
    path, best = write_nifti(tmp_path / "scan.nii.gz", data), run / "checkpoints" / "best.pt"
    if scaling != "not stated":
        checkpoint.save(best, {**checkpoint.load(best, ()), "data_set": {"scaling": scaling, "classes": []}})
    assert command(["predict", str(best), str(path), "--device", "cpu"]) == 0
    assert ("does not say how its data were scaled: taken to be min-max" in capsys.readouterr().out) is (
        scaling == "not stated"
    )
    network, _ = checkpoint.load_network(best)
    low, high, mean, std = (np.float64(f(data)) for f in (np.min, np.max, np.mean, np.std))
    minmax = (data - low) / (high - low)
    scaled = {"min-max": minmax, "not stated": minmax, "z-score": (data - mean) / std, "none": data}
    expected = {name: predict_volume(network, volume.T, (32, 32)) for name, volume in scaled.items()}
    got = np.asarray(nibabel.load(tmp_path / "scan_labels.nii.gz").dataobj).T
    for name, labels in expected.items():
        same = name == scaling or {name, scaling} == {"min-max", "not stated"}
        assert bool(np.mean(got != labels) < 1e-3) is same, name


def test_evaluate_warns_of_patients_that_were_trained_on(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = run.parent / "data"
    (root / "test.list").write_text("patient005_frame01\n")
    assert command(["evaluate", str(run), "--checkpoint", "best", "--split", "test", "--device", "cpu"]) == 0
    said = f"warning: {root}/val.list and test.list share patient005: these patients are not unseen"
    assert said in capsys.readouterr().out


def test_evaluate_data_of_another_scaling(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = run / "checkpoints" / "best.pt"
    checkpoint.save(best, {**checkpoint.load(best, ()), "data_set": {"scaling": "z-score", "classes": []}})
    assert command(["evaluate", str(run), "--checkpoint", "best", "--device", "cpu"]) == 1
    assert f"is of scaling none, checkpoint {best} was trained on z-score" in capsys.readouterr().err


def broken(tmp_path: Path, scan: Path) -> dict[str, tuple[Path, str]]:
    rng = np.random.default_rng(7)
    volume = rng.random((8, 9, 3)).astype(np.float32)
    nan = volume.copy()
    nan[0, 0, 0] = np.nan
    content = gzip.decompress(scan.read_bytes())
    files = {"cut.nii.gz": scan.read_bytes()[:2000], "short.nii": content[:5000], "noise.nii.gz": rng.bytes(500),
             "noise.nii": rng.bytes(500)}  # fmt: skip
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    return {
        "cut": (tmp_path / "cut.nii.gz", r"cut\.nii\.gz is damaged, cut off or no NIfTI file"),
        "short": (tmp_path / "short.nii", r"short\.nii is damaged or cut off"),
        "noise": (tmp_path / "noise.nii.gz", r"noise\.nii\.gz is damaged, cut off or no NIfTI file"),
        "plain noise": (tmp_path / "noise.nii", r"noise\.nii is damaged, cut off or no NIfTI file"),
        "missing": (tmp_path / "no.nii.gz", r"no\.nii\.gz does not exist"),
        "suffix": (tmp_path / "scan.dcm", r"scan\.dcm must end in \.nii\.gz or \.nii"),
        "4-D": (
            write_nifti(tmp_path / "4d.nii.gz", np.stack([volume] * 2, -1)),
            r"\(X, Y, Z\), got shape \(8, 9, 3, 2\)",
        ),
        "NaN": (write_nifti(tmp_path / "nan.nii.gz", nan), r"nan\.nii\.gz must be finite, got 1 NaN"),
        "constant": (write_nifti(tmp_path / "flat.nii.gz", volume * 0 + 2), r"flat.* is the same everywhere \(2\)"),
        "colours": (
            write_nifti(tmp_path / "rgb.nii.gz", np.zeros((4, 4, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])),
            r"rgb\.nii\.gz must hold real numbers",
        ),
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["cut", "short", "noise", "plain noise", "missing", "suffix", "4-D", "NaN", "constant", "colours"]
)
def test_predict_bad_image(run: Path, scan: Path, tmp_path: Path, name: str) -> None:
    path, message = broken(tmp_path, scan)[name]
    before = set(tmp_path.rglob("*"))
    with pytest.raises((ValueError, OSError), match=message):
        predict.main(predict.Config(run / "checkpoints" / "best.pt", path, device="cpu"))
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "options, message",
    [
        ({"output": Path("labels.png")}, r"labels\.png must end in \.nii\.gz or \.nii"),
        ({"overlay": Path("picture.jpg")}, r"overlay must end in \.png, got picture\.jpg"),
        ({"output": Path("scan.nii.gz")}, r"output scan\.nii\.gz is the image itself"),
        ({"checkpoint": Path("no.pt")}, r"checkpoint no\.pt does not exist"),
        ({"checkpoint": Path("scan.nii.gz")}, r"checkpoint scan\.nii\.gz"),
        ({"device": "tpu"}, r"device 'tpu' is not usable"),
    ],
)
def test_predict_bad_options(
    run: Path, scan: Path, options: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scan.parent)
    before = {p: p.stat().st_mtime_ns for p in scan.parent.rglob("*")}
    given = {"checkpoint": Path("run/checkpoints/best.pt"), "image": Path("scan.nii.gz"), "device": "cpu", **options}
    with pytest.raises((ValueError, OSError), match=message):
        predict.main(predict.Config(**given))
    assert {p: p.stat().st_mtime_ns for p in scan.parent.rglob("*")} == before


def test_checkpoints_keep_their_size(run: Path) -> None:
    _, config = checkpoint.load_network(run / "checkpoints" / "best.pt")
    assert config.data.size == (32, 32) == tuple(json.loads(to_json(config))["data"]["size"])
