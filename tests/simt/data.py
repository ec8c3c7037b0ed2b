"""Untidy logits, scores and labels."""

from __future__ import annotations

import numpy as np


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def logits(shape: tuple[int, ...], seed: int = 0, *, scale: float = 3.0, odd: bool = True) -> np.ndarray:
    """Normal logits [N, K, *S]; with `odd` pixels that are sure, tied, constant, far off, -inf, +inf or NaN."""
    g = rng(seed)
    x = g.normal(0, scale, shape)
    if not odd or x.size == 0:
        return x
    n, k, *size = shape
    pixels = np.moveaxis(x, 1, -1).reshape(-1, k)  # a copy
    count = len(pixels)

    def some(share: float) -> np.ndarray:
        return np.flatnonzero(g.random(count) < share)

    pixels[some(0.06)] = 0.5  # every class ties
    for i in some(0.06):  # two classes tie for the lead
        pixels[i, g.choice(k, min(k, 2), replace=False)] = 7.25
    for i in some(0.06):  # sure, down to 1e-26
        pixels[i] = 0.0
        pixels[i, g.integers(k)] = g.uniform(10, 60)
    for i in some(0.05):  # a class that cannot be
        pixels[i, g.integers(k)] = -np.inf
    for i in some(0.02):  # one class left
        pixels[i] = -np.inf
        pixels[i, g.integers(k)] = -2.0
    pixels[some(0.03)] += 80.0
    for value, share in ((np.nan, 0.004), (np.inf, 0.004)):
        for i in some(share):
            pixels[i, g.integers(k)] = value
    pixels[some(0.003)] = -np.inf
    return np.ascontiguousarray(np.moveaxis(pixels.reshape(n, *size, k), -1, 1))


def usable_logits(shape: tuple[int, ...], seed: int = 0, *, scale: float = 3.0) -> np.ndarray:
    """The same without NaN, +inf and pixels of nothing but -inf, and with every class possible."""
    x = logits(shape, seed, scale=scale)
    return np.where(np.isfinite(x), x, -20.0)


def scores(rows: int, length: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    """Few different values, so that ties are everywhere, among them NaN, infinities and zeros of both signs."""
    g = rng(seed)
    values = np.concatenate([g.random(max(3, length // 4)), [0.0, -0.0, 0.5, 1.0]])
    out = g.choice(values, (rows, length)).astype(dtype)
    for value in (np.nan, np.inf, -np.inf):
        out[g.random((rows, length)) < 0.01] = value
    return out


def labels(shape: tuple[int, ...], classes: int, seed: int = 0, dtype: type = np.int64) -> np.ndarray:
    """Labels [N, *S], some of them outside [0, K)."""
    g = rng(seed)
    out = g.integers(0, classes, shape)
    outside = [classes, 255] if dtype is np.uint8 else [-1, -100, classes, 1 << 40, 1 - (1 << 32)]
    where = g.random(shape) < 0.06
    out[where] = g.choice(outside, int(where.sum()))
    return out.astype(dtype)
