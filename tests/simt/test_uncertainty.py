"""Least confidence and margin against float64: the pooling, the map and the gradient, beside those of the entropy."""

from __future__ import annotations

import numpy as np
import pytest

from . import data, launchers, reference
from .modes import each_mode
from .tensors import DTYPES, LAYOUTS, patch_counts, tensor
from .test_entropy import SHAPES, assert_gradient, assert_scores

KINDS = ("least_confidence", "margin")
each_kind = pytest.mark.parametrize("kind", KINDS)


@each_mode
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "patch"), SHAPES, ids=str)
def test_pool(shape: tuple[int, ...], patch: tuple[int, ...], dtype: str, mode: str) -> None:
    x = tensor(data.logits(shape, seed=len(shape) + shape[1]), dtype)
    for kind, labels in (("least_confidence", "int64"), ("margin", "uint8" if shape[1] <= 255 else "int64")):
        scores, found, _ = launchers.entropy_pool(x, patch, uncertainty=kind, labels=labels, mode=mode)
        assert_scores(scores, reference.patch_scores(x.values, patch, uncertainty_of=kind), dtype)
        np.testing.assert_array_equal(found, reference.labels(x.values))


@each_mode
@each_kind
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [2, 7, 33])
def test_map_and_gradient(classes: int, dtype: str, layout: str, kind: str, mode: str) -> None:
    x = tensor(data.logits((2, classes, 9, 16), seed=classes), dtype, layout)
    values, _ = launchers.entropy_map(x, uncertainty=kind, mode=mode)
    assert_scores(values, reference.uncertainty(x.values, kind), dtype)
    grad = data.rng(3).normal(size=(2, 9, 16)).astype(np.float64 if dtype == "float64" else np.float32)
    actual, _ = launchers.entropy_backward(x, grad, uncertainty=kind, mode=mode)
    assert_gradient(actual, reference.top_two_backward(x.values, grad.astype(np.float64), kind), dtype)


@each_mode
@pytest.mark.parametrize(("shape", "patch", "kind"), [(*case, KINDS[i % 2]) for i, case in enumerate(SHAPES)], ids=str)
def test_gradient_of_the_scores(shape: tuple[int, ...], patch: tuple[int, ...], kind: str, mode: str) -> None:
    dtype = "float16" if shape[1] in (4, 9) else "float32"
    x = tensor(data.logits(shape, seed=2), dtype)
    grad = (data.rng(4).normal(size=(shape[0], *patch_counts(shape[2:], patch))) * 64).astype(np.float32)
    actual, _ = launchers.entropy_backward(x, grad, patch=patch, uncertainty=kind, mode=mode)
    wanted = reference.top_two_backward(x.values, grad.astype(np.float64), kind, patch=patch)
    assert_gradient(actual, wanted, dtype)


@each_kind
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("more", [0, 9])
def test_of_equal_classes_the_first(more: int, layout: str, kind: str) -> None:
    """The gradient knows which classes are the two largest."""
    pixels = np.array(
        [[5, 5, 1, 1], [1, 5, 5, 5], [4, 4, 5, 1], [5, 4, 1, 4], [4, 1, 4, 5], [2, 2, 2, 2], [-np.inf, 3, -np.inf, 3],
         [-np.inf, 3, -np.inf, -np.inf]]
    )  # fmt: skip
    many = np.concatenate([np.ones((8, more // 2)), pixels, np.ones((8, more - more // 2))], 1)
    x = tensor(np.ascontiguousarray(many.T).reshape(1, 4 + more, 1, 8), "float32", layout)
    grad = np.ones((1, 1, 8), np.float32)
    actual, _ = launchers.entropy_backward(x, grad, uncertainty=kind)
    assert_gradient(actual, reference.top_two_backward(x.values, grad.astype(np.float64), kind), "float32")


@each_kind
def test_counts(kind: str) -> None:
    x = tensor(data.logits((3, 4, 21, 32), seed=7))
    given = tensor(np.array([0.25, np.nan, 0.75]), "float32")
    scores, _, _ = launchers.entropy_pool(x, (8, 16), uncertainty=kind, count=True, threshold=given)
    wanted = reference.patch_scores(x.values, (8, 16), uncertainty_of=kind, threshold=given.values)
    assert_scores(scores, wanted, "float32")


@each_kind
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_tiny_values_keep_their_digits(layout: str, kind: str) -> None:
    for classes in (4, 12):
        values = np.zeros((1, classes, 1, 64))
        values[0, 1, 0] = np.linspace(5, 70, 64)
        x = tensor(values, "float32", layout)
        wanted = reference.uncertainty(x.values, kind)
        assert wanted.min() < 1e-27
        np.testing.assert_allclose(launchers.entropy_map(x, uncertainty=kind)[0], wanted, rtol=1e-5)
