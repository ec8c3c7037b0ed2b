"""The h5 layout in which the field keeps ACDC, read and written.

    root/train.list                              patient001_frame01      one training volume a line
    root/train_slices.list                       patient001_frame01_slice_1
    root/val.list, root/test.list                as train.list
    root/data/<volume>.h5                        validation and test volumes, (D, H, W)
    root/data/slices/<slice>.h5                  training slices, (H, W)
    root/data_set.json                           how intensities are scaled, see train/data/description.py

Every file holds 'image', float32, and 'label', uint8, of one shape. A volume may have the attribute 'spacing',
millimetres between voxels along (D, H, W). The patient is what a name has before "_frame".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train.data import h5
from train.files import write_atomically

Spacing = tuple[float, float, float]  # millimetres along (D, H, W)

PATTERNS = ("data_set.json", "*.list", "data/*.h5", "data/slices/*.h5")  # of all files of a root
NAME = re.compile(r"[\w.-]+")
SLICE = re.compile(r"(.+)_slice_(\d+)")
ROUNDING = 1e-3  # how far from a whole number a label may lie that was scaled or kept as a float


def slice_path(root: Path, name: str) -> Path:
    return root / "data" / "slices" / f"{name}.h5"


def volume_path(root: Path, name: str) -> Path:
    return root / "data" / f"{name}.h5"


def patient_of(name: str) -> str:
    return name.split("_frame")[0]


def read_list(path: Path) -> list[str]:
    """The names in a list file, one a line, without .h5; empty lines and a byte-order mark are passed over.

    Raises:
        FileNotFoundError: there is no such list.
        ValueError: it is not text, names nothing or something twice, or has a line that is no name, such as a comment.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"list {path} does not exist; expected a text file with one name a line, as in the ACDC h5 layout"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"list {path} is not text: {error}") from None
    names: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        name = line.strip().removesuffix(".h5")
        if not name:
            continue
        if not NAME.fullmatch(name):
            raise ValueError(
                f"list {path}, line {number}: a name is of letters, digits, '_', '-' and '.', got {line.strip()!r}"
            )
        if name in names:
            raise ValueError(f"list {path} names {name} twice, in lines {names[name]} and {number}")
        names[name] = number
    if not names:
        raise ValueError(f"list {path} names nothing")
    return list(names)


def write_list(path: Path, names: list[str]) -> None:
    write_atomically(path, "".join(f"{name}\n" for name in names).encode())


def slices_by_volume(root: Path) -> dict[str, list[str]]:
    """The names in train_slices.list, in its order, by the training volume they are of, in the order of train.list.

    Raises:
        FileNotFoundError: a list is missing.
        ValueError: a list is not as read_list expects, a name does not end in _slice_<number>, a training volume has
        no slice, or a slice is of none.
    """
    path, whole = root / "train_slices.list", root / "train.list"
    slices: dict[str, list[str]] = {name: [] for name in read_list(whole)}
    for name in read_list(path):
        parts = SLICE.fullmatch(name)
        if parts is None:
            raise ValueError(f"list {path}: a name must end in _slice_<number>, got {name}")
        if parts[1] not in slices:
            raise ValueError(f"list {path} names {name}, a slice of {parts[1]}, which {whole} does not name")
        slices[parts[1]].append(name)
    without = [name for name, found in slices.items() if not found]
    if without:
        raise ValueError(f"list {path} has no slice of {enumerated(without)}, which {whole} names")
    return slices


def slice_number(name: str) -> int:
    return int(name.rsplit("_slice_", 1)[1])


def labelled_slices(root: Path, patients: int) -> tuple[list[str], list[str]]:
    """The training slices of the first `patients` patients of train.list, and those of the others.

    Both in the order of train_slices.list.

    Raises:
        FileNotFoundError, ValueError: as slices_by_volume; patients is not in [1, number of patients].
    """
    order = list(dict.fromkeys(patient_of(name) for name in slices_by_volume(root)))
    if not 1 <= patients <= len(order):
        raise ValueError(
            f"labelled patients must be in [1, {len(order)}], the patients of {root / 'train.list'}, got {patients}"
        )
    names, first = read_list(root / "train_slices.list"), set(order[:patients])
    labelled = [name for name in names if patient_of(name) in first]
    return labelled, [name for name in names if patient_of(name) not in first]


def shared_patients(root: Path) -> list[str]:
    """A sentence for each two of train.list, val.list and test.list, where there are such, that share patients."""
    patients = {
        path: dict.fromkeys(map(patient_of, read_list(path)))
        for path in (root / f"{split}.list" for split in ("train", "val", "test"))
        if path.is_file()
    }
    sentences = []
    for first in patients:
        for second in list(patients)[list(patients).index(first) + 1 :]:
            both = [name for name in patients[second] if name in patients[first]]
            if both:
                sentences.append(f"{first} and {second.name} share {enumerated(both)}: these patients are not unseen")
    return sentences


def enumerated(names: Sequence[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def read_slice(path: Path, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """-> image (H, W) float32, label (H, W) uint8 with values in [0, num_classes).

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, lacks 'image' or 'label', or holds something else than expected.
    """
    return read_pair(path, num_classes, "HW")


def read_volume(path: Path, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """-> image (D, H, W) float32, label (D, H, W) uint8 with values in [0, num_classes); raises as read_slice."""
    return read_pair(path, num_classes, "DHW")


def read_pair(path: Path, num_classes: int, axes: str) -> tuple[np.ndarray, np.ndarray]:
    with h5.Reader(path) as file:
        image, label = file.array("image"), file.array("label")
    return check_pair(path, image, label, num_classes, axes)


def check_pair(
    path: Path, image: np.ndarray, label: np.ndarray, num_classes: int, axes: str
) -> tuple[np.ndarray, np.ndarray]:
    """As float32 and uint8."""
    if image.ndim != len(axes) or image.size == 0:
        raise ValueError(f"{path}: 'image' must have the axes ({', '.join(axes)}), none empty, got shape {image.shape}")
    if label.shape != image.shape:
        raise ValueError(f"{path}: 'label' must have the shape {image.shape} of 'image', got {label.shape}")
    with np.errstate(over="ignore"):  # too large for float32 becomes inf, which is refused below
        image = image.astype(np.float32)
    if not np.isfinite(image).all():
        raise ValueError(
            f"{path}: 'image' must be finite, got {np.count_nonzero(~np.isfinite(image))} NaN or infinite pixels"
        )
    return image, as_classes(label, num_classes, f"{path}: 'label'")


def as_classes(label: np.ndarray, num_classes: int, name: object) -> np.ndarray:
    """Labels of any real type as uint8; `name` is theirs, for messages.

    A label that a float or a header's slope keeps as 0.9999 is the 1 that it was.

    Raises:
        ValueError: one is no whole number in [0, num_classes).
    """
    if label.dtype.kind == "f":
        whole = np.rint(label)
        good = (np.abs(label - whole) <= ROUNDING) & (whole >= 0) & (whole < num_classes)
    else:
        whole, good = label, (label >= 0) & (label < num_classes)
    if not good.all():
        found = ", ".join(f"{value:g}" for value in np.unique(label[~good])[:5])
        raise ValueError(f"{name} must be whole numbers in [0, {num_classes}), got {found}")
    return whole.astype(np.uint8)


def read_spacing(path: Path) -> Spacing | None:
    """Millimetres between the voxels of a volume along (D, H, W); None where the file does not say.

    Raises:
        FileNotFoundError, ValueError: as read_slice; 'spacing' is not three positive numbers.
    """
    with h5.Reader(path) as file:
        given = file.attribute("spacing")
    if given is None:
        return None
    return as_spacing(given, path)


def as_spacing(given: Any, path: Path) -> Spacing:
    spacing = np.asarray(given)
    if spacing.shape != (3,) or spacing.dtype.kind not in "iuf" or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise ValueError(f"{path}: 'spacing' must be three positive numbers, millimetres along (D, H, W), got {given}")
    depth, height, width = map(float, spacing)
    return depth, height, width


def write_slice(path: Path, image: np.ndarray, label: np.ndarray) -> None:
    """image, label (H, W), kept as float32 and uint8, gzip; written beside and renamed.

    Raises:
        ValueError: what read_slice would refuse, with up to 256 classes.
    """
    write_pair(path, image, label, "HW", {})


def write_volume(path: Path, image: np.ndarray, label: np.ndarray, spacing: Spacing | None = None) -> None:
    """image, label (D, H, W), kept as float32 and uint8, gzip; spacing in millimetres along (D, H, W).

    Raises:
        ValueError: what read_volume or read_spacing would refuse, with up to 256 classes.
    """
    write_pair(path, image, label, "DHW", {} if spacing is None else {"spacing": as_spacing(spacing, path)})


def write_pair(path: Path, image: np.ndarray, label: np.ndarray, axes: str, attributes: dict[str, Spacing]) -> None:
    image, label = check_pair(path, image, label, 256, axes)
    write_atomically(path, h5.dump({"image": image, "label": label}, attributes))
