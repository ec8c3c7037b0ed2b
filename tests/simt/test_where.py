"""where: elements are moved, never changed, whatever side, size, layout and mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from . import data, launchers, reference
from .launchers import Number
from .modes import LONG, each_mode
from .tensors import LAYOUTS, Tensor, bits, image, patch_counts, to_storage

ELEMENTS = ("uint8", "bfloat16", "float32", "float64")  # 1, 2, 4, 8 bytes

# image, patch
IMAGES = [
    ((2, 1, 32, 32), (16, 16)),
    ((2, 3, 21, 24), (8, 8)),
    ((2, 3, 19, 23), (5, 7)),
    ((1, 2, 5, 12, 16), (2, 4, 8)),
    ((3, 2, 8, 16), (1, 1)),
    ((0, 1, 8, 8), (4, 4)),
    ((2, 0, 8, 16), (4, 8)),
    ((2, 2, 6, 8), (50, 50)),
]


def check(
    inside: Number, outside: Number, patch: tuple[int, ...], mask: str, mode: str, *, shared: bool = False, **run: Any
) -> None:
    """`shared`: one grid for all images."""
    x = outside if isinstance(outside, Tensor) else inside
    assert isinstance(x, Tensor)
    n, _, *size = x.storage.shape
    patches = data.rng(1).random((1 if shared else n, *patch_counts(size, patch))) < 0.6
    out, pixels, _ = launchers.where(patches, inside, outside, patch, mask=mask, mode=mode, **run)
    sides = [s.storage if isinstance(s, Tensor) else to_storage(np.array(s), x.dtype) for s in (inside, outside)]
    np.testing.assert_array_equal(bits(out), bits(reference.where(patches, *sides, size, patch)))
    if mask == "none":
        assert pixels is None
    else:
        np.testing.assert_array_equal(pixels, np.broadcast_to(reference.pixel_mask(patches, size, patch), (n, *size)))


@each_mode
@pytest.mark.parametrize("dtype", ELEMENTS)
@pytest.mark.parametrize(("shape", "patch"), IMAGES, ids=str)
def test_where(shape: tuple[int, ...], patch: tuple[int, ...], dtype: str, mode: str) -> None:
    """A number on either side, or on none; each kind of mask; a grid an image, or one for all."""
    x = image(shape, dtype)
    other = Tensor(x.storage[:, :, ::-1].copy(), dtype)
    check(0.1, x, patch, "same", mode)
    check(x, -3.0 if dtype != "uint8" else 200.0, patch, "bool", mode, shared=True)
    check(x, other, patch, "none", mode, shared=len(shape) == 5)


# All of them in the long run, otherwise each layout with each element, and with each number of channels.
LAYOUT_CASES = [
    pytest.param(channels, dtype, layout, marks=() if (i + j) % 3 == k else LONG)
    for i, layout in enumerate(LAYOUTS)
    for j, dtype in enumerate(ELEMENTS)
    for k, channels in enumerate((1, 3, 4))
]


@each_mode
@pytest.mark.parametrize(("channels", "dtype", "layout"), LAYOUT_CASES)
def test_layouts(channels: int, dtype: str, layout: str, mode: str) -> None:
    """Both sides in the layout, then each in one of its own."""
    x = image((2, channels, 18, 32), dtype, layout)
    check(7.0, x, (8, 16), "same", mode)
    check(Tensor(x.storage[::-1].copy(order="K"), dtype, x.offset), x, (8, 16), "none", mode)
    other = image(x.storage.shape, dtype, LAYOUTS[LAYOUTS.index(layout) - 1])
    check(other, x, (8, 16), "bool", mode)


@each_mode
@pytest.mark.parametrize("dtype", ELEMENTS)
def test_some_channels_of_a_channels_last_image(dtype: str, mode: str) -> None:
    """Interleaved, but not side by side: the other channels lie between."""
    x = Tensor(image((2, 8, 12, 32), dtype, "channels_last").storage[:, :4], dtype)
    check(7.0, x, (6, 16), "same", mode)
    check(x, image((2, 4, 12, 32), dtype, "channels_last"), (6, 16), "none", mode)


@pytest.mark.parametrize("mask", ["bool", "same"])
@pytest.mark.parametrize("dtype", ELEMENTS)
def test_mask_at_an_odd_address(dtype: str, mask: str) -> None:
    check(7.0, image((2, 1, 6, 32), dtype), (4, 16), mask, "plain", mask_offset=1 if mask == "bool" else 8)


@pytest.mark.parametrize("value", [np.nan, -np.inf, -0.0, 1e30])
def test_numbers(value: float) -> None:
    """Their bits arrive: also those of a number that is none."""
    for dtype in ("float32", "float64", "bfloat16"):
        x = image((1, 2, 8, 16), dtype)
        check(value, x, (4, 8), "same", "plain")
        check(x, value, (4, 8), "same", "plain")


@each_mode
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("lacks", ["inside", "outside"])
def test_images_that_a_side_does_not_have(lacks: str, layout: str, mode: str) -> None:
    """The side that is not taken is not read: its buffer ends before."""
    x, whole = image((3, 3, 16, 32), "float32", layout), image((3, 3, 16, 32), "float32", layout)
    short = Tensor(x.storage[:1], "float32", x.offset)
    patches = np.zeros((3, 2, 2), bool)
    patches[0, :, 1] = True
    if lacks == "outside":
        patches[1:] = True
    sides = (short, whole) if lacks == "inside" else (whole, short)
    out, _, _ = launchers.where(patches, *sides, (8, 16), mode=mode)
    np.testing.assert_array_equal(bits(out), bits(reference.where(patches, x.storage, x.storage, (16, 32), (8, 16))))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("channels", [1, 2])
def test_pixels_of_the_other_side_are_not_read(channels: int, layout: str) -> None:
    """The counter build sees that each side is read where it is taken, and nowhere else."""
    x = image((2, channels, 64, 64), "float32", layout)
    patches = np.zeros((2, 4, 4), bool)
    patches[:, 1:, :] = True
    for inside in (0.0, x):
        _, _, counts = launchers.where(
            patches, inside, Tensor(x.storage, x.dtype), (16, 16), mode="count", runs=(("forward", 0),)
        )
        (launch,) = counts.launches
        assert launch["buffers"]["outside"]["read"] == x.storage.nbytes // 4
        if inside is x:
            assert launch["buffers"]["inside"]["read"] == x.storage.nbytes * 3 // 4
