"""select, and entropy_pool_select, against the rules of SelectParams; ties everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from . import data, launchers, reference
from .driver import FORWARD
from .modes import LONG, MODES, each_mode
from .tensors import tensor

RULES: list[dict[str, Any]] = [
    {"ratio": 0.75},
    {"ratio": 0.3, "hint": 0.1},
    {"ratio": 1.0, "hint": 1.0},
    {"ratio": 0.5, "lowest": True},
    {"ratio": 0.6, "lowest": True, "hint": 0.25},
    {"ratio": 0.0},
    {"ratio": 1e-9},
    {"min_score": 0.5},
    {"min_score": 0.5, "lowest": True, "hint": 0.2},
    {"min_score": 0.9, "min_patches": 7, "hint": 0.05},
    {"min_score": -0.0},
    {"min_score": 2.0, "min_patches": 3, "lowest": False},
    {"min_score": float("inf")},
    {"min_score": float("nan"), "lowest": True},
    {"min_score": 5.0},
    {"min_score": 5.0, "min_patches": 1 << 40, "hint": 0.01},
]


def rule_id(rule: dict[str, Any]) -> str:
    return "-".join(f"{k}={v}" for k, v in rule.items())


each_rule = pytest.mark.parametrize("rule", RULES, ids=rule_id)
each_float = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@each_mode
@each_rule
@each_float
def test_short_rows(rule: dict[str, Any], dtype: type, mode: str) -> None:
    """Rows that share a block, or are shared by several."""
    for rows, length in ((1, 1), (3, 2), (40, 5), (5, 20), (7, 77), (2, 512)):
        scores = data.scores(rows, length, seed=length, dtype=dtype)
        actual, _ = launchers.select(scores, **rule, mode=mode)
        np.testing.assert_array_equal(actual, reference.select(scores, **rule))


@each_mode
@each_rule
@each_float
def test_rows_of_one_block(rule: dict[str, Any], dtype: type, mode: str) -> None:
    for rows, length in ((2, 513), (1, 1500)):
        scores = data.scores(rows, length, seed=length, dtype=dtype)
        actual, _ = launchers.select(scores, **rule, mode=mode)
        np.testing.assert_array_equal(actual, reference.select(scores, **rule))


# The first size beyond shared memory, and one of two tiles' ragged ends.
LONG_ROWS = [(1, 10241, np.float32), (2, 17001, np.float32), (1, 5121, np.float64), (1, 10240, np.float32)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("rows", "length", "dtype"), LONG_ROWS)
@pytest.mark.parametrize("rule", [RULES[i] for i in (1, 4, 8, 9, 10, 14)], ids=rule_id)
def test_long_rows(rule: dict[str, Any], rows: int, length: int, dtype: type, mode: str) -> None:
    scores = data.scores(rows, length, seed=length, dtype=dtype)
    scores[:, ::2] = np.round(scores[:, ::2], 1)  # ties in every tile
    runs = (("forward", 0), ("random", 1))
    actual, _ = launchers.select(scores, **rule, mode=mode, runs=runs)
    np.testing.assert_array_equal(actual, reference.select(scores, **rule))


@each_float
@pytest.mark.parametrize("length", [300, 3000, 12000])
def test_rows_of_one_value(length: int, dtype: type) -> None:
    scores = np.full((1, length), 0.25, dtype)
    for rule in RULES[:6]:
        actual, _ = launchers.select(scores, **rule, runs=FORWARD)
        np.testing.assert_array_equal(actual, reference.select(scores, **rule))


@each_float
@pytest.mark.parametrize("length", [400, 3000, 12000])
def test_scores_that_differ_in_their_last_bit(length: int, dtype: type) -> None:
    bits = {np.float32: np.uint32, np.float64: np.uint64}[dtype]
    start = np.array([0.7], dtype).view(bits)[0]
    scores = data.rng(1).permutation((start + np.arange(length, dtype=bits)).view(dtype))[None]
    for rule in ({"ratio": 0.37, "hint": 0.11}, {"ratio": 0.37, "lowest": True}):
        actual, _ = launchers.select(scores, **rule, runs=FORWARD)
        np.testing.assert_array_equal(actual, reference.select(scores, **rule))


@pytest.mark.parametrize("length", [40, 700, pytest.param(11000, marks=LONG)])
@pytest.mark.parametrize(
    ("value", "dtype"), [(0.3, "float32"), (7.0, "float64"), (-1.0, "float16"), (np.nan, "bfloat16")]
)
def test_ratio_on_the_device(length: int, value: float, dtype: str) -> None:
    scores = data.scores(2, length, seed=9)
    given = tensor(np.array([value]), dtype)
    actual, _ = launchers.select(scores, ratio=given)
    np.testing.assert_array_equal(actual, reference.select(scores, ratio=float(given.values[0])))


@pytest.mark.parametrize("length", [100, 1500])
def test_ratio_and_hint_of_a_whole_number_of_patches(length: int) -> None:
    """0.29 * 100 is 28.999999999999996; 29 patches are meant."""
    scores = data.scores(1, length, seed=length)
    assert int(0.29 * length) < 29 * length // 100
    actual, _ = launchers.select(scores, ratio=0.29)
    assert actual.sum() == 29 * length // 100
    actual, _ = launchers.select(scores, ratio=0.75, hint=0.29)
    assert actual.sum() == 46 * length // 100


def test_min_score_on_the_device_is_rounded_to_the_scores() -> None:
    scores = np.array([[0.1, 0.2, 0.3]], np.float32)
    at = float(np.float32(0.2))
    given = tensor(np.array([at + 1e-12]), "float64")
    assert launchers.select(scores, min_score=given)[0].tolist() == [[False, True, True]]
    assert launchers.select(scores, min_score=at + 1e-12)[0].tolist() == [[False, True, True]]


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_empty_rows(shape: tuple[int, int]) -> None:
    actual, counts = launchers.select(np.empty(shape, np.float32), ratio=0.5)
    assert actual.size == 0 and not counts.launches


POOLS = [
    ((3, 4, 40, 36), (8, 8)),
    ((2, 3, 64, 96), (32, 48)),  # few large patches: their parts are added up by the selection
    ((1, 4, 90, 70), (90, 70)),
    ((2, 9, 96, 64), (48, 32)),
    ((1, 2, 60, 80), (2, 2)),  # a row of 1200: one block
    ((1, 2, 110, 100), (1, 1)),  # 11000: tiles
]


@each_mode
@pytest.mark.parametrize(("shape", "patch"), POOLS, ids=str)
@pytest.mark.parametrize("scope", ["image", "batch"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_pool_and_select(shape: tuple[int, ...], patch: tuple[int, ...], scope: str, dtype: str, mode: str) -> None:
    rule = {"ratio": 0.5, "hint": 0.1} if scope == "image" else {"min_score": 0.3, "min_patches": 2}
    x = tensor(data.logits(shape, seed=3), dtype)
    scores, patches, labels, _ = launchers.entropy_pool_select(
        x, patch, scope=scope, labels="int64", **rule, mode=mode, runs=(("forward", 0), ("random", 1))
    )
    tolerance = 1e-13 if dtype == "float64" else 4e-7
    np.testing.assert_allclose(scores, reference.patch_scores(x.values, patch), rtol=0, atol=tolerance)
    np.testing.assert_array_equal(patches, reference.select(scores.reshape(patches.shape), **rule))
    assert labels is not None
    np.testing.assert_array_equal(labels, reference.labels(x.values))


def test_pool_and_select_give_what_the_two_give_apart() -> None:
    x = tensor(data.logits((2, 3, 64, 96), seed=8))
    for count in (False, True):
        together, _, _, _ = launchers.entropy_pool_select(x, (32, 48), ratio=0.5, count=count, threshold=0.4)
        apart, _, _ = launchers.entropy_pool(x, (32, 48), count=count, threshold=0.4)
        np.testing.assert_array_equal(together, apart)
