"""Patches moved within and between images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from entmask_ext import _C
from entmask_ext._trace import patch_sizes


def shuffle_patches(
    x: Tensor, patch_size: int | Sequence[int], permutation: Tensor, *, inverse: bool = False
) -> Tensor:
    """Permutes the patches of groups of B consecutive images: out[i] = x[permutation[i]].

    The B * P patches of a group are numbered image by image.

    Args:
        x: (N, C, H, W) or (N, C, D, H, W), floating, any strides; spatial sizes divisible by patch_size.
        patch_size: pixels, one int or one an axis.
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
    if torch.compiler.is_compiling():
        out: Tensor = torch.ops.entmask.shuffle_patches(x, patch_sizes(patch_size), permutation, inverse)
        return out
    return _C.shuffle_patches(x, patch_size, permutation, inverse)
