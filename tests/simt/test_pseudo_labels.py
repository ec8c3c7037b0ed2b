"""Pseudo-labels and their gate, alone and in the pass of the pooling, against float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from . import data, launchers, reference
from .modes import LONG, each_mode
from .tensors import DTYPES, LAYOUTS, Tensor, tensor
from .test_entropy import SHAPES

IGNORED = {"uint8": 255, "int64": -100}
Limit = float | Tensor | None


def limit_of(x: Tensor) -> float:
    """In the widest gap between the confidences, so that no rounding decides."""
    values = np.unique(reference.confidence(x.values))
    values = values[np.isfinite(values)]
    if values.size < 2:
        return 0.5
    gap = np.diff(values).argmax()
    return float((values[gap] + values[gap + 1]) / 2)


def check(x: Tensor, labels: str, limit: Limit, wanted_limit: float | None, mode: str, **options: Any) -> None:
    found, accepted, _ = launchers.pseudo_labels(x, labels=labels, min_confidence=limit, mode=mode, **options)
    wanted = reference.gated_labels(x.values, wanted_limit, IGNORED[labels])
    np.testing.assert_array_equal(found, wanted)
    kept = (found != IGNORED[labels]).reshape(len(found), math.prod(found.shape[1:]))
    np.testing.assert_array_equal(accepted, (kept.sum(1) / max(kept.shape[1], 1)).astype(np.float32))


@each_mode
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "patch"), [s for s in SHAPES if s[0][0]], ids=str)
def test_labels(shape: tuple[int, ...], patch: tuple[int, ...], dtype: str, mode: str) -> None:
    x = tensor(data.logits(shape, seed=len(shape) + shape[1]), dtype)
    labels = "uint8" if shape[1] <= 255 and dtype != "float16" else "int64"
    limit = limit_of(x)
    for given in (limit, None):
        check(x, labels, given, given, mode)
        for kind in ("entropy", "margin"):
            _, found, _ = launchers.entropy_pool(
                x, patch, uncertainty=kind, labels=labels, min_confidence=given, mode=mode
            )
            np.testing.assert_array_equal(found, reference.gated_labels(x.values, given, IGNORED[labels]))


@each_mode
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [3, 8, 21])
def test_layouts(classes: int, dtype: str, layout: str, mode: str) -> None:
    x = tensor(data.logits((2, classes, 11, 24), seed=classes), dtype, layout)
    limit = limit_of(x)
    check(x, "int64", limit, limit, mode)
    check(x, "uint8", None, None, mode)


@pytest.mark.parametrize("labels", ["uint8", "int64"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("classes", [4, 8, 12])
def test_labels_at_an_odd_address(classes: int, dtype: str, labels: str) -> None:
    """Where the logits are at an even one."""
    x = tensor(data.logits((2, classes, 9, 24), seed=classes), dtype)
    found, _, _ = launchers.pseudo_labels(x, labels=labels, labels_offset=1 if labels == "uint8" else 8)
    np.testing.assert_array_equal(found, reference.labels(x.values))


@pytest.mark.parametrize("labels", ["uint8", "int64"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_a_limit_on_the_device(dtype: str, labels: str) -> None:
    x = tensor(data.logits((3, 4, 7, 24), seed=5))
    check(x, labels, tensor(np.array([0.625]), dtype), 0.625, "plain")
    check(x, labels, tensor(np.array([np.nan]), dtype), 2.0, "plain")


def test_a_limit_is_rounded_and_reached() -> None:
    x = tensor(np.zeros((1, 2, 4, 8)))
    for limit, kept in ((0.5, 1.0), (0.5 * (1 + 2.0**-26), 1.0), (0.5000001, 0.0)):
        assert launchers.pseudo_labels(x, min_confidence=limit)[1] == kept
    sure = tensor(np.stack([np.full((4, 8), 40.0), np.zeros((4, 8))])[None])
    assert launchers.pseudo_labels(sure, min_confidence=1.0)[1] == 1.0


# Blocks of an image: of an odd number of vectors, of 128, two, 33 (a warp adds up 32 at a time), more than may be.
@each_mode
@pytest.mark.parametrize(
    ("images", "size"),
    [(3, (3, 20)), (3, (1, 511)), (3, (1, 512)), (2, (1, 513)), (3, (2, 1020)), (2, (2, 1028)),
     (5, (64, 256)), (2, (65, 256)),
     pytest.param(1, (512, 1024), marks=LONG), pytest.param(2, (513, 1024), marks=LONG)],
)  # fmt: skip
def test_blocks(images: int, size: tuple[int, int], mode: str) -> None:
    x = tensor(data.logits((images, 2, *size), seed=size[1]))
    limit = limit_of(x)
    for labels in ("uint8", "int64"):
        check(x, labels, limit, limit, mode)


def test_launches() -> None:
    x = tensor(data.logits((2, 4, 16, 16), odd=False))
    *_, counts = launchers.pseudo_labels(x, min_confidence=0.5, mode="count", runs=(("forward", 0),))
    assert len(counts.launches) == 2
