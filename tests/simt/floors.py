"""The least time of each op on an H100, by bytes and by instructions: a model, for docs/gpu.md.

``python -m tests.simt.floors --write`` puts the tables into the page between their marks; without --write it prints
them. They follow from machine_code.csv and from what the launchers launch (launches.py), so they change with either.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import launches, machine_code, resources
from .launches import Launch, Size
from .machine_code import Row

PAGE = resources.ROOT / "docs" / "gpu.md"
CLOCK = 1.98e9
COPY = 3.0e12  # bytes a second, read and written ones together, that a copy reaches
# Instructions of a warp that a multiprocessor begins in one clock.
ISSUED, INTEGER, SPECIAL, DOUBLE = 4, 2, 0.5, 2
RATIO = 0.75
ITEMSIZE = {"float32": 4, "bfloat16": 2}
CHUNK = 4  # classes of one pass of a loop over them

# The launches that work on pixels. What selection, the last sums and components cost is not modelled.
OF_PIXELS = (
    *("entropy_", "top_two_", "pseudo_labels_", "loss_registers", "loss_stream", "loss_backward", "soft_loss_"),
    *("where", "gather", "box_mask"),
)
OF_NO_PIXELS = ("entropy_pool_finish_kernel", "pseudo_labels_finish_kernel", "soft_loss_finish_kernel")


def least_bytes(op: str, size: Size, dtype: str) -> float:
    """Each input read once, each output written once."""
    pixels, values = size.pixels, size.pixels * ITEMSIZE[dtype]
    logits, labels, patches = size.classes * values, pixels, size.patches
    return {
        "patch_mask": logits + (1 - RATIO + 2) * values + labels + 5 * patches,
        "patch_scores": logits + 4 * patches,
        "patch_scores, backward": 2 * logits + 4 * patches,
        "entropy_map": logits + 4 * pixels,
        "entropy_map, backward": 2 * logits + 4 * pixels,
        "consistency_loss": logits + labels + patches,
        "consistency_loss, backward": 2 * logits + labels + patches,
        "uncertainty_map, margin": logits + 4 * pixels,
        "pseudo_labels": logits + labels,
        "soft_consistency_loss": 2 * logits,
        "soft_consistency_loss, backward": 3 * logits,
        "patch_where": 2 * values + patches,
        "shuffle_patches": 2 * values + 8 * patches,
        "gather_patches, backward": 2 * values + 16 * patches,
        "box_mask": pixels,
        "largest_components": 2 * labels,
    }[op]


@dataclass(frozen=True)
class Floor:
    op: str
    dtype: str
    launches: int
    megabytes: float
    memory: float
    """Seconds of the least bytes at the pace of a copy."""
    instructions: float
    """A pixel, on the shortest way through the hot loops."""
    most: float
    """A pixel, of the loops' whole code."""
    issue: float
    """Seconds to issue the former: all of them at four a clock, or one unit's at its rate, whichever is longer."""
    unit: str
    waves: float
    """Blocks of the longest launch over those that are resident at a time."""

    @property
    def binds(self) -> str:
        return "memory" if self.memory >= self.issue else self.unit


def passes(row: Row, size: Size) -> float:
    """Of the hot loops, for all pixels of the batch: warps times what each goes through."""
    chunks = -(-size.classes // CHUNK) if re.search(r"(planes|pixels|any), 0\b", row.kernel) else 1
    return size.pixels / row.pixels / 32 * chunks


def of_loops(row: Row, values: tuple[int, ...]) -> int:
    """The loss's backward has its second loop twice, with the gradient of Dice and without: the shorter counts."""
    if row.kernel.startswith("loss_backward_kernel") and len(values) == 3:
        return values[0] + min(values[1:])
    return sum(values)


def floor_of(op: str, size: Size, dtype: str, table: dict[str, Row]) -> Floor:
    found = launches.of_op(op, size, dtype)
    total = most = 0.0
    clocks = {"issue": 0.0, "integer unit": 0.0, "special unit": 0.0, "double unit": 0.0}
    for launch in found:
        row = table[launch.kernel]
        if not launch.kernel.startswith(OF_PIXELS) or launch.kernel.startswith(OF_NO_PIXELS):
            continue
        times = passes(row, size)
        total += times * of_loops(row, row.shortest)
        most += times * of_loops(row, row.instructions)
        clocks["issue"] += times * of_loops(row, row.shortest) / ISSUED
        clocks["integer unit"] += times * of_loops(row, row.integer) / INTEGER
        clocks["special unit"] += times * of_loops(row, row.special) / SPECIAL
        clocks["double unit"] += times * of_loops(row, row.double) / DOUBLE
    unit = max(clocks, key=lambda name: clocks[name])
    size_in_bytes = least_bytes(op, size, dtype)
    return Floor(
        op,
        dtype,
        len(found),
        size_in_bytes / 1e6,
        size_in_bytes / COPY,
        total * 32 / size.pixels,
        most * 32 / size.pixels,
        clocks[unit] / launches.MULTIPROCESSORS / CLOCK,
        unit,
        max(waves(launch, table) for launch in found),
    )


def waves(launch: Launch, table: dict[str, Row]) -> float:
    return launch.blocks / (table[launch.kernel].blocks * launches.MULTIPROCESSORS)


def _line(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def floors(table: dict[str, Row]) -> Iterator[str]:
    for size in launches.SIZES:
        yield f"**{size}**"
        yield ""
        yield _line(
            "op",
            "dtype",
            "launches",
            "least MB",
            "memory, us",
            "instructions a pixel",
            "issue, us",
            "binds",
            "waves",
            "measured",
        )
        yield "|---|---|---|---|---|---|---|---|---|---|"
        for op in launches.OPS:
            for dtype in launches.DTYPES:
                if dtype != "float32" and op in ("box_mask", "largest_components"):
                    continue
                f = floor_of(op, size, dtype, table)
                code = (f"{f.instructions:.0f} to {f.most:.0f}", f"{f.issue * 1e6:.1f}", f.binds)
                if f.issue == 0:
                    code = ("", "", "not modelled")
                yield _line(
                    f.op,
                    f.dtype,
                    f.launches,
                    f"{f.megabytes:.3g}",
                    f"{f.memory * 1e6:.1f}",
                    *code,
                    f"{f.waves:.2f}",
                    "not measured",
                )
        yield ""


def kernels(table: dict[str, Row]) -> Iterator[str]:
    """The kernels that those launches come down to."""
    yield _line(
        "kernel", "registers", "blocks", "loads", "stores", "write sectors", "waits", "under way", "integer share"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    named = {launch.kernel for launch in launches.of_all_ops()}
    for name in sorted(named):
        row = table[name]
        if not name.startswith(OF_PIXELS) or name.startswith(OF_NO_PIXELS):
            continue
        yield _line(
            f"`{name}`",
            row.registers,
            row.blocks,
            machine_code.cell(row.loads),
            machine_code.cell(row.stores),
            f"{write_sectors(row):.2f}" if "backward" in name and "planes" in name else "",
            " ".join(map(str, row.waits)),
            " ".join(map(str, row.under_way)),
            f"{of_loops(row, row.integer) / of_loops(row, row.shortest):.0%}",
        )
    yield ""


def write_sectors(row: Row) -> float:
    """Sectors of the gradient's stores over the least: a thread's pixels lie side by side, so every store of a warp,
    however narrow, touches all sectors of its class."""
    found = re.search(r"planes, (\d+)", row.kernel)
    classes = int(found[1]) if found else 0
    return sum(row.stores.values()) / (classes or CHUNK)


def sections() -> dict[str, str]:
    table = machine_code.load()
    return {"floors": "\n".join(floors(table)), "kernels": "\n".join(kernels(table))}


def filled(page: str) -> str:
    """The page with its tables made anew."""
    for name, text in sections().items():
        begin, end = f"<!-- {name}: python -m tests.simt.floors --write -->", f"<!-- end of {name} -->"
        if begin not in page or end not in page:
            raise ValueError(f"{PAGE.name} has no marks of {name}: {begin} and {end}")
        page = page.partition(begin)[0] + f"{begin}\n\n{text}\n{end}" + page.partition(end)[2]
    return page


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(resources.ROOT)}")
    if not parser.parse_args(arguments).write:
        print("\n".join(sections().values()))
        return 0
    text = filled(PAGE.read_text())
    partial = Path(f"{PAGE}.partial")
    partial.write_text(text)
    partial.replace(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
