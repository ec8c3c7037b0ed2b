"""Slices mixed with a partner: part of each comes from the partner, with its pseudo-labels and their certainty."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

import entmask_ext
from train.parts import Given
from train.ramps import ramped, sigmoid_ramp

AREA = (0.02, 0.4)  # of a box, as a share of the slice
ASPECT = (0.3, 1 / 0.3)  # height by width
PACE = 0.25  # share of the run over which the age of `adaptive` grows


@dataclass(frozen=True, kw_only=True)
class Mixing:
    #: What of an unlabelled slice is replaced by its partner's: a box (CutMix), or patches: random ones, the most
    #: uncertain ones (unsure) or the least uncertain ones (sure). adaptive: an easy slice gets the partner's most
    #: uncertain patches where it is least uncertain itself, a hard one the reverse (AdaMix).
    mix: Literal["none", "box", "random", "unsure", "sure", "adaptive"] = "none"
    #: Where the partner is from: another unlabelled slice of the batch, or a labelled one with its true labels.
    mix_with: Literal["unlabelled", "labelled"] = "unlabelled"
    #: Probability that a slice is mixed.
    mix_probability: float = 1.0
    #: Share of the patches that is replaced, with adaptive at most; two numbers: ramped from one to the other. A box
    #: has 2 to 40 % of the slice.
    mix_ratio: tuple[float, ...] = (0.2,)

    def at(self, t: float) -> dict[str, float]:
        if self.mix in ("none", "box"):
            return {}
        age = {"age": age_at(t)} if self.mix == "adaptive" else {}
        return {"mix_ratio": ramped(self.mix_ratio, t)} | age

    def check(self, size: tuple[int, int], patch_size: int, batch: int, processes: int) -> None:
        if not 0 <= self.mix_probability <= 1:
            raise ValueError(f"mix_probability must be in [0, 1], got {self.mix_probability}")
        if len(self.mix_ratio) not in (1, 2) or not all(0 <= v <= 1 for v in self.mix_ratio):
            raise ValueError(f"mix_ratio must be one number or two in [0, 1], got {self.mix_ratio}")
        if self.mix != "none" and self.mix_with == "unlabelled" and batch < 2 * processes:
            needed = f"at least {2 * processes} for mix {self.mix}, a partner for each slice"
            raise ValueError(f"unlabelled_batch must be {needed}, got {batch}")
        if self.mix == "adaptive" and any(n % patch_size for n in size):
            raise ValueError(f"patch_size must be a divisor of size {size} for mix adaptive, got {patch_size}")

    @property
    def uses_labels(self) -> bool:
        return self.mix != "none" and self.mix_with == "labelled"

    def __call__(self, given: Given, patch_size: int, t: float) -> tuple[Given, Tensor | None, int | None]:
        """Images and logits mixed; where, (N, *grid) bool, and the size of the patches, 1 for a box."""
        if self.mix == "none":
            return given, None, None
        partners = labelled_partners if self.uses_labels else unlabelled_partners
        if self.mix == "adaptive":
            where, theirs = self.adaptive(given, partners(given), patch_size, t)
            size = patch_size
        else:
            where, size = self.where(given.doubt, patch_size, t)
            theirs = partners(given)

        def mixed(inside: Tensor, outside: Tensor) -> Tensor:
            return entmask_ext.patch_where(where, inside, outside, size)

        return every_map(mixed, theirs, given), where, size

    def where(self, doubt: Tensor, patch_size: int, t: float) -> tuple[Tensor, int]:
        """(N, Gh, Gw) bool and the size of its patches."""
        n, _, height, width = doubt.shape
        used = self.used(n, doubt.device)
        if self.mix == "box":
            boxes = random_boxes(torch.rand(4, n, device=doubt.device), (height, width))
            return entmask_ext.box_mask(boxes * used[:, None], (height, width)), 1
        if self.mix == "random":
            grid = (-(-height // patch_size), -(-width // patch_size))
            scores = torch.rand(n, *grid, device=doubt.device)
        else:
            scores = entmask_ext.patch_scores(doubt, patch_size)
        order = "lowest" if self.mix == "sure" else "highest"
        # The number of patches itself: a ratio as a float32 tensor, such as 0.7, may lose a patch.
        return entmask_ext.select_patches(scores, used * self.count(scores, t), order=order), patch_size

    def used(self, n: int, device: torch.device) -> Tensor:
        """(N,) bool: the slices that are mixed."""
        return torch.rand(n, device=device) < self.mix_probability

    def count(self, scores: Tensor, t: float) -> int:
        """How many of a slice's patches are replaced, as entmask_ext.select_patches counts them."""
        ratio = ramped(self.mix_ratio, t)
        return max(1, math.floor(ratio * scores[0].numel() + 1e-6)) if ratio > 0 else 0

    def adaptive(self, given: Given, theirs: Given, patch_size: int, t: float) -> tuple[Tensor, Given]:
        """Where, and the partners with their patches in an order opposite to the slice's own.

        The loss of a slice is -sum_k p_k ln p_k, the cross entropy of the teacher's own answer, as a mean over the
        slice. Of a count of n patches, min(n, floor(n |1 - loss / age|)) are replaced: the least uncertain ones where
        loss < age, the most uncertain ones otherwise. The patch of rank r gets the partner's of rank P - 1 - r.
        """
        scores = entmask_ext.patch_scores(given.doubt, patch_size)
        loss = scores.mean((1, 2)) * math.log(given.doubt.shape[1])
        most, age = self.count(scores, t), age_at(t)
        count = (most * (1 - loss / age).abs().clamp(max=1)).long() * self.used(len(scores), scores.device)
        easy = torch.where(loss < age, -1.0, 1.0)
        where = entmask_ext.select_patches(easy[:, None, None] * scores, count)
        order = scores.flatten(1).argsort(dim=1, stable=True)
        their_scores = entmask_ext.patch_scores(theirs.doubt, patch_size).flatten(1)
        opposite = their_scores.argsort(dim=1, descending=True, stable=True)
        opposite += opposite.shape[1] * torch.arange(len(opposite), device=opposite.device)[:, None]
        source = torch.empty_like(order).scatter_(1, order, opposite).view(scores.shape)
        return where, every_map(lambda x: entmask_ext.gather_patches(x, source, patch_size), theirs)


def age_at(t: float) -> float:
    """exp(-5 (1 - t / PACE)^2), then 1: the loss up to which a slice is easy."""
    return sigmoid_ramp(t / PACE)


def every_map(function: Callable[..., Tensor], *given: Given) -> Given:
    """The function of their images, of their logits and of their doubt; where doubt is the logits, it stays them."""
    images = function(*(one.images for one in given))
    logits = function(*(one.logits for one in given))
    same = all(one.doubt is one.logits for one in given)
    doubt = logits if same else function(*(one.doubt for one in given))
    return given[-1]._replace(images=images, logits=logits, doubt=doubt)


def unlabelled_partners(given: Given) -> Given:
    """Each slice's partner: the one so many places on in the batch."""
    n, device = len(given.images), given.images.device
    theirs = (torch.arange(n, device=device) + torch.randint(1, n, (1,), device=device)) % n
    return every_map(lambda x: x[theirs], given)


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
