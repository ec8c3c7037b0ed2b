"""The h5 layout and the phantom that is written into it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from real_data import ACDC, needs_acdc

from train.data.anatomy import draw_patient
from train.data.layout import (
    labelled_slices,
    read_list,
    read_slice,
    read_spacing,
    read_volume,
    shared_patients,
    slice_path,
    volume_path,
    write_slice,
    write_volume,
)
from train.data.phantom import ensure_phantom

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGE = np.linspace(0, 1, 35, dtype=np.float32).reshape(5, 7)
LABEL = (np.arange(35).reshape(5, 7) % 4).astype(np.uint8)


def write(path: Path, **arrays: object) -> Path:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return path


# --- the layout


@needs_acdc
@pytest.mark.parametrize(
    "patients, slices", [(1, 32), (3, 68), (7, 136), (14, 256), (21, 396), (28, 512), (35, 664), (70, 1312)]
)
def test_labelled_slices_of_acdc(patients: int, slices: int) -> None:
    labelled, unlabelled = labelled_slices(ACDC, patients)
    assert len(labelled) == slices and len(unlabelled) == 1312 - slices
    assert sorted(labelled + unlabelled) == sorted(read_list(ACDC / "train_slices.list"))


@needs_acdc
def test_reading_acdc() -> None:
    for name in read_list(ACDC / "train_slices.list")[::131]:
        image, label = read_slice(slice_path(ACDC, name), 4)
        assert image.dtype == np.float32 and label.dtype == np.uint8 and image.shape == label.shape
        assert image.min() >= 0 and image.max() <= 1
    name = read_list(ACDC / "val.list")[0]
    image, label = read_volume(volume_path(ACDC, name), 4)
    assert image.ndim == 3 and image.min() == 0 and image.max() == 1 and set(np.unique(label)) == {0, 1, 2, 3}
    assert read_spacing(volume_path(ACDC, name)) is None


def lists(root: Path) -> Path:
    (root / "train.list").write_text("patient9_frame01\npatient9_frame02\npatient2_frame01\n\npatient5_frame01.h5\n")
    (root / "train_slices.list").write_text(
        "patient2_frame01_slice_1\npatient9_frame02_slice_3\n patient5_frame01_slice_2 \npatient9_frame01_slice_1\n"
    )
    return root


def test_labelled_slices_keep_the_lists_order(tmp_path: Path) -> None:
    root = lists(tmp_path)
    nine = ["patient9_frame02_slice_3", "patient9_frame01_slice_1"]
    two, five = "patient2_frame01_slice_1", "patient5_frame01_slice_2"
    assert labelled_slices(root, 1) == (nine, [two, five])
    assert labelled_slices(root, 2) == ([two, *nine], [five])
    assert labelled_slices(root, 3) == ([two, nine[0], five, nine[1]], [])


@pytest.mark.parametrize("patients", [-1, 0, 4])
def test_labelled_patients_out_of_range(tmp_path: Path, patients: int) -> None:
    with pytest.raises(ValueError, match=rf"labelled patients must be in \[1, 3\], .*train\.list, got {patients}"):
        labelled_slices(lists(tmp_path), patients)


def test_patients_without_slices(tmp_path: Path) -> None:
    (lists(tmp_path) / "train_slices.list").write_text("patient2_frame01_slice_1\n")
    message = (
        r"train_slices\.list has no slice of patient9_frame01, patient9_frame02, patient5_frame01, which .*train\.list"
    )
    with pytest.raises(ValueError, match=message):
        labelled_slices(tmp_path, 1)


@pytest.mark.parametrize("missing", ["train.list", "train_slices.list"])
def test_missing_list(tmp_path: Path, missing: str) -> None:
    (lists(tmp_path) / missing).unlink()
    with pytest.raises(FileNotFoundError, match=rf"list .*{missing} does not exist; expected a text file"):
        labelled_slices(tmp_path, 1)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"a_frame01\nb_frame01\n\na_frame01.h5\n", "names a_frame01 twice, in lines 1 and 4"),
        (b"\x89HDF\xff\xfe", "is not text"),
        ("a_frame01\n".encode("utf-16"), "is not text"),
        (b"\n# the first seven\na_frame01\n", "line 2: a name is of .*, got '# the first seven'"),
        (b"a_frame01\n../a_frame02\n", "line 2: a name is of .*, got '../a_frame02'"),
        (b"a_frame01,1\n", "line 1: a name is of .*, got 'a_frame01,1'"),
        ("a_frame01\n\ufeffb_frame01\n".encode(), "line 2: a name is of .*, got '.ufeffb_frame01'"),
        (b"a_frame01\n\x00\x00\x00\n", "line 2: a name is of "),
        (b"\n \r\n", "names nothing"),
    ],
)
def test_bad_lists(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "val.list").write_bytes(content)
    with pytest.raises(ValueError, match=rf"val\.list,? ?{message}"):
        read_list(tmp_path / "val.list")


def test_lists_of_other_editors(tmp_path: Path) -> None:
    """With a byte-order mark, the line ends of Windows, and no line end last: the same patients have labels."""
    root = lists(tmp_path)
    expected = labelled_slices(root, 1)
    for name in ("train.list", "train_slices.list"):
        text = (root / name).read_text()
        (root / name).write_bytes(b"\xef\xbb\xbf" + text.rstrip().replace("\n", "\r\n").encode())
    assert labelled_slices(root, 1) == expected and expected[0][0].startswith("patient9")


@pytest.mark.parametrize(
    "slices, message",
    [
        (
            "patient9_frame01_slice_2\npatient7_frame01_slice_1\n",
            "a slice of patient7_frame01, which .*train.list does",
        ),
        ("patient9_frame01\n", "must end in _slice_<number>, got patient9_frame01"),
        ("patient9_frame01_slice_x\n", "must end in _slice_<number>, got patient9_frame01_slice_x"),
    ],
)
def test_slices_of_no_training_volume(tmp_path: Path, slices: str, message: str) -> None:
    with (lists(tmp_path) / "train_slices.list").open("a") as file:
        file.write(slices)
    with pytest.raises(ValueError, match=rf"train_slices\.list.* {message}"):
        labelled_slices(tmp_path, 3)


def test_patients_in_two_lists(tmp_path: Path) -> None:
    root = lists(tmp_path)
    (root / "val.list").write_text("patient3_frame01\npatient2_frame02\n")
    assert shared_patients(root) == [
        f"{root / 'train.list'} and val.list share patient2: these patients are not unseen"
    ]
    (root / "test.list").write_text("patient3_frame01\npatient8_frame02\n")
    first, second = shared_patients(root)
    assert "val.list share patient2" in first and "val.list and test.list share patient3" in second


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "v.h5"
    write_slice(path, IMAGE.astype(np.float64)[::-1], LABEL[:, ::-1].astype(np.int64))
    image, label = read_slice(path, 4)
    np.testing.assert_array_equal(image, IMAGE[::-1])
    np.testing.assert_array_equal(label, LABEL[:, ::-1])
    write_volume(path, IMAGE[None], LABEL[None], (10.0, 1.5, 1.25))
    image, label = read_volume(path, 4)
    np.testing.assert_array_equal(image[0], IMAGE)
    np.testing.assert_array_equal(label[0], LABEL)
    assert read_spacing(path) == (10.0, 1.5, 1.25)
    assert [p.name for p in path.parent.iterdir()] == ["v.h5"]
    with h5py.File(path) as file:
        assert file["image"].compression == file["label"].compression == "gzip"


def test_writing_wrong_axes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"axes \(H, W\), got \(1, 5, 7\) and \(1, 5, 7\)"):
        write_slice(tmp_path / "s.h5", IMAGE[None], LABEL[None])
    with pytest.raises(ValueError, match=r"axes \(D, H, W\), got \(1, 5, 7\) and \(5, 7\)"):
        write_volume(tmp_path / "s.h5", IMAGE[None], LABEL)
    assert not list(tmp_path.iterdir())


def test_missing_file(tmp_path: Path) -> None:
    for read in (read_slice, read_volume):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.h5 does not exist; expected an h5 file with 'image'"):
            read(tmp_path / "nowhere.h5", 4)


BAD: dict[str, tuple[dict[str, object], str]] = {
    "no image": ({"label": LABEL}, r"has no 'image'; it holds \['label'\]"),
    "no label": ({"image": IMAGE}, r"has no 'label'; it holds \['image'\]"),
    "nothing": ({}, "has no 'image'; it holds nothing"),
    "three axes": ({"image": IMAGE[None], "label": LABEL[None]}, r"axes \(H, W\), none empty, got shape \(1, 5, 7\)"),
    "no pixels": ({"image": IMAGE[:0], "label": LABEL[:0]}, r"none empty, got shape \(0, 7\)"),
    "shapes": ({"image": IMAGE, "label": LABEL.T}, r"'label' must have the shape \(5, 7\) of 'image', got \(7, 5\)"),
    "class 4": ({"image": IMAGE, "label": LABEL + 1}, r"'label' must be whole numbers in \[0, 4\), got 4"),
    "class -1": ({"image": IMAGE, "label": LABEL.astype(int) - 1}, r"whole numbers in \[0, 4\), got -1"),
    "half a class": ({"image": IMAGE, "label": LABEL / 2}, r"whole numbers in \[0, 4\), got 0.5, 1.5"),
    "NaN class": ({"image": IMAGE, "label": np.where(LABEL == 3, np.nan, LABEL)}, r"in \[0, 4\), got nan"),
    "NaN": ({"image": np.where(IMAGE > 0.9, np.nan, IMAGE), "label": LABEL}, "must be finite, got 4 NaN or infinite"),
    "inf": ({"image": np.where(IMAGE == 1, np.inf, IMAGE), "label": LABEL}, "must be finite, got 1 NaN or infinite"),
    "too large": ({"image": IMAGE.astype(np.float64) * 1e300, "label": LABEL}, "must be finite, got 34 NaN or inf"),
    "text": ({"image": "pixels", "label": LABEL}, "'image' must hold real numbers, got text"),
    "complex": ({"image": IMAGE + 1j, "label": LABEL}, "'image' must hold real numbers, got complex64"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_slice(tmp_path: Path, name: str) -> None:
    arrays, message = BAD[name]
    path = write(tmp_path / "bad.h5", **arrays)
    with pytest.raises(ValueError, match=rf"bad\.h5.*{message}"):
        read_slice(path, 4)


def test_group_instead_of_image(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        file.create_group("image")
        file["label"] = LABEL
    with pytest.raises(ValueError, match=r"bad\.h5 has no 'image'"):
        read_slice(tmp_path / "bad.h5", 4)


def test_every_bit_of_a_file_is_checked(tmp_path: Path) -> None:
    """Of a file that is written here: cut off anywhere or with any byte changed it is an error that names it."""
    whole, bad = tmp_path / "whole.h5", tmp_path / "bad.h5"
    rng = np.random.default_rng(0)
    write_volume(whole, rng.random((2, 5, 7), np.float32), rng.integers(0, 4, (2, 5, 7)), (10.0, 1.5, 1.25))
    content = whole.read_bytes()
    cases = [content[:n] for n in range(0, len(content), 211)]
    for position in range(0, len(content), 7):
        case = bytearray(content)
        case[position] ^= 1 << int(rng.integers(8))
        cases.append(bytes(case))
    for case in cases:
        bad.write_bytes(case)
        with pytest.raises(ValueError, match=r"^[^\n]*bad\.h5[^\n]*$"):
            read_volume(bad, 4)
            read_spacing(bad)


@pytest.mark.parametrize("stored", ["gzip", "as it is"])
def test_damage_to_other_programs_files(tmp_path: Path, stored: str) -> None:
    """Their headers have no checksum; but nothing escapes as another error, and no array is read that is not there."""
    path, rng = tmp_path / "bad.h5", np.random.default_rng(0)
    label = np.zeros((40, 50), np.uint8)
    image = rng.random((40, 50), dtype=np.float32)
    with h5py.File(path, "w") as file:
        for name, array in (("image", image), ("label", label)):
            file.create_dataset(name, data=array, compression="gzip" if stored == "gzip" else None)
    content, named = path.read_bytes(), 0
    for start in range(0, len(content) - 64, 397):
        path.write_bytes(content[:start] + rng.bytes(64) + content[start + 64 :])
        try:
            read_slice(path, 4)
        except ValueError as error:
            assert "bad.h5" in str(error) and "\n" not in str(error)
            named += 1
        else:
            assert stored != "gzip" or np.array_equal(read_slice(path, 4)[0], image)
    assert named > 4


def test_arrays_that_are_not_there(tmp_path: Path) -> None:
    """HDF5 itself reads zeros where nothing is stored."""
    for chunks, message in ((None, "0 bytes are stored, expected 140"), ((2, 7), "1 chunks are stored, expected 3")):
        path = write(tmp_path / "bad.h5", label=LABEL)
        with h5py.File(path, "a") as file:
            image = file.create_dataset("image", IMAGE.shape, np.float32, chunks=chunks)
            if chunks:
                image[0] = IMAGE[0]
        with pytest.raises(ValueError, match=rf"bad\.h5: 'image' is damaged or cut off: {message}"):
            read_slice(path, 4)
    with h5py.File(path, "w") as file:
        file.create_dataset("image", (10**6, 10**6), np.float32, chunks=(1000, 1000))
    with pytest.raises(ValueError, match=r"bad\.h5: 'image' is damaged or cut off: shape \(1000000, 1000000\) is more"):
        read_slice(path, 4)


def test_labels_that_are_rounded(tmp_path: Path) -> None:
    path = write(tmp_path / "s.h5", image=IMAGE, label=LABEL * np.float32(0.99999))
    np.testing.assert_array_equal(read_slice(path, 4)[1], LABEL)


@pytest.mark.parametrize(
    "spacing", [[1.0, 1.0], [1.0, 0.0, 1.0], [1.0, np.nan, 1.0], "1 1 1", [[1.0, 1.0, 1.0]]], ids=str
)
def test_bad_spacing(tmp_path: Path, spacing: object) -> None:
    path = write(tmp_path / "v.h5", image=IMAGE[None], label=LABEL[None])
    with h5py.File(path, "a") as file:
        file.attrs["spacing"] = spacing
    with pytest.raises(ValueError, match=r"v\.h5: 'spacing' must be three positive numbers, millimetres"):
        read_spacing(path)


# --- the phantom


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_phantom(tmp_path_factory.mktemp("data") / "phantom", 2, 1, 1)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_phantom_is_the_acdc_layout(phantom: Path) -> None:
    assert {p.name for p in phantom.iterdir()} == {
        "data", "train.list", "train_slices.list", "val.list", "test.list", "phantom.json", "data_set.json",
    }  # fmt: skip
    labelled, unlabelled = labelled_slices(phantom, 1)
    assert labelled and unlabelled
    for name in labelled + unlabelled:
        read_slice(slice_path(phantom, name), 4)
    for name in read_list(phantom / "val.list") + read_list(phantom / "test.list"):
        image, label = read_volume(volume_path(phantom, name), 4)
        assert image.min() == 0 and image.max() == 1 and set(np.unique(label)) == {0, 1, 2, 3}
        depth, height, width = read_spacing(volume_path(phantom, name))
        assert depth == 10 and height == width and 1 < height < 3
    patients = [name.split("_")[0] for n in ("train", "val", "test") for name in read_list(phantom / f"{n}.list")]
    assert patients == [f"patient{i:03d}" for i in (1, 1, 2, 2, 3, 3, 4, 4)]


def test_phantom_anatomy() -> None:
    """What every patient must have: a cavity inside a wall, and less blood at end-systole than at end-diastole."""
    for number in range(1, 9):
        (image, diastole, _), (_, systole, spacing) = draw_patient(0, number)
        volume = {c: [np.count_nonzero(label == c) for label in (diastole, systole)] for c in (1, 2, 3)}
        assert all(before > 1.15 * after > 0 for before, after in (volume[1], volume[3]))
        assert 0.7 < volume[2][1] / volume[2][0] < 1.3  # muscle neither grows nor vanishes
        litres = volume[3][0] * np.prod(spacing) / 1e6
        assert 0.05 < litres < 0.35
        cavity = diastole == 3
        for axis, step in ((1, 1), (1, -1), (2, 1), (2, -1)):  # what a step leads to out of the cavity is wall
            assert set(np.unique(np.roll(diastole, step, axis)[cavity])) <= {2, 3}
        assert image[cavity].mean() > 1.4 * image[diastole == 2].mean()


def test_phantom_is_no_threshold(phantom: Path) -> None:
    """Even the best choice of grey levels for a class, made with the truth at hand, has a Dice below 0.5."""
    for name in read_list(phantom / "val.list"):
        image, label = read_volume(volume_path(phantom, name), 4)
        level = np.minimum((image * 64).astype(int), 63)
        counts = np.stack([np.bincount(level[label == c], minlength=64) for c in range(4)])
        for c in (1, 2, 3):
            order = np.argsort(-counts[c] / np.maximum(counts.sum(0), 1))  # the levels worth taking, best first
            hit, taken = np.cumsum(counts[c][order]), np.cumsum(counts.sum(0)[order])
            assert (2 * hit / (taken + counts[c].sum())).max() < 0.5


def test_phantom_is_its_seed(phantom: Path, tmp_path: Path) -> None:
    again = contents(ensure_phantom(tmp_path / "again", 2, 1, 1))
    assert again == contents(phantom)
    assert not np.array_equal(draw_patient(0, 1)[0][0].ravel()[:100], draw_patient(1, 1)[0][0].ravel()[:100])
    first, second = draw_patient(0, 1)[0][1], draw_patient(0, 2)[0][1]
    assert first.shape != second.shape or not np.array_equal(first, second)


def test_phantom_is_written_once(phantom: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in phantom.rglob("*")}
    assert ensure_phantom(phantom, 2, 1, 1) == phantom
    assert {p: p.stat().st_mtime_ns for p in phantom.rglob("*")} == before


def test_phantom_of_other_settings(phantom: Path) -> None:
    before = contents(phantom)
    with pytest.raises(ValueError, match=r"holds a phantom with .*'train': 2.*, not .*'train': 3"):
        ensure_phantom(phantom, 3, 1, 1)
    assert contents(phantom) == before


def test_folder_with_something_else(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    root.mkdir()
    (root / "thesis.txt").write_text("years")
    with pytest.raises(ValueError, match=r"mine is not empty and not a phantom"):
        ensure_phantom(root, 1, 1, 1)
    assert contents(root) == {"thesis.txt": b"years"}


@pytest.mark.parametrize("counts, name", [((0, 1, 1), "train"), ((1, -1, 1), "val"), ((1, 1, 0), "test")])
def test_no_patients(tmp_path: Path, counts: tuple[int, int, int], name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} patients must be at least 1, got "):
        ensure_phantom(tmp_path / "phantom", *counts)
    assert not list(tmp_path.iterdir())


def start_writer(root: Path) -> subprocess.Popen[bytes]:
    code = f"import pathlib, train.data.phantom as p; p.ensure_phantom(pathlib.Path({str(root)!r}), 2, 1, 1)"
    return subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"})


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not ready() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


def test_phantom_killed_while_written(phantom: Path, tmp_path: Path) -> None:
    root = tmp_path / "phantom"
    process = start_writer(root)
    wait_until(lambda: len(list(tmp_path.rglob("*.h5"))) > 5, process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the writer was done before it was killed"
    assert not root.exists() and list(tmp_path.rglob("*.h5"))
    (tmp_path / ".phantom.part" / "data" / "half.h5").write_bytes(b"cut off")  # whatever it left must not stay
    ensure_phantom(root, 2, 1, 1)
    assert contents(root) == contents(phantom)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".phantom.lock", "phantom"]


def test_phantom_written_by_two_at_once(phantom: Path, tmp_path: Path) -> None:
    root = tmp_path / "phantom"
    processes = [start_writer(root) for _ in range(2)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    assert contents(root) == contents(phantom)
