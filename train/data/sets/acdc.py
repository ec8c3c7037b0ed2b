"""ACDC as its owners publish it, to the h5 layout, with the usual 70/10/20 split.

ACDC (Bernard et al., IEEE TMI 37(11):2514-2525, 2018) has a folder per patient, with Info.cfg naming the frames of end-
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
from train.data.description import Description, write_description
from train.data.layout import (
    PATTERNS,
    as_classes,
    read_slice,
    read_volume,
    slice_path,
    volume_path,
    write_list,
    write_slice,
    write_volume,
)
from train.data.scaling import MIN_MAX, scale
from train.data.sets import DATA_SETS, DataSet
from train.files import check_writable, remove_parts

DESCRIPTION = Description(MIN_MAX, ("background", "right ventricle", "myocardium", "left ventricle"))
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
    """Writes slices, volumes and, last, the lists; whole files that are there already are kept. Returns a summary.

    Raises:
        FileNotFoundError: a patient, a frame or its labels is missing; found before anything is written.
        ValueError: a file is damaged, labels do not lie on their image's grid, or the slices are not as many as
        published. OSError: root cannot be written.
    """
    check_writable(root)
    frames = {name: find_frames(source, getattr(split, name)) for name in ("train", "val", "test")}
    remove_parts(root, PATTERNS)
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
    write_description(root, DESCRIPTION)
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
            pair = [find_file(stem.with_name(stem.name + kind), folder / "Info.cfg") for kind in ("", "_gt")]
            frames.append(Frame(f"{patient}_frame{index:02d}", *pair))
    return frames


def find_file(stem: Path, info: Path) -> Path:
    """The NIfTI file of this name, packed or not."""
    there = [path for path in (stem.with_name(stem.name + suffix) for suffix in nifti.SUFFIXES) if path.is_file()]
    if not there:
        raise FileNotFoundError(f"{stem}.nii.gz does not exist, although {info} names its frame")
    if len(there) > 1:
        raise ValueError(f"{there[0]} and {there[1].name} are both there: remove one")
    return there[0]


def frame_numbers(path: Path) -> list[int]:
    """The frames of ED and ES that Info.cfg names."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected lines 'ED: <frame>' and 'ES: <frame>'")
    fields = dict(line.split(":", 1) for line in path.read_text(errors="replace").splitlines() if ":" in line)
    numbers = [fields.get(phase, "").strip() for phase in PHASES]
    if not all(number.isdecimal() for number in numbers):
        raise ValueError(f"{path} must have lines 'ED: <frame>' and 'ES: <frame>', got {fields}")
    return [int(number) for number in numbers]


def read_frame(image: nifti.Volume, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """-> image (D, H, W) float32 in [0, 1], label (D, H, W) uint8 on the same grid."""
    label = nifti.on_grid(nifti.read(frame.label), image)
    return (
        scale(image.voxels, DESCRIPTION.scaling, frame.image),
        as_classes(label, len(DESCRIPTION.classes), frame.label),
    )


def convert_slices(frame: Frame, root: Path) -> list[str]:
    image = nifti.read(frame.image)
    names = [f"{frame.name}_slice_{k}" for k in range(1, len(image.voxels) + 1)]
    paths = [slice_path(root, name) for name in names]
    if all(path.is_file() for path in paths):
        for path in paths:
            read_slice(path, len(DESCRIPTION.classes))
    else:
        for path, *pair in zip(paths, *read_frame(image, frame), strict=True):
            write_slice(path, *pair)
    return names


def convert_volume(frame: Frame, root: Path) -> None:
    path = volume_path(root, frame.name)
    if path.is_file():
        read_volume(path, len(DESCRIPTION.classes))
    else:
        image = nifti.read(frame.image)
        write_volume(path, *read_frame(image, frame), nifti.grid(image).spacing)


DATA_SETS.add("acdc", DataSet(DESCRIPTION.classes, convert))
