"""Softmax entropy of pixels and of patches."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from entmask_ext import _C, _ops


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
    traced = torch.compiler.is_compiling() or has_torch_function_variadic(logits)
    op = _entropy_map if traced else _C.entropy_map
    entropy: Tensor = op(logits, normalize)
    return entropy


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
        patch_size: pixels, one int or one per axis.
        score: "mean": mean entropy of the patch's pixels. "count": fraction of them with entropy >= threshold
            (a NaN entropy counts).
        threshold: a number, a 0-d tensor on the CPU or on the logits' device, or N values there, one per image; rounded
            to the scores' dtype. No entropy reaches a NaN.

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
    traced = torch.compiler.is_compiling() or has_torch_function_variadic(logits, threshold)
    op = _patch_scores if traced else _C.patch_scores
    scores: Tensor = op(logits, patch_size, score, threshold)
    return scores


_entropy_map = _ops.traced("entropy_map")
_patch_scores = _ops.traced("patch_scores")


@torch.library.register_fake("entmask::score_patches")
def _(
    logits: Tensor,
    patch_size: Sequence[int],
    score: str,
    threshold: float,
    threshold_tensor: Tensor | None,
    label_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    _ops.check_logits(logits)
    images, classes, *sizes = logits.shape
    if score not in ("mean", "count"):
        raise ValueError(f"score must be 'mean' or 'count', got '{score}'")
    _ops.check_number(threshold_tensor, "threshold", images, logits.device)
    if label_dtype not in (None, torch.uint8, torch.int64):
        raise ValueError(f"label_dtype must be None, torch.uint8 or torch.int64, got {label_dtype}")
    torch._check_value(
        label_dtype != torch.uint8 or classes <= 255,
        lambda: f"label_dtype torch.uint8 holds at most 255 classes, logits have {classes}: use torch.int64",
    )
    scores = logits.new_empty([images, *_ops.grid_of(sizes, patch_size)], dtype=_ops.compute_dtype(logits))
    labels = [0] if label_dtype is None else [images, *sizes]
    return scores, logits.new_empty(labels, dtype=label_dtype or torch.uint8)


@torch.library.register_fake("entmask::score_patches_backward")
def _(grad: Tensor, logits: Tensor, patch_size: Sequence[int]) -> Tensor:
    _ops.check_device(grad, "grad", logits, "logits")
    return _ops.empty_like_format(logits)


@torch.library.register_fake("entmask::entropy_map")
def _(logits: Tensor, normalize: bool) -> Tensor:
    _ops.check_logits(logits)
    return logits.new_empty([logits.shape[0], *logits.shape[2:]], dtype=_ops.compute_dtype(logits))


@torch.library.register_fake("entmask::entropy_map_backward")
def _(grad: Tensor, logits: Tensor, normalize: bool) -> Tensor:
    _ops.check_device(grad, "grad", logits, "logits")
    return _ops.empty_like_format(logits)


for _name in ("score_patches", "score_patches_backward", "entropy_map", "entropy_map_backward"):
    _ops.vmap_by_example(_name)
