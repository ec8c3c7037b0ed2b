"""Uncertainty of pixels and of patches, and pseudo-labels."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from entmask_ext import _C, _ops
from entmask_ext.types import PseudoLabels


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


def uncertainty_map(logits: Tensor, uncertainty: str = "entropy") -> Tensor:
    """How unsure a network is of each pixel, in [0, 1]; p = softmax(logits), p1 >= p2 its two largest.

    ========================  ==================================
    ``"entropy"``             H = -sum_k p_k ln p_k / ln K
    ``"least_confidence"``    (1 - p1) K / (K - 1)
    ``"margin"``              1 - (p1 - p2)
    ========================  ==================================

    The three of active learning (Settles 2009), scaled so that a pixel that knows nothing has 1.

    Args:
        logits: (N, K, H, W) or (N, K, D, H, W), K >= 2, floating, any strides.
        uncertainty: "entropy", as :func:`entropy_map`, "least_confidence" or "margin".

    Returns:
        (N, *S) float32 (float64 for float64), clamped to [0, 1]. Values down to 1e-30 keep their relative accuracy:
        with e_k = exp(x_k - max) and z the sum of all but the maximum's own 1, 1 - p1 = z / (1 + z). A pixel with NaN,
        +inf or all classes at -inf has NaN. Differentiable with respect to logits, once, of the formula before
        clamping; p1 is the first maximum, p2 the first maximum of the other classes.

    Raises:
        ValueError, TypeError, NotImplementedError: as :func:`entmask_ext.patch_mask`.

    Example:
        >>> import torch, entmask_ext
        >>> logits = torch.tensor([0.5, 0.3, 0.2]).log().view(1, 3, 1, 1)
        >>> entmask_ext.uncertainty_map(logits, "least_confidence")
        tensor([[[0.7500]]])
        >>> entmask_ext.uncertainty_map(logits, "margin")
        tensor([[[0.8000]]])
    """
    traced = torch.compiler.is_compiling() or has_torch_function_variadic(logits)
    op = _uncertainty_map if traced else _C.uncertainty_map
    out: Tensor = op(logits, uncertainty)
    return out


def pseudo_labels(
    logits: Tensor, *, min_confidence: float | Tensor | None = None, label_dtype: torch.dtype = torch.uint8
) -> PseudoLabels:
    """The labels a network is sure of, in one pass over its logits (the gate of FixMatch, Sohn et al., NeurIPS 2020).

    A pixel's label is argmax_k logits: the first maximum, a NaN wins. With min_confidence it is kept where its
    probability p1 = 1 / (1 + z) >= min_confidence, z the sum of exp(x_k - max) over the other classes; elsewhere, and
    where the softmax is NaN, the pixel gets the ignored label, which no loss here counts.

    Args:
        logits: (N, K, H, W) or (N, K, D, H, W), K >= 2, floating, any strides.
        min_confidence: in [0, 1], a number or a 0-d tensor on the CPU or on the logits' device, where the kernel reads
            it and its value is not checked; rounded to float32 (float64 for float64 logits). No pixel reaches a NaN
            there. None keeps every label.
        label_dtype: torch.uint8 (K <= 255; ignored: 255) or torch.int64 (ignored: -100).

    Returns:
        :class:`PseudoLabels` (labels, accepted): (N, *S) labels, contiguous, and (N,) float32, each image's share of
        labels that are kept. No gradient.

    Raises:
        ValueError, TypeError, NotImplementedError: as :func:`entmask_ext.patch_mask`.

    Example:
        >>> import torch, entmask_ext
        >>> logits = torch.tensor([[0.98, 0.6, 0.01], [0.02, 0.4, 0.99]]).log().view(1, 2, 1, 3)
        >>> entmask_ext.pseudo_labels(logits, min_confidence=0.95)
        PseudoLabels(labels=tensor([[[  0, 255,   1]]], dtype=torch.uint8), accepted=tensor([0.6667]))
    """
    traced = torch.compiler.is_compiling() or has_torch_function_variadic(logits, min_confidence)
    op = _pseudo_labels if traced else _C.pseudo_labels
    out = op(logits, min_confidence, label_dtype)
    return PseudoLabels(out[0], out[1])


def patch_scores(
    logits: Tensor,
    patch_size: int | Sequence[int] = 16,
    *,
    uncertainty: str = "entropy",
    score: str = "mean",
    threshold: float | Tensor = 0.75,
) -> Tensor:
    """Uncertainty pooled over patches: the scores that :func:`entmask_ext.patch_mask` ranks by.

    Args:
        logits: (N, K, *S), K >= 2, floating, any strides.
        patch_size: pixels, one int or one per axis.
        uncertainty: "entropy", "least_confidence" or "margin", as :func:`uncertainty_map` defines them.
        score: "mean": mean uncertainty of the patch's pixels. "count": fraction of them with uncertainty >= threshold
            (NaN counts).
        threshold: a number, a 0-d tensor on the CPU or on the logits' device, or N values there, one per image; rounded
            to the scores' dtype. No pixel reaches a NaN.

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
    scores: Tensor = op(logits, patch_size, uncertainty, score, threshold)
    return scores


_entropy_map = _ops.traced("entropy_map")
_patch_scores = _ops.traced("patch_scores")
_uncertainty_map = _ops.traced("uncertainty_map")
_pseudo_labels = _ops.traced("pseudo_labels")


def _check_uncertainty(uncertainty: str) -> None:
    if uncertainty not in ("entropy", "least_confidence", "margin"):
        raise ValueError(f"uncertainty must be 'entropy', 'least_confidence' or 'margin', got '{uncertainty}'")


def _check_labels(
    logits: Tensor,
    label_dtype: torch.dtype | None,
    min_confidence: float | None,
    min_confidence_tensor: Tensor | None,
) -> None:
    classes = logits.shape[1]
    if label_dtype not in (None, torch.uint8, torch.int64):
        raise ValueError(f"label_dtype must be torch.uint8 or torch.int64, got {label_dtype}")
    torch._check_value(
        label_dtype != torch.uint8 or classes <= 255,
        lambda: f"label_dtype torch.uint8 holds at most 255 classes, logits have {classes}: use torch.int64",
    )
    if label_dtype is None and not (min_confidence is None and min_confidence_tensor is None):
        raise ValueError(
            "min_confidence says which labels are kept: it needs label_dtype, torch.uint8 or torch.int64, got None"
        )
    if min_confidence_tensor is not None and min_confidence_tensor.dim() > 0:
        raise ValueError(
            "min_confidence must be a number or a 0-d tensor, got a tensor of shape "
            f"{list(min_confidence_tensor.shape)}"
        )
    _ops.check_number(min_confidence_tensor, "min_confidence", logits.shape[0], logits.device)


@torch.library.register_fake("entmask::score_patches")
def _(
    logits: Tensor,
    patch_size: Sequence[int],
    uncertainty: str,
    score: str,
    threshold: float,
    threshold_tensor: Tensor | None,
    label_dtype: torch.dtype | None,
    min_confidence: float | None,
    min_confidence_tensor: Tensor | None,
) -> tuple[Tensor, Tensor]:
    _ops.check_logits(logits)
    images, _, *sizes = logits.shape
    _check_uncertainty(uncertainty)
    if score not in ("mean", "count"):
        raise ValueError(f"score must be 'mean' or 'count', got '{score}'")
    _ops.check_number(threshold_tensor, "threshold", images, logits.device)
    _check_labels(logits, label_dtype, min_confidence, min_confidence_tensor)
    scores = logits.new_empty([images, *_ops.grid_of(sizes, patch_size)], dtype=_ops.compute_dtype(logits))
    labels = [0] if label_dtype is None else [images, *sizes]
    return scores, logits.new_empty(labels, dtype=label_dtype or torch.uint8)


@torch.library.register_fake("entmask::score_patches_backward")
def _(grad: Tensor, logits: Tensor, patch_size: Sequence[int], uncertainty: str) -> Tensor:
    _ops.check_device(grad, "grad", logits, "logits")
    return _ops.empty_like_format(logits)


@torch.library.register_fake("entmask::pseudo_labels")
def _(
    logits: Tensor, min_confidence: float | None, min_confidence_tensor: Tensor | None, label_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    _ops.check_logits(logits)
    _check_labels(logits, label_dtype, min_confidence, min_confidence_tensor)
    images, _, *sizes = logits.shape
    return logits.new_empty([images, *sizes], dtype=label_dtype), logits.new_empty([images], dtype=torch.float32)


@torch.library.register_fake("entmask::entropy_map")
def _(logits: Tensor, normalize: bool) -> Tensor:
    _ops.check_logits(logits)
    return logits.new_empty([logits.shape[0], *logits.shape[2:]], dtype=_ops.compute_dtype(logits))


@torch.library.register_fake("entmask::uncertainty_map")
def _(logits: Tensor, uncertainty: str) -> Tensor:
    _ops.check_logits(logits)
    _check_uncertainty(uncertainty)
    return logits.new_empty([logits.shape[0], *logits.shape[2:]], dtype=_ops.compute_dtype(logits))


@torch.library.register_fake("entmask::uncertainty_map_backward")
def _(grad: Tensor, logits: Tensor, uncertainty: str) -> Tensor:
    _ops.check_device(grad, "grad", logits, "logits")
    return _ops.empty_like_format(logits)


@torch.library.register_fake("entmask::entropy_map_backward")
def _(grad: Tensor, logits: Tensor, normalize: bool) -> Tensor:
    _ops.check_device(grad, "grad", logits, "logits")
    return _ops.empty_like_format(logits)


for _name in (
    "score_patches",
    "score_patches_backward",
    "entropy_map",
    "entropy_map_backward",
    "uncertainty_map",
    "uncertainty_map_backward",
    "pseudo_labels",
):
    _ops.vmap_by_example(_name)
