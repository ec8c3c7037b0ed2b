"""The built module's machine code for compute capability 9.0, against machine_code.csv and against what must be wide.

The table says what is. A change may better it, not worsen it. To write it anew, and the tables of docs/gpu.md after it:

    python -m tests.simt.machine_code --write
    python -m tests.simt.floors --write

Needs a module with CUDA kernels for 9.0 by the nvcc of the table, and cuobjdump (Triton's package has one).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from . import floors, launches, machine_code, resources, sass
from .machine_code import Row

NVCC = "13.0"  # that the table is of


@pytest.fixture(scope="module")
def module() -> Path:
    modules = sorted((resources.ROOT / "entmask_ext").glob("_C.*.so"))
    if not modules:
        pytest.skip("no built module")
    record = json.loads(modules[0].with_suffix(".json").read_text())
    if record["cuda"] != NVCC:
        pytest.skip(f"the table is of nvcc {NVCC}, the module of {record['cuda']}")
    if "9.0" not in [arch.removesuffix("+PTX") for arch in record["cuda_archs"]]:
        pytest.skip("the module has no code for 9.0")
    try:
        resources.cuobjdump()
    except resources.Missing as missing:
        pytest.skip(str(missing))
    return modules[0]


@pytest.fixture(scope="module")
def built(module: Path) -> dict[str, Row]:
    return {row.kernel: row for row in machine_code.read([module])}


def narrower(widths: dict[int, int]) -> int:
    return sum(count for width, count in widths.items() if width < 16)


# What must not fall, and what must not rise.
FLOORS: dict[str, Callable[[Row], int]] = {
    "blocks that registers leave room for": lambda row: row.blocks,
    "loads of 16 bytes": lambda row: row.loads.get(16, 0),
    "stores of 16 bytes": lambda row: row.stores.get(16, 0),
    "bytes of loads under way": lambda row: max(row.under_way, default=0),
}
CEILINGS: dict[str, Callable[[Row], int]] = {
    "accesses of local memory": lambda row: row.local,
    "stores of less than 16 bytes": lambda row: narrower(row.stores),
    "searches for the lanes of a mask": lambda row: row.match,
    "instructions of the hot loops": lambda row: sum(row.instructions),
    "waits for global loads": lambda row: sum(row.waits),
}


def worse(built: dict[str, Row], table: dict[str, Row]) -> list[str]:
    found = []
    for name in sorted(built.keys() & table.keys()):
        for what, of in (FLOORS | CEILINGS).items():
            now, then = of(built[name]), of(table[name])
            if now < then if what in FLOORS else now > then:
                found.append(f"{name}: {what}: {then} -> {now}")
    return found


@pytest.mark.long
def test_nothing_is_worse_than_in_the_table(built: dict[str, Row]) -> None:
    table = machine_code.load()
    assert sorted(built.keys() ^ table.keys()) == [], "kernels came or went: write the table anew"
    assert worse(built, table) == []


SIZES = {"float": 4, "double": 8, "__half": 2, "__nv_bfloat16": 2}
CHUNK = 4  # classes that a kernel for any number of them has in registers


def planar(name: str) -> tuple[str, str, int] | None:
    """Kernel, dtype and classes of a kernel that reads planes of logits."""
    found = re.fullmatch(r"(\w+)<(\w+), planes, (\d+)(?:, \w+)*>", name)
    return (found[1], found[2], int(found[3])) if found else None


@pytest.mark.long
def test_every_class_is_read_by_one_load_and_its_gradient_written_by_one_store(built: dict[str, Row]) -> None:
    """Of planes of logits a thread takes one vector a class, 16 bytes or all of its pixels; no store is narrower."""
    wrong = []
    for name, row in built.items():
        if (of := planar(name)) is None:
            continue
        kernel, dtype, classes = of
        width = row.pixels * SIZES[dtype]
        if row.loads.get(width, 0) < (classes or CHUNK):
            wrong.append(f"{name}: {row.loads.get(width, 0)} loads of {width} bytes for {classes or CHUNK} classes")
        if kernel.endswith("backward_kernel") and set(row.stores) != {width}:
            wrong.append(f"{name}: stores of {row.stores} instead of {width} bytes")
    assert wrong == []


def slow_counts(codes: list[sass.Code]) -> list[str]:
    """Of the selection: atomics on shared memory that are loops, or wait for a vote of the warp."""
    found = []
    for code in codes:
        if "select_" not in code.mangled:
            continue
        atomics = {i.opcode for i in code.instructions if i.name == "ATOMS"}
        found += [f"{code.mangled}: {opcode}" for opcode in atomics - {"ATOMS.POPC.INC.32", "ATOMS.ADD"}]
        counting = [loop for loop in code.loops if any(i.name == "ATOMS" for i in loop.body)]
        found += [f"{code.mangled}: votes" for loop in counting if any(i.name.startswith("VOTE") for i in loop.body)]
    return found


@pytest.mark.long
def test_the_selection_counts_by_single_instructions(module: Path) -> None:
    assert slow_counts(sass.disassemble(resources.cuobjdump(), module, machine_code.ARCH)) == []


# Instructions for global memory, or for memory that may be global.
GLOBAL = ("LDG", "LD", "STG", "ST", "ATOMG", "ATOM", "RED", "REDG", "LDGSTS", "CCTL")


def does_not_wait(code: sass.Code) -> str | None:
    """What a kernel does that one may not which is launched before its predecessor in the stream has ended."""
    for instruction in code.instructions:
        if instruction.name == "ACQBULK":
            break
        if instruction.guard or instruction.name in GLOBAL or instruction.unit == "control":
            return f"{instruction.opcode} before it waits"
    else:
        return "no wait"
    if instruction.guard:
        return "a wait on a condition"
    # Through the read-only cache, for data that nobody writes while the kernel lasts: its predecessor does.
    return next((i.opcode for i in code.instructions if i.name == "LDG" and "CONSTANT" in i.opcode), None)


@pytest.mark.long
def test_every_kernel_waits_for_its_predecessor(module: Path) -> None:
    """Before it touches memory or branches; on each architecture that has the wait."""
    record = json.loads(module.with_suffix(".json").read_text())
    archs = [arch.removesuffix("+PTX").replace(".", "") for arch in record["cuda_archs"]]
    for arch in (arch for arch in archs if int(arch.rstrip("af")) >= 90):
        codes = sass.disassemble(resources.cuobjdump(), module, arch)
        assert len(codes) > 400
        assert {c.mangled: fault for c in codes if (fault := does_not_wait(c))} == {}, arch


# Kernels that move elements of the image: N elements a thread, 16 bytes.
MOVERS = {
    f"{kernel}<unsigned {kind}, {count}>": stores
    for kernel, stores in (("where_kernel", 1), ("gather_kernel", 2))
    for kind, count in (("char", 16), ("short", 8), ("int", 4), ("long", 2))
}


@pytest.mark.long
def test_pixels_move_by_16_bytes(built: dict[str, Row]) -> None:
    assert MOVERS.keys() <= built.keys()
    assert [name for name in MOVERS if built[name].loads.get(16, 0) < 1] == []
    assert [name for name, stores in MOVERS.items() if built[name].stores.get(16, 0) < stores] == []
    assert built["box_mask_kernel<16>"].stores == {16: 1}


@pytest.mark.long
@pytest.mark.parametrize("room", [1, 3])
def test_a_looping_grid_is_resident_at_once(room: int) -> None:
    """A kernel that walks over the pixels in a loop has no more blocks than the card says it has room for."""
    blocks = [
        launch.blocks for launch in launches.of_all_ops(room) if launch.kernel.partition("<")[0] in launches.LOOPING
    ]
    assert max(blocks) == room * launches.MULTIPROCESSORS


@pytest.mark.long
def test_the_page_follows_from_the_table() -> None:
    page = floors.PAGE.read_text()
    assert floors.filled(page) == page, "python -m tests.simt.floors --write"


# ---------------------------------------------------------------- the reading of machine code

LOOP = """
        Function : example
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/              @!P0 BRA 0x0050 ;
        /*0020*/                   LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0030*/                   LDG.E.U8 R8, desc[UR4][R2.64+0x10] ;
        /*0040*/                   MUFU.EX2 R4, R4 ;
        /*0050*/                   ISETP.GE.AND P1, PT, R0, R8, PT ;
        /*0060*/               @P1 BRA 0x0080 ;
        /*0070*/                   STG.E.64 desc[UR4][R2.64], R6 ;
        /*0080*/                   STG.E desc[UR4][R2.64+0x20], R4 ;
        /*0090*/               @P2 BRA 0x0010 ;
        /*00a0*/                   EXIT ;
        /*00b0*/                   WARPSYNC.COLLECTIVE R9, 0x00c0 ;
        /*00c0*/                   BRA 0x0050 ;
""".splitlines()


def test_reading_a_loop() -> None:
    (code,) = sass.parse(LOOP)
    assert len(code.instructions) == 13
    assert dict(code.widths("LDG")) == {16: 1, 1: 1}
    assert dict(code.widths("STG")) == {8: 1, 4: 1}
    (loop,) = code.hot  # what comes after EXIT jumps back, but is no loop
    assert [hex(i.address) for i in (loop.body[0], loop.body[-1])] == ["0x10", "0x90"]
    # by the exp, and not by the store that may be left out
    assert [i.address for i in loop.shortest()] == [0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x80, 0x90]
    assert loop.waits() == [17]  # both loads before MUFU reads the first
    assert [i.unit for i in loop.body] == [
        "control", "memory", "memory", "special", "integer", "control", "memory", "memory", "control",
    ]  # fmt: skip


def test_what_a_branch_jumps_over_may_be_left_out() -> None:
    """Where it is less than half of the loop's special functions, the pass without it is the shortest."""
    lines = [*LOOP]
    lines[7:7] = [f"        /*004{n}*/                   MUFU.EX2 R4, R4 ;" for n in (4, 8)]
    (code,) = sass.parse(lines)
    addresses = [0x10, 0x20, 0x30, 0x40, 0x44, 0x48, 0x50, 0x60, 0x80, 0x90]
    assert [i.address for i in code.hot[0].shortest()] == addresses  # all three are jumped over
    lines[7:7] = ["        /*0042*/              @!P0 BRA 0x0048 ;"]
    (code,) = sass.parse(lines)
    addresses[4:5] = [0x42]
    assert [i.address for i in code.hot[0].shortest()] == addresses


def test_loads_one_after_the_other_are_two_waits() -> None:
    swapped = [LOOP[i] for i in (0, 1, 2, 3, 4, 6, 5, *range(7, len(LOOP)))]
    lines = [
        old.partition("*/")[0] + "*/" + new.partition("*/")[2] if "/*" in new else new
        for old, new in zip(LOOP, swapped, strict=True)
    ]
    (code,) = sass.parse(lines)
    assert code.hot[0].waits() == [16, 1]


def test_what_a_kernel_does_before_it_waits_is_named() -> None:
    wait = "        /*0008*/                   ACQBULK ;"
    plain = [line.replace(".CONSTANT", "") for line in LOOP]

    def fault(lines: list[str], *, at: int) -> str | None:
        (code,) = sass.parse([*lines[:at], wait, *lines[at:]])
        return does_not_wait(code)

    assert fault(plain, at=3) is None
    assert fault(plain, at=4) == "BRA before it waits"
    assert fault([*plain[:3], *plain[4:]], at=4) == "LDG.E.128 before it waits"
    assert fault(LOOP, at=3) == "LDG.E.128.CONSTANT"
    wait = wait.replace("     ACQBULK", "@!P0 ACQBULK")
    assert fault(plain, at=3) == "a wait on a condition"
    (code,) = sass.parse(plain[:3])
    assert does_not_wait(code) == "no wait"


def test_what_is_worse_is_named() -> None:
    table = machine_code.load()
    name = next(name for name, row in table.items() if row.stores.get(16, 0) > 1)
    row = table[name]
    changed = machine_code.Row(
        **{
            **vars(row),
            "stores": {16: row.stores[16] - 1, 4: narrower(row.stores) + 4},
            "instructions": tuple(n + 1 for n in row.instructions),
            "blocks": row.blocks - 1,
            "waits": tuple(n + 1 for n in row.waits),
            "local": 2,
        }
    )
    found = worse({**table, name: changed}, table)
    assert [line.split(": ")[1] for line in found] == [
        "blocks that registers leave room for", "stores of 16 bytes", "accesses of local memory",
        "stores of less than 16 bytes", "instructions of the hot loops", "waits for global loads",
    ]  # fmt: skip
    assert worse(table, table) == []
    assert machine_code.text_of(list(table.values())) == machine_code.TABLE.read_text()
