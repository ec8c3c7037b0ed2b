"""Methods by name: what the student is shown of an unlabelled slice, and how its answer is held against the teacher's.

A strategy makes a View from the whole image and the teacher's logits; its fields are its settings. A method is a
strategy and what else it changes in a recipe. A file of this package adds a method or a family of them: see
random_patches.py, and "How to add a method" in CONTRIBUTING.md. `python -m train methods` prints them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

import entmask_ext
from train.registry import Registry

if TYPE_CHECKING:
    from train.methods.patches import PatchSettings
    from train.run.config import FitConfig


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


class Strategy(ABC):
    """A frozen dataclass whose fields are the method's own settings: flags of `fit` and keys of config.json."""

    #: The unlabelled slices are used; False: supervised training.
    unlabelled: ClassVar[bool] = True
    #: The labels of all training patients are used.
    all_labels: ClassVar[bool] = False
    #: Patches are ranked by score, so that ties are decided by position.
    by_rank: ClassVar[bool] = False
    #: What to do where most images have no masked patch.
    remedy: ClassVar[str] = "raise --ratio"

    @abstractmethod
    def check(self, size: tuple[int, int], batch: int, processes: int) -> None:
        """Raises ValueError, naming the setting, where one is wrong or does not suit slices of this size, or batches.

        batch: unlabelled slices of a step, over all processes.
        """

    def at(self, t: float) -> dict[str, float]:
        """The ramped settings in force at time t in [0, 1] of the run, by name, for the metrics."""
        return {}

    @abstractmethod
    def view(self, images: Tensor, logits: Tensor, t: float) -> View:
        """images (N, C, H, W), the teacher's logits (N, K, H, W), the time in [0, 1] of the run -> View."""


def unchanged(config: FitConfig) -> FitConfig:
    return config


@dataclass(frozen=True)
class Method:
    summary: str
    formula: str
    #: From what the recipe says about patches to the method's strategy.
    strategy: Callable[[PatchSettings], Strategy]
    #: What else the method changes in a recipe.
    preset: Callable[[FitConfig], FitConfig] = unchanged


METHODS: Registry[Method] = Registry(__name__, "method")
