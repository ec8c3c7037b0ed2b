"""The methods: what the student is shown of an unlabelled slice, and how its answer is held against the teacher's.

A strategy makes a View from the whole image and the teacher's logits. Each method is a strategy and the settings that
it brings along, one entry of METHODS; `python -m train methods` prints them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

import entmask_ext


class View(NamedTuple):
    """One unlabelled batch as the student gets it; N images, K classes, H x W pixels, a grid of Gh x Gw patches."""

    images: Tensor  # (N, C, H, W) what the student sees
    labels: Tensor  # (N, H, W) uint8, the teacher's pseudo-labels for the whole image
    patches: Tensor | None = None  # (N, Gh, Gw) bool, True = masked
    patch_size: int | None = None
    scores: Tensor | None = None  # (N, Gh, Gw) what the patches were ranked by
    permutation: Tensor | None = None  # (2 * Gh * Gw,) where each patch was taken from

    def restore(self, logits: Tensor) -> Tensor:
        """The student's logits (N, K, H, W) back in the image's own order."""
        if self.permutation is None:
            return logits
        assert self.patch_size is not None
        return entmask_ext.shuffle_patches(logits, self.patch_size, self.permutation, inverse=True)


def pseudo_labels(logits: Tensor) -> Tensor:
    return logits.argmax(1).to(torch.uint8)


class Strategy(Protocol):
    def view(self, images: Tensor, logits: Tensor, settings: SimpleNamespace, ratio: float, threshold: float) -> View:
        """images (N, C, H, W), the teacher's logits (N, K, H, W), the ratio and the threshold in force -> View."""
        ...


@dataclass(frozen=True)
class RandomPatches:
    def view(self, images: Tensor, logits: Tensor, settings: SimpleNamespace, ratio: float, threshold: float) -> View:
        size = settings.patch_size
        masked = entmask_ext.random_patch_mask(images, size, ratio, shared=settings.shared)
        return View(masked.image, pseudo_labels(logits), masked.patches, size)


@dataclass(frozen=True)
class EntropyPatches:
    """Patches chosen by the teacher's entropy: a share of them by rank, or all that pass a threshold."""

    select: Literal["ratio", "threshold", "count"]
    order: Literal["highest", "lowest"] = "highest"
    patch_size: int | None = None  # None: the setting

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


@dataclass(frozen=True)
class ShuffledPairs:
    def view(self, images: Tensor, logits: Tensor, settings: SimpleNamespace, ratio: float, threshold: float) -> View:
        size = settings.patch_size
        patches = (images.shape[2] // size) * (images.shape[3] // size)
        permutation = torch.randperm(2 * patches, device=images.device)
        shuffled = entmask_ext.shuffle_patches(images, size, permutation)
        return View(shuffled, pseudo_labels(logits), patch_size=size, permutation=permutation)


@dataclass(frozen=True)
class Method:
    summary: str
    formula: str
    strategy: Strategy | None = None  # None: no consistency, the unlabelled slices are not used
    defaults: Mapping[str, Any] = field(default_factory=dict)
    all_labels: bool = False

    @property
    def by_rank(self) -> bool:
        """Patches are ranked by score, so that ties are decided by position."""
        return isinstance(self.strategy, EntropyPatches) and self.strategy.select == "ratio"

    @property
    def by_threshold(self) -> bool:
        return isinstance(self.strategy, EntropyPatches) and self.strategy.select != "ratio"


H = "H(x) = -sum_k p_k ln p_k / ln K of the teacher's softmax"
METHODS: dict[str, Method] = {
    "supervised": Method("labelled slices only: the lower bound", "L = ce_weight CE + dice_weight Dice"),
    "supervised-all": Method(
        "every training patient labelled: the upper bound", "L = ce_weight CE + dice_weight Dice", all_labels=True
    ),
    "random": Method("random patches", "k = floor(ratio P) random patches of each image are masked", RandomPatches()),
    "mcl": Method(
        "random patches with the masked-consistency recipe",
        "as random; CE = 1.5 mean_masked + mean_visible, L = 0.4 CE + 0.6 Dice, lr >= lr0 / 10",
        RandomPatches(),
        {"ce_weight": 0.4, "dice_weight": 0.6, "background_weight": 0.1, "consistency_from": 0.1, "lr_floor": 0.1},
    ),
    "entropy-pixel": Method(
        "unsure pixels", f"pixels with H >= threshold are masked; {H}", EntropyPatches("threshold", patch_size=1)
    ),
    "entropy-count": Method(
        "patches of mostly unsure pixels",
        "patches with mean[H >= threshold] >= 1/2 are masked",
        EntropyPatches("count"),
    ),
    "entropy-topr": Method(
        "the most uncertain patches",
        "the k = floor(ratio P) patches of highest mean H are masked, of each image or (--scope batch) of the batch",
        EntropyPatches("ratio"),
    ),
    "entropy-lowr": Method(
        "the surest patches",
        "the k = floor(ratio P) patches of lowest mean H are masked",
        EntropyPatches("ratio", "lowest"),
    ),
    "entropy-topr-hint": Method(
        "the most uncertain patches but for a hint",
        "as entropy-topr, but the floor(hint P) most uncertain of them stay visible",
        EntropyPatches("ratio"),
        {"hint": 0.05},
    ),
    "pair-shuffle": Method(
        "patches shuffled within and between two images",
        "u = shuffle(x_1, x_2); L = loss(shuffle^-1(student(u)), teacher(x_1, x_2))",
        ShuffledPairs(),
    ),
}
ALIASES = {"topr": "entropy-topr"}


def full_name(name: str) -> str:
    """The method's own name.

    Raises:
        ValueError: there is no such method.
    """
    name = ALIASES.get(name, name)
    if name not in METHODS:
        raise ValueError(f"method must be one of {', '.join([*METHODS, *ALIASES])}; got {name!r}")
    return name


def describe() -> str:
    """The table that `python -m train methods` prints."""
    lines = []
    for name, method in METHODS.items():
        also = [alias for alias, target in ALIASES.items() if target == name]
        lines.append(f"{name}{f' (also: {also[0]})' if also else ''}\n    {method.summary}\n    {method.formula}")
        if method.defaults:
            lines.append("    brings " + ", ".join(f"{key} {value}" for key, value in method.defaults.items()))
    return "\n".join(lines)


@dataclass(frozen=True)
class Config:
    """List the methods with their formulas."""


def main(config: Config) -> None:
    print(describe())
