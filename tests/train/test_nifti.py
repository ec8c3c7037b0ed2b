"""Reading NIfTI: nothing damaged is read, nothing that a header says about the grid is passed over."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.affines import from_matvec
from nibabel.nifti1 import Nifti1Header
from scipy.spatial.transform import Rotation

from train.data import nifti

DATA = np.random.default_rng(0).integers(-9, 900, (5, 4, 3)).astype(np.int16)
SIZES = (1.25, 1.5, 10.0)
ROTATION = Rotation.from_euler("xyz", (20, -35, 50), degrees=True).as_matrix()
OBLIQUE = from_matvec(ROTATION * SIZES, (-90.0, 12.5, 33.0))
ONE_LINE = r"^[^\n]*scan\.nii[^\n]*$"


def write(
    path: Path,
    data: np.ndarray = DATA,
    affine: np.ndarray | None = OBLIQUE,
    edit: Callable[[Nifti1Header], None] = lambda header: None,
    kind: type[nibabel.Nifti1Image] = nibabel.Nifti1Image,
) -> Path:
    """The header is edited as bytes, so that what nibabel would refuse or mend is written too."""
    image = kind(data, affine)
    if affine is not None:
        image.set_qform(affine, 1)
    content = image.to_bytes()
    length = image.header.template_dtype.itemsize
    header = type(image.header)(content[:length], check=False)
    edit(header)
    content = header.binaryblock + content[length:]
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


def fields(**values: object) -> Callable[[Nifti1Header], None]:
    def edit(header: Nifti1Header) -> None:
        for name, value in values.items():
            header[name] = value

    return edit


# --- damage


def test_every_bit_of_a_packed_file(tmp_path: Path) -> None:
    """Any bit that is changed is an error that names the file, or one of gzip's that say nothing, such as its date's."""
    path = write(tmp_path / "scan.nii.gz")
    content, whole = path.read_bytes(), nifti.read(path)
    np.testing.assert_array_equal(whole.voxels, DATA.T)
    refused = 0
    for position in range(len(content)):
        for bit in (0, 5):
            case = bytearray(content)
            case[position] ^= 1 << bit
            path.write_bytes(case)
            try:
                got = nifti.read(path)
            except ValueError as error:
                assert "scan.nii.gz" in str(error) and "\n" not in str(error)
                refused += 1
            else:
                assert np.array_equal(got.voxels, whole.voxels) and got.image.header == whole.image.header
    assert refused >= 2 * (len(content) - 9)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_files_that_end_too_early_or_too_late(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name)
    content = path.read_bytes()
    for case in [content[:n] for n in range(0, len(content), 3)] + [content[:-1], content + b"\1", content * 2]:
        path.write_bytes(case)
        with pytest.raises(ValueError, match=ONE_LINE):
            nifti.read(path)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_every_bit_of_a_plain_header(
    tmp_path: Path, kind: type[nibabel.Nifti1Image], capfd: pytest.CaptureFixture[str]
) -> None:
    """A header without a checksum may be damaged unseen, but whatever is seen names the file, and nothing is mended."""
    path = write(tmp_path / "scan.nii", kind=kind)
    content = path.read_bytes()
    refused = 0
    for position in range(0, kind.header_class.template_dtype.itemsize):
        case = bytearray(content)
        case[position] ^= 1 << (3 * position % 8)
        path.write_bytes(case)
        try:
            volume = nifti.read(path)
            spacing = nifti.grid(volume).spacing
        except ValueError as error:
            assert "scan.nii" in str(error) and "\n" not in str(error)
            refused += 1
        else:
            assert volume.voxels.shape == DATA.T.shape and all(0 < size < np.inf for size in spacing)
    assert refused > 25
    assert not capfd.readouterr().err


@pytest.mark.parametrize(
    "edit, message",
    [
        (fields(datatype=9999), "datatype must be a code of NIfTI's, got 9999"),
        (fields(datatype=128), "damaged or cut off|must hold real numbers"),
        (fields(dim=[3, 5, 4, 4, 1, 1, 1, 1]), "it has 472 bytes, by its header it must have 512"),
        (fields(dim=[3, 5, -4, 3, 1, 1, 1, 1]), r"one volume \(X, Y, Z\), got shape \(5, -4, 3\)"),
        (fields(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]), "by its header it must have 70362301"),
        (fields(vox_offset=np.nan), "vox_offset must be a whole number, 348 or more, got nan"),
        (fields(vox_offset=2e9), "by its header it must have 2000000"),
        (fields(magic=b"ni1"), "does not begin with a header"),
        (fields(scl_slope=1.0, scl_inter=np.inf), "damaged"),
        (fields(pixdim=[1, 1.25, 0, 10, 0, 0, 0, 0]), r"positive size, got 1\.25 x 0 x 10"),
        (fields(pixdim=[1, 1.25, 1.5, np.nan, 0, 0, 0, 0]), r"positive size, got 1\.25 x 1\.5 x nan"),
        (fields(pixdim=[1, -1.25, 1.5, 10, 0, 0, 0, 0]), r"positive size, got -1\.25 x"),
        (fields(pixdim=[3, 1.25, 1.5, 10, 0, 0, 0, 0]), r"pixdim\[0\] must be -1, 0 or 1, got 3"),
        (fields(quatern_b=1.5), "quaternion must be of length 1 at most, got 1.5"),
        (fields(quatern_b=np.nan), "quaternion must be of length 1 at most, got nan"),
        (fields(srow_x=[np.nan, 0, 0, 0]), "affine must be finite and invertible"),
        (fields(srow_z=[0, 0, 0, 0]), "affine must be finite and invertible"),
        (fields(sform_code=77), "sform_code must be one of"),
        (fields(xyzt_units=5), "xyzt_units must name metres, millimetres, micrometres or nothing, got 5"),
    ],
)
def test_bad_headers(tmp_path: Path, edit: Callable[[Nifti1Header], None], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^[^\n]*scan\.nii [^\n]*({message})[^\n]*$"):
        nifti.read(write(tmp_path / "scan.nii", edit=edit))


# --- what is clear


def test_one_volume_of_four_axes(tmp_path: Path) -> None:
    volume = nifti.read(write(tmp_path / "scan.nii.gz", DATA[..., None, None]))
    np.testing.assert_array_equal(volume.voxels, DATA.T)
    assert nifti.grid(volume).spacing == pytest.approx(SIZES[::-1])
    nifti.save_labels(tmp_path / "labels.nii", (DATA > 400).T.astype(np.uint8), volume)
    saved = nifti.read(tmp_path / "labels.nii")
    assert saved.image.shape == DATA.shape
    np.testing.assert_array_equal(saved.image.affine, volume.image.affine)


def test_quaternion_that_is_rounded(tmp_path: Path) -> None:
    """A half turn has a quaternion of unit length in (b, c, d) alone, and its rounding may be longer."""
    half_turn = from_matvec(Rotation.from_rotvec(np.pi * np.array([0.6, 0.0, 0.8])).as_matrix() * SIZES, (1, 2, 3))
    edit = fields(quatern_b=0.60005, quatern_c=0, quatern_d=0.80005, sform_code=0)
    path = write(tmp_path / "scan.nii", affine=half_turn, edit=edit)
    with pytest.raises(ValueError, match="w2 should be positive"):
        nibabel.load(path)
    np.testing.assert_allclose(nifti.grid(nifti.read(path)).affine, half_turn, atol=0.01)


@pytest.mark.parametrize("code, factor", [(0, 1.0), (2, 1.0), (1, 1000.0), (3, 0.001)])
def test_units(tmp_path: Path, code: int, factor: float) -> None:
    affine = from_matvec(ROTATION * SIZES / factor, OBLIQUE[:3, 3] / factor)
    got = nifti.grid(nifti.read(write(tmp_path / "scan.nii", affine=affine, edit=fields(xyzt_units=code + 8))))
    assert got.spacing == pytest.approx(SIZES[::-1])
    np.testing.assert_allclose(got.affine, OBLIQUE, rtol=1e-5, atol=1e-5)


def test_which_affine_counts(tmp_path: Path) -> None:
    """ACDC's own files: an sform of unit voxels beside the right qform and voxel size."""
    rows = dict(zip(("srow_x", "srow_y", "srow_z"), np.diag([-1.0, -1.0, 1.0, 1.0]), strict=False))
    both = nifti.grid(nifti.read(write(tmp_path / "scan.nii", edit=fields(**rows))))
    assert both.spacing == pytest.approx(SIZES[::-1])
    np.testing.assert_allclose(both.affine, OBLIQUE, atol=1e-5)
    alone = nifti.grid(nifti.read(write(tmp_path / "scan.nii", edit=fields(**rows, qform_code=0))))
    np.testing.assert_allclose(alone.affine, np.diag([-1.25, -1.5, 10, 1]), atol=1e-6)
    none = nifti.grid(nifti.read(write(tmp_path / "scan.nii", edit=fields(sform_code=0, qform_code=0))))
    assert none.affine is None and none.spacing == pytest.approx(SIZES[::-1])
    for x, y, got in (
        ((3.0, 0, 0, 0), (0, 1.5, 0, 0), "3 x 1.5 x 10"),
        ((1.25, 0.9, 0, 0), (0, 1.2, 0, 0), "1.25 x 1.5 x"),
    ):
        edit = fields(srow_x=x, srow_y=y, srow_z=(0, 0, 10, 0), qform_code=0)
        with pytest.raises(ValueError, match=rf"scan\.nii must have an affine with right angles .* 10, got {got}"):
            nifti.grid(nifti.read(write(tmp_path / "scan.nii", edit=edit)))


# --- a label on its image's grid


def moved(data: np.ndarray, axes: tuple[int, ...], flips: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Data with axes exchanged and flipped, and the affine by which each voxel stays where it was."""
    step = np.eye(4)
    step[:3, :3] = np.eye(3)[:, axes] * flips
    new = data.transpose(axes)[tuple(slice(None, None, f) for f in flips)]
    for axis, flip in zip(axes, flips, strict=True):
        step[axis, 3] = (data.shape[axis] - 1) * (flip < 0)
    return new, OBLIQUE @ step


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
def test_label_in_another_orientation(tmp_path: Path, axes: tuple[int, ...], flips: tuple[int, ...]) -> None:
    image = nifti.read(write(tmp_path / "scan.nii.gz"))
    data, affine = moved(DATA, axes, flips)
    affine[:3] += np.random.default_rng(0).normal(0, 1e-4, (3, 4))  # as other programs round it
    label = nifti.read(write(tmp_path / "label.nii.gz", data, affine))
    np.testing.assert_array_equal(nifti.on_grid(label, image), image.voxels)


@pytest.mark.parametrize(
    "data, affine, edit, message",
    [
        (DATA, from_matvec(OBLIQUE[:3, :3], OBLIQUE[:3, 3] + (0, 0, 300)), fields(), "up to 300 mm away"),
        (DATA, from_matvec(OBLIQUE[:3, :3], OBLIQUE[:3, 3] + (0, 0.5, 0)), fields(), "up to 0.5 mm away"),
        (DATA, from_matvec(OBLIQUE[:3, :3] * (1, 1, 1.2), OBLIQUE[:3, 3]), fields(), "up to 4 mm away"),
        (DATA, OBLIQUE, fields(xyzt_units=1), "mm away"),
        (DATA, np.diag([*SIZES, 1]), fields(), r"got \(4, 5, 3\), by its affine turned from \(5, 4, 3\)"),
        (DATA[:, ::-1], OBLIQUE @ np.diag([1.0, -1, 1, 1]), fields(), "up to 4.5 mm away"),
        (DATA, None, fields(), "mm away"),
        (DATA[:, :3], OBLIQUE, fields(), r"have the shape \(5, 4, 3\) of scan\.nii\.gz, got \(5, 3, 3\)"),
    ],
)  # fmt: skip
def test_label_elsewhere(
    tmp_path: Path, data: np.ndarray, affine: np.ndarray, edit: Callable[[Nifti1Header], None], message: str
) -> None:
    image = nifti.read(write(tmp_path / "scan.nii.gz"))
    label = nifti.read(write(tmp_path / "label.nii.gz", data, affine, edit))
    with pytest.raises(ValueError, match=rf"^[^\n]*label\.nii\.gz must [^\n]*{message}"):
        nifti.on_grid(label, image)


def test_label_of_which_only_the_voxel_size_is_known(tmp_path: Path) -> None:
    image = nifti.read(write(tmp_path / "scan.nii.gz"))
    path = write(tmp_path / "label.nii", edit=fields(sform_code=0, qform_code=0))
    np.testing.assert_array_equal(nifti.on_grid(nifti.read(path), image), image.voxels)
