"""The two losses, both by the fused entmask_ext.consistency_loss."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

import entmask_ext
from entmask_ext import ConsistencyLoss
from train.methods import View


def supervised_loss(logits: Tensor, labels: Tensor, settings: SimpleNamespace) -> ConsistencyLoss:
    """ce_weight CE + dice_weight Dice of logits (N, K, H, W) against labels (N, H, W)."""
    return entmask_ext.consistency_loss(logits, labels, ce_weight=settings.ce_weight, dice_weight=settings.dice_weight)


def unlabelled_loss(
    logits: Tensor, view: View, settings: SimpleNamespace, class_weight: Tensor | None
) -> ConsistencyLoss:
    """The student's logits for view.images against the teacher's pseudo-labels for the whole images."""
    region = settings.consistency_ce == "region" and view.permutation is None
    return entmask_ext.consistency_loss(
        view.restore(logits),
        view.labels,
        view.patches if region else None,
        view.patch_size if region else None,
        mask_weight=settings.mask_weight,
        class_weight=class_weight,
        ce_weight=settings.ce_weight,
        dice_weight=settings.dice_weight,
        denominator_offset=settings.denominator_offset,
    )


def class_weights(settings: SimpleNamespace, device: torch.device) -> Tensor | None:
    """(K,) float32 with the background's weight first, None when all are 1."""
    if settings.background_weight == 1.0:
        return None
    weights = torch.ones(settings.classes, device=device)
    weights[0] = settings.background_weight
    return weights
