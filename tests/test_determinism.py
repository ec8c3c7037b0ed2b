"""Bitwise the same: from run to run, for any number of threads, and whatever else is in the batch's memory."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from cases import LAYOUTS, Shape, assert_same_bits, devices, layouts, make_image, make_labels, make_logits, make_patches
from torch import Tensor

import entmask_ext

# Enough for several threads to get work, in an uneven division.
SHAPES = [
    Shape(3, 2, 4, (131, 157), (16, 16)),
    Shape(1, 1, 3, (700, 300), (700, 300)),
    Shape(2, 1, 5, (19, 33, 45), (4, 5, 6)),
]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def everything(shape: Shape, layout: str, device: str) -> list[Tensor]:
    torch.manual_seed(7)
    image = make_image(shape, device=device, layout=layout).requires_grad_()
    logits = make_logits(shape, device=device, layout=layout, absent=-60).requires_grad_()
    labels, patches = make_labels(shape, torch.uint8, device), make_patches(shape, device)
    masked = entmask_ext.patch_mask(image, logits, shape.patch, 0.4, hint=0.1, label_dtype=torch.int64)
    counted = entmask_ext.patch_mask(image, logits, shape.patch, score="count", threshold=0.3, scope="batch")
    losses = entmask_ext.consistency_loss(logits, labels, patches, shape.patch)
    each = entmask_ext.consistency_loss(logits, labels, patches, shape.patch, dice_region="each").total
    soft = entmask_ext.soft_consistency_loss(logits, logits.detach().flip(1), labels > 1, kind="kl")
    entropy = entmask_ext.entropy_map(logits)
    margin = entmask_ext.uncertainty_map(logits, "margin")
    gated = entmask_ext.pseudo_labels(logits, min_confidence=0.6)
    mixed = entmask_ext.patch_where(patches, image, image.detach().flip(-1), shape.patch)
    whole = image[(..., *(slice(size // width * width) for size, width in zip(shape.sizes, shape.patch, strict=True)))]
    per_image = math.prod(size // width for size, width in zip(shape.sizes, shape.patch, strict=True))
    shuffled = entmask_ext.shuffle_patches(whole, shape.patch, torch.randperm(per_image).to(device))
    results = [*masked, *counted[:4], *losses, each, soft, entropy, margin, *gated, mixed, shuffled]
    differentiable = [masked.image, masked.scores, losses.total, losses.dice, each, soft, entropy, margin]
    for out in (*differentiable, mixed, shuffled):
        source = image if any(out is x for x in (masked.image, mixed, shuffled)) else logits
        incoming = torch.linspace(-1, 1, out.numel(), device=device, dtype=out.dtype).reshape(out.shape)
        results.append(torch.autograd.grad(out, source, incoming, retain_graph=True)[0])
    return [x.detach() for x in results]


@devices
@layouts
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_same_for_any_number_of_threads(
    shape: Shape, layout: str, device: str, threads: Callable[[int], None]
) -> None:
    threads(1)
    want = everything(shape, layout, device)
    for count in (1, 2, 3):
        threads(count)
        for actual, expected in zip(everything(shape, layout, device), want, strict=True):
            assert_same_bits(actual, expected)


@devices
def test_selection_of_a_long_row_for_any_number_of_threads(device: str, threads: Callable[[int], None]) -> None:
    scores = (torch.rand(1, 700, 731) * 1000).floor().to(device)
    image = torch.zeros(1, 0, 700, 731, device=device)
    for keywords in ({"ratio": 0.37, "hint": 0.1}, {"min_score": 500.0, "order": "lowest"}):
        threads(1)
        want = entmask_ext.patch_mask_from_scores(image, scores, 1, **keywords).patches
        for count in (2, 3):
            threads(count)
            assert torch.equal(entmask_ext.patch_mask_from_scores(image, scores, 1, **keywords).patches, want)


@devices
@layouts
def test_an_image_gets_the_same_alone_as_in_a_batch(layout: str, device: str) -> None:
    """But for its layout: some layouts of a batch are others of its parts."""
    shape = Shape(4, 2, 5, (37, 41), (8, 8))
    image, logits = make_image(shape, device=device, layout=layout), make_logits(shape, device=device, layout=layout)
    together = entmask_ext.patch_mask(image, logits, 8, 0.4)
    for i in range(4):
        alone = entmask_ext.patch_mask(image[i : i + 1], logits[i : i + 1], 8, 0.4)
        for actual, expected in zip(alone[:4], together[:4], strict=True):
            assert_same_bits(actual, expected[i : i + 1])


@devices
def test_deterministic_algorithms_change_nothing(device: str) -> None:
    want = everything(SHAPES[0], "contiguous", device)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        for actual, expected in zip(everything(SHAPES[0], "contiguous", device), want, strict=True):
            assert_same_bits(actual, expected)
    finally:
        torch.use_deterministic_algorithms(before)


@devices
def test_layouts_agree_but_for_rounding(device: str) -> None:
    shape = Shape(2, 1, 6, (37, 41), (8, 8))
    logits = make_logits(shape, device=device)
    contiguous = entmask_ext.patch_scores(logits, 8)
    for layout in LAYOUTS.values():
        same = layout(logits)
        if torch.equal(same, logits):  # not the expanded one
            torch.testing.assert_close(entmask_ext.patch_scores(same, 8), contiguous, rtol=0, atol=4e-7)
