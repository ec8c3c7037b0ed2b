"""Builds the driver of the CPU kernels with ASan and UBSan, for one instruction set."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from build_backend import extension

HERE = Path(__file__).resolve().parent
KERNELS = extension.CSRC / "kernels" / "cpu"
SANITIZED = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-w"]


def compiler() -> str | None:
    return shutil.which("g++") or shutil.which("c++")


def driver(folder: Path, isa: str, stages: Sequence[str] = ()) -> Path:
    """Compiles into `folder`: all sources, or those of some stages (names without .cpp), and the others are null."""
    gxx = compiler()
    assert gxx is not None
    sources = [KERNELS / f"{stage}.cpp" for stage in (*stages, "table")] if stages else sorted(KERNELS.glob("*.cpp"))
    flags = [flag for flag in extension.KERNEL_FLAGS if not flag.startswith("-O")] + [f"-DENTMASK_ISA={isa}"]
    objects = []
    for source in sources:
        if source.name == "dispatch.cpp":
            continue
        objects.append(folder / f"{source.stem}.o")
        command = [gxx, *flags, *extension.isas()[isa], *SANITIZED, "-c", str(source), "-o", str(objects[-1])]
        subprocess.run(command, check=True)
    target = folder / "driver"
    missing = ["-no-pie", "-Wl,--unresolved-symbols=ignore-all"] if stages else []
    command = [gxx, "-std=c++20", f"-DENTMASK_ISA={isa}", f"-I{extension.CSRC}", *SANITIZED, *missing]
    subprocess.run([*command, str(HERE / "driver.cpp"), *map(str, objects), "-o", str(target)], check=True)
    return target
