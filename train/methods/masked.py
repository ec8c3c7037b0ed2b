"""A mean teacher whose student does not see all of the slice: random patches, or by the entropy of the teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from train.methods import METHODS, Method
from train.parts.composed import Composed
from train.parts.gate import Gate
from train.parts.masking import Masking
from train.parts.strong_view import StrongView

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


def cross_entropy_alone(config: FitConfig) -> FitConfig:
    loss = replace(config.loss, consistency_ce_weight=1.0, consistency_dice_weight=0.0, consistency_weight=1.0)
    loss = replace(loss, consistency_ce="unweighted")
    return replace(config, loss=loss, schedule=replace(config.schedule, rampup=0.0))


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
METHODS.add(
    "mic",
    Method(
        "large random blocks masked, and a loss as strong as the teacher is sure",
        "70 % of the blocks of 4 x patch are masked; L = CE mean[max_k p_k >= 0.968]",
        lambda masking: Composed(
            strong_view=StrongView(jitter=0.8, blur=0.5),
            masking=replace(masking, mask="random", patch_size=4 * masking.patch_size, ratio=(0.7,)),
            gate=Gate(min_confidence=0.968, gate="batch"),
        ),
        cross_entropy_alone,
        "MIC, Hoyer et al., CVPR 2023, arXiv:2212.01322",
        "Exactly 70 % of the blocks of a slice, where the authors mask each with probability 0.7. The strong view is "
        "that of fixmatch, in place of their colour jitter, and the supervised loss that of all methods here.",
    ),
)
METHODS.add(
    "complementary",
    Method(
        "two views, a random half of the patches and the other half",
        "L = (loss(student(m x), y) + loss(student((1 - m) x), y)) / 2, y the teacher's labels for the whole image",
        lambda masking: Composed(
            masking=replace(masking, mask="random", ratio=(0.5,)), views_per_slice="complementary"
        ),
        source="complementary masks as of MaskTwins, Wang et al., ICML 2025, arXiv:2507.12008",
        differs="The two masks alone, in the mean teacher of this project; the authors adapt to another domain, and "
        "hold the two answers against each other as well.",
    ),
)
