"""Methods by name: what the student is shown of an unlabelled slice, and how its answer is held against the teacher's.

A strategy makes a View from the whole image and the teacher's logits. A method is a strategy and the settings that it
brings along. A file of this package adds a method or a family of them: see random_patches.py, and "How to add a method"
in CONTRIBUTING.md. `python -m train methods` prints them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

import entmask_ext
from train.registry import Registry


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


class Strategy:
    @property
    def by_rank(self) -> bool:
        """Patches are ranked by score, so that ties are decided by position."""
        return False

    @property
    def by_threshold(self) -> bool:
        """Patches are chosen by a threshold, so that an image may have none."""
        return False

    def check(self, settings: SimpleNamespace, processes: int) -> None:
        """Raises ValueError if these settings, in this many processes, do not suit the strategy."""

    def view(self, images: Tensor, logits: Tensor, settings: SimpleNamespace, ratio: float, threshold: float) -> View:
        """images (N, C, H, W), the teacher's logits (N, K, H, W), the ratio and the threshold in force -> View."""
        raise NotImplementedError


@dataclass(frozen=True)
class Method:
    summary: str
    formula: str
    strategy: Strategy | None = None  # None: no consistency, the unlabelled slices are not used
    defaults: Mapping[str, Any] = field(default_factory=dict)
    all_labels: bool = False


METHODS: Registry[Method] = Registry(__name__, "method")


def describe() -> str:
    """The table that `python -m train methods` prints."""
    lines = []
    for name, method in METHODS.items():
        also = [alias for alias, target in METHODS.aliases.items() if target == name]
        lines.append(f"{name}{f' (also: {also[0]})' if also else ''}\n    {method.summary}\n    {method.formula}")
        if method.defaults:
            lines.append("    brings " + ", ".join(f"{key} {value}" for key, value in method.defaults.items()))
    return "\n".join(lines)


@dataclass(frozen=True)
class Config:
    """List the methods with their formulas."""


def main(config: Config) -> None:
    print(describe())
