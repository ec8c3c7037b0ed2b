"""ACDC as its owners publish it, to the h5 layout, with the usual 70/10/20 split.

ACDC (Bernard et al., IEEE TMI 37(11):2514-2525, 2018) has a folder a patient, with Info.cfg naming the frames of end-
diastole (ED) and end-systole (ES), and for these two patientXXX_frameYY.nii.gz and its _gt.nii.gz. In the h5 layout
ED is frame01 and ES frame02. Intensities are scaled to [0, 1] by the minimum and maximum of the volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from train.data import nifti
from train.data.layout import slice_path, volume_path, write_list, write_slice, write_volume
from train.data.sets import DATA_SETS, DataSet
from train.files import check_writable, remove_parts

CLASSES = 4
PHASES = ("ED", "ES")


class Split(NamedTuple):
    """Patient numbers in the order of the lists, and how many slices the training patients have."""

    train: Sequence[int]
    val: Sequence[int]
    test: Sequence[int]
    train_slices: int


# The split and the order of patients that semi-supervised methods are compared on: the first k of train have labels.
ACDC = Split(
    train=(
        99, 38, 50, 100, 58, 21, 49, 20, 72, 40, 60, 89, 4, 56, 98, 96, 31, 18, 94, 47, 48, 55, 97, 74, 43, 41, 63,
        37, 95, 54, 26, 88, 32, 69, 6, 71, 12, 73, 61, 17, 25, 10, 57, 29, 51, 5, 36, 46, 62, 34, 76, 92, 70, 77,
        67, 3, 91, 16, 14, 44, 42, 90, 53, 27, 35, 86, 23, 9, 79, 15,
    ),
    val=(28, 85, 82, 87, 19, 30, 78, 45, 2, 39),
    test=(1, 7, 8, 11, 13, 22, 24, 33, 52, 59, 64, 65, 66, 68, 75, 80, 81, 83, 84, 93),
    train_slices=1312,
)  # fmt: skip


class Frame(NamedTuple):
    name: str  # in the layout: patient001_frame01
    image: Path
    label: Path


def convert(source: Path, root: Path, split: Split = ACDC) -> str:
    """Writes slices, volumes and, last, the lists; files that are there already are kept. Returns a summary.

    Raises:
        FileNotFoundError: a patient, a frame or its labels is missing; found before anything is written.
        ValueError: a file is damaged, an image and its labels differ in shape, or the slices are not as many as
        published. OSError: root cannot be written.
    """
    check_writable(root)
    frames = {name: find_frames(source, getattr(split, name)) for name in ("train", "val", "test")}
    remove_parts(root)
    slices: list[str] = []
    with tqdm(total=sum(map(len, frames.values())), unit="volume") as bar:
        for frame in frames["train"]:
            slices += convert_slices(frame, root)
            bar.update()
        for frame in frames["val"] + frames["test"]:
            convert_volume(frame, root)
            bar.update()
    if len(slices) != split.train_slices:
        raise ValueError(
            f"{source} gave {len(slices)} training slices, expected {split.train_slices}: not ACDC as published; "
            f"no list was written to {root}"
        )
    write_list(root / "train_slices.list", slices)
    for name, found in frames.items():
        write_list(root / f"{name}.list", [frame.name for frame in found])
    counts = ", ".join(f"{name} {len(found)} volumes" for name, found in frames.items())
    return f"{root}: {counts}; {len(slices)} training slices"


def find_frames(source: Path, patients: Sequence[int]) -> list[Frame]:
    """End-diastole and end-systole of each patient."""
    frames = []
    for number in patients:
        patient = f"patient{number:03d}"
        places = [source / patient, source / "training" / patient, source / "database" / "training" / patient]
        folder = next((place for place in places if place.is_dir()), None)
        if folder is None:
            raise FileNotFoundError(f"{source} has no folder {patient}, nor has training/ or database/training/ in it")
        for index, number_of_frame in enumerate(frame_numbers(folder / "Info.cfg"), 1):
            stem = folder / f"{patient}_frame{number_of_frame:02d}"
            pair = [Path(f"{stem}{kind}.nii.gz") for kind in ("", "_gt")]
            for path in pair:
                if not path.is_file():
                    raise FileNotFoundError(f"{path} does not exist, although {folder / 'Info.cfg'} names its frame")
            frames.append(Frame(f"{patient}_frame{index:02d}", *pair))
    return frames


def frame_numbers(path: Path) -> list[int]:
    """The frames of ED and ES that Info.cfg names."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected lines 'ED: <frame>' and 'ES: <frame>'")
    fields = dict(line.split(":", 1) for line in path.read_text(errors="replace").splitlines() if ":" in line)
    numbers = [fields.get(phase, "").strip() for phase in PHASES]
    if not all(number.isdecimal() for number in numbers):
        raise ValueError(f"{path} must have lines 'ED: <frame>' and 'ES: <frame>', got {fields}")
    return [int(number) for number in numbers]


def read_frame(frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """-> image (D, H, W) float32 in [0, 1], label (D, H, W) uint8."""
    image, label = nifti.normalised(frame.image), nifti.voxels(frame.label)
    if image.shape != label.shape:
        raise ValueError(f"{frame.label} must have the shape {image.shape} of {frame.image.name}, got {label.shape}")
    bad = np.setdiff1d(label, np.arange(CLASSES))
    if bad.size:
        raise ValueError(f"{frame.label} must hold whole numbers in [0, {CLASSES}), got {bad[:5].tolist()}")
    return image, label.astype(np.uint8)


def convert_slices(frame: Frame, root: Path) -> list[str]:
    names = [f"{frame.name}_slice_{k}" for k in range(1, nifti.load(frame.image).shape[2] + 1)]
    paths = [slice_path(root, name) for name in names]
    if not all(path.is_file() for path in paths):
        for path, image, label in zip(paths, *read_frame(frame), strict=True):
            write_slice(path, image, label)
    return names


def convert_volume(frame: Frame, root: Path) -> None:
    path = volume_path(root, frame.name)
    if not path.is_file():
        write_volume(path, *read_frame(frame), nifti.spacing(frame.image))


DATA_SETS.add("acdc", DataSet(("background", "right ventricle", "myocardium", "left ventricle"), convert))
