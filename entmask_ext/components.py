"""Pseudo-labels cleaned: one component of each class."""

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from entmask_ext import _C, _ops


def largest_components(labels: Tensor, num_classes: int, *, connectivity: int = 1) -> Tensor:
    """Of each class 1 .. num_classes - 1 of each image only the component with the most pixels stays.

    The other components' pixels become 0, background. Of components of the same size the one whose first pixel comes
    first stays. A label outside [0, num_classes), an ignored one, stays as it is.

    Args:
        labels: (N, H, W) images or (N, D, H, W) volumes, uint8 or int64, any strides; fewer than 2^31 pixels per image.
        num_classes: 2 to 65,536, background included.
        connectivity: 1 to the number of spatial axes: pixels of a class are neighbours where they differ by at most 1
            along each axis, along at most so many axes (as ``scipy.ndimage.generate_binary_structure``).

    Returns:
        Labels of the same shape and dtype, contiguous. No gradient.

    Raises:
        ValueError, TypeError, NotImplementedError: as :func:`entmask_ext.patch_mask`.

    Example:
        >>> import torch, entmask_ext
        >>> labels = torch.tensor([[[1, 1, 0, 1], [0, 1, 0, 2]]])
        >>> entmask_ext.largest_components(labels, 3)
        tensor([[[1, 1, 0, 0],
                 [0, 1, 0, 2]]])
    """
    traced = torch.compiler.is_compiling() or has_torch_function_variadic(labels)
    op = _largest_components if traced else _C.largest_components
    out: Tensor = op(labels, num_classes, connectivity)
    return out


_largest_components = _ops.traced("largest_components")


@torch.library.register_fake("entmask::largest_components")
def _(labels: Tensor, num_classes: int, connectivity: int) -> Tensor:
    if labels.dtype not in (torch.uint8, torch.int64):
        raise TypeError(f"labels must be uint8 or int64, got {labels.dtype}")
    if labels.dim() not in (3, 4):
        raise ValueError(f"labels must have shape (N, H, W) or (N, D, H, W), got {list(labels.shape)}")
    _ops.check_axes(labels, "labels")
    return labels.new_empty(labels.shape)


_ops.vmap_by_example("largest_components")
