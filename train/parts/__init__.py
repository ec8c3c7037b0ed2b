"""What methods are made of: a strong view, a mix of slices, a gate, a mask. Each is a group of settings that acts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from torch import Tensor

import entmask_ext
from train.data.batches import Batch

#: The pseudo-label of a pixel that the gate refuses: no loss counts it.
IGNORED = 255


class Given(NamedTuple):
    """What a method makes its views of; N unlabelled slices, K classes, H x W pixels."""

    images: Tensor  # (N, C, H, W) as the teacher saw them, without its noise
    logits: Tensor  # (N, K, H, W) the teacher's
    doubt: Tensor  # (N, K, H, W) logits that say how sure it is: the same, or of the mean of several passes
    labelled: Batch  # the labelled slices of the step


class View(NamedTuple):
    """One unlabelled batch as the student gets it; a grid of Gh x Gw patches."""

    images: Tensor  # (N, C, H, W) what the student sees
    labels: Tensor  # (N, H, W) uint8 pseudo-labels of these images, IGNORED where the gate refuses
    patches: Tensor | None = None  # (N, Gh, Gw) bool, True = masked
    patch_size: int | None = None
    scores: Tensor | None = None  # (N, Gh, Gw) what the patches were ranked by
    permutation: Tensor | None = None  # (2 * Gh * Gw,) where each patch was taken from
    mixed: Tensor | None = None  # (N, *grid) bool, True = a partner's
    mixed_patch_size: int | None = None
    target: Tensor | None = None  # (N, K, H, W) logits of these images, for soft losses
    channel_dropout: float = 0.0  # probability that the student's encoder loses a channel
    weight: float | Tensor = 1.0  # of this view's loss
    region_weights: tuple[float, float] | None = None  # of masked and visible pixels; None: those of the loss
    believed: Tensor | None = None  # 0-d, share of the labels that are believed; None: of those that are not IGNORED

    def restore(self, logits: Tensor) -> Tensor:
        """The student's logits (N, K, H, W) back in the image's own order."""
        if self.permutation is None:
            return logits
        assert self.patch_size is not None
        return entmask_ext.shuffle_patches(logits, self.patch_size, self.permutation, inverse=True)


class Strategy(ABC):
    """A frozen dataclass whose fields, and those of its groups, are flags of `fit` and keys of config.json."""

    #: The unlabelled slices are used; False: supervised training.
    unlabelled: ClassVar[bool] = True
    #: Its views have a target, so that the loss can be of probabilities instead of labels.
    soft: ClassVar[bool] = False
    #: The labels of all training patients are used.
    all_labels: ClassVar[bool] = False

    @property
    def by_rank(self) -> bool:
        """Patches are ranked by score, so that ties are decided by position."""
        return False

    @property
    def remedy(self) -> str:
        """What to do where most images have no masked patch."""
        return "raise --ratio"

    @abstractmethod
    def check(self, size: tuple[int, int], labelled: int, unlabelled: int, processes: int) -> None:
        """Raises ValueError, naming the setting, where one is wrong or does not suit slices of this size, or batches.

        labelled, unlabelled: slices of a step, over all processes.
        """

    def at(self, t: float) -> dict[str, float]:
        """The ramped settings in force at time t in [0, 1] of the run, by name, for the metrics."""
        return {}

    def supervised(self, labelled: Batch, consistency: bool) -> Batch | None:
        """The slices that the supervised loss is of; None: the views have the labels. consistency: there are views."""
        return labelled

    @abstractmethod
    def views(self, given: Given, t: float) -> list[View]:
        """What the student sees of the unlabelled slices at the time t in [0, 1] of the run."""
