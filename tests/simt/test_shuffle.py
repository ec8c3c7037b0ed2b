"""shuffle_patches and gather_patches: patches change place, their bits never; and the gradient, which adds them up."""

from __future__ import annotations

import numpy as np
import pytest

from . import data, launchers, reference
from .modes import each_mode
from .tensors import DTYPES, LAYOUTS, Tensor, bits, image, patch_counts, tensor

# images, patch, images per group
SHUFFLES = [
    ((4, 1, 16, 32), (8, 16), 4),
    ((4, 3, 12, 24), (4, 8), 2),
    ((6, 2, 10, 21), (5, 7), 3),
    ((2, 2, 4, 8, 16), (2, 4, 8), 1),
    ((2, 3, 5, 6), (1, 1), 2),
    ((0, 1, 8, 8), (4, 4), 2),
]


@each_mode
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "patch", "group"), SHUFFLES, ids=str)
def test_shuffle(
    shape: tuple[int, ...], patch: tuple[int, ...], group: int, dtype: str, inverse: bool, mode: str
) -> None:
    check_shuffle(image(shape, dtype), patch, group, inverse, mode)


@each_mode
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shuffle_layouts(layout: str, dtype: str, mode: str) -> None:
    for inverse in (False, True):
        check_shuffle(image((2, 4, 12, 32), dtype, layout), (6, 16), 2, inverse, mode)


def check_shuffle(x: Tensor, patch: tuple[int, ...], group: int, inverse: bool, mode: str) -> None:
    entries = group * int(np.prod(patch_counts(x.storage.shape[2:], patch)))
    permutation = data.rng(2).permutation(entries)
    out, _ = launchers.shuffle_patches(x, permutation, patch, inverse=inverse, mode=mode)
    np.testing.assert_array_equal(
        bits(out), bits(reference.shuffle_patches(x.storage, permutation, patch, inverse=inverse))
    )


@each_mode
@pytest.mark.parametrize("dtype", DTYPES)
def test_shuffle_with_entries_outside(dtype: str, mode: str) -> None:
    """Forward: 0; inverse: nothing is written there."""
    x = image((2, 2, 8, 16), dtype)
    permutation = np.array([3, 1 << 40, 0, -1, 5, 1, 8, 2])
    outside = (permutation < 0) | (permutation >= 8)
    out, _ = launchers.shuffle_patches(x, permutation, (4, 8), mode=mode)
    expected = reference.shuffle_patches(x.storage, np.where(outside, 0, permutation), (4, 8))
    holes = reference.pixel_mask(outside.reshape(2, 2, 2), (8, 16), (4, 8))[:, None] & np.ones((1, 2, 1, 1), bool)
    np.testing.assert_array_equal(bits(out[~holes]), bits(expected[~holes]))
    assert (bits(out[holes]) == 0).all()

    out, _ = launchers.shuffle_patches(x, permutation, (4, 8), inverse=True, mode=mode)
    reached = np.isin(np.arange(8), permutation).reshape(2, 2, 2)
    missed = np.broadcast_to(reference.pixel_mask(~reached, (8, 16), (4, 8))[:, None], out.shape)
    assert missed.any()
    assert (np.ascontiguousarray(out[missed]).view(np.uint8) == 0xFF).all()
    assert np.isfinite(Tensor(out, dtype).values[~missed]).any()


GATHERS = [
    ((4, 1, 16, 32), (8, 16)),
    ((4, 3, 12, 24), (4, 8)),
    ((3, 2, 10, 21), (5, 7)),
    ((2, 2, 4, 8, 16), (2, 4, 8)),
    ((2, 3, 5, 6), (1, 1)),
]


@each_mode
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "patch"), GATHERS, ids=str)
def test_gather_and_its_gradient(shape: tuple[int, ...], patch: tuple[int, ...], dtype: str, mode: str) -> None:
    check_gather(shape, patch, dtype, "contiguous", mode)


@each_mode
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gather_layouts(layout: str, mode: str) -> None:
    check_gather((2, 4, 12, 32), (6, 16), "bfloat16", layout, mode)


def check_gather(shape: tuple[int, ...], patch: tuple[int, ...], dtype: str, layout: str, mode: str) -> None:
    """One patch is taken by a whole image, and some entries are out of range."""
    x = image(shape, dtype, layout)
    per_image = int(np.prod(patch_counts(shape[2:], patch)))
    source = data.rng(7).integers(0, shape[0] * per_image, (shape[0], per_image))
    source[0] = source.size - 1
    out, _ = launchers.shuffle_patches(x, source.reshape(-1), patch, mode=mode)
    np.testing.assert_array_equal(bits(out), bits(reference.shuffle_patches(x.storage, source.reshape(-1), patch)))

    source[-1, 0], source[-1, -1] = -3, 1 << 40
    incoming = tensor(data.rng(8).normal(size=shape), dtype, layout)
    gradient, _ = launchers.gather_backward(incoming, source, patch, mode=mode)
    expected = reference.gather_backward(incoming.values, source.reshape(-1), patch)
    tolerance = {"float64": 1e-14, "float32": 1e-7, "float16": 1e-3, "bfloat16": 8e-3}[dtype]
    np.testing.assert_allclose(gradient, expected, rtol=tolerance, atol=tolerance)
