"""Masks of patches: by softmax entropy, by given scores, at random; the selection and the masking on their own."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from entmask_ext import _C, _ops
from entmask_ext.types import PatchMask


def patch_mask(
    image: Tensor,
    logits: Tensor,
    patch_size: int | Sequence[int] = 16,
    ratio: float | Tensor | None = None,
    *,
    uncertainty: str = "entropy",
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
    min_confidence: float | Tensor | None = None,
) -> PatchMask:
    """Masks the patches of an image where a network is least sure, in one pass over its logits.

    For each pixel the normalised softmax entropy of K classes, in [0, 1] (Shannon 1948):

        H = -sum_k p_k ln p_k / ln K,    p = softmax(logits)

    or another :func:`entmask_ext.uncertainty_map`, pooled over patches to scores, of which the highest are masked. A
    class at -inf adds 0; a pixel with NaN, +inf or all classes at -inf has uncertainty NaN, and NaN ranks above every
    number. Ties go to the lower flat index, so that the same scores give the same mask on every device.

    Args:
        image: (N, Ci, H, W) or (N, Ci, D, H, W), float64, float32, float16 or bfloat16, any strides.
        logits: (N, K, *S), K >= 2, S the image's spatial sizes; its dtype may differ from the image's. Computed in
            float32 (float64 for float64). A network's probabilities: pass ``probs.log()``. A sigmoid's logit x: pass
            ``torch.cat([torch.zeros_like(x), x], 1)``.
        patch_size: pixels, one int or one per axis. The grid is G = ceil(S / patch_size); a patch cut by the image's
            edge averages over the pixels it has. 1 masks pixels.
        ratio: fraction in [0, 1] of a row's P patches: k = max(1, floor(ratio * P + 1e-6)) are masked, none with 0.
            0.75 where neither ratio nor min_score is given. An integer tensor is k itself, clamped to [0, P].
        uncertainty: "entropy", "least_confidence" or "margin", as :func:`entmask_ext.uncertainty_map` defines them.
        score: "mean": the mean uncertainty of the patch's pixels. "count": the fraction of them with uncertainty >=
            threshold (NaN counts); has no gradient.
        threshold: for score="count".
        min_score: instead of ratio: every patch with score >= min_score (order="lowest": <=) is masked.
        min_patches: with min_score: at least so many patches of a row.
        order: "highest" masks the highest scores, "lowest" the lowest.
        hint: fraction in [0, 1]: of the selected patches the min(floor(hint * P + 1e-6), selected - 1) with the
            highest scores stay visible.
        scope: "image": each image is a row of its own. "batch": all N * P patches are one row.
        fill: what masked pixels become: a number that the image's dtype can hold, infinity or NaN.
        mask_dtype: None for the image's dtype, or torch.bool.
        label_dtype: torch.uint8 (K <= 255) or torch.int64 asks for the pseudo-labels argmax_k logits (the first
            maximum; NaN wins), found in the same pass.
        min_confidence: in [0, 1], a number or a 0-d tensor, with label_dtype: a pixel whose label has a softmax
            probability below it, or whose uncertainty is NaN, gets the ignored label 255 (int64: -100), which the
            losses here do not count. As :func:`entmask_ext.pseudo_labels`.

        ratio, threshold and min_score are numbers, or a tensor on the logits' device: 0-d (which may also be on the
        CPU), or with scope="image" N values, one per image. On the device the kernel reads it: a schedule costs no
        recompilation and no host sync. A number in a tensor on a GPU is not checked: a ratio is clamped to [0, 1]. A
        NaN ratio or min_score there, or among N values, selects nothing in its image, and no pixel reaches a NaN
        threshold or min_confidence; elsewhere NaN is an error.

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
    traced = torch.compiler.is_compiling() or has_torch_function_variadic(
        image, logits, ratio, threshold, min_score, min_confidence
    )
    op = _patch_mask if traced else _C.patch_mask
    out = op(
        image,
        logits,
        patch_size,
        ratio,
        uncertainty,
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
        min_confidence,
    )
    return PatchMask(out[0], out[1], out[2], out[3], None if label_dtype is None else out[4])


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
        :class:`PatchMask`; scores is the argument, or its float32 copy where it is narrower, labels None.
        Differentiable: image with respect to image.

    Example:
        >>> import torch, entmask_ext
        >>> scores = torch.tensor([[[0.1, 0.9], [0.3, 0.2]]])
        >>> entmask_ext.patch_mask_from_scores(torch.rand(1, 1, 8, 8), scores, patch_size=4, ratio=0.5).patches
        tensor([[[False,  True],
                 [ True, False]]])
    """
    traced = torch.compiler.is_compiling() or has_torch_function_variadic(image, scores, ratio, min_score)
    op = _patch_mask_from_scores if traced else _C.patch_mask_from_scores
    out = op(image, scores, patch_size, ratio, min_score, min_patches, order, hint, scope, fill, mask_dtype)
    return PatchMask(out[0], out[1], out[2], out[3], None)


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
    """Masks patches at random: uniform scores and :func:`patch_mask_from_scores`, so exactly k patches per image.

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
    traced = torch.compiler.is_compiling() or has_torch_function_variadic(image, ratio)
    op = _random_patch_mask if traced else _C.random_patch_mask
    out = op(image, patch_size, ratio, shared, fill, mask_dtype, generator)
    return PatchMask(out[0], out[1], out[2], out[3], None)


def select_patches(
    scores: Tensor,
    ratio: float | Tensor | None = None,
    *,
    min_score: float | Tensor | None = None,
    min_patches: int = 0,
    order: str = "highest",
    hint: float = 0.0,
    scope: str = "image",
) -> Tensor:
    """The selection of :func:`patch_mask` on its own: which patches of each row have the highest scores.

    Args:
        scores: (N, *G), floating, any strides; float16 and bfloat16 are ranked as float32.

        The other arguments and errors are those of :func:`patch_mask`; tensors are on the scores' device.

    Returns:
        (N, *G) bool, True = selected. A choice has no gradient.

    Example:
        >>> import torch, entmask_ext
        >>> scores = torch.tensor([[0.1, 0.9, 0.3, 0.2], [0.5, 0.5, 0.0, 0.5]])
        >>> entmask_ext.select_patches(scores, 0.5)
        tensor([[False,  True,  True, False],
                [ True,  True, False, False]])
        >>> entmask_ext.select_patches(scores, torch.tensor([1, 3]))  # so many in each image
        tensor([[False,  True, False, False],
                [ True,  True, False,  True]])
    """
    traced = torch.compiler.is_compiling() or has_torch_function_variadic(scores, ratio, min_score)
    op = _select_patches if traced else _C.select_patches
    patches: Tensor = op(scores, ratio, min_score, min_patches, order, hint, scope)
    return patches


def patch_where(
    patches: Tensor, inside: float | Tensor, outside: float | Tensor, patch_size: int | Sequence[int]
) -> Tensor:
    """torch.where over a grid of patches: inside where a pixel's patch is True, outside elsewhere.

    Mixes two images, their labels and any map of their pixels by one rule. With patch_size=1 the patches are a mask of
    pixels.

    Args:
        patches: (N, *G) bool, G = ceil(S / patch_size); or (1, *G), the same for all images.
        inside, outside: (N, C, *S) or (N, *S), S of 2 or 3 axes as G, any strides; two tensors of the same shape,
            device and dtype (floating, bool, uint8, int8, int16, int32 or int64), or a tensor and a number that its
            dtype can represent.
        patch_size: pixels, one int or one per axis.

    Returns:
        Shape and dtype of the tensors; the memory format of outside, or of inside where outside is a number.
        Differentiable with respect to both. A NaN on the side that is not taken reaches neither the result nor a
        gradient.

    Raises:
        ValueError, TypeError, NotImplementedError: as :func:`patch_mask`.

    Example:
        >>> import torch, entmask_ext
        >>> left = torch.tensor([[[True, False]]])
        >>> a, b = torch.zeros(1, 2, 4), torch.ones(1, 2, 4)
        >>> entmask_ext.patch_where(left, a, b, 2)
        tensor([[[0., 0., 1., 1.],
                 [0., 0., 1., 1.]]])
        >>> entmask_ext.patch_where(left, 255, torch.zeros(1, 2, 4, dtype=torch.uint8), 2)
        tensor([[[255, 255,   0,   0],
                 [255, 255,   0,   0]]], dtype=torch.uint8)
    """
    traced = torch.compiler.is_compiling() or has_torch_function_variadic(patches, inside, outside)
    op = _patch_where if traced else _C.patch_where
    out: Tensor = op(patches, inside, outside, patch_size, None)[0]
    return out


def box_mask(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """One box per image as a mask of pixels, for CutMix (Yun et al., ICCV 2019) and copy-paste.

    With ``patch_where(box_mask(boxes, size), inside, outside, 1)`` images and labels are mixed by it.

    Args:
        boxes: (N or 1, 2 * axes) int64: first and past-the-end index along each axis, as (h0, h1, w0, w1) or
            (d0, d1, h0, h1, w0, w1). What is beyond the image is cut; a box whose end is not behind its start is empty.
        size: (H, W) or (D, H, W) in pixels.

    Returns:
        (N or 1, *size) bool, True inside. On boxes' device; their values are not read by the host.

    Raises:
        ValueError, TypeError, NotImplementedError: as :func:`patch_mask`.

    Example:
        >>> import torch, entmask_ext
        >>> entmask_ext.box_mask(torch.tensor([[0, 2, 1, 3]]), (3, 4)).int()
        tensor([[[0, 1, 1, 0],
                 [0, 1, 1, 0],
                 [0, 0, 0, 0]]], dtype=torch.int32)
    """
    traced = torch.compiler.is_compiling() or has_torch_function_variadic(boxes)
    op = _box_mask if traced else _C.box_mask
    mask: Tensor = op(boxes, size)
    return mask


_patch_mask = _ops.traced("patch_mask")
_patch_mask_from_scores = _ops.traced("patch_mask_from_scores")
_random_patch_mask = _ops.traced("random_patch_mask")
_select_patches = _ops.traced("select_patches")
_patch_where = _ops.traced("patch_where")
_box_mask = _ops.traced("box_mask")


@torch.library.register_fake("entmask::select_patches")
def _(
    scores: Tensor,
    ratio: float | None,
    ratio_tensor: Tensor | None,
    min_score: float | None,
    min_score_tensor: Tensor | None,
    min_patches: int,
    order: str,
    hint: float,
    scope: str,
) -> Tensor:
    _ops.check_floating(scores, "scores")
    if scores.dim() < 2:
        raise ValueError(f"scores must have shape (N, *G), one value per patch, got {list(scores.shape)}")
    _ops.check_axes(scores, "scores")
    _ops.check_number(ratio_tensor, "ratio", scores.shape[0], scores.device, counts=True)
    _ops.check_number(min_score_tensor, "min_score", scores.shape[0], scores.device)
    for name, x in (("ratio", ratio_tensor), ("min_score", min_score_tensor)):
        if scope == "batch" and x is not None and x.dim() > 0:
            raise ValueError(
                f"{name} must be a number or a 0-d tensor with scope='batch', where all images are one row, got a "
                f"tensor of shape {list(x.shape)}"
            )
    return scores.new_empty(scores.shape, dtype=torch.bool)


@torch.library.register_fake("entmask::patch_where")
def _(
    patches: Tensor,
    inside: float | None,
    inside_tensor: Tensor | None,
    outside: float | None,
    outside_tensor: Tensor | None,
    patch_size: Sequence[int],
    mask_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    x, name = (inside_tensor, "inside") if outside_tensor is None else (outside_tensor, "outside")
    if x is None:
        raise ValueError("inside or outside must be a tensor: two numbers have no shape")
    if x.dtype not in (*_ops.FLOATING, *_ops.INTEGERS, torch.bool):
        raise TypeError(f"{name} must be floating, bool, uint8 or int8 to int64, got {x.dtype}")
    _ops.check_device(x, name, patches, "patches")
    if inside_tensor is not None:
        _ops.check_device(inside_tensor, "inside", patches, "patches")
        if inside_tensor.dtype != x.dtype:
            raise TypeError(f"inside and outside must have the same dtype, got {inside_tensor.dtype} and {x.dtype}")
        _ops.check_shape(inside_tensor, "inside", x.shape, ", as outside")
    if patches.dtype != torch.bool:
        raise TypeError(f"patches must be bool, got {patches.dtype}")
    axes = patches.dim() - 1
    if axes not in (2, 3) or x.dim() - 1 - axes not in (0, 1):
        raise ValueError(
            f"patches must have shape (N or 1, *G) for {name} of shape (N, *S) or (N, C, *S), got "
            f"{list(patches.shape)} and {list(x.shape)}"
        )
    images, sizes = x.shape[0], x.shape[x.dim() - axes :]
    grid = _ops.grid_of(sizes, patch_size)
    of = f" for {name} of shape {list(x.shape)} and patch_size {list(patch_size)}"
    _ops.check_shape(patches, "patches", [patches.shape[0], *grid], of)
    torch._check_value(
        (patches.shape[0] == 1) | (patches.shape[0] == images),
        lambda: f"patches must have shape {[images, *grid]} (or 1 in place of N){of}, got {list(patches.shape)}",
    )
    if mask_dtype not in (None, torch.bool, x.dtype):
        raise ValueError(f"mask_dtype must be None, torch.bool or the image's dtype {x.dtype}, got {mask_dtype}")
    mask = [0] if mask_dtype is None else [images, 1, *sizes]
    return _ops.empty_like_format(x), x.new_empty(mask, dtype=mask_dtype or torch.bool)


@torch.library.register_fake("entmask::box_mask")
def _(boxes: Tensor, size: Sequence[int]) -> Tensor:
    if boxes.dtype != torch.int64:
        raise TypeError(f"boxes must be int64, got {boxes.dtype}")
    if len(size) not in (2, 3):
        raise ValueError(f"size must be (H, W) or (D, H, W), got {list(size)}")
    if min(size) < 0 or any(isinstance(n, int) and n >= 2**31 for n in size):
        raise ValueError(f"size must be >= 0 and below 2^31 along each axis, got {list(size)}")
    if boxes.dim() != 2 or boxes.shape[1] != 2 * len(size):
        raise ValueError(
            f"boxes must have shape (N, {2 * len(size)}), first and past-the-end index per axis, for size "
            f"{list(size)}, got {list(boxes.shape)}"
        )
    _ops.check_axes(boxes, "boxes")
    return boxes.new_empty([boxes.shape[0], *size], dtype=torch.bool)


for _name in ("select_patches", "patch_where", "box_mask"):
    _ops.vmap_by_example(_name)
