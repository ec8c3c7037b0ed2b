"""The mask: patches of an unlabelled slice that the student does not see."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

import entmask_ext
from train.parts import View
from train.parts.gate import pseudo_labels
from train.ramps import ramped


@dataclass(frozen=True, kw_only=True)
class Masking:
    #: Which patches the student does not see: random ones; the most uncertain (topr) or least uncertain share (lowr);
    #: those of mostly unsure pixels (count); unsure pixels (pixel). shuffle: all, but moved within and between two
    #: slices, and the student's answer is moved back.
    mask: Literal["none", "random", "topr", "lowr", "count", "pixel", "shuffle"] = "none"
    #: Side of a patch in pixels.
    patch_size: int
    #: Share of the patches that is masked (random, topr, lowr); two numbers: ramped from one to the other.
    ratio: tuple[float, ...]
    #: Normalised entropy from which a pixel counts as unsure (count, pixel); two numbers: ramped.
    threshold: tuple[float, ...] = (0.75,)
    #: Fewest patches of an image that count and pixel mask, so that their mask cannot vanish.
    min_patches: int = 0
    #: Share of the patches, the most uncertain of those selected, that stays visible.
    hint: float = 0.0
    #: Patches compete within their image, or over the whole batch.
    scope: Literal["image", "batch"] = "image"
    #: Random masks: one for the batch instead of one an image.
    shared: bool = False

    def at(self, t: float) -> dict[str, float]:
        return {} if self.mask == "none" else {"ratio": ramped(self.ratio, t), "threshold": ramped(self.threshold, t)}

    def check(self, size: tuple[int, int], batch: int, processes: int) -> None:
        if self.patch_size < 1:
            raise ValueError(f"patch_size must be at least 1, got {self.patch_size}")
        for name, bounds in (("ratio", self.ratio), ("threshold", self.threshold)):
            if len(bounds) not in (1, 2) or not all(0 <= v <= 1 for v in bounds):
                raise ValueError(f"{name} must be one number or two in [0, 1], got {bounds}")
        if not 0 <= self.hint <= 1:
            raise ValueError(f"hint must be in [0, 1], got {self.hint}")
        if self.min_patches < 0:
            raise ValueError(f"min_patches must be at least 0, got {self.min_patches}")
        if self.mask == "shuffle":
            if any(n % self.patch_size for n in size):
                raise ValueError(f"patch_size must be a divisor of size {size}, got {self.patch_size}")
            if batch % (2 * processes):
                raise ValueError(
                    f"unlabelled_batch must be a multiple of {2 * processes}, pairs for each process, got {batch}"
                )

    def __call__(self, images: Tensor, logits: Tensor, min_confidence: float | None, t: float) -> View:
        """images (N, C, H, W), the teacher's logits (N, K, H, W) for them, the time in [0, 1] of the run -> View."""
        return MASKS[self.mask](self, images, logits, min_confidence, t)


def none(masking: Masking, images: Tensor, logits: Tensor, min_confidence: float | None, t: float) -> View:
    return View(images, pseudo_labels(logits, min_confidence))


def random(masking: Masking, images: Tensor, logits: Tensor, min_confidence: float | None, t: float) -> View:
    ratio = ramped(masking.ratio, t)
    masked = entmask_ext.random_patch_mask(images, masking.patch_size, ratio, shared=masking.shared)
    return View(masked.image, pseudo_labels(logits, min_confidence), masked.patches, masking.patch_size)


def by_rank(masking: Masking, images: Tensor, logits: Tensor, min_confidence: float | None, t: float) -> View:
    order = "lowest" if masking.mask == "lowr" else "highest"
    rule: dict[str, Any] = {"ratio": ramped(masking.ratio, t), "order": order}
    return by_entropy(masking, images, logits, min_confidence, masking.patch_size, rule)


def count(masking: Masking, images: Tensor, logits: Tensor, min_confidence: float | None, t: float) -> View:
    rule: dict[str, Any] = {"score": "count", "threshold": ramped(masking.threshold, t), "min_score": 0.5}
    rule["min_patches"] = masking.min_patches
    return by_entropy(masking, images, logits, min_confidence, masking.patch_size, rule)


def pixel(masking: Masking, images: Tensor, logits: Tensor, min_confidence: float | None, t: float) -> View:
    rule = {"min_score": ramped(masking.threshold, t), "min_patches": masking.min_patches}
    return by_entropy(masking, images, logits, min_confidence, 1, rule)


def by_entropy(
    masking: Masking,
    images: Tensor,
    logits: Tensor,
    min_confidence: float | None,
    patch_size: int,
    rule: dict[str, Any],
) -> View:
    """rule: the arguments of patch_mask that say which patches are masked."""
    shared: dict[str, Any] = {"hint": masking.hint, "scope": masking.scope, "min_confidence": min_confidence}
    masked = entmask_ext.patch_mask(images, logits, patch_size, label_dtype=torch.uint8, **shared, **rule)
    assert masked.labels is not None
    return View(masked.image, masked.labels, masked.patches, patch_size, masked.scores)


def shuffle(masking: Masking, images: Tensor, logits: Tensor, min_confidence: float | None, t: float) -> View:
    size = masking.patch_size
    patches = (images.shape[2] // size) * (images.shape[3] // size)
    permutation = torch.randperm(2 * patches, device=images.device)
    shuffled = entmask_ext.shuffle_patches(images, size, permutation)
    return View(shuffled, pseudo_labels(logits, min_confidence), patch_size=size, permutation=permutation)


MASKS: Mapping[str, Callable[[Masking, Tensor, Tensor, float | None, float], View]] = {
    "none": none,
    "random": random,
    "topr": by_rank,
    "lowr": by_rank,
    "count": count,
    "pixel": pixel,
    "shuffle": shuffle,
}
