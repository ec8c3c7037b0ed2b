"""The ops inside torch: opcheck, torch.compile, torch.export, fake and meta tensors, autocast, vmap, torch.func."""

import math
import operator
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import (
    DTYPES,
    LAYOUTS,
    Shape,
    assert_same_bits,
    devices,
    make_image,
    make_labels,
    make_logits,
    make_patches,
)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import entmask_ext
from entmask_ext import ConsistencyLoss, PatchMask, PseudoLabels, reference

FLAT, VOLUME = Shape(2, 2, 4, (9, 14), (4, 5)), Shape(2, 1, 3, (3, 6, 5), (2, 3, 2))
ops = torch.ops.entmask
# torch.compile needs packages that a torch without its dependencies lacks
CompileCounterWithBackend = pytest.importorskip("torch._dynamo.testing").CompileCounterWithBackend


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()


def op_calls(shape: Shape, dtype: torch.dtype, device: str, layout: str = "contiguous") -> dict[Any, tuple[Any, ...]]:
    """Every op of the dispatcher with arguments that use all of its branches between them."""
    make = LAYOUTS[layout]
    image, logits = make_image(shape, dtype, device, layout), make_logits(shape, dtype, device, layout, absent=-60)
    result = torch.float64 if dtype == torch.float64 else torch.float32
    patch = list(shape.patch)
    scores = torch.rand(shape.images, *shape.grid, device=device, dtype=result)
    per_pixel = torch.rand(shape.images, *shape.sizes, device=device, dtype=result)
    labels, patches = make_labels(shape, torch.uint8, device), make_patches(shape, device)
    weight = torch.rand(shape.classes, device=device)
    whole = make(torch.randn(4, 2, *(2 * width for width in patch)).to(device, dtype))
    order = torch.randperm(2 * 2 ** len(patch), device=device)
    taken = torch.randint(4 * 2 ** len(patch), (4, *[2] * len(patch)), device=device)
    number, numbers = torch.tensor(0.4, device=device), torch.rand(shape.images, device=device)
    counts = torch.arange(shape.images, device=device)
    one, two = torch.ones((), dtype=result, device=device), torch.tensor([1.0, 9.0], device=device).double()
    loss = (1.5, 0.7, weight, 0.5, 0.5, 1e-5, 0.0, "each")
    *_, sums = ops.consistency_loss(logits.detach(), labels, patches, patch, *loss)
    return {
        ops.patch_mask.default: (
            image, logits, patch, 0.5, None, "margin", "mean", 0.75, None, None, None, 0, "highest", 0.1, "image", 0.5,
            None, torch.uint8, 0.6, None,
        ),
        ops.patch_mask_from_scores.default: (
            image, scores, patch, None, None, None, number, 2, "lowest", 0.0, "batch", 0.0, torch.bool,
        ),
        ops.random_patch_mask.default: (image, patch, None, counts, True, -1.0, None, None),
        ops.patch_scores.default: (logits, patch, "entropy", "mean", 0.75, None),
        ops.score_patches.default: (
            logits, patch, "least_confidence", "mean", 0.0, numbers, torch.int64, None, number,
        ),
        ops.score_patches_backward.default: (scores, logits.detach(), patch, "least_confidence"),
        ops.pseudo_labels.default: (logits, None, number, torch.uint8),
        ops.uncertainty_map.default: (logits, "margin"),
        ops.uncertainty_map_backward.default: (per_pixel, logits.detach(), "margin"),
        ops.select_patches.default: (scores, None, numbers, None, None, 0, "highest", 0.1, "image"),
        ops.patch_where.default: (patches, None, image, None, 2 * image, patch, torch.bool),
        ops.box_mask.default: (torch.randint(9, (3, 2 * len(patch)), device=device), list(shape.sizes)),
        ops.entropy_map.default: (logits, True),
        ops.entropy_map_backward.default: (per_pixel, logits.detach(), False),
        ops.consistency_loss.default: (logits, labels, patches, patch, *loss),
        ops.consistency_loss_backward.default: (
            one, None, one * 2, one, logits.detach(), labels, patches, patch, weight, sums, 1.5, 0.7, *loss[3:],
        ),
        ops.soft_consistency_loss.default: (logits, logits.detach().flip(1).double(), per_pixel > 0.4, "kl"),
        ops.soft_consistency_loss_backward.default: (
            one, logits.detach(), logits.detach().flip(1), per_pixel > 0.4, "mse", two,
        ),
        ops.shuffle_patches.default: (whole, patch, order, True),
        ops.gather_patches.default: (whole, taken, patch),
        ops.gather_patches_backward.default: (whole, taken, patch),
        ops.largest_components.default: (labels, shape.classes, 2),
    }  # fmt: skip


def test_every_op_is_checked() -> None:
    defined = {name.removeprefix("entmask::") for name in torch._C._dispatch_get_all_op_names() if "entmask::" in name}
    checked = {op.name().removeprefix("entmask::") for op in op_calls(FLAT, torch.float32, "cpu")}
    assert checked == defined


@devices
@pytest.mark.parametrize(("shape", "layout"), [(FLAT, "channels_last"), (VOLUME, "contiguous")], ids=str)
def test_opcheck(shape: Shape, layout: str, device: str) -> None:
    for op, arguments in op_calls(shape, torch.float32, device, layout).items():
        if not op.name().endswith("_backward"):
            arguments = tuple(
                x.detach().requires_grad_() if isinstance(x, Tensor) and x.dtype == torch.float32 and x.dim() > 3 else x
                for x in arguments
            )
        torch.library.opcheck(op, arguments)


def metadata(results: Any) -> list[tuple[Any, ...]]:
    results = (results,) if isinstance(results, Tensor) else results
    return [(x.shape, x.dtype, x.stride(), x.requires_grad) for x in results]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [FLAT, VOLUME], ids=str)
def test_meta_and_fake_tensors_tell_the_same_shapes_dtypes_and_strides(
    shape: Shape, dtype: torch.dtype, layout: str
) -> None:
    for op, arguments in op_calls(shape, dtype, "cpu", layout).items():
        want = metadata(op(*arguments))
        on_meta = [_meta(x) if isinstance(x, Tensor) else x for x in arguments]
        results = op(*on_meta)
        assert metadata(results) == want, op
        assert all(x.is_meta for x in ((results,) if isinstance(results, Tensor) else results))
        with FakeTensorMode() as mode:
            faked = [mode.from_tensor(x) if isinstance(x, Tensor) else x for x in arguments]
            assert metadata(op(*faked)) == want, op


def _meta(x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


@pytest.mark.parametrize("sizes", [(0, 9, 14), (2, 9, 14)])
def test_public_functions_on_meta(sizes: tuple[int, ...]) -> None:
    images, *spatial = sizes
    image = torch.empty(images, 2, *spatial, device="meta", dtype=torch.float16)
    logits = torch.empty(images, 4, *spatial, device="meta")
    masked = entmask_ext.patch_mask(image, logits, (4, 5), 0.5, mask_dtype=torch.bool, label_dtype=torch.int64)
    assert isinstance(masked, PatchMask)
    assert masked.labels is not None
    assert [(tuple(x.shape), x.dtype, x.device.type) for x in masked] == [
        ((images, 2, *spatial), torch.float16, "meta"),
        ((images, 1, *spatial), torch.bool, "meta"),
        ((images, 3, 3), torch.bool, "meta"),
        ((images, 3, 3), torch.float32, "meta"),
        ((images, *spatial), torch.int64, "meta"),
    ]
    losses = entmask_ext.consistency_loss(logits, masked.labels, masked.patches, (4, 5))
    assert isinstance(losses, ConsistencyLoss)
    assert all(value.shape == () and value.is_meta for value in losses)
    assert entmask_ext.entropy_map(logits).shape == entmask_ext.uncertainty_map(logits, "margin").shape == sizes
    gated = entmask_ext.pseudo_labels(logits, min_confidence=0.9)
    assert isinstance(gated, PseudoLabels)
    assert [(tuple(x.shape), x.dtype) for x in gated] == [(sizes, torch.uint8), ((images,), torch.float32)]
    assert entmask_ext.random_patch_mask(image, 4).mask.shape == masked.mask.shape


def step(image: Tensor, teacher: Tensor, student: Tensor, ratio: Tensor | float) -> tuple[Tensor, ...]:
    """A masking-and-loss step, with everything a training loop would call."""
    masked = entmask_ext.patch_mask(image, teacher, 4, ratio, hint=0.1, label_dtype=torch.uint8)
    assert masked.labels is not None
    losses = entmask_ext.consistency_loss(student * (1 + masked.image.mean()), masked.labels, masked.patches, 4)
    scores = entmask_ext.patch_scores(student, 4, score="mean")
    entropy = entmask_ext.entropy_map(student) + entmask_ext.uncertainty_map(student, "margin")
    again = entmask_ext.patch_mask_from_scores(image, scores.detach(), 4, min_score=0.5, min_patches=2)
    total = losses.total + scores.sum() + entropy.mean()
    return total, masked.image, masked.mask, masked.patches, masked.scores, masked.labels, again.image


def inputs(images: int, height: int, width: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    shape = (height, width)
    return (
        torch.randn(images, 1, *shape, device=device),
        torch.randn(images, 3, *shape, device=device),
        torch.randn(images, 3, *shape, device=device, requires_grad=True),
    )


@devices
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_step_gives_the_eager_answer(backend: str, device: str) -> None:
    """In one graph, for all sizes. Gradients and the fused products may be rounded otherwise; masks may not."""
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=counter)
    compiles = set()
    for sizes in ((2, 16, 24), (3, 17, 21), (5, 30, 13)):
        image, teacher, student = inputs(*sizes, device)
        ratio = torch.tensor(0.4, device=device)
        want, got = step(image, teacher, student, ratio), compiled(image, teacher, student, ratio)
        torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=1e-6)
        for actual, expected in zip(got[1:], want[1:], strict=True):
            assert actual.stride() == expected.stride()
            assert_same_bits(actual, expected)
        gradients = [torch.autograd.grad(out[0], student)[0] for out in (got, want)]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)
        compiles.add(counter.frame_count)
    assert len(compiles) == 1


@devices
def test_all_functions_compile(device: str) -> None:
    """The functions and arguments that the step does not use, 3-D and channels_last."""
    x = torch.randn(4, 2, 4, 6, 8, device=device).contiguous(memory_format=torch.channels_last_3d)
    order = torch.randperm(2 * 2 * 3 * 4, device=device)
    number = torch.tensor(0.3, dtype=torch.float64)

    def everything(x: Tensor) -> tuple[Tensor, ...]:
        masked = entmask_ext.patch_mask(
            x, x, (2, 3, 2), score="count", threshold=0.9, min_score=number, order="lowest", scope="batch",
            mask_dtype=torch.bool,
        )  # fmt: skip
        assert masked.labels is None
        return (
            *masked[:4],
            entmask_ext.shuffle_patches(x, 2, order),
            entmask_ext.shuffle_patches(x, 2, order, inverse=True),
            entmask_ext.entropy_map(x, normalize=False),
            entmask_ext.patch_scores(x, (4, 2, 2), uncertainty="margin", score="count", threshold=number),
            *entmask_ext.pseudo_labels(x, min_confidence=number),
            *entmask_ext.consistency_loss(x, torch.zeros(4, 4, 6, 8, dtype=torch.int64, device=device)),
            entmask_ext.soft_consistency_loss(x, x.flip(0), masked.mask[:, 0], kind="kl"),
            entmask_ext.gather_patches(x, order.repeat(2).reshape(4, 2, 3, 4), 2),
            entmask_ext.largest_components(x.argmax(1).to(torch.uint8), 2, connectivity=3),
            entmask_ext.box_mask(order[:24].reshape(4, 6), (4, 6, 8)),
        )

    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(compiled(x), everything(x), strict=True):
        assert actual.stride() == expected.stride()
        assert_same_bits(actual, expected)


@devices
@pytest.mark.parametrize("shared", [False, True])
def test_random_masks_compile(shared: bool, device: str) -> None:
    """Once for all batch sizes."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda x: entmask_ext.random_patch_mask(x, 4, 0.5, shared=shared), fullgraph=True, backend=counter
    )
    for images in (3, 2, 5, 7):
        image = torch.randn(images, 1, 16, 20, device=device)
        masked = compiled(image)
        assert isinstance(masked, PatchMask)
        assert masked.patches.flatten(1).sum(1).tolist() == [10] * images
        assert bool((masked.patches == masked.patches[:1]).all()) == shared
        want = entmask_ext.patch_mask_from_scores(image, masked.scores, 4, 0.5)
        assert_same_bits(masked.image, want.image)
    assert counter.frame_count == 2  # the sizes of the first call, then any


@devices
def test_a_ramp_does_not_recompile(device: str) -> None:
    image, logits, _ = inputs(2, 16, 16, device)
    counter = CompileCounterWithBackend("eager")

    def masks(ratio: Tensor, threshold: Tensor, min_score: Tensor) -> tuple[Tensor, ...]:
        by_ratio = entmask_ext.patch_mask(image, logits, 4, ratio, score="count", threshold=threshold)
        by_score = entmask_ext.patch_mask(image, logits, 4, min_score=min_score)
        return by_ratio.patches, by_ratio.scores, by_score.patches

    compiled = torch.compile(masks, fullgraph=True, backend=counter)
    fractions = []
    for value in torch.linspace(0.1, 0.9, 17, device=device):
        got = compiled(value, value, value)
        for actual, expected in zip(got, masks(value, value, value), strict=True):
            assert_same_bits(actual, expected)
        fractions.append(got[0].float().mean().item())
    assert counter.frame_count == 1
    assert fractions == sorted(fractions)
    assert fractions[0] < fractions[-1]


# Numbers of the public functions, computed from s.
SCHEDULED: dict[str, Callable[[float, Tensor, Tensor, Tensor, Tensor], tuple[Any, ...]]] = {
    "patch_mask": lambda s, image, logits, labels, patches: entmask_ext.patch_mask(
        image, logits, 4, 0.5 * s, hint=0.3 * s, fill=-3 * s
    )[:4],
    "count": lambda s, image, logits, labels, patches: entmask_ext.patch_mask(
        image, logits, 4, score="count", threshold=0.9 * s, min_score=0.3 * s
    )[:4],
    "margin": lambda s, image, logits, labels, patches: entmask_ext.patch_mask(
        image, logits, 4, 0.5, uncertainty="margin", min_confidence=0.8 * s, label_dtype=torch.uint8
    ),
    "patch_mask_from_scores": lambda s, image, logits, labels, patches: entmask_ext.patch_mask_from_scores(
        image, logits[:, 0, ::4, ::4], 4, 0.5 * s, hint=0.3 * s, fill=-3 * s
    )[:4],
    "patch_scores": lambda s, image, logits, labels, patches: (
        entmask_ext.patch_scores(logits, 4, score="count", threshold=0.5 * s),
    ),
    "gate": lambda s, image, logits, labels, patches: entmask_ext.pseudo_labels(logits, min_confidence=0.9 * s),
    "loss": lambda s, image, logits, labels, patches: entmask_ext.consistency_loss(
        logits, labels, patches, 4, mask_weight=2 * s, visible_weight=1 - s, ce_weight=s + 1, dice_weight=s / 2,
        smooth=s * s, denominator_offset=3 * s, dice_region="each",
    ),
    "select_patches": lambda s, image, logits, labels, patches: (
        entmask_ext.select_patches(logits[:, 0], 0.7 * s, hint=0.2 * s),
        entmask_ext.select_patches(logits[:, 0], min_score=s / 2),
    ),
    "patch_where": lambda s, image, logits, labels, patches: (
        entmask_ext.patch_where(patches, 2 * s, image, 4), entmask_ext.patch_where(patches, image, -s, 4),
    ),
}  # fmt: skip


@devices
@pytest.mark.parametrize("name", SCHEDULED)
def test_a_number_that_is_computed_is_never_stale(name: str, device: str) -> None:
    """torch's own cache of compiled code takes one value of 0.5 * s for another, as long as it is a symbol.

    Only where s is used outside of the op as well, and nothing else in the graph tells the values apart.
    """
    image, logits, _ = inputs(2, 16, 24, device)
    labels, patches = torch.randint(3, (2, 16, 24), device=device), torch.rand(2, 4, 6, device=device) < 0.5

    def scheduled(s: float) -> tuple[Any, ...]:
        return (*SCHEDULED[name](s, image * s, logits, labels, patches), image * s)

    compiled = torch.compile(scheduled, fullgraph=True, backend="inductor")
    for s in (0.2, 0.4, 0.6):
        for actual, expected in zip(compiled(s), scheduled(s), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_numbers_are_constants_of_the_graph() -> None:
    """No kernel, and no input, for any of them."""
    image, logits, _ = inputs(2, 16, 24, "cpu")
    counter = CompileCounterWithBackend("eager")

    def mask(s: float, n: int) -> tuple[Tensor, ...]:
        return entmask_ext.patch_mask(
            image, logits, (n, 2 * n), min_score=s, min_patches=n, hint=0.1 * s, fill=1, scope="batch"
        )[:4]

    compiled = torch.compile(mask, fullgraph=True, backend=counter)
    for s, n in ((0.5, 2), (0.6, 3), (0.7, 4)):
        for actual, expected in zip(compiled(s, n), mask(s, n), strict=True):
            assert_same_bits(actual, expected)
    calls = [node.target for graph in counter.graphs for node in graph.graph.nodes if node.op == "call_function"]
    assert [target for target in calls if target is not operator.getitem] == [ops.patch_mask] * 3


def test_past_the_recompile_limit_numbers_are_right_or_an_error() -> None:
    image, logits, _ = inputs(2, 16, 24, "cpu")

    def mask(s: float) -> Tensor:
        return entmask_ext.patch_mask(image * s, logits, 4, 0.5 * s).patches

    with torch._dynamo.config.patch(recompile_limit=2):
        compiled = torch.compile(mask, backend="eager")
        for s in (0.2, 0.4, 0.6, 0.8, 1.0):
            assert_same_bits(compiled(s), mask(s))
        torch._dynamo.reset()
        compiled = torch.compile(mask, fullgraph=True, backend="eager")
        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
            for s in (0.2, 0.4, 0.6, 0.8):
                assert_same_bits(compiled(s), mask(s))


NUMPY_NUMBERS: list[tuple[str, Callable[[Any], Any], list[Any]]] = [
    ("ratio", lambda v: entmask_ext.select_patches(SCORES, v), [np.float64(0.3), np.float32(0.6), np.array(0.9)]),
    ("ratio", lambda v: entmask_ext.random_patch_mask(IMAGE, 4, v).patches.sum(), [np.int64(1), np.int32(0)]),
    ("min_score", lambda v: entmask_ext.select_patches(SCORES, min_score=v), [np.float64(0.3), np.float16(0.6)]),
    ("threshold", lambda v: entmask_ext.patch_scores(LOGITS, 4, score="count", threshold=v), [np.float64(0.3)]),
    ("hint", lambda v: entmask_ext.select_patches(SCORES, 0.9, hint=v), [np.float64(0.3), np.array(0.5)]),
    ("fill", lambda v: entmask_ext.patch_mask(IMAGE, LOGITS, 4, fill=v).image, [np.float64(-3), np.int64(2)]),
    ("min_confidence", lambda v: entmask_ext.pseudo_labels(LOGITS, min_confidence=v).labels, [np.float64(0.6)]),
    ("smooth", lambda v: entmask_ext.consistency_loss(LOGITS, LABELS, smooth=v).total, [np.float64(1), np.array(2)]),
    ("inside", lambda v: entmask_ext.patch_where(SCORES > 0.5, v, LABELS, 4), [np.int64(2), np.float64(1)]),
    ("min_patches", lambda v: entmask_ext.select_patches(SCORES, min_score=2, min_patches=v), [np.int64(3)]),
    ("patch_size", lambda v: entmask_ext.patch_scores(LOGITS, v), [np.int64(4), np.array(8), (np.int64(2), 3)]),
]
IMAGE, LOGITS, LABELS = torch.randn(2, 1, 16, 24), torch.randn(2, 3, 16, 24), torch.randint(3, (2, 16, 24))
SCORES = torch.rand(2, 4, 6)


@pytest.mark.parametrize(("name", "call", "values"), NUMPY_NUMBERS, ids=[name for name, *_ in NUMPY_NUMBERS])
def test_numpy_numbers_are_numbers_compiled_or_not(name: str, call: Callable[[Any], Tensor], values: list[Any]) -> None:
    compiled = torch.compile(call, fullgraph=True, backend="eager")
    for value in values:
        plain = tuple(map(int, value)) if isinstance(value, tuple) else value.item()
        want = call(plain)
        assert_same_bits(call(value), want)
        assert_same_bits(compiled(value), want)


def test_arrays_of_patch_sizes() -> None:
    """Which torch.compile does not know: it calls them without a graph, or it says so."""
    sizes = np.array([4, 8])
    want = entmask_ext.patch_scores(LOGITS, (4, 8))
    assert_same_bits(entmask_ext.patch_scores(LOGITS, sizes), want)
    assert_same_bits(torch.compile(entmask_ext.patch_scores, backend="eager")(LOGITS, sizes), want)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"patch_size must be .* known when torch compiles"):
        torch.compile(entmask_ext.patch_scores, fullgraph=True, backend="eager")(LOGITS, sizes)


@pytest.mark.parametrize(
    ("name", "call", "values"),
    [
        ("patch_size", lambda v: entmask_ext.patch_scores(LOGITS, v), [
            b"4", "4", 4.0, True, (4, True), np.float64(4), np.array([[4]]), np.array([4.0, 4]), torch.tensor(4), 2**63,
        ]),
        ("min_patches", lambda v: entmask_ext.select_patches(SCORES, min_score=0.5, min_patches=v), [
            b"4", 4.0, True, np.array([4]), 10**30,
        ]),
        ("ratio", lambda v: entmask_ext.select_patches(SCORES, v), [
            b"1", True, 1j, np.array([0.5, 0.5]), np.bool_(True), 10**400,
        ]),
        ("hint", lambda v: entmask_ext.select_patches(SCORES, 0.5, hint=v), [
            "1", True, None, np.array([0.5]), torch.rand(1), 10**400,
        ]),
        ("inside", lambda v: entmask_ext.patch_where(SCORES > 0.5, v, LABELS, 4), [b"1", 1j, np.array([1]), 10**30]),
        ("order", lambda v: entmask_ext.select_patches(SCORES, 0.5, order=v), [1, None, b"highest"]),
        ("mask_dtype", lambda v: entmask_ext.random_patch_mask(IMAGE, 4, mask_dtype=v).mask, ["bool", np.bool_]),
        ("normalize", lambda v: entmask_ext.entropy_map(LOGITS, normalize=v), [1, None]),
        ("image", lambda v: entmask_ext.random_patch_mask(v, 4).mask, [IMAGE.numpy()]),
        ("class_weight", lambda v: entmask_ext.consistency_loss(LOGITS, LABELS, class_weight=v).total, [np.ones(3)]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_wrong_types_are_told_alike_compiled_or_not(name: str, call: Callable[[Any], Any], values: list[Any]) -> None:
    compiled = torch.compile(call, fullgraph=True, backend="eager")
    for value in values:
        with pytest.raises((TypeError, ValueError), match=f"{name} must be ") as eager:
            call(value)
        expected = str(eager.value).split(", got ")[0]
        with pytest.raises(torch._dynamo.exc.Unsupported, match=re.escape(expected)):
            compiled(value)


def test_bad_arguments_are_told_when_compiled() -> None:
    compiled = torch.compile(lambda x: entmask_ext.entropy_map(x), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="logits must have at least 2 classes"):
        compiled(torch.zeros(1, 1, 4, 4))
    masks = torch.compile(lambda x, y: entmask_ext.patch_mask(x, y, 4), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=r"image.*logits"):
        masks(torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, 4, 5))


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict: bool) -> None:
    class Step(torch.nn.Module):
        def forward(self, image: Tensor, teacher: Tensor, student: Tensor) -> tuple[Tensor, ...]:
            return step(image, teacher, student, 0.5)

    images, height = torch.export.Dim("images", min=1, max=64), torch.export.Dim("height", min=8, max=512)
    dynamic = {name: {0: images, 2: height} for name in ("image", "teacher", "student")}
    example = tuple(x.detach() for x in inputs(2, 16, 24, "cpu"))
    exported = torch.export.export(Step(), example, dynamic_shapes=dynamic, strict=strict)
    other = tuple(x.detach() for x in inputs(5, 37, 24, "cpu"))
    for actual, expected in zip(exported.module()(*other), step(*other, 0.5), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("strict", [False, True])
def test_export_of_random_masks(strict: bool) -> None:
    class Random(torch.nn.Module):
        def forward(self, image: Tensor) -> PatchMask:
            return entmask_ext.random_patch_mask(image, 4, 0.5)

    dynamic = {"image": {0: torch.export.Dim("images", min=1, max=64)}}
    exported = torch.export.export(Random(), (torch.rand(2, 1, 16, 20),), dynamic_shapes=dynamic, strict=strict)
    masked = exported.module()(torch.rand(5, 1, 16, 20))
    assert masked.patches.flatten(1).sum(1).tolist() == [10] * 5


@devices
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_leaves_the_ops_alone(low: torch.dtype, device: str) -> None:
    """They compute in float32 whatever comes, so autocast has nothing to change: not the inputs, not the results."""
    image, logits, _ = inputs(2, 16, 24, device)
    labels = torch.randint(3, (2, 16, 24), device=device)
    layer = torch.nn.Conv2d(1, 3, 1).to(device)

    def run(logits: Tensor) -> list[Tensor]:
        masked = entmask_ext.patch_mask(image, logits, 4, label_dtype=torch.uint8)
        losses = entmask_ext.consistency_loss(logits, labels, masked.patches, 4)
        soft = entmask_ext.soft_consistency_loss(logits, logits.flip(0).detach(), kind="kl")
        return [*masked, *losses, entmask_ext.entropy_map(logits), soft, entmask_ext.uncertainty_map(logits, "margin")]

    outside = run(logits)
    with torch.autocast(device, dtype=low):
        inside = run(logits)
        from_layer = layer(image)
        assert from_layer.dtype == low
        low_results = run(from_layer)
    for actual, expected in zip(inside, outside, strict=True):
        assert_same_bits(actual, expected)
    for actual, expected in zip(low_results, run(from_layer), strict=True):
        assert_same_bits(actual, expected)
    assert low_results[3].dtype == low_results[5].dtype == torch.float32

    with torch.autocast(device, dtype=low):
        loss = entmask_ext.consistency_loss(layer(image), labels).total
    loss.backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.isfinite().all()
    assert layer.weight.grad.abs().sum() > 0


@devices
def test_vmap_is_one_call_an_example(device: str) -> None:
    images, logits = torch.randn(3, 2, 1, 9, 10, device=device), torch.randn(3, 2, 4, 9, 10, device=device)
    labels, order = torch.randint(4, (3, 2, 9, 10), device=device), torch.randperm(4, device=device)
    weight = torch.rand(4, device=device)
    patches = torch.rand(3, 2, 3, 3, device=device) < 0.5
    functions: list[tuple[Callable[..., Any], tuple[Tensor, ...]]] = [
        (lambda i, x: entmask_ext.patch_mask(i, x, 4, 0.5, scope="batch", label_dtype=torch.uint8), (images, logits)),
        (lambda i, x: entmask_ext.patch_mask_from_scores(i, entmask_ext.patch_scores(x, 4), 4)[:4], (images, logits)),
        (lambda x: entmask_ext.entropy_map(x), (logits,)),
        (lambda x: tuple(entmask_ext.pseudo_labels(x, min_confidence=0.6)), (logits,)),
        (lambda x, t: entmask_ext.patch_scores(x, (4, 3), score="count", threshold=t), (logits, torch.rand(3, 2))),
        (lambda x, r: entmask_ext.select_patches(x, r, hint=0.1), (logits[:, :, 0], torch.arange(3))),
        (lambda p, x: entmask_ext.patch_where(p, x, -1, 4), (patches, images)),
        (lambda y: entmask_ext.largest_components(y, 4), (labels,)),
        (lambda x, y, z: entmask_ext.consistency_loss(x, y, z, 4, class_weight=weight), (logits, labels, patches)),
        (lambda x: entmask_ext.shuffle_patches(x[..., :8, :8], 4, order), (images,)),
        (lambda x, s: entmask_ext.gather_patches(x[..., :8, :8], s, 4), (images, torch.randint(8, (3, 2, 2, 2)))),
        (lambda x: entmask_ext.uncertainty_map(x, "margin"), (logits,)),
        (lambda x, y: entmask_ext.soft_consistency_loss(x, y, kind="kl"), (logits, logits.flip(0))),
        (lambda b: entmask_ext.box_mask(b, (9, 10)), (torch.randint(11, (3, 2, 4), device=device),)),
    ]
    for function, arguments in functions:
        got = torch.vmap(function)(*arguments)
        each = [function(*(x[i] for x in arguments)) for i in range(3)]
        if isinstance(got, Tensor):
            assert_same_bits(got, torch.stack(each))
        else:
            for actual, expected in zip(got, zip(*each, strict=True), strict=True):
                assert_same_bits(actual, torch.stack(expected))
        none = torch.vmap(function)(*(x[:0] for x in arguments))
        for actual, expected in zip(_tuple(none), _tuple(got), strict=True):
            assert_same_bits(actual, expected[:0])
    # another batch dimension, and an argument that is not batched
    got = torch.vmap(lambda i, x: entmask_ext.patch_mask(i, x, 4, 0.5).image, in_dims=(None, 2))(
        images[0], logits.movedim(0, 2)
    )
    for i in range(3):
        assert_same_bits(got[i], entmask_ext.patch_mask(images[0], logits[i], 4, 0.5).image)
    # where there are no labels, vmap wants to know it
    unlabelled = torch.vmap(lambda i, x: entmask_ext.patch_mask(i, x, 4), out_dims=PatchMask(0, 0, 0, 0, None))
    assert unlabelled(images, logits).labels is None
    random = torch.vmap(lambda i: entmask_ext.random_patch_mask(i, 4, 0.5).scores, randomness="different")(images)
    assert not torch.equal(random[0], random[1])


def _tuple(results: Any) -> tuple[Tensor, ...]:
    return (results,) if isinstance(results, Tensor) else results


@devices
def test_func_grad_works_or_says_that_it_does_not(device: str) -> None:
    logits = torch.randn(2, 3, 8, 9, dtype=torch.float64, device=device)
    labels = torch.randint(3, (2, 8, 9), device=device)
    patches, source = torch.rand(2, 2, 3, device=device) < 0.5, torch.randint(8, (2, 2, 2), device=device)
    functions: list[Callable[[Any, Tensor], Tensor]] = [
        lambda module, x: module.entropy_map(x).square().sum(),
        lambda module, x: module.patch_scores(x, 4).square().sum(),
        lambda module, x: module.patch_mask(x, logits, 4, 0.5).image.square().sum(),
        lambda module, x: module.consistency_loss(x, labels).total,
        lambda module, x: module.uncertainty_map(x, "margin").square().sum(),
        lambda module, x: module.soft_consistency_loss(x, logits.flip(0), kind="kl"),
        lambda module, x: module.patch_where(patches, x, logits, 4).square().sum(),
        lambda module, x: module.gather_patches(x[..., :8], source, 4).square().sum(),
    ]
    for function in functions:
        want = torch.func.grad(lambda x, f=function: f(reference, x))(logits)
        try:
            got = torch.func.grad(lambda x, f=function: f(entmask_ext, x))(logits)
        except (RuntimeError, NotImplementedError) as error:
            assert "entmask" in str(error) or "functorch" in str(error)  # clear, and it is about this
        else:
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-14)


@devices
def test_checkpointing_gives_the_same_gradient(device: str) -> None:
    from torch.utils.checkpoint import checkpoint

    image, teacher, student = inputs(2, 16, 24, device)
    gradients = []
    for run in (step, lambda *arguments: checkpoint(step, *arguments, use_reentrant=False)):
        gradients.append(torch.autograd.grad(run(image, teacher, student, 0.5)[0], student)[0])
    assert_same_bits(*gradients)


def test_float_arguments_may_be_infinite() -> None:
    image, logits, _ = inputs(1, 8, 8, "cpu")
    assert entmask_ext.patch_mask(image, logits, 4, min_score=math.inf).patches.sum() == 0
    assert entmask_ext.patch_mask(image, logits, 4, min_score=-math.inf).patches.all()
