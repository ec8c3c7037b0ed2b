"""The masking rules as research notebooks write them, patch by patch, held equal to the ops where definitions agree.

Where they differ, the difference is asserted too: log(p + 1e-6) moves an entropy by a little and makes a sure pixel's
negative; "at least half of the patch's pixels" is count >= 0.5; a percentile of the batch is interpolated.
"""

import math

import numpy as np
import pytest
import torch
from cases import Shape, devices, make_image
from torch import Tensor

import entmask_ext

SHAPE = Shape(6, 1, 4, (64, 96), (16, 16))


def teacher_logits(device: str, images: int = SHAPE.images) -> Tensor:
    """A teacher that is sure inside of regions and unsure at their borders, as a trained one is."""
    coarse = torch.randn(images, SHAPE.classes, 5, 7)
    smooth = torch.nn.functional.interpolate(coarse, SHAPE.sizes, mode="bicubic", align_corners=True)
    return (5 * smooth + 0.3 * torch.randn(images, SHAPE.classes, *SHAPE.sizes)).to(device)


def notebook_entropy(logits: Tensor) -> Tensor:
    p = torch.softmax(logits.double(), dim=1)
    return -(p * torch.log(p + 1e-6)).sum(dim=1) / math.log(logits.shape[1])


def notebook_patches(entropy: Tensor, size: int = 16) -> dict[tuple[int, int, int], Tensor]:
    """(image, row, column) of the grid -> the patch's pixels"""
    images, height, width = entropy.shape
    return {
        (i, y // size, x // size): entropy[i, y : y + size, x : x + size]
        for i in range(images)
        for y in range(0, height, size)
        for x in range(0, width, size)
    }


def notebook_mask(chosen: set[tuple[int, int, int]], like: Tensor, size: int = 16) -> Tensor:
    mask = torch.zeros(like.shape[0], 1, *like.shape[2:], dtype=like.dtype, device=like.device)
    for i, row, column in chosen:
        mask[i, :, row * size : (row + 1) * size, column * size : (column + 1) * size] = 1
    return mask


def chosen_by(patches: Tensor) -> set[tuple[int, int, int]]:
    return {tuple(index) for index in patches.nonzero().tolist()}


@devices
def test_entropy(device: str) -> None:
    """-sum p log(p + 1e-6) lies below the entropy by at most K * 1e-6 nats, and below 0 where the teacher is sure."""
    logits = teacher_logits(device) * 4
    difference = (entmask_ext.entropy_map(logits) - notebook_entropy(logits)) * math.log(4)
    assert difference.min() > -1e-6
    assert difference.max() < 4e-6 + 1e-6
    sure = torch.tensor([40.0, 0, 0, 0], device=device).reshape(1, 4, 1, 1)
    assert notebook_entropy(sure) < 0
    assert entmask_ext.entropy_map(sure) > 0


@devices
@pytest.mark.parametrize("threshold", [0.3, 0.75])
def test_the_count_rule(threshold: float, device: str) -> None:
    """Masked where at least half of the pixels pass the threshold."""
    image, logits = make_image(SHAPE, device=device), teacher_logits(device) * 0.4
    between = (notebook_entropy(logits) - threshold).abs() < 1e-5  # where the two definitions could part
    logits = logits.masked_fill(between[:, None], 0)
    entropy = notebook_entropy(logits)
    passing = {key: int((patch >= threshold).sum()) for key, patch in notebook_patches(entropy).items()}
    chosen = {key for key, count in passing.items() if count >= 16 * 16 / 2}
    assert 0 < len(chosen) < len(passing)

    got = entmask_ext.patch_mask(image, logits, 16, score="count", threshold=threshold, min_score=0.5)
    mask = notebook_mask(chosen, image)
    assert chosen_by(got.patches) == chosen
    assert torch.equal(got.mask, mask)
    assert torch.equal(got.image, image * (1 - mask))
    for key, count in passing.items():
        assert got.scores[key].item() == count / 256


@devices
def test_exactly_half_of_the_pixels_is_enough(device: str) -> None:
    logits = torch.zeros(1, 2, 4, 8, device=device)
    logits[:, 0, :2, :4] = 50  # half of the left patch is sure
    logits[:, 0, :2, 4:] = 50
    logits[:, 0, 2, 4] = 50  # and one pixel more of the right one
    got = entmask_ext.patch_mask(logits[:, :1], logits, 4, score="count", min_score=0.5)
    assert got.patches.tolist() == [[[True, False]]]


@devices
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.7])
def test_the_percentile_of_the_batch(ratio: float, device: str) -> None:
    """Masked where a patch's mean is at least the (1 - r) percentile of all means, which lies between two of them.

    With the interpolation that takes n - ceil((1 - r) (n - 1)) of n patches; ours takes floor(r n).
    """
    image, logits = make_image(SHAPE, device=device), teacher_logits(device)
    means = {key: patch.mean().item() for key, patch in notebook_patches(notebook_entropy(logits)).items()}
    cut = np.percentile(list(means.values()), 100 * (1 - ratio))
    chosen = {key for key, mean in means.items() if mean >= cut}

    by_score = entmask_ext.patch_mask(image, logits, 16, min_score=float(cut), scope="batch")
    assert chosen_by(by_score.patches) == chosen
    assert torch.equal(by_score.mask, notebook_mask(chosen, image))

    by_ratio = entmask_ext.patch_mask(image, logits, 16, ratio, scope="batch")
    n = len(means)
    assert len(chosen) == n - math.ceil((1 - ratio) * (n - 1) - 1e-9)
    assert int(by_ratio.patches.sum()) == math.floor(ratio * n + 1e-6)
    ours = chosen_by(by_ratio.patches)
    assert ours <= chosen or chosen <= ours  # the same ranking: they differ by the last patch at most
    assert abs(len(ours) - len(chosen)) <= 1


@devices
def test_the_same_ratio_of_each_image(device: str) -> None:
    """np.argsort of each image's patch means, the last k of them."""
    image, logits = make_image(SHAPE, device=device), teacher_logits(device)
    means = notebook_patches(notebook_entropy(logits))
    chosen = set()
    for i in range(SHAPE.images):
        keys = [key for key in means if key[0] == i]
        order = np.argsort([means[key].mean().item() for key in keys])
        chosen |= {keys[index] for index in order[len(keys) - int(0.75 * len(keys)) :]}
    assert chosen_by(entmask_ext.patch_mask(image, logits, 16, 0.75).patches) == chosen


@devices
def test_random_patches(device: str) -> None:
    """int(r P) of an image's patches, each as likely as any other: what random.sample draws, if not its numbers."""
    image = torch.randn(400, 1, 32, 48, device=device)
    got = entmask_ext.random_patch_mask(image, 16, 0.5)
    assert got.patches.flatten(1).sum(1).tolist() == [int(0.5 * 6)] * 400
    assert torch.equal(got.mask, notebook_mask(chosen_by(got.patches), image))
    assert torch.equal(got.image, image * (1 - got.mask))
    # All 20 choices of 3 patches of 6 come, about 20 times each (standard deviation 4.4).
    code = (got.patches.flatten(1).long() * 2 ** torch.arange(6, device=device)).sum(1)
    counts = code.unique(return_counts=True)[1]
    assert counts.numel() == 20
    assert counts.min() > 3
    assert counts.max() < 42
