"""index.cuh far beyond 2^31: divisions, positions, offsets, patches, against Python's integers."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest

from . import build, data, params, tensors
from .driver import Input, Output, run
from .modes import each_mode


class IndexParams(ctypes.Structure):
    _fields_ = (
        ("index", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("grid", params.STRUCTS["Grid"]),
        ("strides", params.STRUCTS["Strides"]),
        ("batch", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("step", ctypes.c_int64),
    )


params.STRUCTS["IndexParams"] = IndexParams

# images, size, patch, pixels a thread
SPACES = [
    (5, (3, 7, 24), (2, 3, 8), 8),
    (1 << 20, (1, 1 << 11, 1 << 11), (1, 16, 16), 4),  # 2^42 pixels
    ((1 << 31) - 1, (1, 1, 1), (1, 1, 1), 1),
    (3, (1, (1 << 31) - 1, (1 << 31) - 4), (1, 1 << 30, (1 << 30) + 4), 4),  # nearly 2^62
    (12345, (641, 4097, 6700), (640, 4096, 4), 4),
    (1 << 40, (1, 3, 1 << 16), (1, 3, 1 << 15), 1),
]


@each_mode
@pytest.mark.parametrize(("images", "size", "patch", "step"), SPACES, ids=str)
def test_positions(images: int, size: tuple[int, ...], patch: tuple[int, ...], step: int, mode: str) -> None:
    depth, height, width = size
    total = images * depth * height * (width // step)
    g = data.rng(7)
    edges = {0, total - 1, *(b + e for p in range(62) for b in [1 << p] for e in (-1, 0, 1))}
    for length in (width // step, height * (width // step), depth * height * (width // step)):
        edges |= {int(m) * length + e for m in g.integers(0, max(1, total // length), 40) for e in (-1, 0, 1)}
    index = [i for i in sorted(edges) if 0 <= i < total] + [int(i) for i in g.integers(0, total, 200)]
    strides = {"n": (1 << 62) // images, "c": 0, "d": (1 << 20) + 1, "h": -3, "w": 2}
    counts = tensors.patch_counts(size, patch)
    out = Output("out", np.empty((len(index), 6), np.int64))
    fields = {
        "index": Input("index", np.array(index, np.int64)),
        "out": out,
        "grid": {"size": list(size), "patch": list(patch), "count": list(counts)},
        "strides": strides,
        "batch": images,
        "count": len(index),
        "step": step,
    }
    run("locate", "IndexParams", fields, mode=mode, executable=build.driver(mode, (build.HERE / "index.cu",), "index"))
    for i, actual in zip(index, out.array.tolist(), strict=True):
        rows, column = divmod(i, width // step)
        w = column * step
        slices, h = divmod(rows, height)
        n, d = divmod(slices, depth)
        offset = n * strides["n"] + d * strides["d"] + h * strides["h"] + w * strides["w"]
        cell = [a // b for a, b in zip((d, h, w), patch, strict=True)]
        number = n * math.prod(counts) + (cell[0] * counts[1] + cell[1]) * counts[2] + cell[2]
        assert actual == [n, d, h, w, offset, number], f"index {i}"
