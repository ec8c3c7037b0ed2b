"""Random patches of the unlabelled image are masked."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

from torch import Tensor

import entmask_ext
from train.methods import METHODS, Method, Strategy, View, pseudo_labels


@dataclass(frozen=True)
class RandomPatches(Strategy):
    def view(self, images: Tensor, logits: Tensor, settings: SimpleNamespace, ratio: float, threshold: float) -> View:
        size = settings.patch_size
        masked = entmask_ext.random_patch_mask(images, size, ratio, shared=settings.shared)
        return View(masked.image, pseudo_labels(logits), masked.patches, size)


METHODS.add(
    "random",
    Method("random patches", "k = floor(ratio P) random patches of each image are masked", RandomPatches()),
)
METHODS.add(
    "mcl",
    Method(
        "random patches with the masked-consistency recipe",
        "as random; CE = 1.5 mean_masked + mean_visible, L = 0.4 CE + 0.6 Dice, lr >= lr0 / 10",
        RandomPatches(),
        {"ce_weight": 0.4, "dice_weight": 0.6, "background_weight": 0.1, "consistency_from": 0.1, "lr_floor": 0.1},
    ),
)
