"""The bounds: training on labels alone, those of the labelled patients or everybody's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from train.methods import METHODS, Method
from train.parts import Given, View
from train.parts.composed import Composed


@dataclass(frozen=True, kw_only=True)
class LabelsOnly(Composed):
    unlabelled: ClassVar[bool] = False

    def views(self, given: Given, t: float) -> list[View]:
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
