"""Patches (or pixels) of the unlabelled image are masked by the entropy of the teacher's softmax there."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor

import entmask_ext
from train.methods import METHODS, Method, Strategy, View


@dataclass(frozen=True)
class EntropyPatches(Strategy):
    """Patches chosen by the teacher's entropy: a share of them by rank, or all that pass a threshold."""

    select: Literal["ratio", "threshold", "count"]
    order: Literal["highest", "lowest"] = "highest"
    patch_size: int | None = None  # None: the setting

    @property
    def by_rank(self) -> bool:
        return self.select == "ratio"

    @property
    def by_threshold(self) -> bool:
        return self.select != "ratio"

    def view(self, images: Tensor, logits: Tensor, settings: SimpleNamespace, ratio: float, threshold: float) -> View:
        size = self.patch_size or settings.patch_size
        rule: dict[str, Any]
        if self.select == "ratio":
            rule = {"ratio": ratio}
        elif self.select == "threshold":
            rule = {"min_score": threshold, "min_patches": settings.min_patches}
        else:
            rule = {"score": "count", "threshold": threshold, "min_score": 0.5, "min_patches": settings.min_patches}
        masked = entmask_ext.patch_mask(
            images,
            logits,
            size,
            order=self.order,
            hint=settings.hint,
            scope=settings.scope,
            label_dtype=torch.uint8,
            **rule,
        )
        assert masked.labels is not None
        return View(masked.image, masked.labels, masked.patches, size, masked.scores)


H = "H(x) = -sum_k p_k ln p_k / ln K of the teacher's softmax"
METHODS.add(
    "entropy-pixel",
    Method("unsure pixels", f"pixels with H >= threshold are masked; {H}", EntropyPatches("threshold", patch_size=1)),
)
METHODS.add(
    "entropy-count",
    Method(
        "patches of mostly unsure pixels",
        "patches with mean[H >= threshold] >= 1/2 are masked",
        EntropyPatches("count"),
    ),
)
METHODS.add(
    "entropy-topr",
    Method(
        "the most uncertain patches",
        "the k = floor(ratio P) patches of highest mean H are masked, of each image or (--scope batch) of the batch",
        EntropyPatches("ratio"),
    ),
    "topr",
)
METHODS.add(
    "entropy-lowr",
    Method(
        "the surest patches",
        "the k = floor(ratio P) patches of lowest mean H are masked",
        EntropyPatches("ratio", "lowest"),
    ),
)
METHODS.add(
    "entropy-topr-hint",
    Method(
        "the most uncertain patches but for a hint",
        "as entropy-topr, but the floor(hint P) most uncertain of them stay visible",
        EntropyPatches("ratio"),
        {"hint": 0.05},
    ),
)
