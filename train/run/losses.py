"""The two losses, both by the fused entmask_ext.consistency_loss."""

from __future__ import annotations

import torch
from torch import Tensor

import entmask_ext
from entmask_ext import ConsistencyLoss
from train.parts import View
from train.run.config import LossConfig


def supervised_loss(logits: Tensor, labels: Tensor, config: LossConfig) -> ConsistencyLoss:
    """ce_weight CE + dice_weight Dice of logits (N, K, H, W) against labels (N, H, W)."""
    return entmask_ext.consistency_loss(logits, labels, ce_weight=config.ce_weight, dice_weight=config.dice_weight)


def unlabelled_loss(logits: Tensor, view: View, config: LossConfig, class_weight: Tensor | None) -> ConsistencyLoss:
    """The student's logits for view.images against the teacher's pseudo-labels for the whole images."""
    region = config.consistency_ce == "region" and view.permutation is None
    return entmask_ext.consistency_loss(
        view.restore(logits),
        view.labels,
        view.patches if region else None,
        view.patch_size if region else None,
        mask_weight=config.mask_weight,
        class_weight=class_weight,
        ce_weight=config.consistency_ce_weight,
        dice_weight=config.consistency_dice_weight,
        denominator_offset=config.denominator_offset,
    )


def class_weights(config: LossConfig, classes: int, device: torch.device) -> Tensor | None:
    """(K,) float32 with the background's weight first, None when all are 1."""
    if config.background_weight == 1.0:
        return None
    weights = torch.ones(classes, device=device)
    weights[0] = config.background_weight
    return weights
