"""The h5 layout in which the field keeps ACDC, read and written.

    root/train.list                              patient001_frame01      one training volume a line
    root/train_slices.list                       patient001_frame01_slice_1
    root/val.list, root/test.list                as train.list
    root/data/<volume>.h5                        validation and test volumes, (D, H, W)
    root/data/slices/<slice>.h5                  training slices, (H, W)

Every file holds 'image', float32, and 'label', uint8, of one shape. A volume may have the attribute 'spacing',
millimetres between voxels along (D, H, W). The patient is what a name has before "_frame".
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from train.files import write_atomically

Spacing = tuple[float, float, float]  # millimetres along (D, H, W)


def slice_path(root: Path, name: str) -> Path:
    return root / "data" / "slices" / f"{name}.h5"


def volume_path(root: Path, name: str) -> Path:
    return root / "data" / f"{name}.h5"


def patient_of(name: str) -> str:
    return name.split("_frame")[0]


def read_list(path: Path) -> list[str]:
    """The names in a list file, one a line, without .h5.

    Raises:
        FileNotFoundError: there is no such list.
        ValueError: it is not text, or names something twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"list {path} does not exist; expected a text file with one name a line, as in the ACDC h5 layout"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"list {path} is not text: {error}") from None
    names = [line.strip().removesuffix(".h5") for line in lines if line.strip()]
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"list {path} names {twice} twice")
    return names


def write_list(path: Path, names: list[str]) -> None:
    write_atomically(path, "".join(f"{name}\n" for name in names).encode())


def labelled_slices(root: Path, patients: int) -> tuple[list[str], list[str]]:
    """The training slices of the first `patients` patients of train.list, and those of the others.

    Both in the order of train_slices.list.

    Raises:
        FileNotFoundError: a list is missing.
        ValueError: patients is not in [1, number of patients], or the patients have no slice in train_slices.list.
    """
    order = list(dict.fromkeys(patient_of(name) for name in read_list(root / "train.list")))
    if not 1 <= patients <= len(order):
        raise ValueError(
            f"labelled patients must be in [1, {len(order)}], the patients of {root / 'train.list'}, got {patients}"
        )
    names, first = read_list(root / "train_slices.list"), set(order[:patients])
    labelled = [name for name in names if patient_of(name) in first]
    if not labelled:
        raise ValueError(
            f"{root / 'train_slices.list'} has no slice of the labelled patients {', '.join(sorted(first))}"
        )
    return labelled, [name for name in names if patient_of(name) not in first]


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
    with Reader(path) as file:
        image, label = file.array("image"), file.array("label")
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
    good = (label >= 0) & (label < num_classes) & (label == np.floor(label))
    if not good.all():
        found = ", ".join(f"{value:g}" for value in np.unique(label[~good])[:5])
        raise ValueError(f"{path}: 'label' must be whole numbers in [0, {num_classes}), got {found}")
    return image, label.astype(np.uint8)


def read_spacing(path: Path) -> Spacing | None:
    """Millimetres between the voxels of a volume along (D, H, W); None where the file does not say.

    Raises:
        FileNotFoundError, ValueError: as read_slice; 'spacing' is not three positive numbers.
    """
    with Reader(path) as file:
        given = file.attribute("spacing")
    if given is None:
        return None
    spacing = np.asarray(given)
    if spacing.shape != (3,) or spacing.dtype.kind not in "iuf" or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise ValueError(f"{path}: 'spacing' must be three positive numbers, millimetres along (D, H, W), got {given}")
    depth, height, width = map(float, spacing)
    return depth, height, width


class Reader:
    """An h5 file whose every fault is an error that names the file."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; expected an h5 file with 'image' and 'label'")
        self.path = path

    def __enter__(self) -> Reader:
        try:
            self.file = h5py.File(self.path, "r")
        except PermissionError:
            raise
        except OSError as error:
            raise ValueError(f"{self.path} is damaged, cut off or no h5 file: {error}") from None
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def array(self, key: str) -> np.ndarray:
        try:
            if not isinstance(self.file.get(key), h5py.Dataset):
                raise ValueError(f"{self.path} has no '{key}'; it holds {sorted(self.file) or 'nothing'}")
            values = np.asarray(self.file[key][()])
        except (OSError, RuntimeError, KeyError) as error:
            raise ValueError(f"{self.path}: '{key}' is damaged or cut off: {error}") from None
        if values.dtype.kind not in "biuf":
            raise ValueError(f"{self.path}: '{key}' must hold real numbers, got {values.dtype}")
        return values

    def attribute(self, key: str) -> Any:
        try:
            return self.file.attrs.get(key)
        except (OSError, RuntimeError, KeyError) as error:
            raise ValueError(f"{self.path}: attribute '{key}' is damaged: {error}") from None


def write_slice(path: Path, image: np.ndarray, label: np.ndarray) -> None:
    """image, label (H, W), kept as float32 and uint8, gzip; written beside and renamed."""
    write_pair(path, image, label, "HW")


def write_volume(path: Path, image: np.ndarray, label: np.ndarray, spacing: Spacing | None = None) -> None:
    """image, label (D, H, W), kept as float32 and uint8, gzip; spacing in millimetres along (D, H, W)."""
    write_pair(path, image, label, "DHW", spacing)


def write_pair(path: Path, image: np.ndarray, label: np.ndarray, axes: str, spacing: Spacing | None = None) -> None:
    if image.ndim != len(axes) or label.shape != image.shape:
        raise ValueError(
            f"{path}: image and label must have the axes ({', '.join(axes)}), got {image.shape} and {label.shape}"
        )
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset("image", data=image.astype(np.float32), compression="gzip")
        file.create_dataset("label", data=label.astype(np.uint8), compression="gzip")
        if spacing is not None:
            file.attrs["spacing"] = np.asarray(spacing, np.float64)
    write_atomically(path, buffer.getvalue())
