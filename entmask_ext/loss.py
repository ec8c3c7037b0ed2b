"""The loss between a student's logits and a teacher's pseudo-labels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from entmask_ext import _C
from entmask_ext._trace import patch_sizes
from entmask_ext.types import ConsistencyLoss


def consistency_loss(
    logits: Tensor,
    labels: Tensor,
    patches: Tensor | None = None,
    patch_size: int | Sequence[int] | None = None,
    *,
    mask_weight: float = 1.5,
    class_weight: Tensor | None = None,
    ce_weight: float = 0.5,
    dice_weight: float = 0.5,
    smooth: float = 1e-5,
    denominator_offset: float = 0.0,
) -> ConsistencyLoss:
    """Region-weighted cross entropy plus soft Dice (Milletari et al. 2016, squared denominator), in one pass.

    With l = -log softmax(logits)[label], w = class_weight[label], M the masked patches, p the softmax and t the one-hot
    label:

        ce_masked = sum_M w l / (sum_M w + denominator_offset),    ce_visible: the same outside M
        dice = mean over classes of 1 - (2 sum p t + smooth) / (sum p^2 + sum t + smooth),    sums over the batch
        total = ce_weight * (mask_weight * ce_masked + ce_visible) + dice_weight * dice

    A region whose sum of w is 0, an empty one too, gives 0 with zero gradient, never NaN. A pixel whose label is
    outside [0, K) is in no sum.

    Args:
        logits: (N, K, *S), K >= 2, float64, float32, float16 or bfloat16, any strides.
        labels: (N, *S) uint8 or int64.
        patches: (N, *G) bool, True = masked, as in :class:`PatchMask`; None: everything is visible.
        patch_size: of these patches; needed with them, since a grid does not tell its patches' size.
        mask_weight: factor of ce_masked.
        class_weight: (K,) floating, finite and >= 0 (the values are checked on the CPU only); None: all 1.
        ce_weight, dice_weight: factors of the two parts.
        smooth: added to both sides of Dice's fraction; with 0, a class that is nowhere gives NaN.
        denominator_offset: added to the regions' denominators.

    Returns:
        :class:`ConsistencyLoss` (total, ce_masked, ce_visible, dice). Differentiable with respect to logits, once.

    Raises:
        ValueError, TypeError, NotImplementedError: as :func:`entmask_ext.patch_mask`.

    Example:
        >>> import torch, entmask_ext
        >>> logits = torch.zeros(1, 2, 4, 4, requires_grad=True)
        >>> loss = entmask_ext.consistency_loss(logits, torch.zeros(1, 4, 4, dtype=torch.uint8))
        >>> round(loss.ce_visible.item(), 4)
        0.6931
    """
    if torch.compiler.is_compiling():
        *outputs, _ = torch.ops.entmask.consistency_loss(
            logits,
            labels,
            patches,
            None if patch_size is None else patch_sizes(patch_size),
            mask_weight,
            class_weight,
            ce_weight,
            dice_weight,
            smooth,
            denominator_offset,
        )
        return ConsistencyLoss(*outputs)
    return ConsistencyLoss._make(
        _C.consistency_loss(
            logits,
            labels,
            patches,
            patch_size,
            mask_weight,
            class_weight,
            ce_weight,
            dice_weight,
            smooth,
            denominator_offset,
        )
    )
