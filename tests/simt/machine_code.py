"""What the machine code of every kernel has on compute capability 9.0, kept in machine_code.csv.

``python -m tests.simt.machine_code --write`` compiles csrc/kernels/cuda for 9.0 alone (minutes on few cores) and writes
the table; without --write it prints it. With file names it reads those instead: objects of the build, or the extension
module. test_machine_code.py compares the built module with it.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from . import resources, sass

TABLE = Path(__file__).with_suffix(".csv")
ARCH = 90


@dataclass(frozen=True)
class Row:
    """Of one kernel. Of the hot loops (sass.Code.hot) each has its own number, in the order of the code."""

    kernel: str
    threads: int
    registers: int
    blocks: int
    """Resident on a multiprocessor by registers and static shared memory."""
    local: int
    """Loads and stores of local memory."""
    loads: dict[int, int]
    """Global loads in the whole kernel: how many instructions of 16, 8, 4, 2, 1 bytes."""
    stores: dict[int, int]
    match: int
    """How often the lanes are looked for that share a mask which the compiler does not know."""
    pixels: int
    """That a thread computes in one pass of a hot loop; elements where a kernel moves elements."""
    instructions: tuple[int, ...]
    """Of a hot loop's code, both sides of its branches."""
    shortest: tuple[int, ...]
    """Of those, on the shortest way that computes (sass.Loop.shortest)."""
    integer: tuple[int, ...]
    """On that way: integers, comparisons, selections, conversions of predicates; a half-rate unit."""
    special: tuple[int, ...]
    double: tuple[int, ...]
    waits: tuple[int, ...]
    """How often the results of global loads are waited for in one iteration."""
    under_way: tuple[int, ...]
    """The most bytes of global loads that a thread has under way at a wait."""


def pixels_of(kernel: str) -> int:
    """By a kernel's template arguments; see Shape in csrc/kernels/cuda/load.cuh."""
    arguments = re.search(r"<(.*)>", kernel)
    words = arguments[1].split(", ") if arguments else []
    if "planes" in words:
        size = {"float": 4, "double": 8}.get(words[0], 2)
        return (8 if size == 2 and words[2] == "8" else 16) // size
    return int(words[-1]) if words and words[-1].isdigit() and len(words) <= 2 else 1


def read(files: Sequence[Path]) -> list[Row]:
    kernels = {k.name: k for k in resources.read(files, ARCH)}
    codes = [code for file in files for code in sass.disassemble(resources.cuobjdump(), file, ARCH)]
    names = resources.readable([code.mangled for code in codes])
    return sorted((row_of(names[c.mangled], kernels[names[c.mangled]], c) for c in codes), key=lambda row: row.kernel)


def row_of(name: str, kernel: resources.Kernel, code: sass.Code) -> Row:
    ways = [loop.shortest() for loop in code.hot]
    waits = [loop.waits() for loop in code.hot]

    def of_unit(unit: str) -> tuple[int, ...]:
        return tuple(sum(i.unit == unit for i in way) for way in ways)

    return Row(
        name,
        kernel.threads,
        kernel.registers,
        kernel.blocks,
        kernel.spills,
        dict(code.widths("LDG")),
        dict(code.widths("STG")),
        sum(i.name == "MATCH" for i in code.instructions),
        pixels_of(name),
        tuple(len(loop.body) for loop in code.hot),
        tuple(map(len, ways)),
        of_unit("integer"),
        of_unit("special"),
        of_unit("double"),
        tuple(map(len, waits)),
        tuple(max(each, default=0) for each in waits),
    )


def cell(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{width}x{count}" for width, count in sorted(value.items(), reverse=True))
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def text_of(rows: Sequence[Row]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([f.name for f in fields(Row)])
    writer.writerows([cell(value) for value in asdict(row).values()] for row in rows)
    return out.getvalue()


def load() -> dict[str, Row]:
    """The table in the repository, by kernel."""
    rows = {}
    for line in csv.DictReader(TABLE.read_text().splitlines()):
        values: dict[str, Any] = {"kernel": line.pop("kernel")}
        for name, cell in line.items():
            if name in ("loads", "stores"):
                values[name] = {int(w): int(n) for w, n in (word.split("x") for word in cell.split())}
            elif name in ("threads", "registers", "blocks", "local", "match", "pixels"):
                values[name] = int(cell)
            else:
                values[name] = tuple(map(int, cell.split()))
        row = Row(**values)
        rows[row.kernel] = row
    return rows


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, help="objects or libraries; default: compile the kernels")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.relative_to(resources.ROOT)}")
    options = parser.parse_args(arguments)
    try:
        text = text_of(read(options.files or resources.compile_kernels(("9.0",))))
    except resources.Missing as missing:
        raise SystemExit(str(missing)) from None
    if not options.write:
        print(text, end="")
        return 0
    partial = TABLE.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(TABLE)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
