"""The ops on fake and meta tensors: shapes, dtypes and strides without data.

For torch.compile, torch.export and device="meta".
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from entmask_ext import _C  # noqa: F401 (defines the ops)

_FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def _check_device(a: Tensor, a_name: str, b: Tensor | None, b_name: str) -> None:
    if b is not None and a.device != b.device:
        raise ValueError(f"{a_name} and {b_name} must be on the same device, got {a.device} and {b.device}")


def _check_image_like(x: Tensor, name: str, channels: str) -> None:
    if x.dtype not in _FLOATING:
        raise TypeError(f"{name} must be float64, float32, float16 or bfloat16, got {x.dtype}")
    if x.dim() not in (4, 5):
        raise ValueError(
            f"{name} must have shape (N, {channels}, H, W) or (N, {channels}, D, H, W), got {list(x.shape)}"
        )


def _check_logits(logits: Tensor) -> None:
    _check_image_like(logits, "logits", "K")
    if logits.shape[1] < 2:
        raise ValueError(f"logits must have at least 2 classes in dimension 1, got shape {list(logits.shape)}")


def _grid(x: Tensor, patch_size: Sequence[int]) -> list[int]:
    """(N, *G)"""
    sizes = x.shape[2:]
    if len(patch_size) not in (1, len(sizes)) or min(patch_size) <= 0:
        raise ValueError(
            f"patch_size must be a positive int or {len(sizes)} of them for an input with {len(sizes)} "
            f"spatial dimensions, got {list(patch_size)}"
        )
    patch = list(patch_size) * len(sizes) if len(patch_size) == 1 else patch_size
    return [x.shape[0], *((size + width - 1) // width for size, width in zip(sizes, patch, strict=True))]


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _same_format(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=suggest_memory_format(x))


def _mask(image: Tensor, dtype: torch.dtype | None) -> Tensor:
    return image.new_empty([image.shape[0], 1, *image.shape[2:]], dtype=dtype or image.dtype)


@torch.library.register_fake("entmask::patch_mask")
def _(
    image: Tensor,
    logits: Tensor,
    patch_size: Sequence[int],
    ratio: float | None,
    ratio_tensor: Tensor | None,
    score: str,
    threshold: float,
    threshold_tensor: Tensor | None,
    min_score: float | None,
    min_score_tensor: Tensor | None,
    min_patches: int,
    order: str,
    hint: float,
    scope: str,
    fill: float,
    mask_dtype: torch.dtype | None,
    label_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _check_image_like(image, "image", "C")
    _check_logits(logits)
    _check_device(image, "image", logits, "logits")
    if image.dim() != logits.dim():
        raise ValueError(
            f"image and logits must agree in batch and spatial sizes, got {list(image.shape)} and {list(logits.shape)}"
        )
    torch._check_value(
        all(image.shape[axis] == logits.shape[axis] for axis in range(image.dim()) if axis != 1),
        lambda: f"image and logits must agree in batch and spatial sizes, got {image.shape} and {logits.shape}",
    )
    grid = _grid(logits, patch_size)
    scores = logits.new_empty(grid, dtype=_compute_dtype(logits))
    if label_dtype is None:
        labels = logits.new_empty([0], dtype=torch.uint8)
    else:
        labels = logits.new_empty([logits.shape[0], *logits.shape[2:]], dtype=label_dtype)
    return _same_format(image), _mask(image, mask_dtype), scores.new_empty(grid, dtype=torch.bool), scores, labels


@torch.library.register_fake("entmask::patch_mask_from_scores")
def _(
    image: Tensor,
    scores: Tensor,
    patch_size: Sequence[int],
    ratio: float | None,
    ratio_tensor: Tensor | None,
    min_score: float | None,
    min_score_tensor: Tensor | None,
    min_patches: int,
    order: str,
    hint: float,
    scope: str,
    fill: float,
    mask_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_image_like(image, "image", "C")
    _check_device(image, "image", scores, "scores")
    grid = _grid(image, patch_size)
    torch._check_value(
        scores.dim() == len(grid) and all(a == b for a, b in zip(scores.shape, grid, strict=True)),
        lambda: f"scores must have one value a patch, shape {grid}, got {scores.shape}",
    )
    return _same_format(image), _mask(image, mask_dtype), image.new_empty(grid, dtype=torch.bool)


@torch.library.register_fake("entmask::apply_mask")
def _(image: Tensor, patches: Tensor, patch_size: Sequence[int], fill: float) -> Tensor:
    _check_device(image, "image", patches, "patches")
    return _same_format(image)


@torch.library.register_fake("entmask::patch_scores")
def _(
    logits: Tensor, patch_size: Sequence[int], score: str, threshold: float, threshold_tensor: Tensor | None
) -> Tensor:
    _check_logits(logits)
    return logits.new_empty(_grid(logits, patch_size), dtype=_compute_dtype(logits))


@torch.library.register_fake("entmask::entropy_map")
def _(logits: Tensor, normalize: bool) -> Tensor:
    _check_logits(logits)
    return logits.new_empty([logits.shape[0], *logits.shape[2:]], dtype=_compute_dtype(logits))


@torch.library.register_fake("entmask::patch_scores_backward")
def _(grad: Tensor, logits: Tensor, patch_size: Sequence[int]) -> Tensor:
    return _same_format(logits)


@torch.library.register_fake("entmask::entropy_map_backward")
def _(grad: Tensor, logits: Tensor, normalize: bool) -> Tensor:
    return _same_format(logits)


@torch.library.register_fake("entmask::consistency_loss")
def _(
    logits: Tensor,
    labels: Tensor,
    patches: Tensor | None,
    patch_size: Sequence[int] | None,
    mask_weight: float,
    class_weight: Tensor | None,
    ce_weight: float,
    dice_weight: float,
    smooth: float,
    denominator_offset: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _check_logits(logits)
    _check_device(logits, "logits", labels, "labels")
    _check_device(logits, "logits", patches, "patches")
    _check_device(logits, "logits", class_weight, "class_weight")
    outputs = [logits.new_empty([], dtype=_compute_dtype(logits)) for _ in range(4)]
    sums = logits.new_empty([4 + 3 * logits.shape[1]], dtype=torch.float64)
    return outputs[0], outputs[1], outputs[2], outputs[3], sums


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
    ce_weight: float,
    dice_weight: float,
    smooth: float,
    denominator_offset: float,
) -> Tensor:
    return _same_format(logits)


@torch.library.register_fake("entmask::shuffle_patches")
def _(x: Tensor, patch_size: Sequence[int], permutation: Tensor, inverse: bool) -> Tensor:
    _check_image_like(x, "x", "C")
    _check_device(x, "x", permutation, "permutation")
    _grid(x, patch_size)
    return _same_format(x)
