"""Patches are shuffled within and between two unlabelled images; the student's answer is put back in order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import entmask_ext
from train.methods import METHODS, Method, Strategy, View, pseudo_labels
from train.methods.patches import PatchSettings


@dataclass(frozen=True, kw_only=True)
class ShuffledPairs(PatchSettings, Strategy):
    def check(self, size: tuple[int, int], batch: int, processes: int) -> None:
        super().check(size, batch, processes)
        if any(n % self.patch_size for n in size):
            raise ValueError(f"patch_size must be a divisor of size {size}, got {self.patch_size}")
        if batch % (2 * processes):
            raise ValueError(
                f"unlabelled_batch must be a multiple of {2 * processes}, pairs for each process, got {batch}"
            )

    def view(self, images: Tensor, logits: Tensor, t: float) -> View:
        patches = (images.shape[2] // self.patch_size) * (images.shape[3] // self.patch_size)
        permutation = torch.randperm(2 * patches, device=images.device)
        shuffled = entmask_ext.shuffle_patches(images, self.patch_size, permutation)
        return View(shuffled, pseudo_labels(logits), patch_size=self.patch_size, permutation=permutation)


METHODS.add(
    "pair-shuffle",
    Method(
        "patches shuffled within and between two images",
        "u = shuffle(x_1, x_2); L = loss(shuffle^-1(student(u)), teacher(x_1, x_2))",
        ShuffledPairs.of,
    ),
)
