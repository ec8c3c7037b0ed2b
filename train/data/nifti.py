"""NIfTI volumes as (D, H, W) arrays, the axes of the h5 layout, and back."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import nibabel
import numpy as np

from train.data.layout import Spacing
from train.files import write_atomically

SUFFIXES = (".nii.gz", ".nii")


def load(path: Path) -> nibabel.Nifti1Image:
    """The image, its voxels not yet read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no NIfTI file, or not one 3-D volume of real numbers.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a NIfTI file")
    try:
        image = nibabel.load(path)
    except (nibabel.filebasedimages.ImageFileError, gzip.BadGzipFile, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"{path} is damaged or no NIfTI file: {error}") from None
    if not isinstance(image, nibabel.Nifti1Image):
        raise ValueError(f"{path} is no NIfTI file but {type(image).__name__}")
    if len(image.shape) != 3 or 0 in image.shape:
        raise ValueError(f"{path} must hold one volume (X, Y, Z), got shape {image.shape}")
    if image.get_data_dtype().kind not in "iuf":
        raise ValueError(f"{path} must hold real numbers, got {image.get_data_dtype()}")
    return image


def voxels(path: Path) -> np.ndarray:
    """(D, H, W) float64, scaled as the header says: the file's Z, Y, X.

    Raises:
        FileNotFoundError, ValueError: as load; the data are cut off or damaged, or a voxel is NaN or infinite.
    """
    image = load(path)
    try:
        data = np.asarray(image.dataobj, np.float64).T
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"{path} is damaged or cut off: {error}") from None
    if not np.isfinite(data).all():
        raise ValueError(f"{path} must be finite, got {np.count_nonzero(~np.isfinite(data))} NaN or infinite voxels")
    return data


def spacing(path: Path) -> Spacing:
    """Millimetres between voxels along (D, H, W)."""
    width, height, depth = map(float, load(path).header.get_zooms())
    return depth, height, width


def normalised(path: Path) -> np.ndarray:
    """(D, H, W) float32, the volume's minimum at 0 and its maximum at 1."""
    data = voxels(path)
    low, high = data.min(), data.max()
    if low == high:
        raise ValueError(f"{path} is the same everywhere ({low:g}): there is nothing to normalise by")
    return ((data - low) / (high - low)).astype(np.float32)


def save_labels(path: Path, labels: np.ndarray, like: Path) -> None:
    """Writes labels (D, H, W) uint8 on the grid, affine and header of another file; beside, and renamed."""
    source = load(like)
    header = source.header.copy()
    header.set_data_dtype(np.uint8)
    header["cal_min"] = header["cal_max"] = 0  # a display range for intensities
    image = type(source)(np.ascontiguousarray(labels.T), source.affine, header)
    content = image.to_bytes()
    write_atomically(path, gzip.compress(content) if path.name.endswith(".gz") else content)


def stem(path: Path) -> str:
    """The file's name without .nii.gz or .nii."""
    for suffix in SUFFIXES:
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    raise ValueError(f"{path} must end in .nii.gz or .nii")
