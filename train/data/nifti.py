"""NIfTI volumes as (D, H, W) arrays, the axes of the h5 layout, and back."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
from nibabel.nifti1 import data_type_codes, xform_codes
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from train.data.layout import Spacing
from train.files import reason, write_atomically

SUFFIXES = (".nii.gz", ".nii")
NIFTI_2 = ((540).to_bytes(4, "little"), (540).to_bytes(4, "big"))  # how such a file begins
UNITS = {
    0: 1.0,
    1: 1000.0,
    2: 1.0,
    3: 0.001,
}  # xyzt_units: millimetres of nothing stated, metre, millimetre, micrometre
NEAR_UNIT = 1e-3  # how much longer than a unit quaternion the rounded one of a header may be
AGREE = 0.01  # within which the voxel sizes of header and affine are the same, and axes at right angles
SAME_GRID = 0.1  # voxels within which the corners of two grids that are the same lie


class Volume(NamedTuple):
    path: Path
    image: nibabel.Nifti1Image
    voxels: np.ndarray  # (D, H, W) float64, scaled as the header says: the file's Z, Y, X


class Grid(NamedTuple):
    """Where voxels lie, in millimetres."""

    spacing: Spacing  # along (D, H, W)
    affine: np.ndarray | None  # (4, 4), the file's voxel indices (x, y, z) to space; None: the file does not say


def read(path: Path) -> Volume:
    """The one volume of a file, which is read and verified to its end.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, no NIfTI file, or holds something else than one 3-D volume of finite real numbers
        on a grid of positive voxel size.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a NIfTI file")
    content = path.read_bytes()
    try:
        if path.name.endswith(".gz"):
            content = gzip.decompress(content)  # to the end, where the checksum is
        content, header = check_header(content)
        shape, dtype = tuple(map(int, header.get_data_shape())), header.get_data_dtype()
    except Exception as error:
        raise ValueError(f"{path} is damaged, cut off or no NIfTI file: {reason(error)}") from None
    if len(shape) < 3 or min(shape) < 1 or math.prod(shape[3:]) != 1:
        raise ValueError(f"{path} must hold one volume (X, Y, Z), got shape {shape}")
    if dtype.kind not in "iuf":
        raise ValueError(f"{path} must hold real numbers, got {dtype}")
    size = int(header["vox_offset"]) + math.prod(shape) * dtype.itemsize
    if len(content) != size:
        raise ValueError(
            f"{path} is damaged or cut off: it has {len(content)} bytes, by its header it must have {size}"
        )
    try:
        image_class = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
        image = image_class.from_bytes(content)
        voxels = np.asarray(image.dataobj, np.float64).reshape(shape[:3]).T
    except Exception as error:
        raise ValueError(f"{path} is damaged: {reason(error)}") from None
    if not np.isfinite(voxels).all():
        raise ValueError(f"{path} must be finite, got {np.count_nonzero(~np.isfinite(voxels))} NaN or infinite voxels")
    return Volume(path, image, voxels)


def check_header(content: bytes) -> tuple[bytes, nibabel.Nifti1Header]:
    """The header, refused where nibabel would mend it in silence, and the content with what is only rounded mended."""
    kind = nibabel.Nifti2Header if content[:4] in NIFTI_2 else nibabel.Nifti1Header
    length = kind.template_dtype.itemsize
    header = kind(content[:length], check=False)
    if int(header["sizeof_hdr"]) != length or bytes(header["magic"])[:3] not in (b"n+1", b"n+2"):
        raise ValueError("it does not begin with a header of NIfTI's single-file kind")
    if not (header["vox_offset"] >= length and header["vox_offset"] % 1 == 0):
        raise ValueError(f"vox_offset must be a whole number, {length} or more, got {header['vox_offset']}")
    sizes = header["pixdim"][1:4]
    if not (np.isfinite(sizes) & (sizes > 0)).all():
        raise ValueError(f"voxels must have a positive size, got {' x '.join(f'{size:g}' for size in sizes)}")
    if int(header["xyzt_units"]) % 8 not in UNITS:
        raise ValueError(
            f"xyzt_units must name metres, millimetres, micrometres or nothing, got {header['xyzt_units']}"
        )
    for form in ("qform_code", "sform_code"):
        if int(header[form]) not in xform_codes.value_set():
            raise ValueError(f"{form} must be one of {sorted(xform_codes.value_set())}, got {header[form]}")
    if header["qform_code"] != 0:
        mend_qform(header)
        content = header.binaryblock + content[length:]
    for affine in affines(header):
        with np.errstate(all="ignore"):  # of numbers beyond measure, which are refused
            flat = not abs(np.linalg.det(affine)) > 1e-6 * np.prod(np.linalg.norm(affine[:3, :3], axis=0))
        if flat or not np.isfinite(affine).all():
            raise ValueError(f"the affine must be finite and invertible, got {affine[:3].tolist()}")
    if int(header["datatype"]) not in data_type_codes.value_set("code"):
        raise ValueError(f"datatype must be a code of NIfTI's, got {header['datatype']}")
    return content, header


def mend_qform(header: nibabel.Nifti1Header) -> None:
    """A quaternion of rounded numbers may be a little too long; a qfac of 0 means 1."""
    qfac = header["pixdim"][0]
    if qfac not in (-1, 0, 1):
        raise ValueError(f"pixdim[0] must be -1, 0 or 1, got {qfac}")
    header["pixdim"][0] = qfac or 1
    fields = ("quatern_b", "quatern_c", "quatern_d")
    quaternion = np.array([header[field] for field in fields], np.float64)
    length = np.linalg.norm(quaternion)
    if not length <= 1 + NEAR_UNIT:
        raise ValueError(f"the qform's quaternion must be of length 1 at most, got {length:g}")
    if length > 1:
        for field, value in zip(fields, quaternion / length, strict=True):
            header[field] = value


def affines(header: nibabel.Nifti1Header) -> list[np.ndarray]:
    """The affines that the header states, the one that counts more first, as float64 in the header's units."""
    stated = (header.get_sform(coded=True)[0], header.get_qform(coded=True)[0])
    return [np.asarray(affine, np.float64) for affine in stated if affine is not None]


def grid(volume: Volume) -> Grid:
    """Where the voxels lie.

    The voxel size is pixdim's. The sform counts if its axes are that long, else the qform, whose axes always are:
    ACDC's own files have an sform of 1 x 1 x 1, which says no more than how the axes point.

    Raises:
        ValueError: the affine contradicts the voxel size, or its axes are not at right angles.
    """
    header = volume.image.header
    unit = UNITS[int(header["xyzt_units"]) % 8]
    sizes = np.asarray(header["pixdim"][1:4], np.float64)
    width, height, depth = map(float, sizes * unit)
    stated = affines(header)
    for affine in stated:
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        if np.allclose(lengths, 1, rtol=AGREE) and len(stated) == 1:
            affine = affine @ np.diag([*(sizes / lengths), 1.0])
            lengths = sizes
        directions = affine[:3, :3] / lengths
        right_angles = np.allclose(directions.T @ directions, np.eye(3), atol=AGREE)
        if np.allclose(lengths, sizes, rtol=AGREE) and right_angles:
            return Grid((depth, height, width), np.diag([unit, unit, unit, 1.0]) @ affine)
    if stated:
        lengths = np.linalg.norm(stated[0][:3, :3], axis=0)
        raise ValueError(
            f"{volume.path} must have an affine with right angles and the header's voxel size "
            f"{' x '.join(f'{size:g}' for size in sizes)}, got {' x '.join(f'{size:g}' for size in lengths)} "
            f"in {stated[0][:3, :3].tolist()}"
        )
    return Grid((depth, height, width), None)


def on_grid(label: Volume, image: Volume) -> np.ndarray:
    """The label's voxels (D, H, W), its axes turned and flipped to the image's where both lie on the same grid.

    Where one of the two files states no position, their voxels are taken to be in the same order.

    Raises:
        ValueError: the label does not lie on the image's grid.
    """
    here, there = grid(label), grid(image)
    mine, its = here.affine, there.affine
    if mine is None or its is None:
        mine, its = (np.diag([*spacing[::-1], 1.0]) for spacing in (here.spacing, there.spacing))
    turn = io_orientation(np.linalg.inv(its) @ mine)
    voxels = apply_orientation(label.voxels.T, turn)
    turned = mine @ inv_ornt_aff(turn, label.voxels.T.shape)
    if voxels.shape != image.voxels.T.shape:
        turning = "" if voxels.shape == label.voxels.T.shape else f", by its affine turned from {label.voxels.T.shape}"
        raise ValueError(
            f"{label.path} must have the shape {image.voxels.T.shape} of {image.path.name}, got {voxels.shape}{turning}"
        )
    corners = np.stack(np.meshgrid(*([0, n - 1] for n in voxels.shape), [1]), -1).reshape(-1, 4)
    away = np.linalg.norm(corners @ (turned - its).T, axis=1).max()
    if away > SAME_GRID * min(there.spacing):
        raise ValueError(
            f"{label.path} must lie on the grid of {image.path.name}, by its affine it is up to {away:.3g} mm away"
        )
    return np.ascontiguousarray(voxels.T)


def save_labels(path: Path, labels: np.ndarray, like: Volume) -> None:
    """Writes labels (D, H, W) uint8 on the grid, affine and header of another volume; beside, and renamed."""
    header = like.image.header.copy()
    header.set_data_dtype(np.uint8)
    header["cal_min"] = header["cal_max"] = 0  # a display range for intensities
    image = type(like.image)(np.ascontiguousarray(labels.T), like.image.affine, header)
    content = image.to_bytes()
    write_atomically(path, gzip.compress(content) if path.name.endswith(".gz") else content)


def stem(path: Path) -> str:
    """The file's name without .nii.gz or .nii."""
    for suffix in SUFFIXES:
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    raise ValueError(f"{path} must end in .nii.gz or .nii")
