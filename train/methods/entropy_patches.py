"""Patches (or pixels) of the unlabelled image are masked by the entropy of the teacher's softmax there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

import entmask_ext
from entmask_ext import PatchMask
from train.methods import METHODS, Method, Strategy, View
from train.methods.patches import PatchSettings
from train.ramps import ramped


@dataclass(frozen=True, kw_only=True)
class TopPatches(PatchSettings, Strategy):
    """The most uncertain share of the patches."""

    by_rank: ClassVar[bool] = True
    order: ClassVar[Literal["highest", "lowest"]] = "highest"

    def view(self, images: Tensor, logits: Tensor, t: float) -> View:
        masked = entmask_ext.patch_mask(
            images,
            logits,
            self.patch_size,
            ramped(self.ratio, t),
            order=self.order,
            hint=self.hint,
            scope=self.scope,
            label_dtype=torch.uint8,
        )
        return seen(masked, self.patch_size)


@dataclass(frozen=True, kw_only=True)
class SurestPatches(TopPatches):
    order: ClassVar[Literal["highest", "lowest"]] = "lowest"


@dataclass(frozen=True, kw_only=True)
class UnsurePatches(PatchSettings, Strategy):
    """The patches at least half of whose pixels have an entropy of threshold or more."""

    remedy: ClassVar[str] = (
        "lower --threshold or ramp it (--threshold 0.75 0.6), set --min-patches, or take entropy-topr"
    )

    def view(self, images: Tensor, logits: Tensor, t: float) -> View:
        masked = entmask_ext.patch_mask(
            images,
            logits,
            self.patch_size,
            score="count",
            threshold=ramped(self.threshold, t),
            min_score=0.5,
            min_patches=self.min_patches,
            hint=self.hint,
            scope=self.scope,
            label_dtype=torch.uint8,
        )
        return seen(masked, self.patch_size)


@dataclass(frozen=True, kw_only=True)
class UnsurePixels(UnsurePatches):
    """The pixels with an entropy of threshold or more."""

    def view(self, images: Tensor, logits: Tensor, t: float) -> View:
        masked = entmask_ext.patch_mask(
            images,
            logits,
            1,
            min_score=ramped(self.threshold, t),
            min_patches=self.min_patches,
            hint=self.hint,
            scope=self.scope,
            label_dtype=torch.uint8,
        )
        return seen(masked, 1)


def seen(masked: PatchMask, patch_size: int) -> View:
    assert masked.labels is not None
    return View(masked.image, masked.labels, masked.patches, patch_size, masked.scores)


H = "H(x) = -sum_k p_k ln p_k / ln K of the teacher's softmax"
METHODS.add(
    "entropy-pixel",
    Method("unsure pixels", f"pixels with H >= threshold are masked; {H}", UnsurePixels.of),
)
METHODS.add(
    "entropy-count",
    Method(
        "patches of mostly unsure pixels",
        "patches with mean[H >= threshold] >= 1/2 are masked",
        UnsurePatches.of,
    ),
)
METHODS.add(
    "entropy-topr",
    Method(
        "the most uncertain patches",
        "the k = floor(ratio P) patches of highest mean H are masked, of each image or (--scope batch) of the batch",
        TopPatches.of,
    ),
    "topr",
)
METHODS.add(
    "entropy-lowr",
    Method(
        "the surest patches",
        "the k = floor(ratio P) patches of lowest mean H are masked",
        SurestPatches.of,
    ),
)
METHODS.add(
    "entropy-topr-hint",
    Method(
        "the most uncertain patches but for a hint",
        "as entropy-topr, but the floor(hint P) most uncertain of them stay visible",
        lambda patches: TopPatches.of(replace(patches, hint=0.05)),
    ),
)
