"""Softmax entropy of pixels and of patches."""

from collections.abc import Sequence

import torch
from torch import Tensor

from entmask_ext import _C
from entmask_ext._trace import patch_sizes, split_threshold


def entropy_map(logits: Tensor, *, normalize: bool = True) -> Tensor:
    """Softmax entropy of each pixel: H = -sum_k p_k ln p_k, p = softmax(logits).

    Args:
        logits: (N, K, H, W) or (N, K, D, H, W), K >= 2, floating, any strides.
        normalize: divide by ln K and clamp to [0, 1]; else nats, in [0, ln K].

    Returns:
        (N, *S) float32 (float64 for float64). Entropies down to 1e-30 keep their relative accuracy. Differentiable with
        respect to logits, once: dH/dx_j = -p_j (ln p_j + H), of the formula before clamping.

    Raises:
        ValueError, TypeError, NotImplementedError: as :func:`entmask_ext.patch_mask`.

    Example:
        >>> import torch, entmask_ext
        >>> entmask_ext.entropy_map(torch.zeros(1, 3, 2, 2))
        tensor([[[1., 1.],
                 [1., 1.]]])
    """
    if torch.compiler.is_compiling():
        entropy: Tensor = torch.ops.entmask.entropy_map(logits, normalize)
        return entropy
    return _C.entropy_map(logits, normalize)


def patch_scores(
    logits: Tensor,
    patch_size: int | Sequence[int] = 16,
    *,
    score: str = "mean",
    threshold: float | Tensor = 0.75,
) -> Tensor:
    """Normalised softmax entropy pooled over patches: the scores that :func:`entmask_ext.patch_mask` ranks by.

    Args:
        logits: (N, K, *S), K >= 2, floating, any strides.
        patch_size: pixels, one int or one an axis.
        score: "mean": mean entropy of the patch's pixels. "count": fraction of them with entropy >= threshold
            (NaN counts).
        threshold: a float, or a 0-d tensor on the CPU or on the logits' device; rounded to the scores' dtype.

    Returns:
        (N, *G), G = ceil(S / patch_size), float32 (float64 for float64 logits), in [0, 1] or NaN. "mean" is
        differentiable with respect to logits, once.

    Raises:
        ValueError, TypeError, NotImplementedError: as :func:`entmask_ext.patch_mask`.

    Example:
        >>> import torch, entmask_ext
        >>> logits = torch.zeros(1, 2, 4, 4)
        >>> logits[:, 1, :, 2:] = 100
        >>> entmask_ext.patch_scores(logits, 2)
        tensor([[[1., 0.],
                 [1., 0.]]])
    """
    if torch.compiler.is_compiling():
        number, tensor = split_threshold(threshold)
        scores: Tensor = torch.ops.entmask.patch_scores(logits, patch_sizes(patch_size), score, number, tensor)
        return scores
    return _C.patch_scores(logits, patch_size, score, threshold)
