"""select against the rules of SelectParams; ties everywhere."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from . import data, launchers, reference
from .driver import FORWARD
from .modes import LONG, MODES, each_mode
from .tensors import tensor

INF, NAN = float("inf"), float("nan")
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
    {"min_score": INF},
    {"min_score": NAN, "lowest": True},
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
    for rows, length in ((3, 2), (40, 5), (3, 77), (1, 300)):
        scores = data.scores(rows, length, seed=length, dtype=dtype)
        actual, _ = launchers.select(scores, **rule, mode=mode)
        np.testing.assert_array_equal(actual, reference.select(scores, **rule))


@each_mode
@each_rule
@each_float
def test_rows_of_one_block(rule: dict[str, Any], dtype: type, mode: str) -> None:
    scores = data.scores(2, 700, seed=8, dtype=dtype)
    actual, _ = launchers.select(scores, **rule, mode=mode)
    np.testing.assert_array_equal(actual, reference.select(scores, **rule))


# Ragged ends of three tiles, and of one: test_boundaries.py has the lengths where it begins.
LONG_ROWS = [(2, 17001, np.float32), (1, 5200, np.float64)]


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


# What the device holds, its dtype.
DEVICE_NUMBERS: list[tuple[dict[str, list[float]], str]] = [
    ({"ratio": [0.3]}, "float32"),
    ({"ratio": [7.0]}, "float64"),
    ({"ratio": [-1.0]}, "float16"),
    ({"ratio": [NAN]}, "bfloat16"),
    ({"ratio": [0.7, NAN, 0.0, 1e-9, INF]}, "float32"),
    ({"ratio": [13]}, "int64"),
    ({"ratio": [5, 0, -3, 1 << 62, 1]}, "int64"),
    ({"min_score": [0.5]}, "float16"),
    ({"min_score": [0.5, NAN, -0.0, 5.0, -INF]}, "float64"),
    ({"min_score": [NAN]}, "float32"),
]


@each_mode
@pytest.mark.parametrize("length", [5, 40, 700, pytest.param(11000, marks=LONG)])
@pytest.mark.parametrize(("numbers", "dtype"), DEVICE_NUMBERS, ids=str)
def test_numbers_on_the_device(numbers: dict[str, list[float]], dtype: str, length: int, mode: str) -> None:
    """One for all rows, or one per row. NaN selects nothing, whatever min_patches is."""
    scores = data.scores(5, length, seed=9)
    (name, values), *_ = numbers.items()
    given = tensor(np.array(values), dtype)
    seen = given.values.tolist() if dtype != "int64" else values
    rest: dict[str, Any] = {"hint": 0.2} if name == "ratio" else {"min_patches": 2, "lowest": len(values) == 1}
    actual, _ = launchers.select(scores, **{name: given}, **rest, mode=mode)
    expected = reference.select(scores, **{name: seen * (5 // len(seen))}, **rest)
    np.testing.assert_array_equal(actual, expected)
    for row, value in zip(actual, seen * (5 // len(seen)), strict=True):
        assert value == value or not row.any()


@each_float
@pytest.mark.parametrize("length", [9, 700, pytest.param(11000, marks=LONG)])
def test_min_score_of_nan_selects_nothing(length: int, dtype: type) -> None:
    for lowest in (False, True):
        actual, _ = launchers.select(data.scores(2, length, dtype=dtype), min_score=NAN, min_patches=3, lowest=lowest)
        assert not actual.any()


@pytest.mark.parametrize("length", [100, 1500])
def test_ratio_of_a_whole_number_of_patches(length: int) -> None:
    """0.29 * 100 is 28.999999999999996; 29 patches are meant."""
    scores = data.scores(1, length, seed=length)
    assert int(0.29 * length) < 29 * length // 100
    actual, _ = launchers.select(scores, ratio=tensor(np.array([0.29]), "float64"))
    assert actual.sum() == 29 * length // 100


@pytest.mark.parametrize("length", [101, 600])
def test_ratio_is_rounded_before_the_sum(length: int) -> None:
    """Ratios for which r P + 1e-6, rounded once, is on the other side of a whole number than rounded twice."""

    def once(r: float) -> int:
        return math.floor(float(Fraction(r) * length + Fraction(1e-6)))

    near = [(k - 1e-6) / length for k in range(1, length)]
    ratios = [r for r in near + [math.nextafter(r, 0) for r in near] if once(r) != math.floor(r * length + 1e-6)]
    assert len(ratios) > 20
    scores = data.scores(len(ratios), length)
    actual, _ = launchers.select(scores, ratio=tensor(np.array(ratios), "float64"), runs=FORWARD)
    np.testing.assert_array_equal(actual.sum(1), [max(1, math.floor(r * length + 1e-6)) for r in ratios])


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
