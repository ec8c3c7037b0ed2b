"""Tensors for the tests: values in float64 as a kernel will see them, in any dtype and memory layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .driver import Input, Output

DTYPES = ("float32", "float64", "float16", "bfloat16")  # of logits, scores and images
STORAGE = {
    "float32": np.float32,
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": np.uint16,
    "uint8": np.uint8,
    "int64": np.int64,
}
LAYOUTS = ("contiguous", "channels_last", "strided", "expanded", "offset")


def to_storage(values: np.ndarray, dtype: str) -> np.ndarray:
    """Rounded to the dtype; bfloat16 as its 16 bits."""
    with np.errstate(over="ignore"):
        if dtype != "bfloat16":
            return values.astype(STORAGE[dtype])
        single = np.asarray(values, np.float32)
    bits = single.view(np.uint32)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(single), np.uint16(0x7FC0), rounded)


def to_values(storage: np.ndarray, dtype: str) -> np.ndarray:
    """float64."""
    if dtype == "bfloat16":
        return (storage.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return storage.astype(np.float64)


@dataclass(eq=False)
class Tensor:
    """[N, C, *S]. `storage` has the strides that the kernel gets; `offset`: bytes by which its address misses 256."""

    storage: np.ndarray
    dtype: str
    offset: int = 0

    @property
    def values(self) -> np.ndarray:
        return to_values(self.storage, self.dtype)

    def input(self, name: str) -> Input:
        return Input(name, self.storage, self.offset)


def tensor(values: np.ndarray, dtype: str = "float32", layout: str = "contiguous") -> Tensor:
    """`expanded` repeats the first image; `strided` takes every other column of a wider array, from its second on;
    `padded` rows begin at multiples of 16 elements."""
    data = to_storage(values, dtype)
    if layout == "channels_last":
        return Tensor(np.moveaxis(np.ascontiguousarray(np.moveaxis(data, 1, -1)), -1, 1), dtype)
    if layout == "strided":
        wide = np.zeros((*data.shape[:-1], 2 * data.shape[-1] + 3), data.dtype)
        view = wide[..., 1 : 2 * data.shape[-1] : 2]
        view[...] = data
        return Tensor(view, dtype, data.itemsize)
    if layout == "padded":
        wide = np.zeros((*data.shape[:-1], -(-data.shape[-1] // 16) * 16), data.dtype)
        wide[..., : data.shape[-1]] = data
        return Tensor(wide[..., : data.shape[-1]], dtype)
    if layout == "expanded":
        return Tensor(np.broadcast_to(data[:1], data.shape), dtype)
    if layout == "offset":
        return Tensor(np.ascontiguousarray(data), dtype, data.itemsize)
    assert layout == "contiguous"
    return Tensor(np.ascontiguousarray(data), dtype)


def image(shape: tuple[int, ...], dtype: str, layout: str = "contiguous") -> Tensor:
    """Untidy values, infinities and zeros of both signs among them; none is 0xFF, the mark of what nobody wrote."""
    values = np.random.default_rng(sum(shape)).normal(0, 40, shape)
    if dtype == "uint8":
        return tensor(np.clip(np.round(values) + 100, 0, 254), dtype, layout)
    if values.size:
        values.reshape(-1)[::17] = np.inf
        values.reshape(-1)[5::31] = -0.0
    return tensor(values, dtype, layout)


def bits(array: np.ndarray) -> np.ndarray:
    """The elements as unsigned integers."""
    return np.ascontiguousarray(array).view(f"u{array.itemsize}")


def like(other: Tensor, name: str) -> Output:
    """A dense output with the memory format of `other`, its address aligned as that of `other`."""
    channels_last = other.storage.strides[1] == other.storage.itemsize and other.storage.shape[1] > 1
    shape = other.storage.shape
    if channels_last:
        empty = np.moveaxis(np.empty((shape[0], *shape[2:], shape[1]), other.storage.dtype), -1, 1)
    else:
        empty = np.empty(shape, other.storage.dtype)
    return Output(name, empty, other.offset)


def three(values: Sequence[int], front: int) -> list[int]:
    """[h, w] or [d, h, w] as [d, h, w]."""
    return [front] * (3 - len(values)) + [int(v) for v in values]


def strides(array: np.ndarray, *, channels: bool = True) -> dict[str, int]:
    """Strides in elements of [N, C, *S], or of [N, *S] without channels."""
    steps = [s // array.itemsize for s in array.strides]
    c = steps.pop(1) if channels else 0
    d, h, w = three(steps[1:], 0)
    return {"n": steps[0], "c": c, "d": d, "h": h, "w": w}


def grid(size: Sequence[int], patch: Sequence[int]) -> dict[str, list[int]]:
    count = [-(-s // p) for s, p in zip(size, patch, strict=True)]
    return {"size": three(size, 1), "patch": three(patch, 1), "count": three(count, 1)}


def patch_counts(size: Sequence[int], patch: Sequence[int]) -> tuple[int, ...]:
    return tuple(-(-s // p) for s, p in zip(size, patch, strict=True))
