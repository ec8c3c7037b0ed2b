"""Registers, shared memory, spills, occupancy and 16-byte loads of every kernel on every architecture of the build.

``python -m tests.simt.resources --write`` compiles csrc/kernels/cuda as the build does, reads the machine code with
cuobjdump (from the toolkit, or from Triton's package) and writes docs/gpu-resources.md; without --write it prints the
page. With file names it reads those instead: objects of the build, or the extension module.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import site
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from build_backend import extension, toolkit, torch_env

from .build import ROOT, _make

PAGE = ROOT / "docs" / "gpu-resources.md"


@dataclass(frozen=True)
class Multiprocessor:
    """Limits of one (CUDA C++ Programming Guide, technical specifications by compute capability)."""

    threads: int
    blocks: int
    shared: int  # bytes
    reserved: int  # bytes of it that the system takes for each block


_KB = 1024
LIMITS = {
    75: Multiprocessor(1024, 16, 64 * _KB, 0),
    80: Multiprocessor(2048, 32, 164 * _KB, _KB),
    86: Multiprocessor(1536, 16, 100 * _KB, _KB),
    87: Multiprocessor(1536, 16, 164 * _KB, _KB),
    88: Multiprocessor(1536, 16, 100 * _KB, _KB),
    89: Multiprocessor(1536, 24, 100 * _KB, _KB),
    90: Multiprocessor(2048, 32, 228 * _KB, _KB),
    100: Multiprocessor(2048, 32, 228 * _KB, _KB),
    103: Multiprocessor(2048, 32, 228 * _KB, _KB),
    110: Multiprocessor(1536, 24, 228 * _KB, _KB),
    120: Multiprocessor(1536, 24, 100 * _KB, _KB),
    121: Multiprocessor(1536, 24, 100 * _KB, _KB),
}
REGISTERS = 65536  # of a multiprocessor; a warp gets them 256 at a time


@dataclass
class Kernel:
    name: str
    arch: int
    registers: int
    local: int  # bytes a thread: arrays that are indexed at run time, and spills
    shared: int
    threads: int = 0
    loads: int = 0  # global loads of 16 bytes in the machine code
    spills: int = 0  # loads and stores of local memory there

    @property
    def blocks(self) -> int:
        """Resident on a multiprocessor; dynamic shared memory not counted."""
        limit = LIMITS[self.arch]
        warps = -(-self.threads // 32)
        of_registers = REGISTERS // (-(-self.registers * 32 // 256) * 256) // warps
        of_shared = limit.shared // (-(-self.shared // 128) * 128 + limit.reserved or 1)
        return min(limit.blocks, limit.threads // (warps * 32), of_registers, of_shared)

    @property
    def occupancy(self) -> float:
        """Resident threads over the most that a multiprocessor holds."""
        return self.blocks * -(-self.threads // 32) * 32 / LIMITS[self.arch].threads


class Missing(Exception):
    """What is needed here and not installed."""


def cuobjdump() -> Path:
    """It needs nvdisasm beside it for machine code."""
    folders = [Path(os.environ[n]) / "bin" for n in ("CUDA_HOME", "CUDA_PATH") if n in os.environ]
    on_path = shutil.which("cuobjdump")
    folders += [Path(on_path).resolve().parent] if on_path else []
    for packages in site.getsitepackages():
        folders += [*Path(packages).glob("nvidia/cu*/bin"), Path(packages) / "triton" / "backends" / "nvidia" / "bin"]
    for folder in folders:
        if (folder / "cuobjdump").is_file() and (folder / "nvdisasm").is_file():
            return folder / "cuobjdump"
    raise Missing("no cuobjdump with nvdisasm: install a CUDA toolkit, or pip install triton")


def compile_kernels(archs: Sequence[str] = ()) -> list[Path]:
    """Objects for these architectures, `9.0`; default: those of the build."""
    decision = toolkit.decide(torch_env.find())
    if decision.toolkit is None:
        raise Missing(f"no nvcc to compile with: {decision.reason}")
    folder = ROOT / "build" / "resources" / ("-".join(archs) or "all")
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        str(decision.toolkit.nvcc),
        *extension.nvcc_flags(decision.toolkit),
        *toolkit.gencode(archs or decision.archs),
        "-c",
    ]

    def build(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        _make(target, [*command, str(source)], inputs=None)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(build, sorted((ROOT / "csrc" / "kernels" / "cuda").glob("*.cu"))))


def _run(*command: str | Path, text: str | None = None) -> str:
    return subprocess.run([str(c) for c in command], input=text, capture_output=True, text=True, check=True).stdout


def readable(mangled: Sequence[str]) -> dict[str, str]:
    """Names without namespaces and parameters: entropy_pool_kernel<float, planes, 4>."""
    out = {}
    for name, full in zip(mangled, _run("c++filt", text="\n".join(mangled)).splitlines(), strict=True):
        short = full.replace("entmask::cuda::", "").replace("(anonymous namespace)::", "").removeprefix("void ")
        layouts = {"(Layout)0": "planes", "(Layout)1": "pixels", "(Layout)2": "any"}
        for number, layout in layouts.items():
            short = short.replace(number, layout)
        short = re.sub(r"Shape<([^<>]*?) ?>", r"\1", short).replace(" >", ">")
        short = re.sub(r"\((?:int|bool)\)(\d+)", r"\1", short)
        out[name] = short[: short.rindex(">") + 1] if "<" in short.partition("(")[0] else short.partition("(")[0]
        out[name] = re.sub(r">\(.*", ">", out[name])
    return out


def read(files: Sequence[Path], arch: int | None = None) -> list[Kernel]:
    """Every kernel in the files, on every architecture or on one; names as :func:`readable` makes them."""
    tool = cuobjdump()
    only = () if arch is None else ("-arch", f"sm_{arch}")
    kernels: dict[tuple[int, str], Kernel] = {}
    for file in files:
        arch = arch if only else 0
        name, expects = "", False
        for line in _run(tool, "-res-usage", *only, file).splitlines():
            if found := re.search(r"arch = sm_(\d+)", line):
                arch = int(found[1])
            elif found := re.search(r"Function (\S+):", line):
                name = found[1]
            elif "REG:" in line:
                usage = {k: int(v) for k, v in re.findall(r"(\w+):(\d+)", line)}
                kernels[arch, name] = Kernel(name, arch, usage["REG"], usage["STACK"] + usage["LOCAL"], usage["SHARED"])
        for line in _run(tool, "-sass", *only, file).splitlines():
            if found := re.search(r"arch = sm_(\d+)", line):
                arch = int(found[1])
            elif found := re.search(r"Function : (\S+)", line):
                name = found[1]
            elif (arch, name) in kernels:
                kernels[arch, name].loads += bool(re.search(r"\bLDG\.E\S*\.128\b", line))
                kernels[arch, name].spills += bool(re.search(r"\b(LDL|STL)\b", line))
        for line in _run(tool, "-elf", *only, file).splitlines():
            if found := re.search(r"arch = sm_(\d+)", line):
                arch = int(found[1])
            elif found := re.match(r"\.nv\.info\.(\S+)", line):
                name = found[1]
                expects = False
            elif "EIATTR_MAX_THREADS" in line:
                expects = True
            elif "Value:" in line and (arch, name) in kernels and expects:
                kernels[arch, name].threads = int(re.findall(r"0x[0-9a-f]+", line)[0], 16)
                expects = False
    names = readable([k.name for k in kernels.values()])
    for kernel in kernels.values():
        kernel.name = names[kernel.name]
    return [k for k in kernels.values() if k.threads]


def page(kernels: Sequence[Kernel]) -> str:
    archs = sorted({k.arch for k in kernels})
    by_name: dict[str, dict[int, Kernel]] = defaultdict(dict)
    for k in kernels:
        by_name[k.name][k.arch] = k
    lines = [
        "# Resources of the CUDA kernels",
        "",
        "Made by `python -m tests.simt.resources --write`: what ptxas gave every kernel, read from the machine code.",
        "A cell: registers a thread / theoretical occupancy. `spill n`: n instructions of local memory in the code.",
        "Shared memory is static bytes a block; `select_block_kernel` also takes up to 40 KB of dynamic shared memory.",
        "`16-byte loads` are the global load instructions of 128 bits on the first architecture.",
        "",
        "| kernel | threads | shared | 16-byte loads | " + " | ".join(f"sm_{a}" for a in archs) + " |",
        "|---|---|---|---|" + "---|" * len(archs),
    ]
    for name, of in sorted(by_name.items()):
        first = of[min(of)]
        cells = [
            f"{of[a].registers} / {of[a].occupancy:.0%}" + (f" spill {of[a].spills}" if of[a].spills else "")
            if a in of
            else "-"
            for a in archs
        ]
        lines.append(f"| `{name}` | {first.threads} | {first.shared} | {first.loads} | " + " | ".join(cells) + " |")
    spilling = sorted({k.name for k in kernels if k.spills})
    lines += [
        "",
        f"{len(by_name)} kernels, {len(kernels)} with their architectures; {len(spilling)} touch local memory.",
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "files", nargs="*", type=Path, help="objects or libraries to read; default: compile the kernels"
    )
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    options = parser.parse_args(arguments)
    try:
        text = page(read(options.files or compile_kernels()))
    except Missing as missing:
        raise SystemExit(str(missing)) from None
    if options.write:
        partial = PAGE.with_suffix(".partial")
        partial.write_text(text)
        partial.replace(PAGE)
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
