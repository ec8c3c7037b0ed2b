"""apply_mask and shuffle_patches: values are moved, never changed."""

from __future__ import annotations

import numpy as np
import pytest

from . import data, launchers, reference
from .modes import each_mode
from .tensors import DTYPES, LAYOUTS, Tensor, patch_counts, tensor, to_storage

# image, patch
IMAGES = [
    ((2, 1, 32, 32), (16, 16)),
    ((2, 3, 21, 24), (8, 8)),
    ((2, 3, 19, 23), (5, 7)),
    ((1, 2, 5, 12, 16), (2, 4, 8)),
    ((3, 2, 8, 16), (1, 1)),
    ((0, 1, 8, 8), (4, 4)),
    ((2, 2, 6, 8), (50, 50)),
]


def image(shape: tuple[int, ...], dtype: str, layout: str = "contiguous") -> Tensor:
    values = data.rng(sum(shape)).normal(size=shape)
    if values.size:
        values.reshape(-1)[::17] = np.inf
        values.reshape(-1)[5::31] = -0.0
    return tensor(values, dtype, layout)


def assert_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    bits = {2: np.uint16, 4: np.uint32, 8: np.uint64}[actual.itemsize]
    np.testing.assert_array_equal(
        np.ascontiguousarray(actual).view(bits), np.ascontiguousarray(expected).view(bits), strict=True
    )


@each_mode
@pytest.mark.parametrize("mask", ["same", "bool", "none"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "patch"), IMAGES, ids=str)
def test_apply(shape: tuple[int, ...], patch: tuple[int, ...], dtype: str, mask: str, mode: str) -> None:
    check_apply(image(shape, dtype), patch, mask, mode)


@each_mode
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_apply_layouts(channels: int, dtype: str, layout: str, mode: str) -> None:
    check_apply(image((2, channels, 18, 32), dtype, layout), (8, 16), "same", mode)


@each_mode
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_some_channels_of_a_channels_last_image(dtype: str, mode: str) -> None:
    """Interleaved, but not side by side: the other channels lie between."""
    x = Tensor(image((2, 8, 12, 32), dtype, "channels_last").storage[:, :4], dtype)
    check_apply(x, (6, 16), "same", mode)
    check_shuffle(x, (6, 16), 2, False, mode)


def check_apply(x: Tensor, patch: tuple[int, ...], mask: str, mode: str) -> None:
    n, _, *size = x.storage.shape
    patches = data.rng(1).random((n, *patch_counts(size, patch))) < 0.6
    out, pixels, _ = launchers.apply_mask(x, patches, patch, fill=0.1, mask=mask, mode=mode)
    expected = reference.pixel_mask(patches, size, patch)[:, None]
    assert_bits(out, np.where(expected, to_storage(np.array(0.1), x.dtype), x.storage))
    if mask == "none":
        assert pixels is None
    else:
        np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("channels", [1, 2])
def test_masked_pixels_are_not_read(channels: int) -> None:
    """The counter build sees no load of a masked patch."""
    x = image((2, channels, 64, 64), "float32")
    patches = np.zeros((2, 4, 4), bool)
    patches[:, 1:, :] = True
    _, _, counts = launchers.apply_mask(x, patches, (16, 16), mode="count", runs=(("forward", 0),))
    (launch,) = counts.launches
    assert launch["buffers"]["image"]["read"] == x.storage.nbytes // 4


# images, patch, images a group
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
    assert_bits(out, reference.shuffle_patches(x.storage, permutation, patch, inverse=inverse))


@each_mode
@pytest.mark.parametrize("dtype", DTYPES)
def test_shuffle_with_entries_outside(dtype: str, mode: str) -> None:
    """Forward: NaN; inverse: nothing is written there."""
    x = image((2, 2, 8, 16), dtype)
    permutation = np.array([3, 1 << 40, 0, -1, 5, 1, 8, 2])
    outside = (permutation < 0) | (permutation >= 8)
    out, _ = launchers.shuffle_patches(x, permutation, (4, 8), mode=mode)
    expected = reference.shuffle_patches(x.storage, np.where(outside, 0, permutation), (4, 8))
    holes = reference.pixel_mask(outside.reshape(2, 2, 2), (8, 16), (4, 8))[:, None] & np.ones((1, 2, 1, 1), bool)
    assert_bits(out[~holes], expected[~holes])
    assert np.isnan(Tensor(out, dtype).values[holes]).all()

    out, _ = launchers.shuffle_patches(x, permutation, (4, 8), inverse=True, mode=mode)
    reached = np.isin(np.arange(8), permutation).reshape(2, 2, 2)
    missed = np.broadcast_to(reference.pixel_mask(~reached, (8, 16), (4, 8))[:, None], out.shape)
    assert missed.any()
    assert (np.ascontiguousarray(out[missed]).view(np.uint8) == 0xFF).all()
    assert np.isfinite(Tensor(out, dtype).values[~missed]).any()
