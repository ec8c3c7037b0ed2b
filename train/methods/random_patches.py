"""Random patches of the unlabelled image are masked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

import entmask_ext
from train.methods import METHODS, Method, Strategy, View, pseudo_labels
from train.methods.patches import PatchSettings
from train.ramps import ramped

if TYPE_CHECKING:
    from train.run.config import FitConfig


@dataclass(frozen=True, kw_only=True)
class RandomPatches(PatchSettings, Strategy):
    def view(self, images: Tensor, logits: Tensor, t: float) -> View:
        ratio = ramped(self.ratio, t)
        masked = entmask_ext.random_patch_mask(images, self.patch_size, ratio, shared=self.shared)
        return View(masked.image, pseudo_labels(logits), masked.patches, self.patch_size)


def masked_consistency(config: FitConfig) -> FitConfig:
    return replace(
        config,
        loss=replace(config.loss, ce_weight=0.4, dice_weight=0.6, background_weight=0.1),
        schedule=replace(config.schedule, consistency_from=0.1, lr_floor=0.1),
    )


METHODS.add(
    "random",
    Method("random patches", "k = floor(ratio P) random patches of each image are masked", RandomPatches.of),
)
METHODS.add(
    "mcl",
    Method(
        "random patches with the masked-consistency recipe",
        "as random; CE = 1.5 mean_masked + mean_visible, L = 0.4 CE + 0.6 Dice, lr >= lr0 / 10",
        RandomPatches.of,
        masked_consistency,
    ),
)
