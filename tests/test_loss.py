"""consistency_loss: values and gradients against the reference, ignored labels, empty regions, hard numbers."""

import math

import pytest
import torch
from cases import (
    MANY_CLASSES,
    Shape,
    assert_gradients_close,
    combinations,
    devices,
    dtypes,
    make_labels,
    make_logits,
    make_patches,
    make_sure_logits,
)
from torch import Tensor

import entmask_ext
from entmask_ext import ConsistencyLoss, reference

ODD = Shape(3, 2, 5, (17, 23), (4, 5))
NAMES = ConsistencyLoss._fields


def check(logits: Tensor, labels: Tensor, *args: object, **keywords: object) -> None:
    """Values and the gradient of a mixture of all four outputs, against the reference on float64 copies."""
    mixture = (0.7, 1.3, -0.4, 2.1)

    def run(function: object, x: Tensor) -> tuple[ConsistencyLoss, Tensor]:
        x = x.detach().requires_grad_()  # of the same strides
        losses = function(x, labels, *args, **keywords)  # type: ignore[operator]
        mixed = sum(factor * value for factor, value in zip(mixture, losses, strict=True))
        return losses, torch.autograd.grad(mixed, x)[0]

    got, gradient = run(entmask_ext.consistency_loss, logits)
    want, expected = run(reference.consistency_loss, logits.double())
    is_double = logits.dtype == torch.float64
    for name, value, exact in zip(NAMES, got, want, strict=True):
        assert value.shape == ()
        assert value.dtype == (torch.float64 if is_double else torch.float32)
        torch.testing.assert_close(
            value.double(), exact, rtol=1e-12 if is_double else 1e-5, atol=1e-14 if is_double else 1e-7, msg=name
        )
    assert gradient.dtype == logits.dtype
    assert gradient.stride() == torch.empty_like(logits).stride() or gradient.is_contiguous()
    assert_gradients_close(gradient, expected)


def finite_logits(
    shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu", layout: str = "contiguous"
) -> Tensor:
    """A class at -inf that is the label makes the loss infinite: tested on its own."""
    return make_logits(shape, dtype, device, layout, absent=-60)


@devices
@combinations
def test_loss_equals_the_reference(shape: Shape, dtype: torch.dtype, layout: str, device: str) -> None:
    logits = finite_logits(shape, dtype, device, layout)
    check(logits, make_labels(shape, torch.int64, device), make_patches(shape, device), shape.patch)
    weight = torch.rand(shape.classes, device=device) + 0.1
    check(
        logits,
        make_labels(shape, torch.uint8, device),
        make_patches(shape, device),
        shape.patch,
        class_weight=weight,
        mask_weight=0.7,
        ce_weight=1.2,
        dice_weight=0.3,
        smooth=1e-3,
        denominator_offset=2.5,
    )


@devices
@combinations
def test_dice_of_each_region_equals_the_reference(shape: Shape, dtype: torch.dtype, layout: str, device: str) -> None:
    logits = finite_logits(shape, dtype, device, layout)
    weights = {"mask_weight": 0.7, "visible_weight": 1.6, "dice_region": "each"}
    check(logits, make_labels(shape, torch.uint8, device), make_patches(shape, device), shape.patch, **weights)


@devices
@pytest.mark.parametrize("classes", MANY_CLASSES)
def test_probabilities_that_vanish_beside_1_count(classes: int, device: str) -> None:
    """In pixels whose label is the sure class, where they are the loss, and in those where it is another."""
    logits = make_sure_logits(classes, device).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    labels = logits.argmax(1)
    for wrong in (0, 1):
        labels[:wrong] = (labels[:wrong] + 1) % classes
        got = entmask_ext.consistency_loss(logits, labels)
        want = reference.consistency_loss(exact, labels)
        torch.testing.assert_close(got.ce_visible.double(), want.ce_visible, rtol=2e-6, atol=0)
    of_logits, of_exact = (torch.autograd.grad(loss.total, x)[0] for loss, x in ((got, logits), (want, exact)))
    torch.testing.assert_close(of_logits.double(), of_exact, rtol=0, atol=5e-6 * of_exact.abs().max().item())


@devices
@pytest.mark.parametrize("dice_region", ["all", "each"])
@pytest.mark.parametrize("classes", [2, 3, 4, 8, 9, 33])
def test_one_grid_for_all_images(classes: int, dice_region: str, device: str) -> None:
    shape = Shape(3, 1, classes, (13, 70), (4, 9))
    logits, labels = finite_logits(shape, device=device), make_labels(shape, device=device)
    patches = make_patches(shape, device)[:1]
    weights = {"mask_weight": 2, "visible_weight": 0.5, "dice_region": dice_region}
    check(logits, labels, patches, shape.patch, **weights)
    shared = entmask_ext.consistency_loss(logits, labels, patches, shape.patch, **weights)
    spread = entmask_ext.consistency_loss(logits, labels, patches.expand(3, -1, -1), shape.patch, **weights)
    assert all(torch.equal(a, b) for a, b in zip(shared, spread, strict=True))


@devices
def test_dice_of_each_region_is_that_of_its_pixels_alone(device: str) -> None:
    """The other region's labels set to an ignored one."""
    logits, labels = finite_logits(ODD, device=device), make_labels(ODD, device=device)
    patches = make_patches(ODD, device)
    masked = entmask_ext.patch_where(patches, labels, -1, ODD.patch)
    visible = entmask_ext.patch_where(patches, -1, labels, ODD.patch)
    alone = [entmask_ext.consistency_loss(logits, region).dice for region in (masked, visible)]
    each = entmask_ext.consistency_loss(
        logits, labels, patches, ODD.patch, mask_weight=0.3, visible_weight=2, dice_region="each"
    )
    torch.testing.assert_close(each.dice, 0.3 * alone[0] + 2 * alone[1])
    assert abs(each.dice - 2.3 * entmask_ext.consistency_loss(logits, labels).dice) > 1e-4


@devices
@pytest.mark.parametrize("smooth", [1e-5, 0.0])
@pytest.mark.parametrize("region", ["all masked", "nothing masked", "masked ignored", "no patches"])
def test_the_dice_of_a_region_without_pixels(region: str, smooth: float, device: str) -> None:
    logits = torch.randn(2, 3, 8, 24, device=device)
    labels = torch.randint(3, (2, 8, 24), device=device)
    patches = torch.full((2, 2, 6), region != "nothing masked", device=device)
    if region == "masked ignored":
        patches[1] = False
        labels[0] = 255
    keywords = {"smooth": smooth, "visible_weight": 0.5, "dice_region": "each"}
    check(logits, labels, *((None, None) if region == "no patches" else (patches, 4)), **keywords)


@devices
@dtypes
def test_without_patches_all_is_visible(dtype: torch.dtype, device: str) -> None:
    logits, labels = finite_logits(ODD, dtype, device), make_labels(ODD, torch.uint8, device)
    check(logits, labels)
    losses = entmask_ext.consistency_loss(logits, labels)
    assert losses.ce_masked == 0
    plain = torch.nn.functional.cross_entropy(logits.double(), labels.long(), ignore_index=255)
    torch.testing.assert_close(losses.ce_visible.double(), plain, rtol=1e-5, atol=0)


@devices
def test_a_warm_up_without_masks_keeps_its_call(device: str) -> None:
    """patch_size without patches is checked and not needed."""
    logits, labels = finite_logits(ODD, device=device), make_labels(ODD, device=device)
    weight = torch.rand(5, device=device)
    for size in (16, (4, 5), 1000):
        got = entmask_ext.consistency_loss(logits, labels, None, size, class_weight=weight)
        want = entmask_ext.consistency_loss(logits, labels, class_weight=weight)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    check(logits, labels, None, 16)
    for bad in (0, (4, 5, 6)):
        with pytest.raises(ValueError, match="patch_size"):
            entmask_ext.consistency_loss(logits, labels, None, bad)


@devices
def test_total_is_the_weighted_sum(device: str) -> None:
    logits, labels, patches = (
        finite_logits(ODD, device=device),
        make_labels(ODD, device=device),
        make_patches(ODD, device),
    )
    losses = entmask_ext.consistency_loss(
        logits, labels, patches, ODD.patch, mask_weight=3, visible_weight=0.6, ce_weight=0.2, dice_weight=0.9
    )
    want = 0.2 * (3 * losses.ce_masked + 0.6 * losses.ce_visible) + 0.9 * losses.dice
    torch.testing.assert_close(losses.total, want, rtol=1e-6, atol=0)


@devices
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_class_weight_of_any_floating_dtype(dtype: torch.dtype, device: str) -> None:
    weight = torch.tensor([0.0, 1.5, 0.25, 3, 1], device=device, dtype=dtype)
    for logits_dtype in (torch.float32, torch.float64):
        check(
            finite_logits(ODD, logits_dtype, device),
            make_labels(ODD, device=device),
            make_patches(ODD, device),
            ODD.patch,
            class_weight=weight,
        )
    strided = torch.rand(5, 3, device=device, dtype=dtype)[:, 1]
    check(finite_logits(ODD, torch.float32, device), make_labels(ODD, device=device), class_weight=strided)


@devices
@pytest.mark.parametrize("kind", ["expanded", "transposed", "sliced"])
@pytest.mark.parametrize("label_dtype", [torch.uint8, torch.int64])
def test_strided_labels_and_patches(label_dtype: torch.dtype, kind: str, device: str) -> None:
    shape = Shape(4, 1, 3, (13, 22), (3, 4))
    labels = torch.randint(3, (4, 26, 44)).to(device, label_dtype)
    patches = torch.rand(4, 10, 12, device=device) < 0.5
    if kind == "expanded":
        labels, patches = labels[:1, :13, :22].expand(4, 13, 22), patches[:1, :5, :6].expand(4, 5, 6)
    elif kind == "transposed":
        labels = labels[:, :13, :22].transpose(1, 2).contiguous().transpose(1, 2)
        patches = patches[:, :5, :6].transpose(0, 2).contiguous().transpose(0, 2)
    else:
        labels, patches = labels[:, ::2, 1::2], patches[:, 1::2, ::2]
    assert not labels.is_contiguous()
    assert not patches.is_contiguous()
    check(finite_logits(shape, device=device), labels, patches, (3, 4))


@devices
@pytest.mark.parametrize("label", [255, 3, -1, -(2**62), 2**62, 2**32])
def test_labels_outside_are_in_no_sum(label: int, device: str) -> None:
    """2**32 would be class 0 where it is cut to 32 bits."""
    shape = Shape(2, 1, 3, (9, 14), (4, 4))
    logits, patches = finite_logits(shape, device=device), make_patches(shape, device)
    labels = torch.randint(3, (2, 9, 14), device=device)
    ignored = torch.rand(2, 9, 14, device=device) < 0.3
    labels[ignored] = label
    check(logits, labels, patches, 4)

    # What stands there does not matter, not even NaN, and it gets no gradient.
    logits.movedim(1, -1)[ignored] = math.nan
    logits.requires_grad_()
    losses = entmask_ext.consistency_loss(logits, labels, patches, 4)
    assert all(value.isfinite() for value in losses)
    (gradient,) = torch.autograd.grad(losses.total, logits)
    assert (gradient.movedim(1, -1)[ignored] == 0).all()
    assert gradient.isfinite().all()


@devices
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize(
    "region", ["nothing masked", "all masked", "masked ignored", "masked weightless", "all ignored", "all weightless"]
)
def test_a_region_without_weight_gives_zero(region: str, offset: float, device: str) -> None:
    logits = torch.randn(2, 3, 8, 8, device=device)
    logits[0, 1, 3, 3] = -math.inf
    labels = torch.randint(2, (2, 8, 8), device=device) * 2
    patches = torch.zeros(2, 2, 2, dtype=torch.bool, device=device)
    weight = torch.tensor([1.0, 0, 2], device=device)
    masked = region.startswith("masked") or region == "all masked"
    patches[0] = masked
    if region == "all masked":
        patches[1] = True
    if region == "masked ignored":
        labels[0] = 77
    if region == "masked weightless":
        labels[0] = 1
    if region == "all ignored":
        labels[:] = -5
    if region == "all weightless":
        labels[:] = 1
    keywords = {"class_weight": weight, "denominator_offset": offset}
    check(logits, labels, patches, 4, **keywords)
    logits.requires_grad_()
    losses = entmask_ext.consistency_loss(logits, labels, patches, 4, **keywords)
    empty = [losses.ce_visible] if region == "all masked" else [losses.ce_masked]
    if region in ("all ignored", "all weightless"):
        empty.append(losses.ce_visible)
    for value in empty:
        assert value == 0
        (gradient,) = torch.autograd.grad(value, logits, retain_graph=True)
        assert (gradient == 0).all()


@devices
def test_offset_holds_back_small_regions(device: str) -> None:
    logits = torch.zeros(1, 2, 2, 2, device=device)
    labels = torch.zeros(1, 2, 2, dtype=torch.uint8, device=device)
    patches = torch.tensor([[[True, False]]], device=device)
    losses = entmask_ext.consistency_loss(logits, labels, patches, (2, 1), denominator_offset=2.0)
    assert losses.ce_masked.item() == pytest.approx(math.log(2) * 2 / 4, rel=1e-6)
    assert losses.ce_visible.item() == pytest.approx(math.log(2) * 2 / 4, rel=1e-6)
    # p = 1/2 everywhere. Class 0: I = 2, Q = 1, T = 4; class 1: I = 0, Q = 1, T = 0.
    assert losses.dice.item() == pytest.approx((1 - 4 / 5 + 1) / 2, rel=1e-4)


@devices
@dtypes
def test_extreme_logits(dtype: torch.dtype, device: str) -> None:
    big = 60000.0 if dtype == torch.float16 else 1e30
    values = torch.tensor([[big, -big, 0], [-big, -big, -big], [0, -math.inf, 1], [big, big, big], [-math.inf, 0, 0]])
    labels = torch.tensor([0, 2, 0, 1, 1])
    logits = values.repeat(13, 1).T.reshape(1, 3, 5, 13).to(device, dtype)
    labels = labels.repeat(13).reshape(1, 5, 13).to(device)
    check(logits, labels, (torch.rand(1, 2, 4) < 0.5).to(device), 4)


@devices
def test_a_label_of_probability_zero_costs_infinity(device: str) -> None:
    logits = torch.zeros(1, 3, 2, 2, device=device)
    logits[0, 1, 0, 0] = -math.inf
    labels = torch.zeros(1, 2, 2, dtype=torch.int64, device=device)
    labels[0, 0, 0] = 1
    losses = entmask_ext.consistency_loss(logits, labels)
    assert losses.ce_visible == math.inf
    assert losses.dice.isfinite()
    # and nothing where that class weighs nothing
    weight = torch.tensor([1.0, 0, 1], device=device)
    assert entmask_ext.consistency_loss(logits, labels, class_weight=weight).total.isfinite()


@devices
def test_nan_is_not_hidden(device: str) -> None:
    logits, labels = finite_logits(ODD, device=device), torch.zeros(3, 17, 23, dtype=torch.uint8, device=device)
    logits[2, 3, 16, 22] = math.nan
    losses = entmask_ext.consistency_loss(logits, labels)
    assert losses.total.isnan()
    assert losses.ce_visible.isnan()
    assert losses.dice.isnan()


@devices
def test_sums_of_many_pixels_stay_accurate(device: str) -> None:
    shape = Shape(2, 1, 3, (700, 701), (16, 16))
    logits = finite_logits(shape, device=device)
    check(logits, make_labels(shape, torch.uint8, device), make_patches(shape, device), 16)


@devices
def test_empty_batch(device: str) -> None:
    logits = torch.empty(0, 3, 5, 6, device=device, requires_grad=True)
    labels = torch.empty(0, 5, 6, dtype=torch.int64, device=device)
    losses = entmask_ext.consistency_loss(logits, labels, torch.empty(0, 2, 2, dtype=torch.bool, device=device), 4)
    assert [value.item() for value in losses] == [0, 0, 0, 0]
    assert torch.autograd.grad(losses.total, logits)[0].shape == logits.shape


def test_the_reference_counts_uint8_labels_of_256_classes() -> None:
    logits, labels = torch.randn(1, 256, 2, 3), torch.randint(256, (1, 2, 3), dtype=torch.uint8)
    ours, theirs = (f.consistency_loss(logits, labels) for f in (entmask_ext, reference))
    torch.testing.assert_close(ours.total, theirs.total)


@devices
@pytest.mark.parametrize("region", ["all", "each"])
def test_a_part_of_weight_0_adds_nothing(region: str, device: str) -> None:
    """With smooth=0 the Dice of a class that is nowhere is NaN; cross entropy and its gradient are as without Dice."""
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 9, 7, dtype=torch.float64, device=device)
    logits[:, 2] = -torch.inf
    labels = torch.randint(2, (2, 9, 7), device=device).to(torch.uint8)
    patches = torch.rand(2, 3, 3, device=device) < 0.5
    for label in (labels, torch.full_like(labels, 255)):
        results = []
        for smooth in (1e-5, 0.0):
            x = logits.clone().requires_grad_()
            loss = entmask_ext.consistency_loss(x, label, patches, 3, smooth=smooth, dice_weight=0, dice_region=region)
            results.append((loss.total, torch.autograd.grad(loss.total, x)[0]))
        assert torch.isfinite(results[1][0]) and torch.equal(*(total for total, _ in results))
        assert torch.equal(*(gradient for _, gradient in results))
    weights = {"mask_weight": 0.0, "visible_weight": 0.0, "ce_weight": 0.0}
    assert entmask_ext.consistency_loss(logits, labels, patches, 3, smooth=0, dice_region="each", **weights).total == 0
