"""The loss between a student's logits and a teacher's pseudo-labels."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from entmask_ext import _C, _ops
from entmask_ext.types import ConsistencyLoss


def consistency_loss(
    logits: Tensor,
    labels: Tensor,
    patches: Tensor | None = None,
    patch_size: int | Sequence[int] | None = None,
    *,
    mask_weight: float = 1.5,
    visible_weight: float = 1.0,
    class_weight: Tensor | None = None,
    ce_weight: float = 0.5,
    dice_weight: float = 0.5,
    dice_region: str = "all",
    smooth: float = 1e-5,
    denominator_offset: float = 0.0,
) -> ConsistencyLoss:
    """Region-weighted cross entropy plus soft Dice (Milletari et al. 2016, squared denominator), in one pass.

    With l = -log softmax(logits)[label], w = class_weight[label], M the masked patches, p the softmax and t the one-hot
    label:

        ce_masked = sum_M w l / (sum_M w + denominator_offset),    ce_visible: the same outside M
        D = mean over classes of 1 - (2 sum p t + smooth) / (sum p^2 + sum t + smooth),    sums over the batch
        dice = D of all pixels; with dice_region="each" mask_weight * D of M + visible_weight * D outside M
        total = ce_weight * (mask_weight * ce_masked + visible_weight * ce_visible) + dice_weight * dice

    A region whose sum of w is 0, an empty one too, gives 0 with zero gradient, never NaN; so does the D of a region
    without pixels, and a part whose weight is 0. A pixel whose label is outside [0, K) is in no sum.

    Args:
        logits: (N, K, *S), K >= 2, float64, float32, float16 or bfloat16, any strides.
        labels: (N, *S) uint8 or int64.
        patches: (N, *G) bool, True = masked, as in :class:`PatchMask`; or (1, *G), the same for all images; None:
            everything is visible.
        patch_size: of these patches, in pixels, one int or one per axis; needed with them, since a grid does not tell
            its patches' size. Without patches it is not used.
        mask_weight: factor of the masked pixels' part, finite and >= 0, as are the other numbers.
        visible_weight: factor of the visible pixels' part.
        class_weight: (K,) floating, finite and >= 0 (the values are checked on the CPU only); None: all 1. It gets no
            gradient: one that requires a gradient is an error.
        ce_weight, dice_weight: factors of cross entropy and Dice.
        dice_region: "all": one Dice of all pixels; "each": one of each region, weighted as its cross entropy is (as
            copy-paste methods do: BCP, Bai et al., CVPR 2023).
        smooth: added to both sides of Dice's fraction; with 0, a class that is nowhere makes Dice NaN.
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
    traced = torch.compiler.is_compiling() or has_torch_function_variadic(logits, labels, patches, class_weight)
    op = _consistency_loss if traced else _C.consistency_loss
    out = op(
        logits,
        labels,
        patches,
        patch_size,
        mask_weight,
        visible_weight,
        class_weight,
        ce_weight,
        dice_weight,
        smooth,
        denominator_offset,
        dice_region,
    )
    return ConsistencyLoss(out[0], out[1], out[2], out[3])


_consistency_loss = _ops.traced("consistency_loss")


@torch.library.register_fake("entmask::consistency_loss")
def _(
    logits: Tensor,
    labels: Tensor,
    patches: Tensor | None,
    patch_size: Sequence[int] | None,
    mask_weight: float,
    visible_weight: float,
    class_weight: Tensor | None,
    ce_weight: float,
    dice_weight: float,
    smooth: float,
    denominator_offset: float,
    dice_region: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _ops.check_logits(logits)
    images, classes, *sizes = logits.shape
    _ops.check_device(logits, "logits", labels, "labels")
    if labels.dtype not in (torch.uint8, torch.int64):
        raise TypeError(f"labels must be uint8 or int64, got {labels.dtype}")
    _ops.check_shape(labels, "labels", [images, *sizes], f" for logits {list(logits.shape)}")
    if patches is not None and patch_size is None:
        raise ValueError("patches needs patch_size: a grid of patches does not tell their size. Got only patches")
    if patch_size is not None:
        grid = _ops.grid_of(sizes, patch_size)
        if patches is not None:
            _ops.check_device(logits, "logits", patches, "patches")
            if patches.dtype != torch.bool:
                raise TypeError(f"patches must be bool, got {patches.dtype}")
            why = f" (or 1 in place of N) for logits {list(logits.shape)} and patch_size {list(patch_size)}"
            shared = patches.dim() > 0 and patches.shape[0] == 1
            _ops.check_shape(patches, "patches", [1 if shared else images, *grid], why)
    if dice_region not in ("all", "each"):
        raise ValueError(f"dice_region must be 'all' or 'each', got {dice_region!r}")
    if class_weight is not None:
        _ops.check_device(logits, "logits", class_weight, "class_weight")
        _ops.check_floating(class_weight, "class_weight")
        _ops.check_shape(class_weight, "class_weight", [classes], ", one weight per class")
    regions = 2 if dice_region == "each" else 1
    total, masked, visible, dice = (logits.new_empty([], dtype=_ops.compute_dtype(logits)) for _ in range(4))
    return total, masked, visible, dice, logits.new_empty([4 + regions * 3 * classes], dtype=torch.float64)


@torch.library.register_fake("entmask::consistency_loss_backward")
def _(
    grad_total: Tensor | None,
    grad_ce_masked: Tensor | None,
    grad_ce_visible: Tensor | None,
    grad_dice: Tensor | None,
    logits: Tensor,
    labels: Tensor,
    patches: Tensor | None,
    patch_size: Sequence[int] | None,
    class_weight: Tensor | None,
    sums: Tensor,
    mask_weight: float,
    visible_weight: float,
    ce_weight: float,
    dice_weight: float,
    smooth: float,
    denominator_offset: float,
    dice_region: str,
) -> Tensor:
    others = {
        "grad_total": grad_total,
        "grad_ce_masked": grad_ce_masked,
        "grad_ce_visible": grad_ce_visible,
        "grad_dice": grad_dice,
        "labels": labels,
        "patches": patches,
        "class_weight": class_weight,
        "sums": sums,
    }
    for name, x in others.items():
        _ops.check_device(logits, "logits", x, name)
    return _ops.empty_like_format(logits)


for _name in ("consistency_loss", "consistency_loss_backward"):
    _ops.vmap_by_example(_name)
