"""Patches moved within and between images."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from entmask_ext import _C, _ops


def shuffle_patches(
    x: Tensor, patch_size: int | Sequence[int], permutation: Tensor, *, inverse: bool = False
) -> Tensor:
    """Permutes the patches of groups of B consecutive images: out[i] = x[permutation[i]].

    The B * P patches of a group are numbered image by image.

    Args:
        x: (N, C, H, W) or (N, C, D, H, W), floating, any strides; spatial sizes divisible by patch_size.
        patch_size: pixels, one int or one per axis.
        permutation: (B * P,) int64, a permutation of range(B * P), P the patches of an image; B divides N and each of
            the N / B groups is permuted alike. On the CPU the entries are checked; on CUDA that would wait for the
            device, and an entry out of range writes NaN.
        inverse: undo it: out[permutation[i]] = x[i].

    Returns:
        (N, C, *S), x's dtype and memory format. Differentiable with respect to x.

    Raises:
        ValueError, TypeError, NotImplementedError: as :func:`entmask_ext.patch_mask`.

    Example:
        >>> import torch, entmask_ext
        >>> x, order = torch.rand(4, 1, 8, 8), torch.randperm(2 * 4)  # pairs of images, 4 patches of 4x4 each
        >>> mixed = entmask_ext.shuffle_patches(x, 4, order)
        >>> torch.equal(entmask_ext.shuffle_patches(mixed, 4, order, inverse=True), x)
        True
    """
    traced = torch.compiler.is_compiling() or has_torch_function_variadic(x, permutation)
    op = _shuffle_patches if traced else _C.shuffle_patches
    out: Tensor = op(x, patch_size, permutation, inverse)
    return out


_shuffle_patches = _ops.traced("shuffle_patches")


@torch.library.register_fake("entmask::shuffle_patches")
def _(x: Tensor, patch_size: Sequence[int], permutation: Tensor, inverse: bool) -> Tensor:
    _ops.check_image_like(x, "x", "C")
    _ops.check_device(x, "x", permutation, "permutation")
    if permutation.dtype != torch.int64:
        raise TypeError(f"permutation must be int64, got {permutation.dtype}")
    images, _channels, *sizes = x.shape
    grid = _ops.grid_of(sizes, patch_size)
    patch = list(patch_size) * len(sizes) if len(patch_size) == 1 else patch_size
    for size, width in zip(sizes, patch, strict=True):
        torch._check_value(
            size % width == 0,
            lambda: f"x must have spatial sizes divisible by patch_size {list(patch_size)}, got {list(x.shape)}",
        )
    patches, entries = math.prod(grid), permutation.numel()

    def message() -> str:
        return (
            f"permutation must be 1-d with B * {patches} entries ({patches} patches per image) where B divides the "
            f"batch of {images}, got shape {list(permutation.shape)}"
        )

    if permutation.dim() != 1:
        raise ValueError(message())
    torch._check_value(patches > 0, message)
    torch._check_value(entries > 0, message)
    torch._check_value(entries % patches == 0, message)
    torch._check_value(images % (entries // patches) == 0, message)
    return _ops.empty_like_format(x)


_ops.vmap_by_example("shuffle_patches")
