"""The largest component of each class: the same answer in every order of threads."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import ndimage

from . import data, launchers
from .driver import FORWARD
from .modes import each_mode

SHAPES = [
    (1, 1, 1),
    (2, 1, 70),
    (2, 70, 1),
    (2, 13, 31),
    (1, 9, 32),
    (2, 7, 33),
    (1, 5, 65),
    (1, 3, 4, 37),
    (2, 5, 1, 8),
]


def expected(labels: np.ndarray, classes: int, connectivity: int) -> np.ndarray:
    out = labels.copy()
    structure = ndimage.generate_binary_structure(labels.ndim - 1, connectivity)
    for image, k in itertools.product(out, [k for k in np.unique(out) if 0 < k < classes]):
        found, count = ndimage.label(image == k, structure)
        if count > 1:
            pixels = np.bincount(found.ravel())[1:]
            image[(found > 0) & (found != 1 + pixels.argmax())] = 0
    return out


def check(labels: np.ndarray, classes: int, mode: str) -> None:
    for connectivity in range(1, labels.ndim):
        out, _ = launchers.components(labels, classes, connectivity, mode=mode)
        np.testing.assert_array_equal(out, expected(labels, classes, connectivity))


@each_mode
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_noise(shape: tuple[int, ...], dtype: type, mode: str) -> None:
    labels = data.rng(1).integers(0, 4, shape).astype(dtype)
    labels[data.rng(2).random(shape) < 0.05] = 255
    check(labels, 4, mode)


def hard(n: int) -> dict[str, np.ndarray]:
    rows, columns = np.indices((n, n))
    snake = ((rows % 2 == 0) | (columns == np.where(rows // 2 % 2, 0, n - 1))).astype(np.uint8)
    comb = ((columns % 2 == 0) | (rows == n - 1)).astype(np.uint8)
    return {
        "snake": snake,  # one line through all pixels of every other row
        "comb": comb,  # teeth that meet in the last row
        "checkerboard": ((rows + columns) % 2 + 1).astype(np.uint8),
        "full": np.ones((n, n), np.uint8),
        "columns": (columns % 3).astype(np.uint8),
        "rings": (np.maximum(abs(rows - n // 2), abs(columns - n // 2)) % 3).astype(np.uint8),
    }


@each_mode
@pytest.mark.parametrize("shape", hard(3))
def test_shapes_that_are_hard_to_unite(shape: str, mode: str) -> None:
    image = hard(35)[shape]
    check(np.stack([image, image[::-1], image.T]), 3, mode)


@each_mode
def test_many_classes_and_few_pixels(mode: str) -> None:
    """More places for the best than threads to clear them."""
    labels = np.array([[[65535, 0, 65535, 65535, 65536, 3]]])
    check(labels, 65536, mode)


def test_launches() -> None:
    labels = data.rng(3).integers(0, 4, (2, 40, 50)).astype(np.uint8)
    out, counts = launchers.components(labels, 4, 2, mode="count", runs=FORWARD)
    np.testing.assert_array_equal(out, expected(labels, 4, 2))
    assert len(counts.launches) == 5
