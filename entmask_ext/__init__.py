"""Entropy-guided patch masking for semi-supervised segmentation: fused, differentiable, deterministic, CPU and CUDA.

    new, mask = entmask_ext.patch_mask(image, teacher_logits)[:2]

The ops are also in the dispatcher, as ``torch.ops.entmask.*``.
"""

import torch  # first: the extension links to its libraries

from entmask_ext import _build_check

_build_check.check(torch.__version__)

from entmask_ext import _fake, _vmap  # noqa: E402, F401 (registered by importing)
from entmask_ext.loss import consistency_loss  # noqa: E402
from entmask_ext.masking import patch_mask, patch_mask_from_scores, random_patch_mask  # noqa: E402
from entmask_ext.scoring import entropy_map, patch_scores  # noqa: E402
from entmask_ext.shuffling import shuffle_patches  # noqa: E402
from entmask_ext.types import ConsistencyLoss, PatchMask  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "ConsistencyLoss",
    "PatchMask",
    "consistency_loss",
    "entropy_map",
    "patch_mask",
    "patch_mask_from_scores",
    "patch_scores",
    "random_patch_mask",
    "shuffle_patches",
]
