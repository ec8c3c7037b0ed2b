"""box_mask: boxes inside, cut, empty and beyond the image."""

from __future__ import annotations

import numpy as np
import pytest

from . import data, launchers
from .driver import FORWARD
from .modes import each_mode


def expected(boxes: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    out = np.ones((len(boxes), *size), bool)
    for axis, places in enumerate(np.indices(size)):
        first, last = (boxes[:, 2 * axis + end].reshape(-1, *[1] * len(size)) for end in (0, 1))
        out &= (first <= places) & (places < last)
    return out


@each_mode
@pytest.mark.parametrize("size", [(7, 9), (5, 16), (3, 48), (1, 1), (4, 5, 17), (2, 3, 32)], ids=str)
def test_boxes(size: tuple[int, ...], mode: str) -> None:
    boxes = data.rng(1).integers(-3, max(size) + 3, (40, 2 * len(size)))
    boxes[0], boxes[1, ::2], boxes[1, 1::2] = 0, -(1 << 62), 1 << 62
    out, _ = launchers.box_mask(boxes, size, mode=mode)
    np.testing.assert_array_equal(out, expected(boxes, size))


def test_an_odd_address() -> None:
    boxes = np.array([[2, 9, 5, 40], [0, 3, 1, 2]])
    out, _ = launchers.box_mask(boxes, (16, 64), out_offset=1)
    np.testing.assert_array_equal(out, expected(boxes, (16, 64)))


def test_rows_of_16_are_stored_whole() -> None:
    boxes = np.array([[2, 9, 5, 40]])
    _, counts = launchers.box_mask(boxes, (16, 64), mode="count", runs=FORWARD)
    (launch,) = counts.launches
    assert launch["buffers"]["out"]["written"] == 16 * 64
    assert [s["sectors"] for s in launch["sites"] if s["buffer"] == "out"] == [16 * 64 // 32]
