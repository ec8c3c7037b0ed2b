"""What holds for any input: properties of each op, on shapes and values that hypothesis picks."""

import inspect
import math
from typing import Any

import torch
from cases import Shape, assert_same_bits
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import entmask_ext
from entmask_ext import reference

SIZES = st.one_of(
    st.tuples(*[st.integers(1, 20)] * 2),
    st.tuples(*[st.integers(1, 7)] * 3),
)
KINDS = st.sampled_from(["normal", "sure", "ties", "special"])


@st.composite
def shapes(draw: st.DrawFn, whole: bool = False) -> Shape:
    sizes = draw(SIZES)
    patch = tuple(draw(st.integers(1, size + 2)) for size in sizes)
    if whole:
        patch = tuple(draw(st.integers(1, 4)) for _ in sizes)
        sizes = tuple(width * draw(st.integers(1, 3)) for width in patch)
    return Shape(draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(2, 6)), sizes, patch)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Shape, Tensor, Tensor]:
    """A shape, its image and its logits."""
    shape, kind = draw(shapes()), draw(KINDS)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    image = torch.randn(shape.images, shape.channels, *shape.sizes, generator=generator)
    logits = torch.randn(shape.images, shape.classes, *shape.sizes, generator=generator)
    if kind == "sure":
        logits = logits * 30
    if kind == "ties":
        logits = logits.round()
    if kind == "special":
        place = torch.randint(8, logits.shape, generator=generator)
        logits = logits.masked_fill(place == 0, -math.inf).masked_fill((place == 1) & (image[:, :1] > 1), math.nan)
    return shape, image, logits


@st.composite
def rules(draw: st.DrawFn) -> dict[str, Any]:
    rule: dict[str, Any] = {
        "order": draw(st.sampled_from(["highest", "lowest"])),
        "hint": draw(st.sampled_from([0.0, 0.0, 0.1, 0.5, 1.0])),
        "scope": draw(st.sampled_from(["image", "batch"])),
    }
    if draw(st.booleans()):
        rule["ratio"] = draw(st.floats(0, 1))
    else:
        rule["min_score"] = draw(st.floats(-0.1, 1.1))
        rule["min_patches"] = draw(st.integers(0, 30))
    return rule


def pixels(patches: Tensor, shape: Shape) -> Tensor:
    """(N, *G) -> (N, 1, *S), by looking each pixel's patch up."""
    index = torch.meshgrid(
        *(torch.arange(size) // width for size, width in zip(shape.sizes, shape.patch, strict=True)), indexing="ij"
    )
    return patches[(slice(None), *index)].unsqueeze(1)


def test_the_reference_has_every_function() -> None:
    """Under the same name and with the same arguments."""
    functions = {name for name in entmask_ext.__all__ if inspect.isfunction(getattr(entmask_ext, name))}
    assert functions == set(reference.__all__)
    for name in functions:
        mine, its = (inspect.signature(getattr(module, name)) for module in (entmask_ext, reference))
        assert list(mine.parameters.values()) == list(its.parameters.values()), name


@given(cases(), rules(), st.floats(-2, 2, width=32))
def test_image_mask_and_patches_agree(case: tuple[Shape, Tensor, Tensor], rule: dict[str, Any], fill: float) -> None:
    shape, image, logits = case
    got = entmask_ext.patch_mask(image, logits, shape.patch, fill=fill, **rule)
    assert got.patches.shape == got.scores.shape == (shape.images, *shape.grid)
    masked = pixels(got.patches, shape)
    assert torch.equal(got.mask, masked.float())
    assert_same_bits(got.image, torch.where(masked, torch.tensor(fill), image))


@given(cases(), st.floats(0, 1), st.sampled_from(["image", "batch"]), st.sampled_from(["highest", "lowest"]))
def test_exactly_k_patches_the_best(case: tuple[Shape, Tensor, Tensor], ratio: float, scope: str, order: str) -> None:
    shape, image, logits = case
    got = entmask_ext.patch_mask(image, logits, shape.patch, ratio, scope=scope, order=order)
    rows, scores = got.patches.flatten(1), got.scores.flatten(1).nan_to_num(nan=2.0)
    if scope == "batch":
        rows, scores = rows.reshape(1, -1), scores.reshape(1, -1)
    length = rows.shape[1]
    k = max(1, math.floor(ratio * length + 1e-6)) if ratio > 0 else 0
    assert rows.sum(1).tolist() == [k] * rows.shape[0]
    sign = 1 if order == "highest" else -1
    for chosen, row in zip(rows, sign * scores, strict=True):
        if 0 < k < length:
            worst, best = row[chosen].min(), row[~chosen].max()
            assert worst >= best
            if worst == best:  # of equal ones, the first
                tied = chosen[row == worst]
                assert torch.equal(tied, tied.sort(descending=True, stable=True).values)


@given(cases(), rules())
def test_permuting_images_permutes_results(case: tuple[Shape, Tensor, Tensor], rule: dict[str, Any]) -> None:
    shape, image, logits = case
    rule["scope"] = "image"
    order = torch.arange(shape.images).roll(1)
    there = entmask_ext.patch_mask(image[order], logits[order], shape.patch, label_dtype=torch.int64, **rule)
    here = entmask_ext.patch_mask(image, logits, shape.patch, label_dtype=torch.int64, **rule)
    for actual, expected in zip(there, here, strict=True):
        assert_same_bits(actual, expected[order])
    assert_same_bits(entmask_ext.entropy_map(logits[order]), entmask_ext.entropy_map(logits)[order])


@given(cases(), rules())
def test_batch_scope_of_one_image_is_image_scope(case: tuple[Shape, Tensor, Tensor], rule: dict[str, Any]) -> None:
    shape, image, logits = case
    results = [
        entmask_ext.patch_mask(image[:1], logits[:1], shape.patch, **rule | {"scope": scope})
        for scope in ("image", "batch")
    ]
    for actual, expected in zip(*(result[:4] for result in results), strict=True):
        assert_same_bits(actual, expected)


@given(cases(), st.integers(-20, 20))
def test_a_constant_added_to_the_logits_changes_nothing(case: tuple[Shape, Tensor, Tensor], constant: int) -> None:
    shape, image, logits = case
    logits = (logits * 64).round() / 64  # so that the addition itself is exact
    shifted = logits + constant
    close = {"rtol": 0, "atol": 4e-7, "equal_nan": True}
    torch.testing.assert_close(entmask_ext.entropy_map(shifted), entmask_ext.entropy_map(logits), **close)
    scores = entmask_ext.patch_scores(logits, shape.patch)
    torch.testing.assert_close(entmask_ext.patch_scores(shifted, shape.patch), scores, **close)
    labels = [entmask_ext.patch_mask(image, x, shape.patch, label_dtype=torch.uint8).labels for x in (logits, shifted)]
    assert labels[0] is not None
    assert labels[1] is not None
    assert_same_bits(labels[0], labels[1])
    losses = [entmask_ext.consistency_loss(x, labels[0]) for x in (logits, shifted)]
    for actual, expected in zip(*losses, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


@given(cases())
def test_permuting_classes_changes_nothing(case: tuple[Shape, Tensor, Tensor]) -> None:
    shape, _, logits = case
    order = torch.arange(shape.classes).roll(1)
    close = {"rtol": 0, "atol": 4e-7, "equal_nan": True}
    torch.testing.assert_close(entmask_ext.entropy_map(logits[:, order]), entmask_ext.entropy_map(logits), **close)
    labels = torch.randint(shape.classes, (shape.images, *shape.sizes))
    there = entmask_ext.consistency_loss(logits[:, order], (labels + 1) % shape.classes)
    here = entmask_ext.consistency_loss(logits, labels)
    for actual, expected in zip(there, here, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


@given(cases())
def test_entropy_is_bounded_and_averaged(case: tuple[Shape, Tensor, Tensor]) -> None:
    shape, _, logits = case
    entropy = entmask_ext.entropy_map(logits)
    assert ((entropy >= 0) & (entropy <= 1) | entropy.isnan()).all()
    scores = entmask_ext.patch_scores(logits, shape.patch)
    assert ((scores >= 0) & (scores <= 1) | scores.isnan()).all()
    whole = entmask_ext.patch_scores(logits, shape.sizes).flatten()
    torch.testing.assert_close(whole.double(), entropy.double().flatten(1).mean(1), rtol=0, atol=5e-7, equal_nan=True)
    count = entmask_ext.patch_scores(logits, shape.patch, score="count", threshold=0.0)
    assert torch.equal(count, torch.ones_like(count))  # every entropy is >= 0, and NaN counts


@given(cases(), rules())
def test_the_lowest_are_the_highest_of_the_negative(case: tuple[Shape, Tensor, Tensor], rule: dict[str, Any]) -> None:
    shape, image, logits = case
    scores = entmask_ext.patch_scores(logits, shape.patch).nan_to_num(nan=0.5)
    rule |= {"order": "lowest", "hint": 0.0}  # the hint is of the highest in both orders
    lowest = entmask_ext.patch_mask_from_scores(image, scores, shape.patch, **rule)
    if "min_score" in rule:
        rule["min_score"] = -rule["min_score"]
    highest = entmask_ext.patch_mask_from_scores(image, -scores, shape.patch, **rule | {"order": "highest"})
    assert torch.equal(lowest.patches, highest.patches)


@given(cases(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_ratio_masks_more(case: tuple[Shape, Tensor, Tensor], one: float, other: float) -> None:
    shape, image, logits = case
    few, many = (entmask_ext.patch_mask(image, logits, shape.patch, ratio) for ratio in sorted((one, other)))
    assert (few.patches <= many.patches).all()


@given(cases(), rules(), st.floats(0, 1))
def test_hint_takes_away_but_never_all(case: tuple[Shape, Tensor, Tensor], rule: dict[str, Any], hint: float) -> None:
    shape, image, logits = case
    whole = entmask_ext.patch_mask(image, logits, shape.patch, **rule | {"hint": 0.0}).patches
    hinted = entmask_ext.patch_mask(image, logits, shape.patch, **rule | {"hint": hint}).patches
    assert (hinted <= whole).all()
    rows = (1, -1) if rule["scope"] == "batch" else (shape.images, -1)
    before, after = whole.reshape(rows).sum(1), hinted.reshape(rows).sum(1)
    visible = math.floor(hint * whole.reshape(rows).shape[1] + 1e-6)
    assert torch.equal(after, torch.where(before > 0, (before - visible).clamp(min=1), 0))


@given(cases(), st.sampled_from([torch.uint8, torch.int64]))
def test_the_loss_does_not_care_for_the_order_of_images(case: tuple[Shape, Tensor, Tensor], dtype: torch.dtype) -> None:
    shape, _, logits = case
    labels = torch.randint(shape.classes + 1, (shape.images, *shape.sizes)).to(dtype)  # one of them is ignored
    patches = torch.rand(shape.images, *shape.grid) < 0.5
    order = torch.arange(shape.images).roll(1)
    there = entmask_ext.consistency_loss(logits[order], labels[order], patches[order], shape.patch)
    here = entmask_ext.consistency_loss(logits, labels, patches, shape.patch)
    for actual, expected in zip(there, here, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
    # and the regions only swap where the patches are inverted
    inverted = entmask_ext.consistency_loss(logits, labels, ~patches, shape.patch)
    torch.testing.assert_close(inverted.ce_masked, here.ce_visible, rtol=1e-6, atol=0, equal_nan=True)
    torch.testing.assert_close(inverted.ce_visible, here.ce_masked, rtol=1e-6, atol=0, equal_nan=True)


@given(shapes(whole=True), st.integers(0, 2**31), st.data())
def test_shuffling_there_and_back(shape: Shape, seed: int, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape.images, shape.channels, *shape.sizes, generator=generator)
    group = data.draw(st.sampled_from([b for b in range(1, shape.images + 1) if shape.images % b == 0]))
    order = torch.randperm(group * shape.patches, generator=generator)
    there = entmask_ext.shuffle_patches(x, shape.patch, order)
    assert_same_bits(entmask_ext.shuffle_patches(there, shape.patch, order, inverse=True), x)
    assert_same_bits(entmask_ext.shuffle_patches(x, shape.patch, order.argsort(), inverse=True), there)
    assert torch.equal(there.flatten().sort().values, x.flatten().sort().values)
    # two shuffles are one
    second = torch.randperm(group * shape.patches, generator=generator)
    twice = entmask_ext.shuffle_patches(there, shape.patch, second)
    assert_same_bits(twice, entmask_ext.shuffle_patches(x, shape.patch, order[second]))
