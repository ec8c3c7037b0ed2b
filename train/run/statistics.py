"""What a step's mask did, as 0-d tensors that stay on the device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import entmask_ext
from train.parts import IGNORED, View
from train.parts.gate import believed_share, pseudo_labels


@torch.no_grad()
def step_statistics(
    view: View, teacher_logits: Tensor, truth: Tensor, threshold: float | None, log: bool
) -> dict[str, Tensor]:
    """How much is masked; on logged steps also what needs another pass over the pixels.

    teacher_logits (N, K, H, W) and truth (N, H, W) of the unlabelled batch; the truth is looked at and never learnt
    from.
    """
    seen = {}
    if view.patches is not None:
        masked = view.patches.flatten(1).float().mean(1)
        seen = {
            "masked": masked.mean(),
            "masked_least": masked.min(),
            "masked_most": masked.max(),
            "images_unmasked": (masked == 0).sum().float(),
        }
    if log:
        if threshold is not None:
            seen["above_threshold"] = (entmask_ext.entropy_map(teacher_logits) >= threshold).float().mean()
        seen["pseudo_dice"] = label_dice(pseudo_labels(teacher_logits), truth, teacher_logits.shape[1])
        seen["accepted"] = believed_share(view.labels) if view.believed is None else view.believed
        if view.mixed is not None:
            seen["mixed"] = view.mixed.float().mean()
        if view.patches is not None and view.patch_size is not None:
            seen["foreground_masked"] = foreground_masked(view.labels, view.patches, view.patch_size)
        if view.scores is not None:
            seen["tied"] = tied_share(view.scores)
    return seen


def foreground_masked(labels: Tensor, patches: Tensor, patch_size: int) -> Tensor:
    """Share of the pixels of labels (N, H, W) > 0 that patches (N, Gh, Gw) mask; NaN where no pixel is."""
    height, width = labels.shape[1:]
    pixels = patches.repeat_interleave(patch_size, 1).repeat_interleave(patch_size, 2)[:, :height, :width]
    foreground = (labels > 0) & (labels != IGNORED)
    return (foreground & pixels).sum() / foreground.sum()


def label_dice(labels: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """2 |P n T| / (|P| + |T|) over the whole batch, labels and truth (N, H, W), mean over the classes but 0.

    A class that neither has is left out; NaN where all are.
    """
    mine, its = (F.one_hot(x.flatten().long(), num_classes)[:, 1:].bool() for x in (labels, truth))
    total = mine.sum(0) + its.sum(0)
    return torch.nanmean(2 * (mine & its).sum(0) / total)


def tied_share(scores: Tensor) -> Tensor:
    """Share of patches (N, *grid) whose score another patch of the image has too."""
    ordered = scores.flatten(1).sort(1).values
    same = ordered[:, 1:] == ordered[:, :-1]
    edge = same.new_zeros(len(same), 1)
    return (torch.cat([edge, same], 1) | torch.cat([same, edge], 1)).float().mean()
