"""Which cells are measured: an op with its pass, size, dtype, layout and threads."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from benchmarks.workload import Size

TINY, HEADLINE, LARGE, VOLUME, STREETS = (
    Size.parse(text) for text in ("1x2x64x64", "18x4x256x256", "32x4x512x512", "2x14x96x96x96", "8x19x512x1024")
)
SIZES = (HEADLINE, TINY, VOLUME, LARGE, STREETS)

# The passes that a training step makes of each op, most telling first.
PASSES = (
    ("patch_mask", False),
    ("consistency_loss", True),
    ("step", True),
    ("patch_scores", False),
    ("entropy_map", False),
    ("uncertainty_map", False),
    ("pseudo_labels", False),
    ("patch_mask_from_scores", False),
    ("random_patch_mask", False),
    ("select_patches", False),
    ("patch_where", False),
    ("shuffle_patches", False),
    ("gather_patches", False),
    ("box_mask", False),
    ("consistency_loss", False),
    ("entropy_map", True),
    ("uncertainty_map", True),
    ("patch_scores", True),
    ("patch_mask", True),
    ("cross_entropy", True),
    ("dice_cross_entropy", True),
    ("region_loss", True),
    ("soft_consistency_loss", True),
    ("soft_kl", True),
    ("patch_where", True),
    ("shuffle_patches", True),
    ("gather_patches", True),
    ("largest_components", False),  # last: its peers take seconds
)
_MAIN = PASSES[:3]


def thread_counts(device: str) -> list[int]:
    """Of the CPU that are worth comparing: one and all; for work on a GPU they change nothing."""
    most = torch.get_num_threads()
    return [most] if device == "cuda" else sorted({1, most})


@dataclass(frozen=True)
class Cell:
    op: str
    backward: bool
    size: Size
    dtype: str
    layout: str
    threads: int

    def __str__(self) -> str:
        passes = "forward + backward" if self.backward else "forward"
        return f"{self.op}, {passes}, {self.size}, {self.dtype}, {self.layout}, {self.threads} threads"


def product(
    ops: Sequence[str], sizes: Sequence[Size], dtypes: Sequence[str], layouts: Sequence[str], threads: Sequence[int]
) -> list[Cell]:
    passes = [one for one in PASSES if one[0] in ops]
    return [
        Cell(op, backward, size, dtype, layout, count)
        for count, dtype, layout, size, (op, backward) in itertools.product(threads, dtypes, layouts, sizes, passes)
    ]


def full(threads: Sequence[int]) -> list[Cell]:
    """Every op and size in float32; then dtypes, channels_last and fewer threads where a step spends its time.

    threads: the last is what all runs on. The order is that of interest: a run that is out of time leaves the end away.
    """
    *fewer, most = threads

    def cells() -> Iterator[Cell]:
        for size in SIZES:
            for op, backward in _MAIN:
                yield Cell(op, backward, size, "float32", "contiguous", most)
        variants = [("float32", "contiguous", count) for count in fewer]
        variants += [("float32", "channels_last", most)]
        variants += [(dtype, "contiguous", most) for dtype in ("bfloat16", "float16", "float64")]
        for dtype, layout, count in variants:
            for op, backward in _MAIN:
                yield Cell(op, backward, HEADLINE, dtype, layout, count)
        for size in SIZES:
            for op, backward in PASSES[len(_MAIN) :]:
                yield Cell(op, backward, size, "float32", "contiguous", most)

    return list(cells())


def scaling(threads: Sequence[int]) -> list[Cell]:
    """From 1 MB of logits to 1 GB by doubling, on each number of threads."""
    return [
        Cell(op, backward, Size(1 << doubling, 4, (256, 256)), "float32", "contiguous", count)
        for op, backward in _MAIN[:2]
        for doubling in range(11)
        for count in threads
    ]


def quick(threads: Sequence[int]) -> list[Cell]:
    return [
        Cell(op, backward, size, "float32", "contiguous", threads[-1])
        for size in (HEADLINE, TINY)
        for op, backward in _MAIN
    ]
