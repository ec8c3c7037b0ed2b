"""What each op launches on a card, by the launchers themselves: a dry run notes the launches and runs none."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import launchers, resources
from .driver import FORWARD, Counts, Planned
from .tensors import STORAGE, Tensor

MULTIPROCESSORS = 132  # of an H100 or an H200
PATCH = 16
# Kernels that walk over the pixels with a grid made for the card: a launcher asks it how many blocks it has room for,
# which a dry run does not know.
LOOPING = (
    "loss_registers_kernel",
    "loss_stream_kernel",
    "loss_backward_kernel",
    "entropy_backward_kernel",
    "top_two_backward_kernel",
    "soft_loss_forward_kernel",
    "soft_loss_backward_kernel",
)
_DRY: dict[str, Any] = {"mode": "count", "runs": FORWARD, "multiprocessors": MULTIPROCESSORS, "dry": True}


@dataclass(frozen=True)
class Size:
    images: int
    classes: int
    spatial: tuple[int, ...]

    def __str__(self) -> str:
        return "x".join(map(str, (self.images, self.classes, *self.spatial)))

    @property
    def pixels(self) -> int:
        return self.images * int(np.prod(self.spatial))

    @property
    def grid(self) -> tuple[int, ...]:
        return tuple(n // PATCH for n in self.spatial)

    @property
    def patches(self) -> int:
        return self.images * int(np.prod(self.grid))


SIZES = (
    Size(18, 4, (256, 256)),
    Size(32, 4, (512, 512)),
    Size(2, 14, (96, 96, 96)),
    Size(8, 19, (512, 1024)),
)
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Launch:
    kernel: str
    blocks: int
    threads: int


@functools.cache
def _symbols(executable: Path) -> dict[int, str]:
    """Kernels by address; the harness compiles the same templates, so that they are called as nvcc calls them."""
    done = subprocess.run(["nm", str(executable)], capture_output=True, text=True, check=True)
    words = [line.split() for line in done.stdout.splitlines()]
    kernels = {int(w[0], 16): w[2] for w in words if len(w) == 3 and w[1] in "TtWw" and "_kernel" in w[2]}
    names = resources.readable(list(kernels.values()))
    return {address: names[mangled] for address, mangled in kernels.items()}


def _planned(call: Callable[..., Any], *arguments: Any, **options: Any) -> Iterator[Launch]:
    try:
        call(*arguments, **options, **_DRY)
    except Planned as planned:
        counts: Counts = planned.counts
        for launch in counts.launches:
            kernel = _symbols(counts.executable)[launch["kernel"]]
            yield Launch(kernel, int(np.prod(launch["grid"])), int(np.prod(launch["threads"])))
        return
    raise AssertionError("a dry run gives no answers")


def of_op(op: str, size: Size, dtype: str, blocks_at_once: int | None = None) -> list[Launch]:
    """With patches of 16 along each axis, uint8 labels and one image channel. No array is ever touched.

    blocks_at_once: of a kernel on a multiprocessor, as the launchers are told; None: any number.
    """
    planned = functools.partial(_planned, blocks_at_once=blocks_at_once)
    patch, scores = (PATCH,) * len(size.spatial), (size.images, *size.grid)
    logits = Tensor(np.empty((size.images, size.classes, *size.spatial), STORAGE[dtype]), dtype)
    image = Tensor(np.empty((size.images, 1, *size.spatial), STORAGE[dtype]), dtype)
    labels = np.empty((size.images, *size.spatial), np.uint8)
    patches = np.empty(scores, bool)
    numbers = np.arange(size.patches)
    sums = np.empty(4 + 3 * size.classes)
    masked: dict[str, Any] = {"patches": patches, "patch": patch}
    rows = np.empty((size.images, size.patches // size.images), np.float32)
    calls: dict[str, tuple[Iterator[Launch], ...]] = {
        "patch_mask": (
            planned(launchers.entropy_pool, logits, patch, labels="uint8"),
            planned(launchers.select, rows, ratio=0.75),
            planned(launchers.where, patches, 0.0, image, patch, mask="same"),
        ),
        "patch_scores": (planned(launchers.entropy_pool, logits, patch),),
        "patch_scores, backward": (
            planned(launchers.entropy_backward, logits, np.empty(scores, np.float32), patch=patch),
        ),
        "entropy_map": (planned(launchers.entropy_map, logits),),
        "entropy_map, backward": (
            planned(launchers.entropy_backward, logits, np.empty((size.images, *size.spatial), np.float32)),
        ),
        "consistency_loss": (planned(launchers.loss_forward, logits, labels, **masked),),
        "consistency_loss, backward": (
            planned(launchers.loss_backward, logits, labels, sums, {"total": 1.0}, **masked),
        ),
        "uncertainty_map, margin": (planned(launchers.entropy_map, logits, uncertainty="margin"),),
        "pseudo_labels": (planned(launchers.pseudo_labels, logits, min_confidence=0.95),),
        "soft_consistency_loss": (planned(launchers.soft_loss_forward, logits, logits, kl=False),),
        "soft_consistency_loss, backward": (
            planned(launchers.soft_loss_backward, logits, logits, None, np.empty(2), 1.0, kl=False),
        ),
        "patch_where": (planned(launchers.where, patches, image, image, patch),),
        "shuffle_patches": (planned(launchers.shuffle_patches, image, numbers, patch),),
        "gather_patches, backward": (planned(launchers.gather_backward, image, numbers, patch),),
        "box_mask": (
            planned(launchers.box_mask, np.zeros((size.images, 2 * len(size.spatial)), np.int64), size.spatial),
        ),
        "largest_components": (planned(launchers.components, labels, size.classes, 1),),
    }
    return [launch for call in calls[op] for launch in call]


OPS = (
    "patch_mask",
    "patch_scores",
    "patch_scores, backward",
    "entropy_map",
    "entropy_map, backward",
    "uncertainty_map, margin",
    "pseudo_labels",
    "consistency_loss",
    "consistency_loss, backward",
    "soft_consistency_loss",
    "soft_consistency_loss, backward",
    "patch_where",
    "shuffle_patches",
    "gather_patches, backward",
    "box_mask",
    "largest_components",
)


def of_all_ops(blocks_at_once: int | None = None) -> Iterator[Launch]:
    for op in OPS:
        for size in SIZES:
            for dtype in DTYPES:
                yield from of_op(op, size, dtype, blocks_at_once)
