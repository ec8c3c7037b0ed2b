"""`convert` on a made-up ACDC of a few voxels."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from real_data import ACDC as REAL
from real_data import needs_acdc

from train.__main__ import main as command
from train.data.layout import (
    labelled_slices,
    read_list,
    read_slice,
    read_spacing,
    read_volume,
    slice_path,
    volume_path,
)
from train.data.sets.acdc import ACDC, Split, convert

REPOSITORY = Path(__file__).resolve().parents[2]
SPLIT = Split(train=(7, 3), val=(12,), test=(100,), train_slices=2 * (2 + 3))
DEPTHS = {7: 2, 3: 3, 12: 4, 100: 2}
ES = 9


def pixels(number: int, phase: int, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """(X, Y, Z) int16 and uint8."""
    rng = np.random.default_rng((number, phase))
    return rng.integers(-3, 800, (6, 5, depth)).astype(np.int16), rng.integers(0, 4, (6, 5, depth)).astype(np.uint8)


def save(path: Path, data: np.ndarray) -> None:
    image = nibabel.Nifti1Image(data, np.eye(4))
    image.header.set_zooms((1.25, 1.5625, 10.0))
    nibabel.save(image, path)


def write_patient(folder: Path, number: int, depth: int, frames: tuple[int, int] = (1, ES)) -> None:
    patient = f"patient{number:03d}"
    (folder / patient).mkdir(parents=True)
    (folder / patient / "Info.cfg").write_text(f"ED: {frames[0]}\nES: {frames[1]}\nGroup: DCM\nHeight: 184.0\n")
    for phase, frame in enumerate(frames):
        for kind, data in zip(("", "_gt"), pixels(number, phase, depth), strict=True):
            save(folder / patient / f"{patient}_frame{frame:02d}{kind}.nii.gz", data)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for number, depth in DEPTHS.items():
        write_patient(tmp_path / "acdc" / "training", number, depth)
    return tmp_path / "acdc"


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def check(number: int, phase: int, got: tuple[np.ndarray, np.ndarray]) -> None:
    image, label = (part.T for part in pixels(number, phase, DEPTHS[number]))
    low, high = image.min(), image.max()
    np.testing.assert_allclose(got[0], (image - float(low)) / (float(high) - float(low)), atol=1e-7)
    assert got[0].min() == 0 and got[0].max() == 1
    np.testing.assert_array_equal(got[1], label)


def test_convert(source: Path, tmp_path: Path) -> None:
    root = tmp_path / "h5"
    assert convert(source, root, SPLIT).endswith("train 4 volumes, val 2 volumes, test 2 volumes; 10 training slices")
    assert read_list(root / "train.list") == [f"patient{n}_frame{f}" for n in ("007", "003") for f in ("01", "02")]
    assert read_list(root / "val.list") == ["patient012_frame01", "patient012_frame02"]
    assert read_list(root / "test.list") == ["patient100_frame01", "patient100_frame02"]
    labelled, unlabelled = labelled_slices(root, 1)
    assert labelled == [f"patient007_frame0{f}_slice_{k}" for f in (1, 2) for k in (1, 2)]
    assert unlabelled == [f"patient003_frame0{f}_slice_{k}" for f in (1, 2) for k in (1, 2, 3)]
    for number in (7, 3):
        for phase in (0, 1):
            names = [f"patient{number:03d}_frame{phase + 1:02d}_slice_{k + 1}" for k in range(DEPTHS[number])]
            images, labels = zip(*(read_slice(slice_path(root, name), 4) for name in names), strict=True)
            check(number, phase, (np.stack(images), np.stack(labels)))
    for number in (12, 100):
        for phase in (0, 1):
            path = volume_path(root, f"patient{number:03d}_frame{phase + 1:02d}")
            check(number, phase, read_volume(path, 4))
            assert read_spacing(path) == (10.0, 1.5625, 1.25)
    assert {p.name for p in root.iterdir()} == {
        "data", "data_set.json", "train.list", "train_slices.list", "val.list", "test.list",
    }  # fmt: skip


@pytest.mark.parametrize("below", [".", "database/training"])
def test_where_the_patients_are(source: Path, tmp_path: Path, below: str) -> None:
    elsewhere = tmp_path / "other" / below
    elsewhere.parent.mkdir(parents=True, exist_ok=True)
    (source / "training").rename(elsewhere)
    convert(tmp_path / "other", tmp_path / "h5", SPLIT)
    assert len(read_list(tmp_path / "h5" / "train_slices.list")) == 10


def test_end_diastole_is_frame_1_whatever_its_number(tmp_path: Path) -> None:
    for number, depth in DEPTHS.items():
        write_patient(tmp_path / "acdc", number, depth, frames=(11, 4))
    convert(tmp_path / "acdc", tmp_path / "h5", SPLIT)
    for phase in (0, 1):
        check(12, phase, read_volume(volume_path(tmp_path / "h5", f"patient012_frame0{phase + 1}"), 4))


def test_a_second_time_nothing_is_written_again(source: Path, tmp_path: Path) -> None:
    root = tmp_path / "h5"
    convert(source, root, SPLIT)
    before, times = contents(root), {p: p.stat().st_mtime_ns for p in root.rglob("*.h5")}
    missing = [slice_path(root, "patient003_frame02_slice_2"), volume_path(root, "patient012_frame01")]
    for path in missing:
        path.unlink()
    convert(source, root, SPLIT)
    assert contents(root) == before
    again = {p for p, t in times.items() if p.stat().st_mtime_ns != t}
    assert set(missing) <= again <= {*missing, *(slice_path(root, f"patient003_frame02_slice_{k}") for k in (1, 2, 3))}


def nothing_written(call: Callable[[], object], root: Path, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
    assert not root.exists()


def test_missing_parts(source: Path, tmp_path: Path) -> None:
    """Each is found before anything is written."""
    root, last = tmp_path / "h5", source / "training" / "patient100"
    run = lambda: convert(source, root, SPLIT)  # noqa: E731
    nothing_written(
        lambda: convert(tmp_path / "no", root, SPLIT), root, FileNotFoundError, "no has no folder patient007"
    )
    (last / f"patient100_frame{ES:02d}_gt.nii.gz").rename(tmp_path / "gt")
    nothing_written(
        run, root, FileNotFoundError, r"patient100_frame09_gt\.nii\.gz does not exist, although .*Info\.cfg"
    )
    (last / "Info.cfg").write_text("ED: 1\nGroup: DCM\n")
    nothing_written(
        run, root, ValueError, r"Info\.cfg must have lines 'ED: <frame>' and 'ES: <frame>', got \{'ED': ' 1'"
    )
    (last / "Info.cfg").unlink()
    nothing_written(run, root, FileNotFoundError, r"Info\.cfg does not exist; expected lines 'ED: <frame>'")
    last.rename(source / "patient101")
    nothing_written(run, root, FileNotFoundError, r"acdc has no folder patient100")


@pytest.mark.parametrize(
    "kind, data, message",
    [
        ("_gt", np.full((6, 5, 3), 4, np.uint8), r"_gt\.nii\.gz must be whole numbers in \[0, 4\), got 4$"),
        ("_gt", np.full((6, 5, 3), 0.5, np.float32), r"_gt\.nii\.gz must be whole numbers in \[0, 4\), got 0.5$"),
        ("_gt", np.zeros((5, 6, 3), np.uint8), r"must have the shape \(6, 5, 3\) of patient003.*, got \(5, 6, 3\)"),
        ("", np.full((6, 5, 3), np.nan, np.float32), r"frame01\.nii\.gz must be finite"),
        ("", np.zeros((6, 5, 3), np.int16), r"frame01\.nii\.gz is the same everywhere"),
        ("", None, r"frame01\.nii\.gz is damaged, cut off or no NIfTI file"),
    ],
)
def test_bad_frames(source: Path, tmp_path: Path, kind: str, data: np.ndarray | None, message: str) -> None:
    path = source / "training" / "patient003" / f"patient003_frame01{kind}.nii.gz"
    if data is None:
        path.write_bytes(path.read_bytes()[:60])
    else:
        save(path, data)
    with pytest.raises(ValueError, match=message):
        convert(source, tmp_path / "h5", SPLIT)
    assert not list((tmp_path / "h5").glob("*.list"))


def test_other_number_of_slices(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gave 10 training slices, expected 11: not ACDC as published"):
        convert(source, tmp_path / "h5", SPLIT._replace(train_slices=11))
    assert not list((tmp_path / "h5").glob("*.list"))


def test_the_split_is_acdcs() -> None:
    assert [len(part) for part in ACDC[:3]] == [70, 10, 20]
    assert sorted([*ACDC.train, *ACDC.val, *ACDC.test]) == list(range(1, 101))


@needs_acdc
@pytest.mark.parametrize("name", ["train", "val"])
def test_the_split_is_the_fields(name: str) -> None:
    expected = [f"patient{n:03d}_frame{f:02d}" for n in getattr(ACDC, name) for f in (1, 2)]
    assert read_list(REAL / f"{name}.list") == expected


def write_published(folder: Path) -> Path:
    """A hundred patients of tiny slices, of which the training ones have as many in all as ACDC's."""
    deep = iter(range(100))
    for number in ACDC.train:
        write_patient(folder, number, 10 if next(deep) < 26 else 9)
    for number in (*ACDC.val, *ACDC.test):
        write_patient(folder, number, 1)
    return folder


def test_command_on_all_of_it_killed_and_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, root = write_published(tmp_path / "acdc"), tmp_path / "h5"
    process = subprocess.Popen(
        [sys.executable, "-m", "train", "convert", str(source), str(root)], cwd=REPOSITORY, stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    while process.poll() is None and len(list(root.rglob("*.h5"))) < 30:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the conversion was done before it was killed"
    assert not list(root.glob("*.list"))
    kept = {p: p.stat().st_mtime_ns for p in root.rglob("patient099*.h5")}
    assert kept
    assert command(["convert", str(source), str(root)]) == 0
    printed = capsys.readouterr()
    assert "train 140 volumes, val 20 volumes, test 40 volumes; 1312 training slices" in printed.out
    assert "200/200" in printed.err
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert len(list(root.rglob("*.h5"))) == 1312 + 60 and not list(root.rglob("*.part"))
    assert len(labelled_slices(root, 70)[0]) == 1312


def test_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["convert", str(tmp_path), str(tmp_path / "h5")]) == 1
    assert "has no folder patient099" in capsys.readouterr().err
