"""soft_loss_forward and soft_loss_backward against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from . import data, launchers, reference
from .driver import FORWARD
from .modes import each_mode
from .tensors import DTYPES, LAYOUTS, Tensor, tensor

SHAPES = [
    (2, 4, 32, 32),
    (2, 4, 33, 29),
    (1, 2, 17, 40),
    (2, 8, 24, 24),
    (1, 9, 20, 16),
    (1, 40, 9, 16),
    (1, 255, 5, 8),
    (2, 3, 6, 10, 12),
]
kinds = pytest.mark.parametrize("kl", [False, True], ids=["mse", "kl"])


def case(
    shape: tuple[int, ...], dtype: str, other: str | None = None, *, layout: str = "contiguous", target_layout: str = ""
) -> tuple[Tensor, Tensor, np.ndarray]:
    """A student, a teacher that is near it in some pixels and far in others, and the pixels that count."""
    x = data.usable_logits(shape, seed=shape[1])
    near = data.rng(2).random((shape[0], 1, *shape[2:])) < 0.3
    y = np.where(near, x + data.rng(3).normal(0, 0.01, shape), data.usable_logits(shape, seed=shape[1] + 1))
    where = data.rng(4).random((shape[0], *shape[2:])) < 0.6
    return tensor(x, dtype, layout), tensor(y, other or dtype, target_layout or layout), where


def check(x: Tensor, y: Tensor, where: np.ndarray | None, kl: bool, mode: str, **run: Any) -> None:
    """A difference of logarithms carries the rounding of what it is the difference of."""
    is_double = "float64" in (x.dtype, y.dtype)
    tolerance = 1e-12 if is_double else 2e-6
    mean, sums, _ = launchers.soft_loss_forward(x, y, where, kl=kl, mode=mode, **run)
    expected, expected_sums = reference.soft_loss(x.values, y.values, where, kl=kl)
    np.testing.assert_allclose(mean, expected, rtol=tolerance, atol=tolerance / 4)
    np.testing.assert_allclose(sums, expected_sums, rtol=tolerance, atol=tolerance * max(1, expected_sums[1]) / 4)
    grad, _ = launchers.soft_loss_backward(x, y, where, expected_sums, -1.5, kl=kl, mode=mode, **run)
    expected_grad = reference.soft_loss_backward(x.values, y.values, where, -1.5, kl=kl)
    scale = np.abs(expected_grad).max() if expected_grad.size else 0.0
    relative = {"float64": 1e-12, "float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3}[x.dtype]
    # p - q of two near softmaxes carries the rounding of p.
    rounding = 0.0 if is_double else 1.5 * 4e-7 / max(1, expected_sums[1])
    atol = max(scale * tolerance, rounding) + 6e-8 * (x.dtype == "float16")
    np.testing.assert_allclose(grad, expected_grad, rtol=max(relative, tolerance), atol=atol)


@each_mode
@kinds
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_soft_loss(shape: tuple[int, ...], dtype: str, kl: bool, mode: str) -> None:
    x, y, where = case(shape, dtype)
    check(x, y, where, kl, mode)


@each_mode
@pytest.mark.parametrize("classes", [2, 4, 8, 16, 20])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(dtype: str, layout: str, classes: int, mode: str) -> None:
    """Both tensors alike, and a target that lies otherwise."""
    for i, target_layout in enumerate((layout, "contiguous", "channels_last")):
        x, y, where = case((2, classes, 6, 24), dtype, layout=layout, target_layout=target_layout)
        check(x, y, where, i % 2 == 0, mode)


@each_mode
@pytest.mark.parametrize("classes", [3, 8, 11])
@pytest.mark.parametrize("other", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_two_dtypes(dtype: str, other: str, classes: int, mode: str) -> None:
    if dtype == other:
        pytest.skip("one dtype")
    x, y, where = case((2, classes, 5, 16), dtype, other, target_layout="channels_last")
    for kl in (False, True):
        check(x, y, where, kl, mode)


@each_mode
@pytest.mark.parametrize("width", [21, 24, 48])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_where_lies_oddly(dtype: str, width: int, mode: str) -> None:
    """At an odd address, in padded rows, one image's for all, and none."""
    x, y, where = case((2, 4, 9, width), dtype)
    wide = np.zeros((2, 9, 53), bool)
    wide[..., :width] = where
    check(x, y, where, True, mode, where_offset=1)
    check(x, y, wide[..., :width], False, mode)
    check(x, y, np.broadcast_to(where[:1], where.shape), True, mode)
    check(x, y, None, False, mode)


@each_mode
@pytest.mark.parametrize("multiprocessors", [1, 3, 100])
@pytest.mark.parametrize("classes", [4, 12])
def test_any_grid(classes: int, multiprocessors: int, mode: str) -> None:
    """Few blocks that loop over many pixels, or more blocks than pixels need."""
    x, y, where = case((3, classes, 40, 36), "float32")
    check(x, y, where, classes == 4, mode, multiprocessors=multiprocessors)


@pytest.mark.parametrize("classes", [4, 12])
def test_many_blocks(classes: int) -> None:
    """More blocks than the warp has lanes that adds them up."""
    x, y, where = case((2, classes, 96, 192), "float32")
    check(x, y, where, True, "plain", multiprocessors=100, runs=FORWARD)


@kinds
@pytest.mark.parametrize("classes", [4, 12])
def test_pixels_outside_do_not_matter(classes: int, kl: bool) -> None:
    x, y, where = case((2, classes, 8, 8), "float32")
    for t in (x, y):
        np.moveaxis(t.storage, 1, -1)[~where] = np.nan
    check(x, y, where, kl, "plain")
    nothing = np.zeros_like(where)
    assert launchers.soft_loss_forward(x, y, nothing, kl=kl)[0] == 0
    grad, _ = launchers.soft_loss_backward(x, y, nothing, np.zeros(2), 1.0, kl=kl)
    assert (grad == 0).all()


@kinds
@pytest.mark.parametrize("classes", [4, 8, 12])
def test_a_gradient_at_an_odd_address(classes: int, kl: bool) -> None:
    """Where the logits are at an even one."""
    x, y, _ = case((2, classes, 5, 16), "float32")
    _, sums = reference.soft_loss(x.values, y.values, None, kl=kl)
    grad, _ = launchers.soft_loss_backward(x, y, None, sums, -1.5, kl=kl, grad_offset=4)
    expected = reference.soft_loss_backward(x.values, y.values, None, -1.5, kl=kl)
    np.testing.assert_allclose(grad, expected, rtol=2e-6, atol=2e-6 * np.abs(expected).max())


@each_mode
@pytest.mark.parametrize("classes", [2, 4, 7, 12])
def test_an_infinite_logit_of_the_student_is_nan(classes: int, mode: str) -> None:
    """Where the teacher excludes that class too, so that its own term is 0 and the others' are infinite."""
    x, y, _ = case((1, classes, 3, 8), "float32")
    x.storage[0, 1], y.storage[0, 1] = np.inf, -np.inf
    assert np.isnan(launchers.soft_loss_forward(x, y, None, kl=True, mode=mode)[0])


@kinds
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("classes", [4, 12])
def test_bad_logits_are_nan(classes: int, bad: float, kl: bool) -> None:
    for which in (0, 1):
        x, y, where = case((1, classes, 4, 8), "float32")
        where[0, 1, 1] = True
        (x, y)[which].storage[0, 1, 1, 1] = bad
        mean, _, _ = launchers.soft_loss_forward(x, y, where, kl=kl)
        assert np.isnan(mean)
        grad, _ = launchers.soft_loss_backward(x, y, where, [1.0, where.sum()], 1.0, kl=kl)
        assert np.isnan(grad[0, :, 1, 1]).all()
        assert np.isfinite(np.delete(grad.reshape(classes, -1), 9, 1)).all()


@kinds
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_student_that_agrees_has_no_loss(dtype: str, kl: bool) -> None:
    for classes in (2, 3, 5, 8, 9, 19):
        x = tensor(data.usable_logits((2, classes, 5, 13), seed=classes), dtype)
        assert launchers.soft_loss_forward(x, x, kl=kl)[0] == 0
        grad, _ = launchers.soft_loss_backward(x, x, None, [0.0, 130], 1.0, kl=kl)
        assert (grad == 0).all()


@kinds
@pytest.mark.parametrize("classes", [2, 64, 65, 300, 2048])
def test_probabilities_that_vanish_beside_1_count(classes: int, kl: bool) -> None:
    """One class at 0, all others where not even eight of them show beside 1."""
    x, y = (level + data.rng(seed).random((1, classes, 3, 7)) * 0.1 for seed, level in ((1, -19.5), (2, -18.85)))
    for t in (x, y):
        np.put_along_axis(t, np.arange(21).reshape(1, 1, 3, 7) * 31 % classes, 0, 1)
    student, teacher = tensor(x, "float32"), tensor(y, "float32")
    check(student, teacher, None, kl, "plain")
    mean, _, _ = launchers.soft_loss_forward(student, teacher, kl=True)
    expected, _ = reference.soft_loss(student.values, teacher.values, None, kl=True)
    np.testing.assert_allclose(mean, expected, rtol=2e-5)


@kinds
@pytest.mark.parametrize("classes", [4, 12])
def test_classes_that_cannot_be(classes: int, kl: bool) -> None:
    """Of the teacher: it adds 0. Of both: the same. Of the student alone: kl is infinite, the gradient p - q."""
    x, y, _ = case((1, classes, 4, 8), "float32")
    y.storage[0, 1] = -np.inf
    x.storage[0, 1, ::2] = -np.inf
    check(x, y, None, kl, "plain")
    x.storage[0, 2, 0, 0], y.storage[0, 2, 0, 0] = -np.inf, y.storage[0, :, 0, 0].max()
    mean, _, _ = launchers.soft_loss_forward(x, y, kl=kl)
    assert np.isinf(mean) if kl else np.isfinite(mean)
    grad, _ = launchers.soft_loss_backward(x, y, None, [1.0, 32], 1.0, kl=kl)
    np.testing.assert_allclose(grad, reference.soft_loss_backward(x.values, y.values, None, 1.0, kl=kl), atol=1e-7)


@pytest.mark.parametrize("classes", [4, 12])
def test_an_empty_batch(classes: int) -> None:
    x, y, where = case((0, classes, 8, 8), "float32")
    check(x, y, where, True, "plain")
