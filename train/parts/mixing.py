"""Slices mixed with a partner: part of each comes from the partner, with its pseudo-labels and their certainty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

import entmask_ext
from train.data.batches import Batch
from train.ramps import ramped

AREA = (0.02, 0.4)  # of a box, as a share of the slice
ASPECT = (0.3, 1 / 0.3)  # height by width


@dataclass(frozen=True, kw_only=True)
class Mixing:
    #: What of an unlabelled slice is replaced by its partner's: a box (CutMix), or patches: random ones, the most
    #: uncertain ones (unsure) or the least uncertain ones (sure).
    mix: Literal["none", "box", "random", "unsure", "sure"] = "none"
    #: Where the partner is from: another unlabelled slice of the batch, or a labelled one with its true labels.
    mix_with: Literal["unlabelled", "labelled"] = "unlabelled"
    #: Probability that a slice is mixed.
    mix_probability: float = 1.0
    #: Share of the patches that is replaced; two numbers: ramped from one to the other. A box has 2 to 40 % of the
    #: slice.
    mix_ratio: tuple[float, ...] = (0.2,)

    def at(self, t: float) -> dict[str, float]:
        return {} if self.mix in ("none", "box") else {"mix_ratio": ramped(self.mix_ratio, t)}

    def check(self, batch: int, processes: int) -> None:
        if not 0 <= self.mix_probability <= 1:
            raise ValueError(f"mix_probability must be in [0, 1], got {self.mix_probability}")
        if len(self.mix_ratio) not in (1, 2) or not all(0 <= v <= 1 for v in self.mix_ratio):
            raise ValueError(f"mix_ratio must be one number or two in [0, 1], got {self.mix_ratio}")
        if self.mix != "none" and self.mix_with == "unlabelled" and batch < 2 * processes:
            needed = f"at least {2 * processes} for mix {self.mix}, a partner for each slice"
            raise ValueError(f"unlabelled_batch must be {needed}, got {batch}")

    def __call__(
        self, images: Tensor, logits: Tensor, labelled: Batch, patch_size: int, t: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """images (N, C, H, W) and the teacher's logits (N, K, H, W), mixed, and where: bool, of pixels or patches.

        labelled: slices that are as strongly augmented as the images.
        """
        if self.mix == "none":
            return images, logits, None
        where, size = self.where(logits, patch_size, t)
        theirs = partners(images, logits, labelled if self.mix_with == "labelled" else None)
        mixed = [
            entmask_ext.patch_where(where, inside, outside, size)
            for inside, outside in zip(theirs, (images, logits), strict=True)
        ]
        return mixed[0], mixed[1], where

    def where(self, logits: Tensor, patch_size: int, t: float) -> tuple[Tensor, int]:
        """(N, Gh, Gw) bool and the size of its patches."""
        n, _, height, width = logits.shape
        used = torch.rand(n, device=logits.device) < self.mix_probability
        if self.mix == "box":
            boxes = random_boxes(torch.rand(4, n, device=logits.device), (height, width))
            return entmask_ext.box_mask(boxes * used[:, None], (height, width)), 1
        ratio = torch.where(used, ramped(self.mix_ratio, t), 0.0)
        if self.mix == "random":
            grid = (-(-height // patch_size), -(-width // patch_size))
            scores = torch.rand(n, *grid, device=logits.device)
        else:
            scores = entmask_ext.patch_scores(logits, patch_size)
        order = "lowest" if self.mix == "sure" else "highest"
        return entmask_ext.select_patches(scores, ratio, order=order), patch_size


def partners(images: Tensor, logits: Tensor, labelled: Batch | None) -> tuple[Tensor, Tensor]:
    """The partner of each image and its logits: the image so many places on in the batch, or a labelled slice.

    A label's logits are 0 for its class and -inf for all others: a teacher that is entirely sure.
    """
    n, device = len(images), images.device
    places = torch.arange(n, device=device)
    if labelled is None:
        theirs = (places + torch.randint(1, n, (1,), device=device)) % n
        return images[theirs], logits[theirs]
    theirs = places % len(labelled.images)
    classes = torch.arange(logits.shape[1], device=device)[:, None, None]
    certain = torch.where(labelled.labels[theirs, None] == classes, 0.0, -torch.inf)
    return labelled.images[theirs], certain.to(logits.dtype)


def random_boxes(draws: Tensor, size: tuple[int, int]) -> Tensor:
    """draws (4, N) in [0, 1) -> (N, 4) int64, first and past-the-end row, then column, wholly in the image."""
    area = (AREA[0] + (AREA[1] - AREA[0]) * draws[0]) * size[0] * size[1]
    aspect = ASPECT[0] + (ASPECT[1] - ASPECT[0]) * draws[1]
    edges = []
    for length, extent, u in zip(((area * aspect).sqrt(), (area / aspect).sqrt()), size, draws[2:], strict=True):
        length = length.long().clamp(1, extent)
        first = (u * (extent - length + 1)).long()
        edges += [first, first + length]
    return torch.stack(edges, 1)
