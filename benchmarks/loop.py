"""How research notebooks do it: a Python loop over images and patches, slicing, one host sync a patch.

Same results as the ops up to the 1e-6 inside the logarithm.
"""

import itertools
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def _windows(sizes: torch.Size, patch: int) -> list[tuple[Any, ...]]:
    """One tuple of slices a patch."""
    axes = [[slice(start, start + patch) for start in range(0, size, patch)] for size in sizes]
    return list(itertools.product(*axes))


def patch_scores(logits: Tensor, patch: int) -> Tensor:
    """(N, K, *S) -> (N, *G)."""
    images, classes, *sizes = logits.shape
    probability = torch.softmax(logits, dim=1)
    entropy = -torch.sum(probability * torch.log(probability + 1e-6), dim=1) / math.log(classes)
    windows = _windows(logits.shape[2:], patch)
    scores = [entropy[(image, *window)].mean().item() for image in range(images) for window in windows]
    return torch.tensor(scores, device=logits.device).view(images, *(size // patch for size in sizes))


def _hide(image: Tensor, chosen: list[list[int]], patch: int) -> tuple[Tensor, Tensor]:
    new, mask = image.clone(), torch.zeros_like(image[:, :1])
    windows = _windows(image.shape[2:], patch)
    for index, patches in enumerate(chosen):
        for number in patches:
            mask[(index, 0, *windows[number])] = 1
            new[(index, slice(None), *windows[number])] = 0
    return new, mask


def patch_mask_from_scores(image: Tensor, scores: Tensor, patch: int, ratio: float) -> tuple[Tensor, Tensor]:
    rows = scores.flatten(1).tolist()
    count = max(1, int(ratio * len(rows[0])))
    return _hide(image, [sorted(range(len(row)), key=row.__getitem__, reverse=True)[:count] for row in rows], patch)


def patch_mask(image: Tensor, logits: Tensor, patch: int, ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    scores = patch_scores(logits, patch)
    new, mask = patch_mask_from_scores(image, scores, patch, ratio)
    return new, scores, mask


def random_patch_mask(image: Tensor, patch: int, ratio: float) -> tuple[Tensor, Tensor]:
    patches = len(_windows(image.shape[2:], patch))
    return _hide(image, [random.sample(range(patches), int(ratio * patches)) for _ in image], patch)


def shuffle_patches(x: Tensor, patch: int, permutation: Tensor) -> tuple[Tensor]:
    windows = _windows(x.shape[2:], patch)
    group = permutation.numel() // len(windows)
    order = permutation.tolist()
    out = torch.empty_like(x)
    for first in range(0, x.shape[0], group):
        for to, source in enumerate(order):
            to_image, to_patch = divmod(to, len(windows))
            image, number = divmod(source, len(windows))
            out[(first + to_image, slice(None), *windows[to_patch])] = x[(first + image, slice(None), *windows[number])]
    return (out,)


def gather_patches(x: Tensor, patch: int, source: Tensor) -> tuple[Tensor]:
    windows = _windows(x.shape[2:], patch)
    out = torch.empty_like(x)
    for to, taken in enumerate(source.flatten().tolist()):
        to_image, to_patch = divmod(to, len(windows))
        image, number = divmod(taken, len(windows))
        out[(to_image, slice(None), *windows[to_patch])] = x[(image, slice(None), *windows[number])]
    return (out,)


def box_mask(boxes: Tensor, sizes: Sequence[int]) -> tuple[Tensor]:
    mask = torch.zeros((boxes.shape[0], *sizes), dtype=torch.bool, device=boxes.device)
    for image, box in enumerate(boxes.tolist()):
        mask[(image, *(slice(first, end) for first, end in zip(box[::2], box[1::2], strict=True)))] = True
    return (mask,)


def largest_components(labels: Tensor, classes: int) -> tuple[Tensor]:
    """scipy.ndimage.label of each image and class, on the CPU."""
    from scipy import ndimage  # optional

    images = labels.cpu().numpy()
    out = np.zeros_like(images)
    for image, kept in zip(images, out, strict=True):
        for number in range(1, classes):
            components, count = ndimage.label(image == number)
            if count:
                largest = 1 + np.bincount(components.ravel())[1:].argmax()
                kept[components == largest] = number
    return (torch.from_numpy(out).to(labels.device),)
