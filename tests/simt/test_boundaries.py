"""Every length at which a kernel changes its way: just below it, on it, just above it, and at odd multiples.

docs/simt.md lists the lengths. Patches narrower and wider than an image's row; rows and classes that end within a step.
What takes seconds, or only repeats in another layout, is in the long run.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from . import data, launchers, reference
from . import test_entropy as entropies
from . import test_loss as losses
from . import test_shuffle as shuffles
from . import test_soft_loss as soft
from . import test_where as sides
from .driver import FORWARD, Planned
from .modes import LONG, MODES, each_mode
from .tensors import image, tensor

ONCE: dict[str, Any] = {"runs": FORWARD}


def some(ordinary: Iterable[tuple[Any, ...]], long: Iterable[tuple[Any, ...]]) -> list[Any]:
    return [*ordinary, *(pytest.param(*case, marks=LONG) for case in long)]


def name(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else getattr(value, "__name__", str(value))


def around(length: int) -> tuple[int, int, int]:
    return length - 1, length, length + 1


# ---- The pooling


def check_pool(shape: tuple[int, ...], patch: tuple[int, ...], dtype: str = "float32", **options: Any) -> None:
    x = tensor(data.usable_logits(shape, seed=patch[-1]), dtype)
    scores, labels, _ = launchers.entropy_pool(x, patch, labels="int64", **ONCE, **options)
    entropies.assert_scores(scores, reference.patch_scores(x.values, patch), dtype)
    np.testing.assert_array_equal(labels, reference.labels(x.values))


# A group of 1, 2, 4, ... 128 lanes takes up to 16 pixels a lane, and 31 more: it changes at 16 (2^m + 1) pixels.
GROUPS = [16 * ((1 << m) + 1) for m in range(7)]


@each_mode
@pytest.mark.parametrize("pixels", GROUPS)
def test_pixels_of_a_patch(pixels: int, mode: str) -> None:
    """In one row, narrower than the image's and wider; in four rows, the vectors of which are whole."""
    for width in around(pixels):
        check_pool((1, 2, 2, 2 * width + 5), (1, width), mode=mode)
        check_pool((1, 2, 3, width), (2, width + 7), mode=mode)
    for width in (pixels // 4 - 4, pixels // 4, pixels // 4 + 4):
        check_pool((1, 2, 5, 2 * width + 4), (4, width), mode=mode)


@each_mode
@pytest.mark.parametrize("vectors", [1, 2, 3, 4, 5, 7])
def test_vectors_of_a_patch_row(vectors: int, mode: str) -> None:
    """Labels in pairs of lanes where a row has an even number of vectors, in whole patches and in the last one."""
    for dtype, pixels in (("float32", 4), ("bfloat16", 8)):
        width = vectors * pixels
        for last in (pixels, 2 * pixels):
            check_pool((1, 3, 5, 2 * width + last), (4, width), dtype, mode=mode)


# In float32 a vector is 4 pixels, and a group 16 lanes but for the split patch.
PAIRS = [
    ((2, 2, 16, 32), (16, 16)),  # every warp is whole
    ((4, 2, 16, 24), (16, 12)),  # 3 vectors a row
    ((2, 2, 16, 52), (16, 16)),  # one vector a row in the patch that the edge cuts
    ((1, 2, 15, 192), (15, 192)),  # parts of 8 rows and 7
    ((1, 2, 4, 144), (2, 72)),  # 36 vectors a group
    ((1, 2, 16, 48), (16, 16)),  # 3 groups
]


@each_mode
@pytest.mark.parametrize(("shape", "patch"), PAIRS, ids=name)
def test_pairs_of_lanes(shape: tuple[int, ...], patch: tuple[int, ...], mode: str) -> None:
    """int64 labels of two lanes are written, and read, together where no warp is cut."""
    check_pool(shape, patch, mode=mode)
    x, labels, loss = losses.case(shape, patch, "float32")
    losses.check(x, labels, loss, mode, **ONCE)
    found, _, _ = launchers.pseudo_labels(x, labels="int64", mode=mode, **ONCE)
    np.testing.assert_array_equal(found, reference.labels(x.values))


# Of one to five patches, more than 2,048 pixels are split into parts, of whole rows.
SPLITS = [
    *((1, (2, width)) for width in (1023, 1024, 1025, 1027)),
    *((1, (rows, 1365)) for rows in (1, 2, 3)),  # 4,095 pixels of 3 rows
    *((1, (3, width)) for width in (1366, 4096, 4099)),
    *((patches, (2, 1026)) for patches in (3, 4, 5)),  # four patches a block of the launch that adds them up
    *((1, (rows, 2048)) for rows in (32, 33)),  # a lane a part
]
LONG_SPLITS = [
    *((1, (rows, 2048)) for rows in (31, 64, 65, 97)),
    *((patches, (2, 1028)) for patches in (1279, 1280, 1281)),  # so many are not split
    *((1, (rows, 2048)) for rows in (2559, 2560, 2561)),  # at most 2,560 parts
]


@pytest.mark.parametrize(("patches", "patch"), some(SPLITS, LONG_SPLITS), ids=name)
def test_split_patches(patches: int, patch: tuple[int, int]) -> None:
    rows, width = patch
    check_pool((patches, 2, rows, width), patch)
    if rows * width < 1 << 15 and patches < 6:
        check_pool((1, 2, rows, patches * width + 3), patch)
        check_pool((1, 2, patches * rows + 1, width), (rows, width + 9))


def test_patches_that_are_split() -> None:
    """A second launch adds up the parts, whatever the card: of 2,049 pixels and more, of up to 1,279 patches."""
    for patches, patch, launches in ((1279, (2, 1028), 2), (1280, (2, 1028), 1), (1279, (2, 1024), 1)):
        logits = tensor(np.empty((patches, 2, *patch)))
        for multiprocessors in (1, 200):
            with pytest.raises(Planned) as planned:
                launchers.entropy_pool(logits, patch, mode="count", dry=True, multiprocessors=multiprocessors, **ONCE)
            assert len(planned.value.counts.launches) == launches, (patches, patch)


# ---- Classes


@each_mode
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("classes", [1, 2, 3, 4, 5])
def test_few_classes(classes: int, dtype: str, mode: str) -> None:
    """Two, three and four classes in planes have kernels of their own, which give what those for up to eight do."""
    of_pixel = []
    for layout, width in (("contiguous", 16), ("padded", 24), ("strided", 16), ("channels_last", 16)):
        options: dict[str, Any] = {"mode": mode, **ONCE}
        x, labels, loss = losses.case((2, classes, 5, width), (4, 8), dtype, layout=layout, seed=classes)
        loss["dice_each"] = layout == "padded"
        losses.check(x, labels, loss, **options)
        found, _, _ = launchers.pseudo_labels(x, labels="int64", **options)
        np.testing.assert_array_equal(found, reference.labels(x.values))
        entropy, _ = launchers.entropy_map(x, normalize=False, **options)
        np.testing.assert_allclose(entropy, reference.entropy(x.values, normalize=False), rtol=0, atol=1e-6)
        of_pixel += [entropy] if width == 16 else []
        actual, _ = launchers.entropy_backward(x, entropy, normalize=False, **options)
        expected = reference.entropy_backward(x.values, entropy.astype(np.float64), normalize=False)
        entropies.assert_gradient(actual, expected, dtype)
        if classes > 1:
            scores, _, _ = launchers.entropy_pool(x, (4, 8), labels="int64", **options)
            entropies.assert_scores(scores, reference.patch_scores(x.values, (4, 8)), dtype)
    for other in of_pixel[1:]:
        np.testing.assert_array_equal(other, of_pixel[0])


# Registers up to 4 and 8, then chunks of 4 or 8; a warp's lanes; 16 bytes a class and thread in the cache up to 128.
CLASSES = [2, 3, 4, 5, 7, 8, 9, 11, 12, 13, 15, 16, 17, 20, 24, 31, 32, 33, 127, 128, 129]
# One element a class and thread up to 512 (and 256 of float64); coefficients of the loss in shared memory up to 1,024.
MANY_CLASSES = [255, 256, 257, 511, 512, 513, 1023, 1024, 1025, 2047, 2048]
CLASS_LAYOUTS = [
    ("contiguous", "float32"),
    ("channels_last", "float32"),
    ("channels_last", "bfloat16"),
    ("strided", "float32"),
    ("contiguous", "bfloat16"),
    ("contiguous", "float64"),
]
CLASS_CASES = [
    pytest.param(classes, *layout, marks=() if i % len(CLASS_LAYOUTS) in (j, (j + 3) % 6) else LONG)
    for i, classes in enumerate(CLASSES)
    for j, layout in enumerate(CLASS_LAYOUTS)
]
MANY_CLASS_CASES = [
    pytest.param(classes, *layout, marks=() if classes in (512, 1025) and j == i % 3 else LONG)
    for i, classes in enumerate(MANY_CLASSES)
    for j, layout in enumerate(CLASS_LAYOUTS)
]


@each_mode
@pytest.mark.parametrize(("classes", "layout", "dtype"), [*CLASS_CASES, *MANY_CLASS_CASES])
def test_classes(classes: int, layout: str, dtype: str, mode: str) -> None:
    """On one multiprocessor, so that few blocks loop where many classes leave room for few."""
    options: dict[str, Any] = {"mode": mode, "multiprocessors": 1, **ONCE}
    x, labels, loss = losses.case((1, classes, 5, 64), (3, 16), dtype, layout=layout, seed=classes)
    scores, _, _ = launchers.entropy_pool(x, (3, 16), **options)
    entropies.assert_scores(scores, reference.patch_scores(x.values, (3, 16)), dtype)
    actual, _ = launchers.entropy_map(x, **options)
    np.testing.assert_allclose(actual, reference.entropy(x.values), rtol=0, atol=4e-7)
    actual, _ = launchers.entropy_backward(x, scores, patch=(3, 16), **options)
    expected = reference.entropy_backward(x.values, scores.astype(np.float64), patch=(3, 16))
    entropies.assert_gradient(actual, expected, dtype)
    loss["dice_each"] = classes % 2 == 1
    losses.check(x, labels, loss, **options)
    x, y, where = soft.case((1, classes, 5, 64), dtype, layout=layout)
    soft.check(x, y, where, classes % 2 == 0, **options)


# ---- Pixels


# A block of 128 threads; six blocks a multiprocessor; two, or eight, steps of these before the sums are flushed.
PIXELS = {
    "strided": [1, *around(128), *around(768), 1537, *around(6144), 18433],
    "contiguous": [4, 508, 512, 516, 3068, 3072, 3076, 6140, 6144, 6148, 9220, 18436],
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", PIXELS)
def test_pixels(layout: str, mode: str) -> None:
    """The loss and its gradient, entropies and theirs, of an image of one row on one multiprocessor."""
    options: dict[str, Any] = {"mode": mode, "multiprocessors": 1, **ONCE}
    for pixels in PIXELS[layout]:
        x, labels, loss = losses.case((1, 2, 1, pixels), (1, pixels // 3 + 1), "float32", layout=layout, label=np.uint8)
        loss["dice_each"] = pixels % 2 == 1
        losses.check(x, labels, loss, **options)
        x, y, where = soft.case((1, 2, 1, pixels), "float32", layout=layout)
        soft.check(x, y, where, pixels % 2 == 0, **options)
        entropy, _ = launchers.entropy_map(x, **options)
        np.testing.assert_allclose(entropy, reference.entropy(x.values), rtol=0, atol=4e-7)
        actual, _ = launchers.entropy_backward(x, entropy, **options)
        entropies.assert_gradient(actual, reference.entropy_backward(x.values, entropy.astype(np.float64)), "float32")


@pytest.mark.parametrize("blocks", [32, 33, *(pytest.param(b, marks=LONG) for b in (31, 64, 65, 97, *around(960)))])
def test_blocks_of_the_loss(blocks: int) -> None:
    """A warp adds up the blocks, a lane each in turn, 30 of them at a time."""
    x, labels, loss = losses.case((1, 2, 1, 128 * blocks), (1, 100), "float32", layout="strided")
    losses.check(x, labels, loss, "plain", multiprocessors=250, **ONCE)
    x, y, where = soft.case((1, 2, 1, 128 * blocks), "float32", layout="strided")
    soft.check(x, y, where, True, "plain", multiprocessors=250, **ONCE)


@each_mode
@pytest.mark.parametrize(("classes", "dice_each"), [(84, False), (85, False), (42, True), (43, True)])
def test_sums_that_shared_memory_holds(classes: int, dice_each: bool, mode: str) -> None:
    """Up to 256 of the loss, in the launch that adds up the blocks."""
    x, labels, loss = losses.case((1, classes, 3, 8), (2, 3), "float32", seed=classes)
    loss["dice_each"] = dice_each
    losses.check(x, labels, loss, mode=mode, **ONCE)


# ---- The selection


def check_select(rows: int, length: int, dtype: type, **options: Any) -> None:
    scores = data.scores(rows, length, seed=length, dtype=dtype)
    scores[:, ::2] = np.round(scores[:, ::2], 1)  # ties in every tile
    for rule in ({"ratio": 0.6, "hint": 0.2}, {"min_score": 0.5, "lowest": True, "hint": 0.1}):
        actual, _ = launchers.select(scores, **rule, **options)
        np.testing.assert_array_equal(actual, reference.select(scores, **rule))


# 8 lanes an element, 32 elements a block, 256 keys read at a time, up to 512 a row; then one block, of 256 threads up
# to 1,024 a row, of 512 up to 2,048 and of 768 beyond, each of which takes four at a time.
ROW_LENGTHS = [
    *(1, 7, 8, 9, 15, 16, 17, 24, *around(32), *around(64), 96, *around(256), *around(512), *around(768)),
    *(*around(1024), 1536, *around(2048)),
]
LONG_ROW_LENGTHS = [1535, 1537, *around(3072), 4608, 5121, *around(6144), 9217]


@each_mode
@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=LONG)])
@pytest.mark.parametrize("lengths", [ROW_LENGTHS, pytest.param(LONG_ROW_LENGTHS, marks=LONG)], ids=["short", "long"])
def test_patches_of_a_row(lengths: list[int], dtype: type, mode: str) -> None:
    for length in lengths:
        check_select(3, length, dtype, mode=mode, **ONCE)


# Up to 40 KB of keys fit a block; beyond, tiles of 8,192 elements, which 512 threads take eight at a time.
TILED = [(10239, np.float32), (10241, np.float32), (16384, np.float32), (16385, np.float32), (5121, np.float64)]
LONG_TILED = [
    *((length, np.float32) for length in (10240, 16383, *around(16384 + 512), *around(16384 + 4096), *around(24576))),
    *((length, np.float64) for length in (5119, 5120, *around(8192), *around(16384))),
    *((length, np.float32) for length in (*around(32 * 8192), 33 * 8192)),  # a lane a tile
    *((length, np.float32) for length in around(128 * 8192)),  # at most 128 tiles, which grow beyond
    (128 * 8224 + 1, np.float32),
]


@pytest.mark.parametrize(("length", "dtype"), some(TILED, LONG_TILED), ids=name)
def test_patches_of_a_long_row(length: int, dtype: type) -> None:
    check_select(1, length, dtype, **ONCE)


# ---- where and shuffle


@each_mode
@pytest.mark.parametrize("dtype", sides.ELEMENTS)
def test_width_of_rows_that_are_moved(dtype: str, mode: str) -> None:
    """Steps of 16 bytes, 256 of them a block; patches as narrow as a step, and wider than the row."""
    step = 16 // image((1, 1, 1), dtype).storage.itemsize
    odd = [*around(step), *around(3 * step), *around(255), *around(256), 257 * step, 768 * step + 1]
    whole = [255 * step, 256 * step, 257 * step, 513 * step]
    for width in (w for w in [*odd, *whole] if w > 0):
        patch = (step, 3 * step, max(1, width - step), step + 1, width + 5)[width % 5]
        x = image((1, 1, 1, width), dtype)
        sides.check(7.0, x, (1, patch), ("same", "bool")[width % 2], mode, **ONCE)
        if width in odd[:9]:
            sides.check(x, image((1, 1, 1, width), dtype, "offset"), (1, patch), "bool", mode, **ONCE)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_width_of_patches_that_change_place(dtype: str) -> None:
    step = 16 // image((1, 1, 1), dtype).storage.itemsize
    for patch in (*around(step), *around(3 * step), *around(128 * step)):
        if patch > 0:
            shuffles.check_shuffle(image((2, 1, 1, 2 * patch), dtype), (1, patch), 2, False, "plain")
