"""The two losses, both by the fused entmask_ext.consistency_loss."""

from __future__ import annotations

import torch
from torch import Tensor

import entmask_ext
from entmask_ext import ConsistencyLoss
from train.parts import IGNORED, View
from train.run.config import LossConfig


def supervised_loss(logits: Tensor, labels: Tensor, config: LossConfig) -> ConsistencyLoss:
    """ce_weight CE + dice_weight Dice of logits (N, K, H, W) against labels (N, H, W)."""
    return entmask_ext.consistency_loss(logits, labels, ce_weight=config.ce_weight, dice_weight=config.dice_weight)


def unlabelled_loss(logits: Tensor, view: View, config: LossConfig, class_weight: Tensor | None) -> dict[str, Tensor]:
    """The loss "consistency" of the student's logits for view.images against the teacher's answer, and its parts."""
    if config.consistency != "hard":
        assert view.target is not None
        believed = view.labels != IGNORED
        soft = entmask_ext.soft_consistency_loss(view.restore(logits), view.target, believed, kind=config.consistency)
        return {"consistency": soft}
    region = view.region_weights is not None or (config.consistency_ce == "region" and view.permutation is None)
    mask_weight, visible_weight = view.region_weights or (config.mask_weight, 1.0)
    hard = entmask_ext.consistency_loss(
        view.restore(logits),
        view.labels,
        view.patches if region else None,
        view.patch_size if region else None,
        mask_weight=mask_weight,
        visible_weight=visible_weight,
        class_weight=class_weight,
        ce_weight=config.consistency_ce_weight,
        dice_weight=config.consistency_dice_weight,
        dice_region=config.dice_region,
        denominator_offset=config.denominator_offset,
    )
    return {
        "consistency": hard.total,
        "consistency_ce_masked": hard.ce_masked,
        "consistency_ce_visible": hard.ce_visible,
        "consistency_dice": hard.dice,
    }


def class_weights(config: LossConfig, classes: int, device: torch.device) -> Tensor | None:
    """(K,) float32 with the background's weight first, None when all are 1."""
    if config.background_weight == 1.0:
        return None
    weights = torch.ones(classes, device=device)
    weights[0] = config.background_weight
    return weights
