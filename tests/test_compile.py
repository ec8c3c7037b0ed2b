"""The ops inside torch: opcheck, torch.compile, torch.export, fake and meta tensors, autocast, vmap, torch.func."""

import math
from collections.abc import Callable
from typing import Any

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
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

import entmask_ext
from entmask_ext import ConsistencyLoss, PatchMask, reference

FLAT, VOLUME = Shape(2, 2, 4, (9, 14), (4, 5)), Shape(2, 1, 3, (3, 6, 5), (2, 3, 2))
ops = torch.ops.entmask


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
    number = torch.tensor(0.4, device=device)
    one = torch.ones((), dtype=result, device=device)
    *_, sums = ops.consistency_loss(logits.detach(), labels, patches, patch, 1.5, weight, 0.5, 0.5, 1e-5, 0.0)
    return {
        ops.patch_mask.default: (
            image, logits, patch, 0.5, None, "mean", 0.75, None, None, None, 0, "highest", 0.1, "image", 0.5, None,
            torch.uint8,
        ),
        ops.patch_mask_from_scores.default: (
            image, scores, patch, None, None, None, number, 2, "lowest", 0.0, "batch", 0.0, torch.bool,
        ),
        ops.apply_mask.default: (image, patches, patch, 0.0),
        ops.patch_scores.default: (logits, patch, "mean", 0.75, None),
        ops.patch_scores_backward.default: (scores, logits.detach(), patch),
        ops.entropy_map.default: (logits, True),
        ops.entropy_map_backward.default: (per_pixel, logits.detach(), False),
        ops.consistency_loss.default: (logits, labels, patches, patch, 1.5, weight, 0.5, 0.5, 1e-5, 0.0),
        ops.consistency_loss_backward.default: (
            one, None, one * 2, one, logits.detach(), labels, patches, patch, weight, sums, 1.5, 0.5, 0.5, 1e-5, 0.0,
        ),
        ops.shuffle_patches.default: (whole, patch, order, True),
    }  # fmt: skip


def test_every_op_is_checked() -> None:
    defined = {name.removeprefix("entmask::") for name in torch._C._dispatch_get_all_op_names() if "entmask::" in name}
    checked = {op.name().removeprefix("entmask::") for op in op_calls(FLAT, torch.float32, "cpu")}
    assert checked == defined


@devices
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [FLAT, VOLUME], ids=str)
def test_opcheck(shape: Shape, layout: str, device: str) -> None:
    differentiable = {"patch_mask", "patch_scores", "entropy_map", "consistency_loss", "apply_mask", "shuffle_patches"}
    for op, arguments in op_calls(shape, torch.float32, device, layout).items():
        name = op.name().removeprefix("entmask::")
        needs_grad = name in differentiable or name == "patch_mask_from_scores"
        if needs_grad:
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
    assert entmask_ext.entropy_map(logits).shape == sizes
    assert entmask_ext.random_patch_mask(image, 4).mask.shape == masked.mask.shape


def step(image: Tensor, teacher: Tensor, student: Tensor, ratio: Tensor | float) -> tuple[Tensor, ...]:
    """A masking-and-loss step, with everything a training loop would call."""
    masked = entmask_ext.patch_mask(image, teacher, 4, ratio, hint=0.1, label_dtype=torch.uint8)
    assert masked.labels is not None
    losses = entmask_ext.consistency_loss(student * (1 + masked.image.mean()), masked.labels, masked.patches, 4)
    scores = entmask_ext.patch_scores(student, 4, score="mean")
    entropy = entmask_ext.entropy_map(student)
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
            entmask_ext.patch_scores(x, (4, 2, 2), score="count", threshold=number),
            *entmask_ext.consistency_loss(x, torch.zeros(4, 4, 6, 8, dtype=torch.int64, device=device)),
        )

    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(compiled(x), everything(x), strict=True):
        assert actual.stride() == expected.stride()
        assert_same_bits(actual, expected)


@devices
def test_random_masks_compile(device: str) -> None:
    image = torch.randn(3, 1, 16, 20, device=device)
    compiled = torch.compile(
        lambda x: entmask_ext.random_patch_mask(x, 4, 0.5, shared=True), fullgraph=True, backend="aot_eager"
    )
    masked = compiled(image)
    assert isinstance(masked, PatchMask)
    assert masked.patches.flatten(1).sum(1).tolist() == [10] * 3
    assert bool((masked.patches == masked.patches[:1]).all())
    want = entmask_ext.patch_mask_from_scores(image, masked.scores, 4, 0.5)
    assert_same_bits(masked.image, want.image)


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
        return [*masked, *losses, entmask_ext.entropy_map(logits)]

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
        (lambda x: entmask_ext.patch_scores(x, (4, 3), score="count"), (logits,)),
        (lambda x, y, z: entmask_ext.consistency_loss(x, y, z, 4, class_weight=weight), (logits, labels, patches)),
        (lambda x: entmask_ext.shuffle_patches(x[..., :8, :8], 4, order), (images,)),
    ]
    for function, arguments in functions:
        got = torch.vmap(function)(*arguments)
        each = [function(*(x[i] for x in arguments)) for i in range(3)]
        if isinstance(got, Tensor):
            assert_same_bits(got, torch.stack(each))
        else:
            for actual, expected in zip(got, zip(*each, strict=True), strict=True):
                assert_same_bits(actual, torch.stack(expected))
    # another batch dimension, and an argument that is not batched
    got = torch.vmap(lambda i, x: entmask_ext.patch_mask(i, x, 4, 0.5).image, in_dims=(None, 2))(
        images[0], logits.movedim(0, 2)
    )
    for i in range(3):
        assert_same_bits(got[i], entmask_ext.patch_mask(images[0], logits[i], 4, 0.5).image)


@devices
def test_func_grad_works_or_says_that_it_does_not(device: str) -> None:
    logits = torch.randn(2, 3, 8, 9, dtype=torch.float64, device=device)
    labels = torch.randint(3, (2, 8, 9), device=device)
    functions: list[Callable[[Any, Tensor], Tensor]] = [
        lambda module, x: module.entropy_map(x).square().sum(),
        lambda module, x: module.patch_scores(x, 4).square().sum(),
        lambda module, x: module.patch_mask(x, logits, 4, 0.5).image.square().sum(),
        lambda module, x: module.consistency_loss(x, labels).total,
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
