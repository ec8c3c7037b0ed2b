"""Patches are shuffled within and between two unlabelled images; the student's answer is put back in order."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

import entmask_ext
from train.methods import METHODS, Method, Strategy, View, pseudo_labels


@dataclass(frozen=True)
class ShuffledPairs(Strategy):
    def check(self, settings: SimpleNamespace, processes: int) -> None:
        if any(n % settings.patch_size for n in settings.size):
            raise ValueError(f"patch_size must be a divisor of size {settings.size}, got {settings.patch_size!r}")
        batch = settings.unlabelled_batch
        if batch % (2 * processes):
            raise ValueError(
                f"unlabelled_batch must be a multiple of {2 * processes}, pairs for each process, got {batch}"
            )

    def view(self, images: Tensor, logits: Tensor, settings: SimpleNamespace, ratio: float, threshold: float) -> View:
        size = settings.patch_size
        patches = (images.shape[2] // size) * (images.shape[3] // size)
        permutation = torch.randperm(2 * patches, device=images.device)
        shuffled = entmask_ext.shuffle_patches(images, size, permutation)
        return View(shuffled, pseudo_labels(logits), patch_size=size, permutation=permutation)


METHODS.add(
    "pair-shuffle",
    Method(
        "patches shuffled within and between two images",
        "u = shuffle(x_1, x_2); L = loss(shuffle^-1(student(u)), teacher(x_1, x_2))",
        ShuffledPairs(),
    ),
)
