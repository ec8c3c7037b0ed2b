"""What the ops return."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree


class PatchMask(NamedTuple):
    """Result of :func:`entmask_ext.patch_mask` and its relatives.

    For an image (N, Ci, *S) and a patch grid G = ceil(S / patch); S is (H, W) or (D, H, W).
    """

    image: Tensor
    """(N, Ci, *S), the image's dtype and memory format: masked pixels hold ``fill``, all others are untouched."""
    mask: Tensor
    """(N, 1, *S), 1 = masked, in the image's dtype or bool. A float16 mask's sum overflows past 65504: use bool."""
    patches: Tensor
    """(N, *G) bool, True = masked."""
    scores: Tensor
    """(N, *G) float32 (float64 for float64 logits): what the patches were ranked by."""
    labels: Tensor | None
    """(N, *S) pseudo-labels, uint8 or int64 as ``label_dtype`` asked; None where it did not. With ``min_confidence``
    255 or -100 where the network is not sure enough."""


class PseudoLabels(NamedTuple):
    """Result of :func:`entmask_ext.pseudo_labels`."""

    labels: Tensor
    """(N, *S) uint8 or int64, argmax_k logits; 255 (uint8) or -100 (int64) where the network is not sure enough."""
    accepted: Tensor
    """(N,) float32: each image's share of labels that are kept, in [0, 1]; 0 for an image without pixels."""


class ConsistencyLoss(NamedTuple):
    """Result of :func:`entmask_ext.consistency_loss`: 0-d tensors, float32 (float64 for float64 logits)."""

    total: Tensor
    """ce_weight * (mask_weight * ce_masked + ce_visible) + dice_weight * dice."""
    ce_masked: Tensor
    """Weighted mean cross entropy inside the masked patches; 0 where there are none."""
    ce_visible: Tensor
    """The same outside; without patches, over all pixels."""
    dice: Tensor
    """Soft Dice loss over the batch, averaged over classes."""


for _result in (PatchMask, PseudoLabels, ConsistencyLoss):
    # torch.export.save writes what an exported program returns by this name.
    _pytree._register_namedtuple(_result, serialized_type_name=f"entmask_ext.{_result.__name__}")
# torch.load(weights_only=True), its default, reads them back.
torch.serialization.add_safe_globals([PatchMask, PseudoLabels, ConsistencyLoss])
