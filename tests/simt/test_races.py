"""Every kernel under TSan: no two threads touch the same bytes, one of them writing, without barrier or fence.

A race depends on the kernel and the shape, not on values or dtypes: a case for each kernel and way through it will do.
Two schedules, as a path may depend on which block comes last.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from . import data, launchers, reference
from . import test_components as components
from . import test_loss as losses
from . import test_shuffle as shuffles
from . import test_soft_loss as soft
from . import test_where as sides
from .modes import LONG
from .tensors import image, tensor

pytestmark = LONG
OPTIONS: dict[str, Any] = {"mode": "tsan", "runs": (("forward", 0), ("random", 5))}


# Groups of 1, 8, 32 and 128 lanes a patch; split patches; many classes; 3-D; other layouts.
@pytest.mark.parametrize(
    ("shape", "patch", "dtype", "layout"),
    [
        ((2, 4, 17, 24), (1, 2), "float32", "contiguous"),
        ((2, 4, 20, 24), (4, 8), "bfloat16", "contiguous"),
        ((2, 4, 33, 32), (16, 16), "float32", "contiguous"),
        ((3, 2, 40, 64), (32, 32), "float16", "channels_last"),
        ((1, 3, 90, 70), (90, 70), "float32", "strided"),
        ((1, 20, 12, 16), (8, 8), "float64", "contiguous"),
        ((1, 4, 5, 12, 16), (4, 8, 8), "float32", "expanded"),
    ],
    ids=str,
)
def test_entropy(shape: tuple[int, ...], patch: tuple[int, ...], dtype: str, layout: str) -> None:
    x = tensor(data.usable_logits(shape), dtype, layout)
    scores, _, _ = launchers.entropy_pool(x, patch, labels="uint8", **OPTIONS)
    np.testing.assert_allclose(scores, reference.patch_scores(x.values, patch), rtol=0, atol=4e-7)
    launchers.entropy_map(x, **OPTIONS)
    launchers.entropy_backward(x, scores, patch=patch, **OPTIONS)
    launchers.entropy_pool(x, patch, uncertainty="margin", labels="int64", min_confidence=0.6, **OPTIONS)
    launchers.entropy_map(x, uncertainty="margin", **OPTIONS)
    launchers.entropy_backward(x, scores, patch=patch, uncertainty="margin", **OPTIONS)
    launchers.pseudo_labels(x, labels="int64", min_confidence=0.6, **OPTIONS)


@pytest.mark.parametrize(
    "rule",
    [
        {"ratio": 0.3, "hint": 0.1},
        {"ratio": 0.6, "lowest": True, "hint": 0.25},
        {"min_score": 0.5, "min_patches": 9},
        {"min_score": 5.0},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("rows", "length", "dtype"),
    [(7, 77, np.float32), (1, 512, np.float64), (2, 700, np.float32), (1, 1500, np.float64), (1, 17001, np.float32)],
)
def test_select(rows: int, length: int, dtype: type, rule: dict[str, Any]) -> None:
    scores = data.scores(rows, length, seed=length, dtype=dtype)
    actual, _ = launchers.select(scores, **rule, **OPTIONS)
    np.testing.assert_array_equal(actual, reference.select(scores, **rule))


@pytest.mark.parametrize("rule", [{"ratio": 0.3, "hint": 0.1}, {"min_score": 0.5, "lowest": True}], ids=str)
def test_select_in_tiles_of_doubles(rule: dict[str, Any]) -> None:
    scores = data.scores(2, 9000, seed=3, dtype=np.float64)
    actual, _ = launchers.select(scores, **rule, **OPTIONS)
    np.testing.assert_array_equal(actual, reference.select(scores, **rule))


@pytest.mark.parametrize("multiprocessors", [1, 4])
@pytest.mark.parametrize(
    ("shape", "patch", "dtype", "layout"),
    [
        ((2, 4, 33, 28), (16, 8), "float32", "contiguous"),
        ((2, 8, 24, 24), (7, 24), "bfloat16", "channels_last"),
        ((1, 9, 20, 16), (4, 4), "float32", "contiguous"),
        ((1, 40, 9, 16), (4, 8), "float16", "channels_last"),
        ((2, 3, 12, 20), (4, 5), "float64", "strided"),
    ],
    ids=str,
)
def test_loss(shape: tuple[int, ...], patch: tuple[int, ...], dtype: str, layout: str, multiprocessors: int) -> None:
    x, labels, options = losses.case(shape, patch, dtype, layout=layout)
    options["dice_each"] = multiprocessors == 4
    losses.check(x, labels, options, multiprocessors=multiprocessors, **OPTIONS)


@pytest.mark.parametrize("multiprocessors", [1, 4])
@pytest.mark.parametrize(
    ("shape", "dtypes", "layout"),
    [
        ((2, 4, 33, 28), ("float32", "float32"), "contiguous"),
        ((1, 40, 9, 16), ("bfloat16", "bfloat16"), "channels_last"),
        ((1, 9, 20, 16), ("float16", "float64"), "strided"),
    ],
    ids=str,
)
def test_soft_loss(shape: tuple[int, ...], dtypes: tuple[str, str], layout: str, multiprocessors: int) -> None:
    x, y, where = soft.case(shape, *dtypes, layout=layout)
    for kl in (False, True):
        soft.check(x, y, where, kl, multiprocessors=multiprocessors, **OPTIONS)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_moves(layout: str) -> None:
    x = image((2, 4, 18, 32), "float32", layout)
    sides.check(7.0, x, (8, 16), "same", "tsan")
    sides.check(x, image(x.storage.shape, "float32"), (8, 16), "bool", "tsan", shared=True)
    x = image((2, 4, 16, 32), "float32", layout)
    shuffles.check_shuffle(x, (8, 16), 2, False, "tsan")
    shuffles.check_gather((2, 4, 16, 32), (8, 16), "float16", layout, "tsan")
    shuffles.check_shuffle(x, (8, 16), 1, True, "tsan")


@pytest.mark.parametrize("shape", ["snake", "comb", "full"])
def test_components(shape: str) -> None:
    labels = components.hard(21)[shape][None]
    for connectivity in (1, 2):
        out, _ = launchers.components(labels, 2, connectivity, **OPTIONS)
        np.testing.assert_array_equal(out, components.expected(labels, 2, connectivity))
