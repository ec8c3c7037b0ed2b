"""Entropy-guided patch masking for semi-supervised segmentation: fused, differentiable, deterministic, CPU and CUDA.

    new, mask = entmask_ext.patch_mask(image, teacher_logits)[:2]

The ops are also in the dispatcher, as ``torch.ops.entmask.*``.
"""

import torch  # first: the extension links to its libraries

from entmask_ext import _build_check

_build_check.check(torch.__version__)

from entmask_ext.components import largest_components  # noqa: E402
from entmask_ext.entropy import entropy_map, patch_scores, pseudo_labels, uncertainty_map  # noqa: E402
from entmask_ext.loss import consistency_loss  # noqa: E402
from entmask_ext.masking import (  # noqa: E402
    box_mask,
    patch_mask,
    patch_mask_from_scores,
    patch_where,
    random_patch_mask,
    select_patches,
)
from entmask_ext.shuffle import gather_patches, shuffle_patches  # noqa: E402
from entmask_ext.soft_loss import soft_consistency_loss  # noqa: E402
from entmask_ext.types import ConsistencyLoss, PatchMask, PseudoLabels  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "ConsistencyLoss",
    "PatchMask",
    "PseudoLabels",
    "box_mask",
    "consistency_loss",
    "entropy_map",
    "gather_patches",
    "largest_components",
    "patch_mask",
    "patch_mask_from_scores",
    "patch_scores",
    "patch_where",
    "pseudo_labels",
    "random_patch_mask",
    "select_patches",
    "shuffle_patches",
    "soft_consistency_loss",
    "uncertainty_map",
]
