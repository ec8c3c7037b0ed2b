"""The ops without torch.ops' argument parsing: what the public functions call in eager mode."""

from collections.abc import Sequence

import torch
from torch import Tensor

def patch_mask(
    image: Tensor,
    logits: Tensor,
    patch_size: int | Sequence[int],
    ratio: float | Tensor | None,
    score: str,
    threshold: float | Tensor,
    min_score: float | Tensor | None,
    min_patches: int,
    order: str,
    hint: float,
    scope: str,
    fill: float,
    mask_dtype: torch.dtype | None,
    label_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]: ...
def patch_mask_from_scores(
    image: Tensor,
    scores: Tensor,
    patch_size: int | Sequence[int],
    ratio: float | Tensor | None,
    min_score: float | Tensor | None,
    min_patches: int,
    order: str,
    hint: float,
    scope: str,
    fill: float,
    mask_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]: ...
def patch_scores(logits: Tensor, patch_size: int | Sequence[int], score: str, threshold: float | Tensor) -> Tensor: ...
def entropy_map(logits: Tensor, normalize: bool) -> Tensor: ...
def consistency_loss(
    logits: Tensor,
    labels: Tensor,
    patches: Tensor | None,
    patch_size: int | Sequence[int] | None,
    mask_weight: float,
    class_weight: Tensor | None,
    ce_weight: float,
    dice_weight: float,
    smooth: float,
    denominator_offset: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...
def shuffle_patches(x: Tensor, patch_size: int | Sequence[int], permutation: Tensor, inverse: bool) -> Tensor: ...
def build_info() -> dict[str, str]: ...
