"""The traceable way into the ops: what the public functions call under torch.compile and torch.export.

A call of the pybind11 module cannot be traced, one of torch.ops can; in eager mode the former costs less.
"""

from collections.abc import Sequence

from torch import Tensor


def patch_sizes(patch_size: int | Sequence[int]) -> list[int]:
    """As a list: one size for all axes, or one an axis."""
    sizes = list(patch_size) if isinstance(patch_size, Sequence) and not isinstance(patch_size, str) else [patch_size]
    for size in sizes:
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"patch_size must be an int or a sequence of ints, got {type(size).__name__}")
    return sizes


def split(value: float | Tensor | None) -> tuple[float | None, Tensor | None]:
    """A number as the ops take it: by value, or as the 0-d tensor that holds it."""
    if isinstance(value, Tensor):
        return None, value
    return (None if value is None else float(value)), None


def split_threshold(value: float | Tensor) -> tuple[float, Tensor | None]:
    number, tensor = split(value)
    return 0.0 if number is None else number, tensor
