"""A mean teacher whose student does not see all of the slice: random patches, or by the entropy of the teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from train.methods import METHODS, Method
from train.parts.composed import Composed
from train.parts.masking import Masking

if TYPE_CHECKING:
    from train.run.config import FitConfig


def mask(name: str, **settings: Any) -> Callable[[Masking], Composed]:
    changes: dict[str, Any] = {"mask": name, **settings}
    return lambda masking: Composed(masking=replace(masking, **changes))


def masked_consistency(config: FitConfig) -> FitConfig:
    loss: dict[str, Any] = {
        "ce_weight": 0.4,
        "dice_weight": 0.6,
        "consistency_ce_weight": 0.4,
        "consistency_dice_weight": 0.6,
    }
    return replace(
        config,
        loss=replace(config.loss, **loss, background_weight=0.1),
        schedule=replace(config.schedule, consistency_from=0.1, lr_floor=0.1),
    )


H = "H(x) = -sum_k p_k ln p_k / ln K of the teacher's softmax"
METHODS.add("entropy-pixel", Method("unsure pixels", f"pixels with H >= threshold are masked; {H}", mask("pixel")))
METHODS.add(
    "entropy-count",
    Method("patches of mostly unsure pixels", "patches with mean[H >= threshold] >= 1/2 are masked", mask("count")),
)
METHODS.add(
    "entropy-topr",
    Method(
        "the most uncertain patches",
        "the k = floor(ratio P) patches of highest mean H are masked, of each image or (--scope batch) of the batch",
        mask("topr"),
    ),
    "topr",
)
METHODS.add(
    "entropy-lowr",
    Method("the surest patches", "the k = floor(ratio P) patches of lowest mean H are masked", mask("lowr")),
)
METHODS.add(
    "entropy-topr-hint",
    Method(
        "the most uncertain patches but for a hint",
        "as entropy-topr, but the floor(hint P) most uncertain of them stay visible",
        mask("topr", hint=0.05),
    ),
)
METHODS.add(
    "random",
    Method("random patches", "k = floor(ratio P) random patches of each image are masked", mask("random")),
)
METHODS.add(
    "mcl",
    Method(
        "random patches with the masked-consistency recipe",
        "as random; CE = 1.5 mean_masked + mean_visible, L = 0.4 CE + 0.6 Dice, lr >= lr0 / 10",
        mask("random"),
        masked_consistency,
    ),
)
METHODS.add(
    "pair-shuffle",
    Method(
        "patches shuffled within and between two images",
        "u = shuffle(x_1, x_2); L = loss(shuffle^-1(student(u)), teacher(x_1, x_2))",
        mask("shuffle"),
    ),
)
