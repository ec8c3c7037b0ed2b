"""Slices in memory and the batches made of them.

The order and the augmentation of step t are functions of (seed, t) alone: a run continues anywhere with no state to
save, and every process of a distributed run knows the whole batch and takes its share.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from train.data.description import description_path, read_description
from train.data.layout import read_slice, slice_path
from train.data.scaling import check_scaling

LABELLED, UNLABELLED = 0, 1


class Slices:
    """Slices of their own sizes, read once, checked against what the data set states, and kept on the device."""

    def __init__(self, root: Path, names: Sequence[str], classes: int, device: torch.device) -> None:
        self.images: list[Tensor] = []  # (h, w) float32 each
        self.labels: list[Tensor] = []  # (h, w) uint8 each
        scaling, statement = read_description(root, classes).scaling, description_path(root)
        for name in names:
            path = slice_path(root, name)
            image, label = read_slice(path, classes)
            check_scaling(image, scaling, path, statement, whole=False)
            self.images.append(torch.from_numpy(image).to(device))
            self.labels.append(torch.from_numpy(label).to(device))

    def __len__(self) -> int:
        return len(self.images)


class Batch(NamedTuple):
    images: Tensor  # (N, 1, H, W) float32
    labels: Tensor  # (N, H, W) uint8


@lru_cache(maxsize=8)
def shuffled(seed: int, stream: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, stream, epoch)).permutation(count)


def indices(seed: int, stream: int, step: int, batch: int, count: int) -> list[int]:
    """The slices of one step: an endless row of freshly shuffled passes, cut into batches."""
    return [
        int(shuffled(seed, stream, position // count, count)[position % count])
        for position in range(step * batch, (step + 1) * batch)
    ]


def random_transforms(rng: np.random.Generator, sizes: np.ndarray) -> np.ndarray:
    """Where each output pixel is read from: sizes (N, 2) of the slices -> (N, 2, 3) maps of normalised (x, y).

    Half of the slices are turned by a multiple of 90 degrees and flipped, half of the rest turned within 20 degrees.
    All numbers are drawn whatever is used, so that one slice's luck does not shift the next one's.
    """
    n = len(sizes)
    kind = rng.random((n, 2)) < 0.5
    turns = rng.integers(0, 4, n)
    axis = rng.integers(0, 2, n)
    degrees = rng.uniform(-20.0, 20.0, n)
    theta = np.zeros((n, 2, 3))
    for i, (h, w) in enumerate(sizes):
        if kind[i, 0]:
            c, s = ((1, 0), (0, 1), (-1, 0), (0, -1))[turns[i]]
            flip = (-1, 1) if axis[i] else (1, -1)
            theta[i, :, :2] = [[c * flip[0], -s * flip[1]], [s * flip[0], c * flip[1]]]
        elif kind[i, 1]:
            c, s = np.cos(np.radians(degrees[i])), np.sin(np.radians(degrees[i]))
            aspect = max(w - 1, 1) / max(h - 1, 1)  # a turn in pixels, not in normalised coordinates
            theta[i, :, :2] = [[c, -s / aspect], [s * aspect, c]]
        else:
            theta[i, :, :2] = np.eye(2)
    return theta


class Batches:
    """The batches of one stream (labelled or unlabelled); `share` of `shares` is what this process takes of each."""

    def __init__(
        self,
        slices: Slices,
        batch: int,
        size: tuple[int, int],
        interpolation: str,
        seed: int,
        stream: int,
        share: int = 0,
        shares: int = 1,
    ) -> None:
        if batch % shares:
            name = "labelled_batch" if stream == LABELLED else "unlabelled_batch"
            raise ValueError(f"{name} must be a multiple of the {shares} processes, got {batch}")
        self.slices, self.batch, self.size, self.interpolation = slices, batch, size, interpolation
        self.seed, self.stream = seed, stream
        self.mine = slice(share * batch // shares, (share + 1) * batch // shares)

    def at(self, step: int) -> Batch:
        every = indices(self.seed, self.stream, step, self.batch, len(self.slices))
        chosen = every[self.mine]
        images = [self.slices.images[i] for i in chosen]
        labels = [self.slices.labels[i] for i in chosen]
        rng = np.random.default_rng((self.seed, self.stream + 2, step))
        sizes = np.array([self.slices.images[i].shape for i in every])
        theta = torch.from_numpy(random_transforms(rng, sizes)[self.mine]).float()
        device = images[0].device
        if device.type == "cuda":
            theta = theta.pin_memory().to(device, non_blocking=True)  # a copy that the host does not wait for
        grid = F.affine_grid(theta, [len(chosen), 1, *self.size], align_corners=True)
        return Batch(*self.sample(images, labels, grid))

    def sample(self, images: list[Tensor], labels: list[Tensor], grid: Tensor) -> tuple[Tensor, Tensor]:
        mode = "bicubic" if self.interpolation == "cubic" else "nearest"
        new_images, new_labels = [], []
        for image, label, where in zip(images, labels, grid.split(1), strict=True):
            new_images.append(F.grid_sample(image[None, None], where, mode=mode, align_corners=True))
            new_labels.append(F.grid_sample(label[None, None].float(), where, mode="nearest", align_corners=True))
        return torch.cat(new_images), torch.cat(new_labels)[:, 0].to(torch.uint8)
