"""Slices mixed with a partner: part of each comes from the partner, with its pseudo-labels and their certainty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

import entmask_ext
from train.parts import Given
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

    @property
    def uses_labels(self) -> bool:
        return self.mix != "none" and self.mix_with == "labelled"

    def __call__(self, given: Given, patch_size: int, t: float) -> tuple[Given, Tensor | None, int | None]:
        """Images and logits mixed; where, (N, *grid) bool, and the size of the patches, 1 for a box."""
        if self.mix == "none":
            return given, None, None
        where, size = self.where(given.doubt, patch_size, t)
        theirs = labelled_partners(given) if self.uses_labels else unlabelled_partners(given)

        def mixed(inside: Tensor, outside: Tensor) -> Tensor:
            return entmask_ext.patch_where(where, inside, outside, size)

        logits = mixed(theirs.logits, given.logits)
        doubt = logits if given.doubt is given.logits else mixed(theirs.doubt, given.doubt)
        return given._replace(images=mixed(theirs.images, given.images), logits=logits, doubt=doubt), where, size

    def where(self, doubt: Tensor, patch_size: int, t: float) -> tuple[Tensor, int]:
        """(N, Gh, Gw) bool and the size of its patches."""
        n, _, height, width = doubt.shape
        used = torch.rand(n, device=doubt.device) < self.mix_probability
        if self.mix == "box":
            boxes = random_boxes(torch.rand(4, n, device=doubt.device), (height, width))
            return entmask_ext.box_mask(boxes * used[:, None], (height, width)), 1
        ratio = torch.where(used, ramped(self.mix_ratio, t), 0.0)
        if self.mix == "random":
            grid = (-(-height // patch_size), -(-width // patch_size))
            scores = torch.rand(n, *grid, device=doubt.device)
        else:
            scores = entmask_ext.patch_scores(doubt, patch_size)
        order = "lowest" if self.mix == "sure" else "highest"
        return entmask_ext.select_patches(scores, ratio, order=order), patch_size


def unlabelled_partners(given: Given) -> Given:
    """Each slice's partner: the one so many places on in the batch."""
    n, device = len(given.images), given.images.device
    theirs = (torch.arange(n, device=device) + torch.randint(1, n, (1,), device=device)) % n
    logits = given.logits[theirs]
    doubt = logits if given.doubt is given.logits else given.doubt[theirs]
    return given._replace(images=given.images[theirs], logits=logits, doubt=doubt)


def labelled_partners(given: Given) -> Given:
    """Each slice's partner: a labelled one. A label's logits are 0 for its class and -inf for all others: no doubt."""
    labelled, logits = given.labelled, given.logits
    theirs = torch.arange(len(logits), device=logits.device) % len(labelled.images)
    classes = torch.arange(logits.shape[1], device=logits.device)[:, None, None]
    certain = torch.where(labelled.labels[theirs, None] == classes, 0.0, -torch.inf).to(logits.dtype)
    return given._replace(images=labelled.images[theirs], logits=certain, doubt=certain)


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
