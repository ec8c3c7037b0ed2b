"""Gradients: gradcheck in float64, gradients that come strided, what is saved, and second derivatives."""

import math
from collections.abc import Callable

import pytest
import torch
from cases import (
    LAYOUTS,
    Shape,
    assert_gradients_close,
    assert_same_bits,
    combinations,
    devices,
    make_image,
    make_labels,
    make_logits,
    make_patches,
)
from torch import Tensor

import entmask_ext
from entmask_ext import reference

# Small, odd, with cut patches.
SMALL = [Shape(2, 2, 3, (5, 7), (2, 3)), Shape(2, 1, 2, (3, 5, 4), (2, 2, 3))]
small_in_a_layout = pytest.mark.parametrize(
    ("shape", "layout"), [(SMALL[0], "contiguous"), (SMALL[0], "sliced"), (SMALL[1], "channels_last")], ids=str
)


def double_logits(shape: Shape, device: str, layout: str = "contiguous") -> Tensor:
    """Moderate, so that a numerical derivative is accurate; some classes at -inf, of which no derivative is taken."""
    return LAYOUTS[layout](torch.randn(shape.images, shape.classes, *shape.sizes, dtype=torch.float64).to(device) * 2)


def with_absent_classes(logits: Tensor, present: Tensor) -> Tensor:
    return torch.where(present, logits, -math.inf)


def some_present(shape: Shape, device: str) -> Tensor:
    """True but for class 0 in a quarter of the pixels."""
    present = torch.ones(shape.images, shape.classes, *shape.sizes, dtype=torch.bool, device=device)
    present[:, 0] = torch.rand(shape.images, *shape.sizes, device=device) > 0.25
    return present


def check(function: Callable[[Tensor], Tensor | tuple[Tensor, ...]], x: Tensor) -> None:
    torch.autograd.gradcheck(function, x.detach().requires_grad_(), eps=1e-6, atol=1e-7, rtol=1e-5)


@devices
@small_in_a_layout
def test_gradcheck_of_entropy(layout: str, shape: Shape, device: str) -> None:
    logits, present = double_logits(shape, device, layout), some_present(shape, device)
    check(lambda x: entmask_ext.entropy_map(x), logits)
    check(lambda x: entmask_ext.entropy_map(x, normalize=False), logits)
    check(lambda x: entmask_ext.entropy_map(with_absent_classes(x, present)), logits)
    check(lambda x: entmask_ext.patch_scores(x, shape.patch), logits)
    check(lambda x: entmask_ext.patch_scores(with_absent_classes(x, present), shape.patch), logits)
    for kind in ("least_confidence", "margin"):
        check(lambda x, kind=kind: entmask_ext.uncertainty_map(with_absent_classes(x, present), kind), logits)
        check(lambda x, kind=kind: entmask_ext.patch_scores(x, shape.patch, uncertainty=kind), logits)


@devices
@small_in_a_layout
def test_gradcheck_of_masking(layout: str, shape: Shape, device: str) -> None:
    image = make_image(shape, torch.float64, device, layout)
    logits, present = double_logits(shape, device, layout), some_present(shape, device)
    scores = torch.rand(shape.images, *shape.grid, device=device)
    check(lambda x: entmask_ext.patch_mask(x, logits, shape.patch, 0.5, fill=3).image, image)
    check(lambda x: entmask_ext.patch_mask_from_scores(x, scores, shape.patch, 0.5).image, image)
    other, patches = make_image(shape, torch.float64, device), make_patches(shape, device)
    for one in (other, 1.5):
        check(lambda x, one=one: entmask_ext.patch_where(patches, x, one, shape.patch), image)
        check(lambda x, one=one: entmask_ext.patch_where(patches[:1], one, x, shape.patch), image)
    check(lambda x: entmask_ext.patch_mask(image, x, shape.patch, 0.5).scores, logits)
    check(lambda x: entmask_ext.patch_mask(image, with_absent_classes(x, present), shape.patch, 0.5).scores, logits)


@devices
@small_in_a_layout
@pytest.mark.parametrize("weighted", [False, True])
def test_gradcheck_of_the_loss(weighted: bool, layout: str, shape: Shape, device: str) -> None:
    logits, present = double_logits(shape, device, layout), some_present(shape, device)
    labels, patches = make_labels(shape, device=device), make_patches(shape, device)
    weight = torch.rand(shape.classes, dtype=torch.float64, device=device) if weighted else None

    def loss(x: Tensor, labels: Tensor = labels) -> tuple[Tensor, ...]:
        return tuple(entmask_ext.consistency_loss(x, labels, patches, shape.patch, class_weight=weight))

    check(loss, logits)
    labels = labels.masked_fill(labels == 0, 1)  # an absent class that is the label would cost infinity
    check(lambda x: loss(with_absent_classes(x, present), labels), logits)


@devices
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("shape", [Shape(4, 2, 2, (4, 6), (2, 3)), Shape(2, 1, 2, (2, 4, 3), (1, 2, 3))], ids=str)
def test_gradcheck_of_shuffling(shape: Shape, inverse: bool, device: str) -> None:
    permutation = torch.randperm(2 * shape.patches, device=device)
    x = make_image(shape, torch.float64, device)
    check(lambda x: entmask_ext.shuffle_patches(x, shape.patch, permutation, inverse=inverse), x)


@devices
@combinations
def test_gradients_equal_the_reference(shape: Shape, dtype: torch.dtype, layout: str, device: str) -> None:
    logits = make_logits(shape, dtype, device, layout)

    def gradient(function: Callable[[Tensor], Tensor], x: Tensor, incoming: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        out = function(x)
        return torch.autograd.grad(out, x, incoming.to(out.dtype))[0]

    for module_function in (
        lambda module, x: module.entropy_map(x),
        lambda module, x: module.patch_scores(x, shape.patch),
    ):
        incoming = torch.randn_like(module_function(entmask_ext, logits))
        got = gradient(lambda x, f=module_function: f(entmask_ext, x), logits, incoming)
        want = gradient(lambda x, f=module_function: f(reference, x), logits.double(), incoming)
        assert got.dtype == dtype
        assert_gradients_close(got, want)


@devices
def test_absent_classes_get_no_gradient(device: str) -> None:
    logits = torch.randn(1, 4, 6, 33, device=device)
    logits[:, 1] = -math.inf
    logits[:, :3, 2] = -math.inf
    logits.requires_grad_()
    for function in (entmask_ext.entropy_map, lambda x: entmask_ext.patch_scores(x, 4)):
        (gradient,) = torch.autograd.grad(function(logits).sum(), logits)
        assert gradient.isfinite().all()
        assert (gradient[:, 1] == 0).all()
        assert (gradient[:, :, 2] == 0).all()
        assert (gradient[:, 0, 3:] != 0).any()


@devices
def test_the_clamp_has_no_gradient_of_its_own(device: str) -> None:
    """At uniform logits H is 1 up to rounding: its derivative is 0 either way, and a sure pixel's is not cut to 0."""
    logits = torch.zeros(1, 2, 1, 40, device=device)
    logits[:, 0] = torch.linspace(0, 60, 40, device=device)
    x = logits.clone().requires_grad_()
    (got,) = torch.autograd.grad(entmask_ext.entropy_map(x).sum(), x)
    y = logits.double().requires_grad_()
    (want,) = torch.autograd.grad(reference.entropy_map(y, normalize=False).sum() / math.log(2), y)
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-9)
    assert (got[0, 0, 1:] < 0).all()


def expanded(like: Tensor) -> Tensor:
    return torch.full((1,) * like.dim(), 0.5, dtype=like.dtype, device=like.device).expand_as(like)


def strided(like: Tensor) -> Tensor:
    wide = torch.randn([*like.shape[:-1], like.shape[-1] * 2], dtype=like.dtype, device=like.device)
    return wide[..., ::2]


def permuted(like: Tensor) -> Tensor:
    return torch.randn(like.shape[::-1], dtype=like.dtype, device=like.device).permute(*reversed(range(like.dim())))


@devices
@pytest.mark.parametrize("incoming", [expanded, strided, permuted], ids=["expanded", "strided", "permuted"])
@pytest.mark.parametrize("shape", [Shape(3, 2, 5, (17, 23), (4, 5)), Shape(2, 2, 3, (5, 9, 7), (2, 3, 4))], ids=str)
def test_incoming_gradients_of_any_strides(shape: Shape, incoming: Callable[[Tensor], Tensor], device: str) -> None:
    image, logits = make_image(shape, device=device), make_logits(shape, device=device)
    whole = make_image(Shape(4, 2, 2, shape.patch, shape.patch), device=device)
    order, patches = torch.randperm(2, device=device), make_patches(shape, device)
    for function, x in (
        (lambda x: entmask_ext.entropy_map(x), logits),
        (lambda x: entmask_ext.patch_scores(x, shape.patch), logits),
        (lambda x: entmask_ext.patch_mask(image, x, shape.patch, 0.5).scores, logits),
        (lambda x: entmask_ext.patch_mask(x, logits, shape.patch, 0.5).image, image),
        (lambda x: entmask_ext.shuffle_patches(x, shape.patch, order), whole),
        (lambda x: entmask_ext.patch_where(patches, x, 0, shape.patch), image),
        (lambda x: entmask_ext.patch_where(patches, image, x, shape.patch), image * 2),
    ):
        x = x.detach().requires_grad_()
        out = function(x)
        gradient = incoming(out)
        assert not gradient.is_contiguous() or gradient.numel() == 1
        (got,) = torch.autograd.grad(out, x, gradient, retain_graph=True)
        (want,) = torch.autograd.grad(out, x, gradient.contiguous())
        assert_same_bits(got, want)


@devices
def test_a_part_of_the_outputs_may_be_used(device: str) -> None:
    """Each of the loss's outputs by itself, and both differentiable outputs of patch_mask at once."""
    shape = Shape(2, 2, 3, (9, 10), (4, 4))
    labels, patches = make_labels(shape, device=device), make_patches(shape, device)
    logits = make_logits(shape, device=device, absent=-30)
    for name in ("total", "ce_masked", "ce_visible", "dice"):
        gradients = []
        for module, dtype in ((entmask_ext, torch.float32), (reference, torch.float64)):
            x = logits.to(dtype).requires_grad_()
            loss = getattr(module.consistency_loss(x, labels, patches, 4), name)
            gradients.append(torch.autograd.grad(loss, x, torch.full_like(loss, -1.5))[0])
        assert_gradients_close(*gradients)

    image, x = make_image(shape, device=device).requires_grad_(), logits.detach().requires_grad_()
    masked = entmask_ext.patch_mask(image, x, 4, 0.5)
    assert masked.image.requires_grad
    assert masked.scores.requires_grad
    assert not masked.mask.requires_grad
    assert not masked.patches.requires_grad
    to_image, to_logits = torch.autograd.grad(masked.image.sum() + masked.scores.sum(), (image, x))
    assert torch.equal(to_image, 1 - masked.mask.expand_as(image))
    want = torch.autograd.grad(entmask_ext.patch_scores(x, 4).sum(), x)[0]
    assert_same_bits(to_logits, want)


@devices
def test_masked_pixels_get_no_gradient_whatever_comes(device: str) -> None:
    image, logits = torch.randn(1, 1, 8, 8, device=device, requires_grad=True), torch.randn(1, 2, 8, 8, device=device)
    masked = entmask_ext.patch_mask(image, logits, 4, 0.5)
    incoming = torch.full_like(image, math.nan).masked_fill(masked.mask == 0, 2)
    (gradient,) = torch.autograd.grad(masked.image, image, incoming)
    assert torch.equal(gradient, 2 * (1 - masked.mask))


@devices
@pytest.mark.parametrize("inside_layout", ["contiguous", "channels_last", "sliced"])
def test_gradients_of_patch_where(inside_layout: str, device: str) -> None:
    """Each side gets its own pixels' gradient, 0 elsewhere; NaN on the side not taken is in neither."""
    shape = Shape(3, 2, 2, (9, 10), (4, 3))
    patches = make_patches(shape, device)
    mask = torch.zeros(3, 1, 9, 10, device=device)
    mask = entmask_ext.patch_where(patches, 1, mask, shape.patch).bool().expand(3, 2, 9, 10)
    inside = LAYOUTS[inside_layout](
        torch.randn(3, 2, 9, 10, device=device).masked_fill(~mask, math.nan)
    ).requires_grad_()
    outside = torch.randn(3, 2, 9, 10, device=device).masked_fill(mask, math.nan).requires_grad_()
    out = entmask_ext.patch_where(patches, inside, outside, shape.patch)
    assert_same_bits(out.detach(), torch.where(mask, inside, outside).detach())
    assert out.isfinite().all()
    incoming = torch.randn_like(out)
    to_inside, to_outside = torch.autograd.grad(out, (inside, outside), incoming, retain_graph=True)
    assert_same_bits(to_inside, incoming.masked_fill(~mask, 0))
    assert_same_bits(to_outside, incoming.masked_fill(mask, 0))
    # What comes for the other side's pixels, NaN too, is not multiplied by 0.
    (to_inside,) = torch.autograd.grad(out, inside, incoming.masked_fill(~mask, math.nan), retain_graph=True)
    assert_same_bits(to_inside, incoming.masked_fill(~mask, 0))
    (to_outside,) = torch.autograd.grad(out, outside, incoming.masked_fill(mask, math.inf))
    assert_same_bits(to_outside, incoming.masked_fill(mask, 0))


def required(*outputs: Tensor | None) -> list[bool | None]:
    for x in outputs:
        assert x is None or x.requires_grad == (x.grad_fn is not None)
    return [None if x is None else x.requires_grad for x in outputs]


@devices
@pytest.mark.parametrize("score", ["mean", "count"])
@pytest.mark.parametrize("wanted", ["", "image", "logits", "image logits"])
def test_who_requires_a_gradient(wanted: str, score: str, device: str) -> None:
    """An output does where it has one to an input that does; masks, patches, labels and counts never."""
    image = torch.randn(2, 1, 8, 8, device=device, requires_grad="image" in wanted)
    logits = torch.randn(2, 3, 8, 8, device=device, requires_grad="logits" in wanted)
    of_image, of_logits = image.requires_grad, logits.requires_grad
    of_scores = of_logits and score == "mean"
    ratio = torch.tensor(0.5, device=device, requires_grad=True)

    masked = entmask_ext.patch_mask(image, logits, 4, ratio, score=score, label_dtype=torch.uint8)
    assert required(*masked) == [of_image, False, False, of_scores, False]
    scores = entmask_ext.patch_scores(logits, 4, score=score)
    assert required(scores) == [of_scores]
    assert required(*entmask_ext.patch_mask_from_scores(image, scores, 4)) == [of_image, False, False, of_scores, None]
    assert required(*entmask_ext.random_patch_mask(image, 4)) == [of_image, False, False, False, None]
    patches = entmask_ext.select_patches(scores, min_score=ratio)
    assert required(patches) == [False]
    for other in (0.0, image.detach()):
        assert required(entmask_ext.patch_where(patches, image, other, 4)) == [of_image]
        assert required(entmask_ext.patch_where(patches, other, image, 4)) == [of_image]

    labels = torch.zeros(2, 8, 8, dtype=torch.uint8, device=device)
    ops = torch.ops.entmask  # these have outputs that the public functions keep
    assert required(*ops.score_patches(logits, [4], "entropy", score, 0.5, None, torch.int64, None, None)) == [
        of_scores,
        False,
    ]
    assert required(*ops.patch_where(patches, None, image, 0.0, None, [4], torch.float32)) == [of_image, False]
    losses = ops.consistency_loss(logits, labels, None, None, 1, 1, None, 1, 1, 1e-5, 0, "all")
    assert required(*losses) == [of_logits] * 4 + [False]
    with torch.no_grad():
        assert required(*entmask_ext.patch_mask(image, logits, 4)) == [False] * 4 + [None]


# ---------------------------------------------------------------- what no formula serves


def differentiable_calls(device: str) -> dict[str, tuple[dict[str, Tensor], Callable[..., object]]]:
    """Per op, backward ones too: its floating tensors, and the call with some of them replaced."""
    shape = Shape(2, 2, 3, (8, 8), (4, 4))
    image, logits = make_image(shape, device=device), make_logits(shape, device=device, absent=-30)
    labels, patches, order = (
        make_labels(shape, device=device),
        make_patches(shape, device),
        torch.arange(4, device=device),
    )
    weight, one = torch.rand(3, device=device), torch.ones((), device=device)
    ops = torch.ops.entmask
    sums = ops.consistency_loss(logits, labels, patches, [4], 1.5, 1, weight, 0.5, 0.5, 1e-5, 0, "all")[4]
    pixels, scores = torch.randn(2, 8, 8, device=device), torch.randn(2, 2, 2, device=device)
    return {
        "entropy_map": ({"logits": logits}, lambda logits: entmask_ext.entropy_map(logits)),
        "uncertainty_map": ({"logits": logits}, lambda logits: entmask_ext.uncertainty_map(logits, "margin")),
        "patch_scores": ({"logits": logits}, lambda logits: entmask_ext.patch_scores(logits, 4)),
        "patch_mask": (
            {"image": image, "logits": logits},
            lambda image, logits: entmask_ext.patch_mask(image, logits, 4, 0.5)[::3],
        ),
        "patch_mask_from_scores": (
            {"image": image}, lambda image: entmask_ext.patch_mask_from_scores(image, scores, 4, 0.5).image,
        ),
        "random_patch_mask": ({"image": image}, lambda image: entmask_ext.random_patch_mask(image, 4).image),
        "patch_where": (
            {"inside": image, "outside": image * 2},
            lambda inside, outside: entmask_ext.patch_where(patches, inside, outside, 4),
        ),
        "shuffle_patches": ({"x": image}, lambda x: entmask_ext.shuffle_patches(x, 4, order)),
        "consistency_loss": (
            {"logits": logits, "class_weight": weight},
            lambda logits, class_weight: entmask_ext.consistency_loss(
                logits, labels, patches, 4, class_weight=class_weight
            ),
        ),
        "soft_consistency_loss": (
            {"logits": logits, "target_logits": logits * 2},
            lambda logits, target_logits: entmask_ext.soft_consistency_loss(logits, target_logits, kind="kl"),
        ),
        "soft_consistency_loss_backward": (
            {"grad": one, "logits": logits, "target_logits": logits * 2, "sums": torch.ones(2).double().to(device)},
            lambda grad, logits, target_logits, sums: ops.soft_consistency_loss_backward(
                grad, logits, target_logits, None, "mse", sums
            ),
        ),
        "entropy_map_backward": (
            {"grad": pixels, "logits": logits}, lambda grad, logits: ops.entropy_map_backward(grad, logits, True),
        ),
        "uncertainty_map_backward": (
            {"grad": pixels, "logits": logits},
            lambda grad, logits: ops.uncertainty_map_backward(grad, logits, "margin"),
        ),
        "score_patches_backward": (
            {"grad": scores, "logits": logits},
            lambda grad, logits: ops.score_patches_backward(grad, logits, [4], "margin"),
        ),
        "consistency_loss_backward": (
            {"total": one, "masked": one * 2, "visible": one * 3, "dice": one * 4, "logits": logits, "weight": weight,
             "sums": sums},
            lambda total, masked, visible, dice, logits, weight, sums: ops.consistency_loss_backward(
                total, masked, visible, dice, logits, labels, patches, [4], weight, sums, 1.5, 1, 0.5, 0.5, 1e-5, 0,
                "all",
            ),
        ),
    }  # fmt: skip


OPS = [
    "entropy_map", "patch_scores", "patch_mask", "patch_mask_from_scores", "random_patch_mask", "patch_where",
    "shuffle_patches", "consistency_loss", "entropy_map_backward", "uncertainty_map", "uncertainty_map_backward",
    "score_patches_backward", "consistency_loss_backward", "soft_consistency_loss", "soft_consistency_loss_backward",
]  # fmt: skip


@devices
@pytest.mark.parametrize("name", OPS)
def test_a_tangent_is_refused(name: str, device: str) -> None:
    """Forward mode has no formula here: each op says so, for each of its arguments."""
    tensors, call = differentiable_calls(device)[name]
    for argument, x in tensors.items():
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
            with pytest.raises(NotImplementedError, match=r"entmask::\w+ has no (forward-mode derivative|derivative)"):
                call(**tensors | {argument: dual})


@devices
@pytest.mark.parametrize("name", [name for name in OPS if name.endswith("backward")])
def test_a_gradient_op_is_differentiated_no_further(name: str, device: str) -> None:
    tensors, call = differentiable_calls(device)[name]
    for argument, x in tensors.items():
        wanting = x.detach().clone().requires_grad_()
        out = call(**tensors | {argument: wanting})
        assert isinstance(out, Tensor)
        with pytest.raises(NotImplementedError, match=f"{name} is differentiable once"):
            torch.autograd.grad(out.sum(), wanting)


@devices
def test_a_tangent_of_the_incoming_gradient_is_refused(device: str) -> None:
    """Forward over reverse: the outer derivative would need the backward's own."""
    logits = torch.randn(1, 3, 8, 8, device=device, requires_grad=True)
    labels = torch.randint(3, (1, 8, 8), device=device)
    for out in (
        entmask_ext.entropy_map(logits),
        entmask_ext.patch_scores(logits, 4),
        entmask_ext.consistency_loss(logits, labels).total,
        entmask_ext.soft_consistency_loss(logits, logits.detach() + 1),
    ):
        with torch.autograd.forward_ad.dual_level():
            incoming = torch.autograd.forward_ad.make_dual(torch.ones_like(out), torch.ones_like(out))
            with pytest.raises(NotImplementedError, match=r"entmask::\w+_backward has no forward-mode derivative"):
                torch.autograd.grad(out, logits, incoming)


@devices
@pytest.mark.parametrize("logits_want", [False, True])
def test_class_weights_get_no_gradient_and_say_so(logits_want: bool, device: str) -> None:
    logits = torch.randn(1, 3, 4, 4, device=device, requires_grad=logits_want)
    labels = torch.randint(3, (1, 4, 4), device=device)
    weight = torch.rand(3, device=device, requires_grad=True)
    with pytest.raises((NotImplementedError, ValueError), match=r"class_weight.*detach\(\)"):
        entmask_ext.consistency_loss(logits, labels, class_weight=weight)
    with pytest.raises((NotImplementedError, ValueError), match=r"class_weight.*detach\(\)"):
        entmask_ext.consistency_loss(logits, labels, class_weight=weight.double() * 2)
    want = entmask_ext.consistency_loss(logits, labels, class_weight=weight.detach()).total
    with torch.no_grad():
        assert_same_bits(entmask_ext.consistency_loss(logits, labels, class_weight=weight).total, want.detach())


def saved_bytes(function: Callable[[], object], *known: Tensor) -> int:
    """Bytes that autograd keeps for the backward, but for the tensors that the caller has anyway."""
    pointers = {x.untyped_storage().data_ptr() for x in known}
    sizes = []

    def pack(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in pointers:
            sizes.append(x.nbytes)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = function()
    del result
    return sum(sizes)


@devices
def test_what_is_saved(device: str) -> None:
    image = torch.randn(2, 1, 64, 64, device=device, requires_grad=True)
    logits = torch.randn(2, 4, 64, 64, device=device, requires_grad=True)
    labels = torch.randint(4, (2, 64, 64), device=device)
    masked = entmask_ext.patch_mask(image.detach(), logits.detach(), 16, 0.5)
    patches = masked.patches
    order = torch.randperm(16, device=device)
    bare = logits.detach().flip(0)
    where = labels > 1
    known = (image, logits, labels, patches, order, bare, where)
    calls: dict[str, tuple[Callable[[], object], int]] = {
        "entropy_map": (lambda: entmask_ext.entropy_map(logits), 0),
        "patch_scores": (lambda: entmask_ext.patch_scores(logits, 16), 0),
        "uncertainty_map": (lambda: entmask_ext.uncertainty_map(logits, "margin"), 0),
        "pseudo_labels": (lambda: entmask_ext.pseudo_labels(logits, min_confidence=0.5), 0),
        # the grid of patches that it made, 32 bytes
        "patch_mask": (lambda: entmask_ext.patch_mask(image, logits, 16, 0.5), 2 * 16),
        # four sums of the regions and three a class, in double
        "consistency_loss": (lambda: entmask_ext.consistency_loss(logits, labels, patches, 16), 8 * (4 + 3 * 4)),
        "regions": (
            lambda: entmask_ext.consistency_loss(logits, labels, patches, 16, dice_region="each"),
            8 * (4 + 6 * 4),
        ),
        "soft_consistency_loss": (lambda: entmask_ext.soft_consistency_loss(logits, bare, where), 8 * 2),
        "shuffle_patches": (lambda: entmask_ext.shuffle_patches(image, 16, order), 0),
        "patch_where": (lambda: entmask_ext.patch_where(patches, image, 0, 16), 0),
    }
    for name, (call, budget) in calls.items():
        assert saved_bytes(call, *known) <= budget, name
        with torch.no_grad():
            assert saved_bytes(call) == 0, name
        with torch.inference_mode():
            assert saved_bytes(call) == 0, name
    # Where nothing needs a gradient, nothing is kept, grad mode or not.
    bare_image, bare_logits = image.detach(), logits.detach()
    assert saved_bytes(lambda: entmask_ext.patch_mask(bare_image, bare_logits, 16)) == 0
    assert saved_bytes(lambda: entmask_ext.consistency_loss(bare_logits, labels, patches, 16)) == 0


@devices
def test_changing_an_input_before_the_backward_is_noticed(device: str) -> None:
    logits = torch.randn(1, 3, 8, 8, device=device, requires_grad=True)
    x = logits * 1
    loss = entmask_ext.consistency_loss(x, torch.zeros(1, 8, 8, dtype=torch.int64, device=device)).total
    x.data.add_(0)  # not seen by autograd
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@devices
def test_backward_twice_through_a_retained_graph(device: str) -> None:
    logits = torch.randn(1, 3, 8, 8, device=device, requires_grad=True)
    labels = torch.randint(3, (1, 8, 8), device=device)
    for out in (
        entmask_ext.entropy_map(logits).sum(),
        entmask_ext.patch_scores(logits, 4).sum(),
        entmask_ext.consistency_loss(logits, labels).total,
    ):
        (first,) = torch.autograd.grad(out, logits, retain_graph=True)
        (second,) = torch.autograd.grad(out, logits)
        assert_same_bits(first, second)


@devices
def test_second_derivatives_work_or_say_that_they_do_not(device: str) -> None:
    """Those of linear ops are right; the others are refused, never wrong."""
    logits = torch.randn(1, 3, 8, 8, device=device, requires_grad=True)
    labels = torch.randint(3, (1, 8, 8), device=device)
    for out in (
        entmask_ext.entropy_map(logits).sum(),
        entmask_ext.patch_scores(logits, 4).sum(),
        entmask_ext.patch_mask(logits.detach(), logits, 4).scores.sum(),
        entmask_ext.consistency_loss(logits, labels).total,
    ):
        (gradient,) = torch.autograd.grad(out, logits, create_graph=True)
        with pytest.raises((RuntimeError, NotImplementedError), match=r"(once|twice|second|double)"):
            torch.autograd.grad(gradient.sum(), logits)

    image = torch.randn(1, 1, 8, 8, device=device, dtype=torch.float64, requires_grad=True)
    order, patches = torch.randperm(4, device=device), torch.rand(1, 2, 2, device=device) < 0.5
    for function in (
        lambda x: entmask_ext.patch_mask(x, logits, 4, 0.5).image.square(),
        lambda x: entmask_ext.shuffle_patches(x, 4, order).square(),
        lambda x: entmask_ext.patch_where(patches, x, x.sin() * 2, 4).square(),
    ):
        assert torch.autograd.gradgradcheck(function, image)
