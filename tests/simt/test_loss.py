"""loss_forward and loss_backward against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from . import data, launchers, reference
from .driver import FORWARD
from .launchers import LOSSES
from .modes import each_mode
from .tensors import DTYPES, LAYOUTS, Tensor, patch_counts, tensor

# logits, patch
SHAPES = [
    ((2, 4, 32, 32), (16, 16)),
    ((2, 4, 33, 29), (16, 8)),
    ((1, 2, 17, 40), (5, 8)),
    ((2, 8, 24, 24), (7, 24)),
    ((2, 3, 16, 16), (1, 1)),
    ((1, 9, 20, 16), (4, 4)),
    ((1, 40, 9, 16), (4, 8)),
    ((1, 255, 5, 8), (2, 8)),
    ((2, 3, 6, 10, 12), (4, 5, 4)),
    ((1, 4, 3, 4), (100, 100)),
]
WEIGHTS: dict[str, float] = {
    "mask_weight": 1.5,
    "visible_weight": 0.8,
    "ce_weight": 0.5,
    "dice_weight": 0.7,
    "smooth": 1e-5,
    "denominator_offset": 0.25,
}
GRADS = {"total": 1.0, "ce_masked": -0.5, "dice": 2.0}


def case(
    shape: tuple[int, ...],
    patch: tuple[int, ...],
    dtype: str,
    *,
    layout: str = "contiguous",
    label: type = np.int64,
    seed: int = 0,
) -> tuple[Tensor, np.ndarray, dict[str, Any]]:
    """Logits, labels, and the options of the loss."""
    x = tensor(data.usable_logits(shape, seed=seed), dtype, layout)
    n, k, *size = shape
    labels = data.labels((n, *size), k, seed=seed, dtype=label)
    patches = data.rng(seed).random((n, *patch_counts(size, patch))) < 0.6
    weight = data.rng(seed + 1).uniform(0, 2, k).astype(np.float32)
    weight[0] = 0
    options = {"patches": patches, "patch": patch, "class_weight": weight.astype(np.float64), "weights": WEIGHTS}
    return x, labels, options


each_region = pytest.mark.parametrize("dice_each", [False, True], ids=["all", "each"])


def assert_losses(actual: dict[str, float], expected: dict[str, float], dtype: str) -> None:
    for name in LOSSES:
        np.testing.assert_allclose(
            actual[name], expected[name], rtol=1e-12 if dtype == "float64" else 2e-6, err_msg=name
        )


def check(x: Tensor, labels: np.ndarray, options: dict[str, Any], mode: str, **run: Any) -> None:
    actual, sums, _ = launchers.loss_forward(x, labels, **options, mode=mode, **run)
    of_values = {k: v for k, v in options.items() if k != "labels_offset"}
    expected, expected_sums = reference.loss(x.values, labels, **of_values)
    assert_losses(actual, expected, x.dtype)
    rtol = 1e-12 if x.dtype == "float64" else 2e-6
    np.testing.assert_allclose(sums, expected_sums, rtol=rtol, atol=rtol * 10)

    for grads in (GRADS, {"ce_visible": 1.0}):
        grad, _ = launchers.loss_backward(x, labels, expected_sums, grads, **options, mode=mode, **run)
        expected_grad = reference.loss_backward(x.values, labels, grads, **of_values)
        scale = np.abs(expected_grad).max()
        tolerance = {"float64": 1e-12, "float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3}[x.dtype]
        np.testing.assert_allclose(
            grad, expected_grad, rtol=tolerance, atol=scale * min(tolerance, 2e-6) + 6e-8 * (x.dtype == "float16")
        )


@each_mode
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "patch"), SHAPES, ids=str)
def test_loss(shape: tuple[int, ...], patch: tuple[int, ...], dtype: str, mode: str) -> None:
    label = np.uint8 if dtype in ("float32", "float16") else np.int64
    x, labels, options = case(shape, patch, dtype, label=label, seed=shape[1])
    options["dice_each"] = DTYPES.index(dtype) % 2 == SHAPES.index((shape, patch)) % 2
    check(x, labels, options, mode)


@each_mode
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("classes", [2, 4, 8, 16, 20])
def test_loss_layouts(classes: int, layout: str, dtype: str, mode: str) -> None:
    x, labels, options = case((2, classes, 12, 24), (8, 8), dtype, layout=layout, seed=classes)
    options["dice_each"] = DTYPES.index(dtype) % 2 == LAYOUTS.index(layout) % 2
    if layout in ("strided", "expanded"):
        labels = (
            np.broadcast_to(labels[:1], labels.shape) if layout == "expanded" else labels.copy()[..., ::-1][..., ::-1]
        )
    check(x, labels, options, mode)


@each_mode
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("label", [np.uint8, np.int64])
@pytest.mark.parametrize("width", [21, 24, 36, 48])
def test_loss_of_labels_that_lie_oddly(width: int, label: type, dtype: str, mode: str) -> None:
    """Padded rows of logits; labels side by side, at an odd address, and in padded rows of their own."""
    x, labels, options = case((2, 4, 9, width), (4, 12), dtype, label=label, seed=width)
    x = tensor(x.values, dtype, "padded")
    check(x, labels, options, mode)
    check(x, labels, {**options, "labels_offset": labels.itemsize}, mode)
    wide = np.zeros((2, 9, 53), label)
    wide[..., :width] = labels
    check(x, wide[..., :width], options, mode)


@each_mode
@pytest.mark.parametrize(("multiprocessors", "dice_each"), [(1, False), (1, True), (3, True), (100, False)])
@pytest.mark.parametrize("classes", [4, 12])
def test_loss_for_any_grid(multiprocessors: int, dice_each: bool, classes: int, mode: str) -> None:
    """Few blocks whose threads go from pixels of one region to those of another, or more blocks than pixels need."""
    x, labels, options = case((3, classes, 60, 72), (4, 12), "float32", label=np.uint8, seed=classes)
    options["dice_each"] = dice_each
    check(x, labels, options, mode, multiprocessors=multiprocessors)


@each_region
@pytest.mark.parametrize("classes", [4, 12])
def test_loss_of_one_grid_for_all_images(classes: int, dice_each: bool) -> None:
    x, labels, options = case((3, classes, 16, 24), (8, 4), "float32")
    check(x, labels, {**options, "patches": options["patches"][:1], "dice_each": dice_each}, "plain")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_loss_of_regions_and_more_classes_than_are_cached(dtype: str) -> None:
    x, labels, options = case((1, 600, 3, 8), (2, 4), dtype)
    for dice_each in (False, True):
        check(x, labels, {**options, "dice_each": dice_each}, "plain")


@pytest.mark.parametrize("classes", [4, 12])
def test_loss_of_many_blocks(classes: int) -> None:
    """More blocks than the warp has lanes that adds them up."""
    x, labels, options = case((2, classes, 96, 192), (32, 32), "float32", label=np.uint8)
    check(x, labels, options, "plain", multiprocessors=100, runs=FORWARD)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("classes", [4, 12])
def test_loss_without_options(dtype: str, classes: int) -> None:
    x, labels, options = case((2, classes, 16, 24), (8, 8), dtype)
    options = {"patches": None, "patch": None, "class_weight": None, "weights": {**WEIGHTS, "denominator_offset": 0.0}}
    check(x, labels, options, "plain")
    losses, _, _ = launchers.loss_forward(x, labels, **options)
    assert losses["ce_masked"] == 0


@each_region
@pytest.mark.parametrize("classes", [4, 12])
@pytest.mark.parametrize("masked", [False, True])
def test_loss_of_an_empty_region(masked: bool, classes: int, dice_each: bool) -> None:
    """No pixel in one region: 0, and no gradient from it, never NaN."""
    x, labels, options = case((2, classes, 16, 24), (8, 8), "float32")
    options["patches"] = np.full_like(options["patches"], masked)
    smooth = 0.0 if dice_each else WEIGHTS["smooth"]
    options |= {"dice_each": dice_each, "weights": {**WEIGHTS, "denominator_offset": 0.0, "smooth": smooth}}
    check(x, labels, options, "plain")
    losses, sums, _ = launchers.loss_forward(x, labels, **options)
    assert losses["ce_visible" if masked else "ce_masked"] == 0
    grad, _ = launchers.loss_backward(x, labels, sums, {"ce_visible" if masked else "ce_masked": 1.0}, **options)
    assert (grad == 0).all()


@pytest.mark.parametrize("classes", [4, 12])
@pytest.mark.parametrize("masked", [False, True])
def test_loss_of_a_region_of_weight_zero(masked: bool, classes: int) -> None:
    """Pixels there are, but their weights add up to 0: no cross entropy, and no gradient of it, never NaN."""
    x, labels, options = case((1, classes, 8, 16), (8, 8), "float32")
    options["patches"] = np.array([[[masked, not masked]]])
    options["weights"] = {**WEIGHTS, "denominator_offset": 0.0}
    labels[:, :, :8] = 0  # the class of weight 0
    check(x, labels, options, "plain")


@pytest.mark.parametrize("classes", [4, 12])
def test_loss_of_ignored_pixels(classes: int) -> None:
    """A label outside [0, K) keeps a pixel out of every sum, whatever its logits are."""
    x, labels, options = case((1, classes, 8, 8), (8, 8), "float32")
    options["dice_each"] = classes == 12
    labels[:] = -100
    x.storage[0, 1, 3, 3] = np.nan
    losses, sums, _ = launchers.loss_forward(x, labels, **options)
    assert (sums == 0).all()
    assert losses["ce_masked"] == losses["ce_visible"] == losses["dice"] == 0
    grad, _ = launchers.loss_backward(x, labels, sums, GRADS, **options)
    assert (grad == 0).all()


@pytest.mark.parametrize("classes", [4, 12])
def test_loss_of_an_empty_batch(classes: int) -> None:
    x, labels, options = case((0, classes, 8, 8), (8, 8), "float32")
    losses, sums, _ = launchers.loss_forward(x, labels, **options)
    assert (sums == 0).all()
    assert losses["ce_masked"] == losses["ce_visible"] == losses["dice"] == 0
    grad, counts = launchers.loss_backward(x, labels, sums, GRADS, **options)
    assert grad.size == 0 and not counts.launches


@pytest.mark.parametrize("classes", [4, 12])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_loss_of_bad_logits_is_nan(classes: int, bad: float) -> None:
    """One pixel whose softmax is not defined: its region's cross entropy and Dice are NaN, the other's is not."""
    x, labels, options = case((1, classes, 8, 8), (4, 4), "float32")
    labels = np.abs(labels) % classes
    options["class_weight"] = None
    options["patches"] = np.array([[[True, False], [False, False]]])
    x.storage[0, 1, 1, 1] = bad
    losses, _, _ = launchers.loss_forward(x, labels, **options)
    assert np.isnan(losses["ce_masked"]) and np.isnan(losses["dice"]) and np.isnan(losses["total"])
    assert np.isfinite(losses["ce_visible"])


@pytest.mark.parametrize("classes", [4, 12])
def test_loss_of_impossible_classes(classes: int) -> None:
    """A class at -inf has probability 0; where it is the label, the loss is infinite."""
    x, labels, options = case((1, classes, 8, 8), (4, 4), "float32")
    options["class_weight"] = None
    labels = np.zeros_like(labels)
    x.storage[0, 1, ::2] = -np.inf
    check(x, labels, options, "plain")
    labels[0, 0, 0] = 1
    losses, _, _ = launchers.loss_forward(x, labels, **options)
    masked = bool(options["patches"][0, 0, 0])
    assert np.isinf(losses["ce_masked" if masked else "ce_visible"])
    assert np.isfinite(losses["dice"])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("classes", [4, 12])
def test_loss_of_a_class_of_weight_zero(classes: int, layout: str) -> None:
    """Its pixels add nothing to the cross entropy, not even where the class cannot be."""
    x, labels, options = case((1, classes, 8, 8), (4, 4), "float32")
    x.storage[0, 0, ::2] = -np.inf
    x = tensor(x.values, "float32", layout)
    labels[0, ::2, ::3] = 0
    assert options["class_weight"][0] == 0
    losses, sums, _ = launchers.loss_forward(x, labels, **options)
    expected, expected_sums = reference.loss(x.values, labels, **options)
    assert_losses(losses, expected, "float32")
    grad, _ = launchers.loss_backward(x, labels, sums, GRADS, **options)
    assert np.isfinite(expected_sums).all() and np.isfinite(grad).all()
