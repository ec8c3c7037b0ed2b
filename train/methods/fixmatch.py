"""Strong views, slices mixed with each other, and only pseudo-labels that the teacher is sure of.

FixMatch (Sohn et al., NeurIPS 2020, arXiv:2001.07685) with CutMix (Yun et al., ICCV 2019), as UniMatch's code
(Yang et al., CVPR 2023, arXiv:2208.09910) has it for ACDC; entropy-mix replaces the box by the patches that the teacher
is least sure of.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from train.methods import METHODS, Method
from train.parts.composed import Composed
from train.parts.gate import Gate
from train.parts.masking import Masking
from train.parts.mixing import Mixing
from train.parts.strong_view import StrongView

if TYPE_CHECKING:
    from train.run.config import FitConfig


def gated(masking: Masking, **mixing: Any) -> Composed:
    return Composed(
        strong_view=StrongView(jitter=0.8, blur=0.5),
        mixing=Mixing(**mixing),
        masking=masking,
        gate=Gate(min_confidence=0.95),
    )


def dice_of_accepted(config: FitConfig) -> FitConfig:
    """The unlabelled loss is Dice alone, of the full weight after a short ramp: at once it lets classes die out."""
    loss = replace(config.loss, consistency_ce_weight=0.0, consistency_dice_weight=1.0, consistency_weight=1.0)
    return replace(config, loss=loss, schedule=replace(config.schedule, rampup=0.2))


METHODS.add(
    "fixmatch",
    Method(
        "strong views, CutMix boxes and a gate",
        "u = box(strong(x_1), strong(x_2)) of half of the slices; L = Dice over the pixels with max_k p_k >= 0.95",
        lambda masking: gated(masking, mix="box", mix_probability=0.5),
        dice_of_accepted,
        "FixMatch, Sohn et al., NeurIPS 2020, arXiv:2001.07685; CutMix, Yun et al., ICCV 2019, arXiv:1905.04899; the "
        "numbers are those of UniMatch's code for ACDC",
        "The pseudo-labels are an EMA teacher's in eval mode, not the network's own. A box is drawn once and its "
        "sides end at the slice's, where the authors draw until one fits: nothing waits for the device. The partner "
        "is of the same batch. Slices have one channel: brightness, contrast and blur, no hue or saturation; "
        "intensities are not clamped. Ls + w Lu instead of (Ls + Lu) / 2, with a short ramp of w.",
    ),
)


def own_teacher(config: FitConfig) -> FitConfig:
    """The network teaches itself, in train mode, from the first step on."""
    config = dice_of_accepted(config)
    teacher = replace(config.teacher, ema_decay=0.0, teacher_mode="train")
    return replace(config, teacher=teacher, schedule=replace(config.schedule, consistency_from=0.0))


METHODS.add(
    "unimatch",
    Method(
        "two strong views and one of dropped channels, without an EMA teacher",
        "L = 1/4 fixmatch(u_1) + 1/4 fixmatch(u_2) + 1/2 Dice(student(x; half of the encoder's channels)), all gated",
        lambda masking: replace(
            gated(masking, mix="box", mix_probability=0.5), views_per_slice="two", channel_dropout=0.5
        ),
        own_teacher,
        "UniMatch, Yang et al., CVPR 2023, arXiv:2208.09910",
        "As fixmatch, but the pseudo-labels are the network's own here too. Its weak pass is a batch of its own, by "
        "whose statistics batch norm normalises; the authors' has the labelled slices in it. Pixels that come from "
        "the partner have the labels of that same pass; the authors ask the network in eval mode about a further "
        "batch.",
    ),
)
METHODS.add(
    "entropy-mix",
    Method(
        "strong views, the most uncertain patches taken from a partner, and a gate",
        "as fixmatch, but in place of the box the floor(mix_ratio P) patches of highest mean H are the partner's",
        lambda masking: gated(replace(masking, patch_size=2 * masking.patch_size), mix="unsure", mix_probability=0.5),
        dice_of_accepted,
        "this project, on the parts of fixmatch",
    ),
)
