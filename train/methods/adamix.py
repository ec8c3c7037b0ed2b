"""Patches exchanged by how hard a slice is for its time: AdaMix (Shen et al., arXiv:2407.21586), by a mean teacher."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from train.methods import METHODS, Method
from train.methods.fixmatch import gated

if TYPE_CHECKING:
    from train.run.config import FitConfig


def full_weight(config: FitConfig) -> FitConfig:
    """The unlabelled loss weighs as much as the supervised one after a short ramp."""
    loss = replace(config.loss, consistency_weight=1.0, consistency_ce="unweighted")
    return replace(config, loss=loss, schedule=replace(config.schedule, rampup=0.2))


METHODS.add(
    "adamix",
    Method(
        "strong views, as many patches exchanged with a partner as the slice is easy or hard for its time, and a gate",
        "of half of the slices floor(mix_ratio P min(1, |1 - l / age|)) patches: an easy slice, l < age, gets the "
        "partner's of highest mean H where its own is lowest, a hard one the reverse; l = mean H ln K, age = exp(-5 "
        "(1 - 4 t)^2), 1 from t = 1/4; L = (CE + Dice) / 2 over the pixels with max_k p_k >= 0.95",
        lambda masking: gated(
            replace(masking, patch_size=2 * masking.patch_size),
            mix="adaptive",
            mix_probability=0.5,
            mix_ratio=(0.25,),
        ),
        full_weight,
        "AdaMix, Shen et al., arXiv:2407.21586, with a mean teacher (AdaMix-MT)",
        "The loss l that is held against the age is the cross entropy of the teacher's own answer, its entropy, which "
        "the ranking of the patches has anyway; the authors take the student's loss against the pseudo-labels, "
        "another forward pass. Patches of twice the recipe's size: 8 x 8 of them where the recipe has 16 x 16. Ls + w "
        "Lu instead of (Ls + Lu) / 2, SGD instead of AdamW, as all methods here; the strong view is that of fixmatch.",
    ),
)
