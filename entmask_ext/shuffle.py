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
            device, and a patch whose entry is out of range is 0.
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


def gather_patches(x: Tensor, source: Tensor, patch_size: int | Sequence[int]) -> Tensor:
    """Each patch from anywhere in the batch: patch p of image n becomes patch source[n, p] of x.

    A patch may be taken by many and by none. Its gradient adds up all that took it, in a fixed order.

    Args:
        x: (N, C, *S) or (N, *S), S of 2 or 3 axes, any strides; floating, bool, uint8 or int8 to int64; spatial sizes
            divisible by patch_size.
        source: (N, *G) int64, numbers of patches in [0, N * P): n * P + p is patch p of image n, row by row. On the CPU
            the entries are checked; on CUDA that would wait for the device, and a patch whose entry is out of range is
            0 without gradient.
        patch_size: pixels, one int or one per axis.

    Returns:
        x's shape, dtype and memory format. Differentiable with respect to x, any number of times.

    Raises:
        ValueError, TypeError, NotImplementedError: as :func:`entmask_ext.patch_mask`.

    Example:
        >>> import torch, entmask_ext
        >>> x = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])  # one image, 4 patches of one pixel
        >>> entmask_ext.gather_patches(x, torch.tensor([[[0, 0], [3, 1]]]), 1)
        tensor([[[1., 1.],
                 [4., 2.]]])
    """
    traced = torch.compiler.is_compiling() or has_torch_function_variadic(x, source)
    op = _gather_patches if traced else _C.gather_patches
    out: Tensor = op(x, source, patch_size)
    return out


_shuffle_patches = _ops.traced("shuffle_patches")
_gather_patches = _ops.traced("gather_patches")


def _check_divisible(x: Tensor, sizes: Sequence[int], patch_size: Sequence[int]) -> None:
    patch = list(patch_size) * len(sizes) if len(patch_size) == 1 else patch_size
    for size, width in zip(sizes, patch, strict=True):
        torch._check_value(
            size % width == 0,
            lambda: f"x must have spatial sizes divisible by patch_size {list(patch_size)}, got {list(x.shape)}",
        )


@torch.library.register_fake("entmask::shuffle_patches")
def _(x: Tensor, patch_size: Sequence[int], permutation: Tensor, inverse: bool) -> Tensor:
    _ops.check_image_like(x, "x", "C")
    _ops.check_device(x, "x", permutation, "permutation")
    if permutation.dtype != torch.int64:
        raise TypeError(f"permutation must be int64, got {permutation.dtype}")
    images, _channels, *sizes = x.shape
    grid = _ops.grid_of(sizes, patch_size)
    _check_divisible(x, sizes, patch_size)
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


def _check_gather(x: Tensor, name: str, source: Tensor, patch_size: Sequence[int]) -> None:
    _ops.check_device(x, name, source, "source")
    if source.dtype != torch.int64:
        raise TypeError(f"source must be int64, got {source.dtype}")
    axes = source.dim() - 1
    if axes not in (2, 3) or x.dim() - 1 - axes not in (0, 1):
        raise ValueError(
            f"source must have shape (N, *G) for {name} of shape (N, *S) or (N, C, *S), got {list(source.shape)} and "
            f"{list(x.shape)}"
        )
    sizes = x.shape[x.dim() - axes :]
    grid = _ops.grid_of(sizes, patch_size)
    _check_divisible(x, sizes, patch_size)
    _ops.check_shape(source, "source", [x.shape[0], *grid], f" for {name} of shape {list(x.shape)}")


@torch.library.register_fake("entmask::gather_patches")
def _(x: Tensor, source: Tensor, patch_size: Sequence[int]) -> Tensor:
    _check_gather(x, "x", source, patch_size)
    return _ops.empty_like_format(x)


@torch.library.register_fake("entmask::gather_patches_backward")
def _(grad: Tensor, source: Tensor, patch_size: Sequence[int]) -> Tensor:
    _check_gather(grad, "grad", source, patch_size)
    return _ops.empty_like_format(grad)


for _name in ("shuffle_patches", "gather_patches", "gather_patches_backward"):
    _ops.vmap_by_example(_name)
