"""The bounds: training on labels alone, those of the labelled patients or everybody's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from train.methods import METHODS, Method, Strategy, View
from train.methods.patches import PatchSettings


@dataclass(frozen=True, kw_only=True)
class LabelsOnly(PatchSettings, Strategy):
    unlabelled: ClassVar[bool] = False

    def view(self, images: Tensor, logits: Tensor, t: float) -> View:
        raise AssertionError("supervised training has no view of unlabelled slices")


@dataclass(frozen=True, kw_only=True)
class AllLabels(LabelsOnly):
    all_labels: ClassVar[bool] = True


METHODS.add(
    "supervised",
    Method("labelled slices only: the lower bound", "L = ce_weight CE + dice_weight Dice", LabelsOnly.of),
)
METHODS.add(
    "supervised-all",
    Method("every training patient labelled: the upper bound", "L = ce_weight CE + dice_weight Dice", AllLabels.of),
)
