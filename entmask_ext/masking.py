"""Masks of patches: by softmax entropy, by given scores, at random."""

from collections.abc import Sequence

import torch
from torch import Tensor

from entmask_ext import _C
from entmask_ext._trace import patch_sizes, split, split_threshold
from entmask_ext.types import PatchMask


def patch_mask(
    image: Tensor,
    logits: Tensor,
    patch_size: int | Sequence[int] = 16,
    ratio: float | Tensor | None = None,
    *,
    score: str = "mean",
    threshold: float | Tensor = 0.75,
    min_score: float | Tensor | None = None,
    min_patches: int = 0,
    order: str = "highest",
    hint: float = 0.0,
    scope: str = "image",
    fill: float = 0.0,
    mask_dtype: torch.dtype | None = None,
    label_dtype: torch.dtype | None = None,
) -> PatchMask:
    """Masks the patches of an image where a network is least sure, in one pass over its logits.

    For each pixel the normalised softmax entropy of K classes, in [0, 1] (Shannon 1948):

        H = -sum_k p_k ln p_k / ln K,    p = softmax(logits)

    pooled over patches to scores, of which the highest are masked. A class at -inf adds 0; a pixel with NaN, +inf or
    all classes at -inf has entropy NaN, and NaN ranks above every number. Ties go to the lower flat index, so that the
    same scores give the same mask on every device.

    Args:
        image: (N, Ci, H, W) or (N, Ci, D, H, W), float64, float32, float16 or bfloat16, any strides.
        logits: (N, K, *S), K >= 2, S the image's spatial sizes; its dtype may differ from the image's. Computed in
            float32 (float64 for float64). A network's probabilities: pass ``probs.log()``. A sigmoid's logit x: pass
            ``torch.cat([torch.zeros_like(x), x], 1)``.
        patch_size: pixels, one int or one an axis. The grid is G = ceil(S / patch_size); a patch cut by the image's
            edge averages over the pixels it has. 1 masks pixels.
        ratio: fraction in [0, 1] of a row's P patches: k = max(1, floor(ratio * P + 1e-6)) are masked, none with 0.
            0.75 where neither ratio nor min_score is given.
        score: "mean": the mean entropy of the patch's pixels. "count": the fraction of them with entropy >= threshold
            (NaN counts); has no gradient.
        threshold: for score="count".
        min_score: instead of ratio: every patch with score >= min_score (order="lowest": <=) is masked.
        min_patches: with min_score: at least so many patches of a row.
        order: "highest" masks the highest scores, "lowest" the lowest.
        hint: fraction in [0, 1]: of the selected patches the min(floor(hint * P + 1e-6), selected - 1) with the
            highest scores stay visible.
        scope: "image": each image is a row of its own. "batch": all N * P patches are one row.
        fill: what masked pixels become.
        mask_dtype: None for the image's dtype, or torch.bool.
        label_dtype: torch.uint8 (K <= 255) or torch.int64 asks for the pseudo-labels argmax_k logits (the first
            maximum; NaN wins), found in the same pass.

        ratio, threshold and min_score also take a 0-d tensor on the CPU or on the logits' device. There it is read by
        the kernel: a schedule costs no recompilation and no host sync. A ratio read on the device is clamped to [0, 1].

    Returns:
        :class:`PatchMask` (image, mask, patches, scores, labels). Differentiable: image with respect to image, and for
        score="mean" scores with respect to logits (the formula before clamping), once.

    Raises:
        ValueError: a shape, device or value that does not fit; the message names the argument.
        TypeError: an argument of another type, or a dtype that is not floating.
        NotImplementedError: a tensor on a device that this build has no kernels for.

    Example:
        >>> import torch, entmask_ext
        >>> image, logits = torch.rand(2, 1, 32, 32), torch.randn(2, 4, 32, 32)
        >>> student_view, mask = entmask_ext.patch_mask(image, logits, patch_size=8, ratio=0.5)[:2]
        >>> mask.mean().item()
        0.5
    """
    if torch.compiler.is_compiling():
        new, mask, patches, scores, labels = torch.ops.entmask.patch_mask(
            image,
            logits,
            patch_sizes(patch_size),
            *split(ratio),
            score,
            *split_threshold(threshold),
            *split(min_score),
            min_patches,
            order,
            hint,
            scope,
            fill,
            mask_dtype,
            label_dtype,
        )
        return PatchMask(new, mask, patches, scores, None if label_dtype is None else labels)
    return PatchMask._make(
        _C.patch_mask(
            image,
            logits,
            patch_size,
            ratio,
            score,
            threshold,
            min_score,
            min_patches,
            order,
            hint,
            scope,
            fill,
            mask_dtype,
            label_dtype,
        )
    )


def patch_mask_from_scores(
    image: Tensor,
    scores: Tensor,
    patch_size: int | Sequence[int] = 16,
    ratio: float | Tensor | None = None,
    *,
    min_score: float | Tensor | None = None,
    min_patches: int = 0,
    order: str = "highest",
    hint: float = 0.0,
    scope: str = "image",
    fill: float = 0.0,
    mask_dtype: torch.dtype | None = None,
) -> PatchMask:
    """Masks patches by scores that are there already: an attention map, a pooled uncertainty map, random numbers.

    Args:
        image: as for :func:`patch_mask`.
        scores: (N, *G), G = ceil(S / patch_size), floating; float16 and bfloat16 are ranked as float32. A map of pixels
            becomes scores with ``torch.nn.functional.avg_pool2d(map, patch_size, ceil_mode=True)``.

        The other arguments, errors and the selection are those of :func:`patch_mask`.

    Returns:
        :class:`PatchMask`; scores is the argument, labels None. Differentiable: image with respect to image.

    Example:
        >>> import torch, entmask_ext
        >>> scores = torch.tensor([[[0.1, 0.9], [0.3, 0.2]]])
        >>> entmask_ext.patch_mask_from_scores(torch.rand(1, 1, 8, 8), scores, patch_size=4, ratio=0.5).patches
        tensor([[[False,  True],
                 [ True, False]]])
    """
    if torch.compiler.is_compiling():
        new, mask, patches = torch.ops.entmask.patch_mask_from_scores(
            image,
            scores,
            patch_sizes(patch_size),
            *split(ratio),
            *split(min_score),
            min_patches,
            order,
            hint,
            scope,
            fill,
            mask_dtype,
        )
    else:
        new, mask, patches = _C.patch_mask_from_scores(
            image, scores, patch_size, ratio, min_score, min_patches, order, hint, scope, fill, mask_dtype
        )
    return PatchMask(new, mask, patches, scores.float() if scores.itemsize < 4 else scores, None)


def random_patch_mask(
    image: Tensor,
    patch_size: int | Sequence[int] = 16,
    ratio: float | Tensor = 0.75,
    *,
    shared: bool = False,
    fill: float = 0.0,
    mask_dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> PatchMask:
    """Masks patches at random: uniform scores and :func:`patch_mask_from_scores`, so exactly k patches an image.

    Args:
        image, patch_size, ratio, fill, mask_dtype: as for :func:`patch_mask`.
        shared: one mask for all images of the batch.
        generator: where the random numbers come from, on the image's device; for eager mode.

    Returns:
        :class:`PatchMask` with the random scores, labels None.

    Example:
        >>> import torch, entmask_ext
        >>> masked = entmask_ext.random_patch_mask(torch.rand(2, 1, 32, 32), patch_size=8, ratio=0.75, shared=True)
        >>> bool((masked.patches[0] == masked.patches[1]).all()), masked.patches.sum().item()
        (True, 24)
    """
    if not isinstance(image, Tensor):
        raise TypeError(f"image must be a torch.Tensor, got {type(image).__name__}")
    if image.dim() not in (4, 5):
        raise ValueError(f"image must have shape (N, C, H, W) or (N, C, D, H, W), got {list(image.shape)}")
    sizes = image.shape[2:]
    patch = patch_sizes(patch_size)
    if len(patch) == 1:
        patch = patch * len(sizes)
    if len(patch) != len(sizes):
        raise ValueError(f"patch_size must be an int or {len(sizes)} ints for this image, got {patch}")
    if min(patch) <= 0:
        raise ValueError(f"patch_size must be positive, got {patch}")
    grid = [-(-size // width) for size, width in zip(sizes, patch, strict=True)]
    rows = 1 if shared else image.shape[0]
    scores = torch.rand([rows, *grid], dtype=torch.float32, device=image.device, generator=generator)
    if shared:
        scores = scores.expand(image.shape[0], *grid)
    return patch_mask_from_scores(image, scores, patch, ratio, fill=fill, mask_dtype=mask_dtype)
