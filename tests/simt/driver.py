"""Runs launchers of csrc/kernels/cuda/launch.h on numpy arrays, through the driver executables.

A case goes to the driver's stdin as lines of words, some followed by bytes::

    operation NAME
    run forward|reverse|random SEED             one or more; all must give the same bytes
    input NAME BYTES OFFSET <newline> <bytes>   OFFSET: by which the address misses a multiple of 256
    output NAME BYTES OFFSET                    poisoned with 0xFF
    params BYTES <newline> <bytes>              the params struct
    pointer FIELD BUFFER                        byte offset in the struct, number of the buffer
    dry                                         launches are noted, and nothing runs
    address FIELD VALUE                         a pointer that nothing stands behind: dry only
    shared_limit BYTES, multiprocessors COUNT, blocks_at_once COUNT   of the device

and its stdout is the outputs' bytes, then the counts as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import build
from .params import pack

Run = tuple[str, int]
FORWARD: tuple[Run, ...] = (("forward", 0),)
SCHEDULES: tuple[Run, ...] = (("forward", 0), ("reverse", 0), ("random", 1), ("random", 2))


class KernelFault(AssertionError):
    """What the harness reported: races, stray accesses, bad launches, answers that depend on the schedule."""


class Planned(Exception):
    """A dry run: what would be launched, and no answers."""

    def __init__(self, counts: Counts) -> None:
        super().__init__(f"{len(counts.launches)} launches")
        self.counts = counts


@dataclass(eq=False)
class Input:
    """An array that a kernel reads, strides kept: the driver gets the bytes from its first to its last element."""

    name: str
    array: np.ndarray
    offset: int = 0


@dataclass(eq=False)
class Output:
    """An array that a kernel writes: `array` gives shape, dtype and strides, and holds the answer afterwards."""

    name: str
    array: np.ndarray
    offset: int = 0


def span(array: np.ndarray) -> int:
    """Bytes from the first to the last element. Strides must not be negative."""
    if array.size == 0:
        return 0
    return sum((n - 1) * s for n, s in zip(array.shape, array.strides, strict=True)) + array.itemsize


def _flat_bytes(array: np.ndarray) -> bytes:
    flat = np.lib.stride_tricks.as_strided(array, (span(array) // array.itemsize,), (array.itemsize,))
    return flat.tobytes()


@dataclass
class Counts:
    """What the counter build measured, a dict a launch; see counters.cpp for the keys."""

    launches: list[dict[str, Any]]
    executable: Path
    _names: dict[int, str] = field(default_factory=dict)

    def where(self, address: int) -> str:
        """file:line of a call site, and from where that was inlined: the kernel comes last."""
        if address not in self._names:
            done = subprocess.run(
                ["addr2line", "-i", "-s", "-e", str(self.executable), hex(address - 1)], capture_output=True, text=True
            )
            frames = [line.split(" ")[0] for line in done.stdout.splitlines()]
            self._names[address] = " < ".join(f for f in frames if not f.startswith("simt.h"))
        return self._names[address]

    def kernel(self, launch: dict[str, Any]) -> str:
        """The kernel's name and template arguments."""
        done = subprocess.run(
            ["addr2line", "-C", "-f", "-e", str(self.executable), hex(launch["kernel"])], capture_output=True, text=True
        )
        name = done.stdout.splitlines()[0].replace("(anonymous namespace)::", "").removeprefix("void ")
        return name.partition("(")[0]


def run(
    operation: str,
    struct: str,
    fields: dict[str, Any],
    *,
    mode: str = "plain",
    runs: Sequence[Run] = SCHEDULES,
    shared_limit: int | None = None,
    multiprocessors: int | None = None,
    blocks_at_once: int | None = None,
    executable: Path | None = None,
    dry: bool = False,
    timeout: float = 300,
) -> Counts:
    """Runs one launcher; `fields` are those of its params struct, with Input and Output for pointers.

    Outputs get their answers. Raises KernelFault where the harness reports anything. `dry` looks at no array's contents
    and raises Planned with the launches; it needs the counting build.
    """
    executable = executable or build.driver(mode)
    params, pointers = pack(struct, fields)
    buffers: list[Input | Output] = []
    case: list[bytes] = [f"operation {operation}\n".encode()]
    case += [f"run {order} {seed}\n".encode() for order, seed in runs]
    if shared_limit is not None:
        case.append(f"shared_limit {shared_limit}\n".encode())
    if multiprocessors is not None:
        case.append(f"multiprocessors {multiprocessors}\n".encode())
    if blocks_at_once is not None:
        case.append(f"blocks_at_once {blocks_at_once}\n".encode())
    for offset, buffer in pointers:
        if not any(buffer is b for b in buffers):
            buffers.append(buffer)
            if dry:
                continue
            size = span(buffer.array)
            if isinstance(buffer, Input):
                case.append(f"input {buffer.name} {size} {buffer.offset}\n".encode())
                case.append(_flat_bytes(buffer.array) + b"\n")
            else:
                case.append(f"output {buffer.name} {size} {buffer.offset}\n".encode())
        number = next(i for i, b in enumerate(buffers) if b is buffer)
        if dry:
            case.append(f"address {offset} {(number + 1 << 40) + buffer.offset}\n".encode())
        else:
            case.append(f"pointer {offset} {number}\n".encode())
    if dry:
        case.append(b"dry\n")
    case.append(f"params {len(params)}\n".encode() + params)

    done = subprocess.run(
        build.command(mode, executable),
        input=b"".join(case),
        capture_output=True,
        timeout=timeout,
        env={**os.environ, **build.ENVIRONMENT.get(mode, {})},
    )
    if done.returncode:
        message = done.stderr.decode(errors="replace")
        raise KernelFault(f"{operation} ({mode}): exit code {done.returncode}\n{message[:8000]}")
    rest = done.stdout
    if dry:
        raise Planned(Counts(json.loads(rest)["launches"], executable))
    for buffer in buffers:
        if isinstance(buffer, Output):
            size = span(buffer.array)
            flat = np.frombuffer(rest[:size], buffer.array.dtype)
            strides = buffer.array.strides
            buffer.array = np.lib.stride_tricks.as_strided(flat, buffer.array.shape, strides).copy()
            rest = rest[size:]
    return Counts(json.loads(rest).get("launches", []), executable)
