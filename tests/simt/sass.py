"""Machine code of the kernels, as cuobjdump prints it: widths of memory accesses, hot loops, loads before their use.

An instruction is one line, `/*0a20*/ @!P0 LDG.E.128 R16, desc[UR8][R38.64] ;`. What is read from it is counted as it
stands in the code: both sides of a branch, and of a loop one iteration.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+ )?([A-Z][\w.]*)\s*([^;]*);")
_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}

# Which execution unit an instruction goes to on compute capability 9.0 (by the arithmetic throughput that the CUDA C++
# Programming Guide states).
_SPECIAL = ("MUFU", "I2F", "F2I", "F2F", "I2I", "FRND", "FLO", "POPC", "BREV")
_MULTIPLY_ADD = ("FADD", "FMUL", "FFMA", "IMAD", "HADD2", "HMUL2", "HFMA2", "FSWZADD")
_DOUBLE = ("DADD", "DMUL", "DFMA", "DSETP", "DMNMX")
_MEMORY = ("LDG", "STG", "LDS", "STS", "LDL", "STL", "ATOMG", "ATOMS", "ATOM", "RED", "SHFL", "LDC", "MATCH")
_CONTROL = ("BRA", "BSSY", "BSYNC", "EXIT", "CALL", "RET", "NOP", "WARPSYNC", "BAR", "BREAK", "YIELD", "DEPBAR", "BRX")


@dataclass(frozen=True)
class Instruction:
    address: int
    guard: str
    opcode: str
    operands: str

    @cached_property
    def name(self) -> str:
        return self.opcode.partition(".")[0]

    @cached_property
    def unit(self) -> str:
        """The execution unit; `integer` is also for comparisons, selections and minima of floats."""
        units = {"special": _SPECIAL, "multiply-add": _MULTIPLY_ADD, "double": _DOUBLE, "memory": _MEMORY}
        units["control"] = _CONTROL
        return next((unit for unit, names in units.items() if self.name in names), "integer")

    @property
    def width(self) -> int:
        """Bytes of a memory access."""
        return next((_WIDTHS[part] for part in self.opcode.split(".")[1:] if part in _WIDTHS), 4)

    @property
    def target(self) -> int | None:
        """Of a branch. BRA.DIV leads to code for warps that have come apart, outside of the loop."""
        if self.name != "BRA" or ".DIV" in self.opcode:
            return None
        found = re.findall(r"0x([0-9a-f]+)", self.operands)
        return int(found[-1], 16) if found else None

    @property
    def leaves(self) -> bool:
        """The next instruction is never the one below."""
        unconditional = not self.guard and "P" not in self.operands.partition("0x")[0]
        return unconditional and (self.target is not None or self.name in ("EXIT", "RET"))

    @cached_property
    def written(self) -> frozenset[int]:
        """Registers that a global load fills."""
        first = int(re.match(r"R(\d+)", self.operands)[1]) if re.match(r"R\d", self.operands) else None
        return frozenset() if first is None else frozenset(range(first, first + max(1, self.width // 4)))

    @cached_property
    def read(self) -> frozenset[int]:
        """Registers that an instruction reads; of one that writes a register, all operands but the first."""
        stores = self.name in ("STG", "STS", "STL", "ST", "RED", "ATOMG", "ATOMS")
        text = self.operands if stores else self.operands.partition(",")[2]
        found: set[int] = set()
        for number, wide in re.findall(r"\bR(\d+)(\.64)?", text):
            count = 2 if wide or self.name in _DOUBLE else 1
            if stores and not wide:
                count = max(1, self.width // 4)
            found.update(range(int(number), int(number) + count))
        return frozenset(found)


@dataclass
class Loop:
    """A backward branch and what lies between its target and itself."""

    body: list[Instruction]

    @property
    def loaded(self) -> int:
        return sum(i.width for i in self.body if i.name == "LDG")

    @property
    def moved(self) -> int:
        return sum(i.width for i in self.body if i.name in ("LDG", "STG"))

    def shortest(self) -> list[Instruction]:
        """The way from head to end with the fewest instructions, of those that take in every special function (exp,
        1 / x) that is not on the other side of a branch: a pass that computes takes no fewer.

        A branch may leave out those that it jumps over, where they are less than half of the loop's.
        """
        way = [0]
        for stop in [*self._needed(), len(self.body) - 1]:
            way += self._way(way[-1], stop)
        return [self.body[n] for n in way]

    def _needed(self) -> list[int]:
        """Places of the special functions that a pass takes in."""
        special = [n for n, i in enumerate(self.body) if i.name == "MUFU"]
        left_out: set[int] = set()
        for i in self.body:
            if i.guard and i.target is not None:
                over = {n for n in special if i.address < self.body[n].address < i.target}
                left_out |= over if 2 * len(over) < len(special) else set()
        return [n for n in special if n not in left_out]

    def _way(self, start: int, end: int) -> list[int]:
        """Places on the shortest way, without the first; empty where there is none."""
        place = {i.address: n for n, i in enumerate(self.body)}
        cost, before = {start: 0}, {start: start}
        for n in range(start, end):  # within an innermost loop, jumps lead forward
            if n not in cost:
                continue
            i = self.body[n]
            ways = [] if i.leaves else [n + 1]
            if i.target in place:
                ways.append(place[i.target])
            for to in ways:
                if to > n and cost[n] + 1 < cost.get(to, 1 << 30):
                    cost[to], before[to] = cost[n] + 1, n
        if end not in cost:
            return []
        way = [end]
        while way[-1] != start:
            way.append(before[way[-1]])
        return way[-2::-1]

    def waits(self) -> list[int]:
        """Bytes of global loads under way each time that one of their results is read, over one iteration.

        The loop is gone through twice: what is loaded for the next iteration is waited for in the second.
        """
        found: list[int] = []
        pending: frozenset[int] = frozenset()
        under_way = 0
        for turn in range(2):
            for i in self.body:
                if pending & (i.read | (i.written if i.name == "LDG" else frozenset())):
                    if turn:
                        found.append(under_way)
                    pending, under_way = frozenset(), 0
                if i.name == "LDG":
                    pending |= i.written
                    under_way += i.width
        return found


@dataclass
class Code:
    """One kernel's."""

    mangled: str
    instructions: list[Instruction] = field(default_factory=list)

    def widths(self, name: str) -> Counter[int]:
        """How many instructions of that name (LDG, STG) by their width in bytes."""
        return Counter(i.width for i in self.instructions if i.name == name)

    @cached_property
    def loops(self) -> list[Loop]:
        """Innermost ones, in the order of the code.

        What follows the kernel's end, for warps that have come apart, jumps back into it: that is no loop.
        """
        place = {i.address: n for n, i in enumerate(self.instructions)}
        ends = [n for n, i in enumerate(self.instructions) if i.name == "EXIT" and not i.guard]
        back = {(place[i.target], n) for n, i in enumerate(self.instructions) if i.target in place}
        spans = sorted(span for span in back if span[0] < span[1] and not any(span[0] < end < span[1] for end in ends))
        inner = [a for a in spans if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
        return [Loop(self.instructions[first : last + 1]) for first, last in inner]

    @cached_property
    def hot(self) -> list[Loop]:
        """Where the time goes: the innermost loops with an exp, or else the one that moves most, or of a kernel without
        loops all of it."""
        loops = [loop for loop in self.loops if loop.moved]
        exponentials = [loop for loop in loops if any(i.opcode.startswith("MUFU.EX2") for i in loop.body)]
        if loops:
            return exponentials or [max(loops, key=lambda loop: loop.moved)]
        last = max(n for n, i in enumerate(self.instructions) if i.name == "EXIT")
        return [Loop(self.instructions[: last + 1])]


def parse(lines: Sequence[str]) -> Iterator[Code]:
    code: Code | None = None
    for line in lines:
        if found := re.search(r"Function : (\S+)", line):
            if code is not None:
                yield code
            code = Code(found[1])
        elif code is not None and (found := _LINE.match(line)):
            address, guard, opcode, operands = found.groups()
            code.instructions.append(Instruction(int(address, 16), (guard or "").strip(), opcode, operands.strip()))
    if code is not None:
        yield code


def disassemble(tool: Path, file: Path, arch: int | str) -> list[Code]:
    command = [str(tool), "-sass", "-arch", f"sm_{arch}", str(file)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return list(parse(text.splitlines()))
