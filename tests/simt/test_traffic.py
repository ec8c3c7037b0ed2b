"""What the kernels move, counted: bytes against the least that each op must move, coalescing, bank conflicts, launches.

The batch is 18 x 4 x 256 x 256 with patches of 16 x 16 in the long run, two of its images otherwise: the kernels treat
all images alike, so that the traffic is the same for each.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from . import data, launchers
from .driver import FORWARD, Counts
from .modes import LONG
from .tensors import Tensor, tensor

PATCH = (16, 16)
COUNT: dict[str, Any] = {"mode": "count", "runs": FORWARD, "multiprocessors": 108}
HOT = {
    "entropy_pool_kernel", "where_kernel", "loss_registers_kernel", "loss_backward_kernel", "soft_loss_forward_kernel",
    "soft_loss_backward_kernel",
}  # fmt: skip

each_batch = pytest.mark.parametrize("images", [2, pytest.param(18, marks=LONG)])
each_dtype = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


def moved(counts: Counts) -> int:
    """Bytes to and from memory, in 32-byte sectors, if the cache kept everything for one launch and no longer."""
    return sum(b["read"] + b["written"] for launch in counts.launches for b in launch["buffers"].values())


def sectors_ratio(counts: Counts, *, without: str = "") -> float:
    """Sectors that warps asked for over the least for as many bytes."""
    sites = [s for launch in counts.launches for s in launch["sites"] if not s["shared"] and s["buffer"] != without]
    return sum(s["sectors"] for s in sites) / sum(s["least_sectors"] for s in sites)


def conflicts(counts: Counts) -> list[str]:
    """Sites of hot kernels whose shared accesses took more wavefronts than needed."""
    return [
        f"{counts.where(s['site'])}: {s['wavefronts']} for {s['least_wavefronts']}"
        for launch in counts.launches
        if counts.kernel(launch).partition("<")[0].rpartition("::")[2] in HOT
        for s in launch["sites"]
        if s["wavefronts"] > s["least_wavefronts"]
    ]


def atomics(counts: Counts) -> int:
    return sum(s["lanes"] for launch in counts.launches for s in launch["sites"] if s["access"] == "atomic")


def mask_call(
    images: int, dtype: str, labels_dtype: str = "uint8", shape: tuple[int, ...] = (256, 256)
) -> tuple[Counts, int]:
    """patch_mask as the op runs it: pooling, selection, masking. Its launches, and the least bytes to move."""
    logits = tensor(data.logits((images, 4, *shape), odd=False), dtype)
    image = tensor(data.rng(1).normal(size=(images, 1, *shape)), dtype)
    scores, labels, first = launchers.entropy_pool(logits, PATCH, labels=labels_dtype, **COUNT)
    patches, second = launchers.select(scores.reshape(images, -1), ratio=0.75, hint=0.05, **COUNT)
    out, mask, third = launchers.where(patches.reshape(scores.shape), 0.0, image, PATCH, mask="same", **COUNT)
    assert labels is not None and mask is not None
    kept = int((mask == 0).sum()) * image.storage.itemsize
    least = logits.storage.nbytes + kept + scores.nbytes + patches.nbytes + labels.nbytes + 2 * out.nbytes
    return Counts(first.launches + second.launches + third.launches, first.executable), least


def loss_call(
    images: int,
    dtype: str,
    labels_dtype: str = "uint8",
    shape: tuple[int, ...] = (256, 256),
    *,
    dice_each: bool = False,
) -> tuple[Counts, int, Counts, int]:
    """The loss forward, then backward: launches and least bytes."""
    logits: Tensor = tensor(data.logits((images, 4, *shape), odd=False), dtype)
    labels = data.rng(2).integers(0, 4, (images, *shape)).astype(labels_dtype)
    patches = data.rng(3).random((images, *(-(-s // p) for s, p in zip(shape, PATCH, strict=True)))) < 0.7
    options: dict[str, Any] = {"patches": patches, "patch": PATCH, "dice_each": dice_each, **COUNT}
    _, sums, forward = launchers.loss_forward(logits, labels, **options)
    _, backward = launchers.loss_backward(logits, labels, sums, {"total": 1.0}, **options)
    least = logits.storage.nbytes + labels.nbytes + patches.nbytes
    return forward, least + sums.nbytes + 16, backward, least + logits.storage.nbytes + sums.nbytes + 4


each_label = pytest.mark.parametrize("labels", ["uint8", "int64"])


@each_dtype
@each_batch
def test_traffic_of_dice_by_region(images: int, dtype: str) -> None:
    forward, least_forward, backward, least_backward = loss_call(images, dtype, dice_each=True)
    assert len(forward.launches) == 2
    assert len(backward.launches) == 1
    partial = 2 * 8 * (4 + 6 * 4) * forward.launches[0]["grid"][0]  # a block's sums are written and read
    assert least_forward <= moved(forward) <= 1.001 * (least_forward + partial)
    assert least_backward <= moved(backward) <= 1.05 * least_backward
    assert sectors_ratio(forward) <= 1.1
    assert sectors_ratio(backward) <= 1.1
    assert conflicts(forward) == conflicts(backward) == []
    assert atomics(forward) == atomics(backward) == 0


@each_dtype
@each_batch
def test_traffic_of_the_soft_loss(images: int, dtype: str) -> None:
    x, y = (tensor(data.logits((images, 4, 256, 256), seed=seed, odd=False), dtype) for seed in (1, 2))
    where = data.rng(3).random((images, 256, 256)) < 0.7
    _, sums, forward = launchers.soft_loss_forward(x, y, where, kl=True, **COUNT)
    _, backward = launchers.soft_loss_backward(x, y, where, sums, 1.0, kl=False, **COUNT)
    inputs = 2 * x.storage.nbytes + where.nbytes
    assert len(forward.launches) == 2
    assert len(backward.launches) == 1
    assert inputs <= moved(forward) <= 1.01 * inputs
    assert inputs + x.storage.nbytes <= moved(backward) <= 1.01 * (inputs + x.storage.nbytes)
    assert sectors_ratio(forward) <= 1.01
    assert sectors_ratio(backward) <= 1.01
    assert conflicts(forward) == conflicts(backward) == []
    assert atomics(forward) == atomics(backward) == 0


@each_label
@each_dtype
@each_batch
def test_traffic_of_patch_mask(images: int, dtype: str, labels: str) -> None:
    counts, least = mask_call(images, dtype, labels)
    assert len(counts.launches) == 3
    assert least <= moved(counts) <= 1.05 * least
    assert sectors_ratio(counts) <= 1.1
    assert conflicts(counts) == []
    assert atomics(counts) == 0


@each_label
@each_dtype
@each_batch
def test_traffic_of_the_loss(images: int, dtype: str, labels: str) -> None:
    forward, least_forward, backward, least_backward = loss_call(images, dtype, labels)
    assert len(forward.launches) == 2
    assert len(backward.launches) == 1
    assert least_forward <= moved(forward) <= 1.05 * least_forward
    assert least_backward <= moved(backward) <= 1.05 * least_backward
    assert sectors_ratio(forward) <= 1.1
    assert sectors_ratio(backward) <= 1.1
    assert conflicts(forward) == conflicts(backward) == []
    assert atomics(forward) == atomics(backward) == 0


@each_dtype
def test_traffic_of_the_other_ops(dtype: str) -> None:
    """float32 beside 16-bit logits is read or written as 2 x 16 bytes a thread: half sectors in those requests."""
    x = tensor(data.logits((2, 4, 256, 256), odd=False), dtype)
    image = tensor(data.rng(1).normal(size=(2, 1, 256, 256)), dtype)
    grad = data.rng(2).normal(size=(2, 256, 256)).astype(np.float32)
    permutation = data.rng(3).permutation(2 * 16 * 16)
    per_patch = np.ascontiguousarray(grad[:, ::16, ::16])
    logits, pixels = x.storage.nbytes, grad.nbytes
    cases = [
        (launchers.entropy_map(x, **COUNT), logits + pixels, 1.34),
        (launchers.entropy_backward(x, grad, **COUNT), 2 * logits + pixels, 1.21),
        (launchers.entropy_map(x, uncertainty="margin", **COUNT), logits + pixels, 1.34),
        (launchers.entropy_backward(x, grad, uncertainty="margin", **COUNT), 2 * logits + pixels, 1.21),
        (launchers.entropy_backward(x, per_patch, patch=PATCH, **COUNT), 2 * logits + per_patch.nbytes, 1.0),
        (
            launchers.shuffle_patches(image, permutation, PATCH, **COUNT),
            2 * image.storage.nbytes + permutation.nbytes,
            1.0,
        ),
    ]
    for (_, counts), least, sectors in cases:
        assert len(counts.launches) == 1
        assert least <= moved(counts) <= 1.05 * least
        assert sectors_ratio(counts) <= (sectors if dtype == "bfloat16" else 1.0)
        assert atomics(counts) == 0


@each_label
@each_dtype
def test_traffic_of_pseudo_labels(dtype: str, labels: str) -> None:
    """The logits are read once; the blocks' counts are next to nothing."""
    x = tensor(data.logits((2, 4, 256, 256), odd=False), dtype)
    found, accepted, counts = launchers.pseudo_labels(x, labels=labels, min_confidence=0.6, **COUNT)
    least = x.storage.nbytes + found.nbytes + accepted.nbytes
    assert len(counts.launches) == 2
    assert least <= moved(counts) <= 1.05 * least
    assert sectors_ratio(counts) <= 1.1
    assert conflicts(counts) == []
    assert atomics(counts) == 0


@each_label
def test_counts_of_odd_sizes(labels: str) -> None:
    """No bound but that of memory: a row of odd length is not aligned, so that its sectors are shared with the next."""
    counts, least = mask_call(1, "float32", labels, (101, 99))
    assert moved(counts) < 1.2 * least
    forward, least, _, _ = loss_call(1, "float32", labels, (101, 99))
    assert moved(forward) < 2 * least


@pytest.mark.parametrize(
    ("length", "launches"), [(512, 1), (513, 1), (10240, 1), (10241, 4), pytest.param(100_000, 4, marks=LONG)]
)
def test_launches_of_select(length: int, launches: int) -> None:
    _, counts = launchers.select(data.scores(1, length), ratio=0.75, hint=0.05, **COUNT)
    assert len(counts.launches) == launches


@pytest.mark.parametrize(("size", "patch", "launches"), [((96, 96), (48, 48), 2), ((64, 64), (8, 8), 1)])
def test_launches_of_pooling(size: tuple[int, int], patch: tuple[int, int], launches: int) -> None:
    """Split patches are added up by a launch of their own."""
    logits = tensor(data.logits((1, 4, *size), odd=False))
    *_, counts = launchers.entropy_pool(logits, patch, **COUNT)
    assert len(counts.launches) == launches


@each_dtype
@pytest.mark.parametrize("mask", ["none", "bool"])
def test_traffic_of_mixing(mask: str, dtype: str) -> None:
    """Of two images each pixel is read from one."""
    inside, outside = (tensor(data.rng(seed).normal(size=(2, 1, 256, 256)), dtype) for seed in (1, 2))
    patches = data.rng(3).random((2, 16, 16)) < 0.5
    out, pixels, counts = launchers.where(patches, inside, outside, PATCH, mask=mask, **COUNT)
    least = 2 * out.nbytes + patches.nbytes + (0 if pixels is None else pixels.size)
    assert len(counts.launches) == 1
    assert least <= moved(counts) <= 1.01 * least
    assert sectors_ratio(counts) <= 1.01


def test_channels_last_is_read_as_it_lies() -> None:
    logits = tensor(data.logits((2, 4, 64, 64), odd=False), "float32", "channels_last")
    scores, labels, counts = launchers.entropy_pool(logits, PATCH, labels="uint8", **COUNT)
    assert labels is not None
    assert moved(counts) == logits.storage.nbytes + scores.nbytes + labels.nbytes
    assert sectors_ratio(counts, without="labels") <= 1.1
    assert math.isclose(counts.launches[0]["buffers"]["logits"]["read"], logits.storage.nbytes)
