"""entropy_pool, entropy_map and entropy_backward against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from . import data, launchers, reference
from .modes import each_mode
from .tensors import DTYPES, LAYOUTS, patch_counts, tensor

# classes, size, patch
SHAPES = [
    ((2, 4, 32, 32), (16, 16)),
    ((2, 4, 33, 29), (16, 8)),  # patches cut by both edges, odd rows
    ((3, 2, 17, 40), (5, 8)),
    ((1, 8, 24, 24), (7, 24)),  # one patch across
    ((2, 5, 16, 16), (1, 1)),
    ((1, 9, 20, 16), (4, 4)),  # beyond the registers
    ((1, 40, 9, 16), (4, 8)),
    ((1, 256, 5, 8), (2, 8)),
    ((2, 3, 6, 10, 12), (4, 5, 4)),  # 3-D
    ((1, 4, 70, 64), (64, 64)),  # few large patches: split
    ((0, 4, 16, 16), (8, 8)),
    ((1, 4, 3, 4), (100, 100)),  # a patch larger than the image
    ((1, 4, 6, 32), (1, 16)),  # a lane a patch
]


def assert_scores(actual: np.ndarray, expected: np.ndarray, dtype: str) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-13 if dtype == "float64" else 4e-7)


@each_mode
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "patch"), SHAPES, ids=str)
def test_pool(shape: tuple[int, ...], patch: tuple[int, ...], dtype: str, mode: str) -> None:
    x = tensor(data.logits(shape, seed=len(shape) + shape[1]), dtype)
    kind = "uint8" if shape[1] <= 255 and dtype != "float16" else "int64"
    scores, labels, _ = launchers.entropy_pool(x, patch, labels=kind, mode=mode)
    assert_scores(scores, reference.patch_scores(x.values, patch), dtype)
    assert labels is not None
    np.testing.assert_array_equal(labels, reference.labels(x.values))


@each_mode
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [2, 4, 8, 16, 20])
def test_pool_layouts(layout: str, dtype: str, classes: int, mode: str) -> None:
    x = tensor(data.logits((2, classes, 20, 24), seed=classes), dtype, layout)
    scores, labels, _ = launchers.entropy_pool(x, (8, 8), labels="int64", labels_offset=8, mode=mode)
    assert_scores(scores, reference.patch_scores(x.values, (8, 8)), dtype)
    assert labels is not None
    np.testing.assert_array_equal(labels, reference.labels(x.values))


@each_mode
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threshold", [0.0, 0.4, 1.5])
@pytest.mark.parametrize("on_device", [False, True])
def test_pool_counts(dtype: str, threshold: float, on_device: bool, mode: str) -> None:
    x = tensor(data.logits((2, 4, 21, 32), seed=7), dtype)
    given: Any = tensor(np.array([threshold]), "bfloat16") if on_device else threshold
    value = float(given.values[0]) if on_device else threshold
    scores, _, _ = launchers.entropy_pool(x, (8, 16), count=True, threshold=given, mode=mode)
    compute = np.float64 if dtype == "float64" else np.float32
    expected = reference.patch_scores(x.values, (8, 16), threshold=value, dtype=compute)
    assert_scores(scores, expected, dtype)
    if threshold == 0:
        np.testing.assert_array_equal(scores, 1.0)  # NaN counts


@each_mode
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("width", [21, 22, 24, 40])
def test_padded_rows(width: int, dtype: str, mode: str) -> None:
    """Rows that begin at multiples of 16 bytes and need not end there."""
    x = tensor(data.logits((2, 4, 9, width), seed=width), dtype, "padded")
    scores, labels, _ = launchers.entropy_pool(x, (4, 8), labels="int64", mode=mode)
    assert_scores(scores, reference.patch_scores(x.values, (4, 8)), dtype)
    np.testing.assert_array_equal(labels, reference.labels(x.values))
    np.testing.assert_allclose(launchers.entropy_map(x, mode=mode)[0], reference.entropy(x.values), rtol=0, atol=4e-7)
    actual, _ = launchers.entropy_backward(x, scores, patch=(4, 8), mode=mode)
    assert_gradient(actual, reference.entropy_backward(x.values, scores.astype(np.float64), patch=(4, 8)), dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("classes", [4, 8, 12])
def test_a_map_at_an_odd_address(classes: int, dtype: str) -> None:
    """Where the logits are at an even one."""
    x = tensor(data.logits((2, classes, 9, 24), seed=classes), dtype)
    found, _ = launchers.entropy_map(x, entropy_offset=4)
    np.testing.assert_allclose(found, reference.entropy(x.values), rtol=0, atol=4e-7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("classes", [4, 8])
def test_channels_last_at_an_odd_address(classes: int, dtype: str) -> None:
    x = tensor(data.logits((2, classes, 9, 11), seed=classes), dtype, "channels_last")
    x.offset = x.storage.itemsize
    scores, _, _ = launchers.entropy_pool(x, (4, 8))
    assert_scores(scores, reference.patch_scores(x.values, (4, 8)), dtype)


@each_mode
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_pool_counts_by_a_threshold_per_image(dtype: str, mode: str) -> None:
    """NaN counts the pixels that are NaN, and no other; so does NaN for all images."""
    x = tensor(data.logits((4, 3, 17, 24), seed=2), dtype)
    given = tensor(np.array([0.25, np.nan, 0.0, 0.75]), "float32")
    scores, _, _ = launchers.entropy_pool(x, (8, 8), count=True, threshold=given, mode=mode)
    compute = np.float64 if dtype == "float64" else np.float32
    assert_scores(scores, reference.patch_scores(x.values, (8, 8), threshold=given.values, dtype=compute), dtype)
    assert 0 < scores[1].max() < 0.5
    for nan in (float("nan"), tensor(np.array([np.nan]), "float64")):
        scores, _, _ = launchers.entropy_pool(x, (8, 8), count=True, threshold=nan, mode=mode)
        assert_scores(scores, reference.patch_scores(x.values, (8, 8), threshold=np.nan, dtype=compute), dtype)


def test_pool_threshold_is_rounded_to_the_scores() -> None:
    """A value on the threshold counts, when both are seen as float32."""
    x = tensor(np.array([[0.0, 1.0], [0.5, 3.0]]).reshape(2, 2, 1, 1) * np.ones((2, 2, 4, 4)))
    entropy, _ = launchers.entropy_map(x)
    for image in range(2):
        value = entropy[image, 0, 0]
        for threshold, expected in ((float(value), 1.0), (float(np.nextafter(value, np.float32(2))), 0.0)):
            scores, _, _ = launchers.entropy_pool(x, (4, 4), count=True, threshold=threshold)
            assert scores[image, 0, 0] == expected
        between = (float(value) + float(np.nextafter(value, np.float32(2)))) / 2
        below = between - 1e-12  # rounds down to the value
        assert launchers.entropy_pool(x, (4, 4), count=True, threshold=below)[0][image, 0, 0] == 1.0


@each_mode
@pytest.mark.parametrize(
    ("dtype", "layout"), [("float32", "contiguous"), ("bfloat16", "channels_last"), ("float64", "strided")]
)
def test_scores_of_single_pixels_are_the_map(dtype: str, layout: str, mode: str) -> None:
    """And written by its kernel, but where they are counted or labels are asked for."""
    x = tensor(data.logits((2, 5, 9, 20), seed=1), dtype, layout)
    for uncertainty in ("entropy", "margin"):
        expected, of_map = launchers.entropy_map(x, uncertainty=uncertainty, mode=mode)
        scores, _, pooled = launchers.entropy_pool(x, (1, 1), uncertainty=uncertainty, mode=mode)
        np.testing.assert_array_equal(scores, expected)
        assert [launch["grid"] for launch in pooled.launches] == [launch["grid"] for launch in of_map.launches]
    scores, labels, _ = launchers.entropy_pool(x, (1, 1), labels="uint8", mode=mode)
    assert_scores(scores, reference.patch_scores(x.values, (1, 1)), dtype)
    np.testing.assert_array_equal(labels, reference.labels(x.values))
    compute = np.float64 if dtype == "float64" else np.float32
    scores, _, _ = launchers.entropy_pool(x, (1, 1), count=True, threshold=0.4, mode=mode)
    assert_scores(scores, reference.patch_scores(x.values, (1, 1), threshold=0.4, dtype=compute), dtype)


def test_pool_keeps_the_digits_of_tiny_entropies() -> None:
    """A sure teacher's patches rank by how sure it is."""
    margin = np.linspace(5, 70, 64).reshape(1, 1, 8, 8).repeat(4, 2).repeat(4, 3)
    x = tensor(np.concatenate([margin, np.zeros((1, 3, 32, 32))], 1))
    scores, _, _ = launchers.entropy_pool(x, (4, 4))
    expected = reference.patch_scores(x.values, (4, 4))
    assert expected.min() < 1e-27
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_map_of_many_classes_that_add_the_same(layout: str) -> None:
    """What rounding loses at each addition has the same sign: it must not add up."""
    values = np.full((1, 2048, 1, 8), 0.5)
    values[0, [3, 1000], 0, 0::2] = 7.25
    values[0, :, 0, 1::2] = np.linspace(0, 6, 2048)[:, None]
    values[0, :, 0, 3] = np.linspace(0, 1, 2048)
    values[0, 2040, 0, 3] = 20.0  # far ahead of all that was added before
    x = tensor(values, "float32", layout)
    actual, _ = launchers.entropy_map(x)
    np.testing.assert_allclose(actual, reference.entropy(x.values), rtol=0, atol=4e-7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pool_of_a_large_patch(dtype: str) -> None:
    x = tensor(data.usable_logits((1, 3, 300, 1000), seed=5), dtype)
    scores, _, _ = launchers.entropy_pool(x, (300, 1000), runs=(("forward", 0),))
    assert_scores(scores, reference.patch_scores(x.values, (300, 1000)), dtype)


@each_mode
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("classes", [2, 4, 7, 16, 33])
def test_map(classes: int, layout: str, dtype: str, mode: str) -> None:
    normalize = layout != "offset"
    x = tensor(data.logits((2, classes, 11, 24), seed=classes), dtype, layout)
    entropy, _ = launchers.entropy_map(x, normalize=normalize, mode=mode)
    expected = reference.entropy(x.values, normalize=normalize)
    tolerance = 1e-13 if dtype == "float64" else 4e-7 * (1 if normalize else np.log(classes) + 1)
    np.testing.assert_allclose(entropy, expected, rtol=0, atol=tolerance)


@each_mode
def test_map_in_three_dimensions(mode: str) -> None:
    x = tensor(data.logits((2, 4, 3, 5, 8), seed=1))
    np.testing.assert_allclose(launchers.entropy_map(x, mode=mode)[0], reference.entropy(x.values), rtol=0, atol=4e-7)


def assert_gradient(actual: np.ndarray, expected: np.ndarray, dtype: str) -> None:
    rtol = {"float64": 1e-11, "float32": 3e-5, "float16": 1e-3, "bfloat16": 8e-3}[dtype]
    scale = np.nanmax(np.abs(expected)) if np.isfinite(expected).any() else 1.0
    atol = scale * {"float64": 1e-12, "float32": 2e-6, "float16": 1e-5, "bfloat16": 2e-6}[dtype]
    if dtype == "float16":
        atol = max(atol, 6e-8)  # its smallest number
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


@each_mode
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("classes", [2, 4, 8, 11, 32])
def test_backward_of_the_map(classes: int, layout: str, dtype: str, mode: str) -> None:
    x = tensor(data.logits((2, classes, 9, 16), seed=classes), dtype, layout)
    grad = data.rng(3).normal(size=(2, 9, 16)).astype(np.float64 if dtype == "float64" else np.float32)
    if layout == "expanded":
        grad = np.broadcast_to(grad[:1, :1, :1], grad.shape)  # the gradient of a sum
    actual, _ = launchers.entropy_backward(x, grad, mode=mode)
    assert_gradient(actual, reference.entropy_backward(x.values, grad.astype(np.float64)), dtype)


@each_mode
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "patch"), SHAPES, ids=str)
def test_backward_of_the_scores(shape: tuple[int, ...], patch: tuple[int, ...], dtype: str, mode: str) -> None:
    x = tensor(data.logits(shape, seed=2), dtype)
    grad = data.rng(4).normal(size=(shape[0], *patch_counts(shape[2:], patch)))
    grad = (grad * 64).astype(np.float64 if dtype == "float64" else np.float32)
    actual, _ = launchers.entropy_backward(x, grad, patch=patch, mode=mode)
    assert_gradient(actual, reference.entropy_backward(x.values, grad.astype(np.float64), patch=patch), dtype)
