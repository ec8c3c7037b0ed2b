"""Builds the driver of the CPU kernels with ASan and UBSan, for one instruction set; again when a source changes."""

import fcntl
import shutil
from collections.abc import Sequence
from pathlib import Path

from simt.build import _make

from build_backend import extension

HERE = Path(__file__).resolve().parent
KERNELS = extension.CSRC / "kernels" / "cpu"
SANITIZED = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-w"]


def compiler() -> str | None:
    return shutil.which("g++") or shutil.which("c++")


def driver(isa: str, stages: Sequence[str] = ()) -> Path:
    """In build/cpu: of all sources, or of those of some stages (names without .cpp), and the others are null."""
    gxx = compiler()
    assert gxx is not None
    sources = [KERNELS / f"{stage}.cpp" for stage in (*stages, "table")] if stages else sorted(KERNELS.glob("*.cpp"))
    flags = [flag for flag in extension.KERNEL_FLAGS if not flag.startswith("-O")] + [f"-DENTMASK_ISA={isa}"]
    missing = ["-no-pie", "-Wl,--unresolved-symbols=ignore-all"] if stages else []
    folder = extension.ROOT / "build" / "cpu" / (f"{isa}-{'-'.join(stages)}" if stages else isa)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        objects = []
        for source in sources:
            if source.name != "dispatch.cpp":
                command = [gxx, *flags, *extension.isas()[isa], *SANITIZED, "-c", str(source)]
                objects.append(folder / f"{source.stem}.o")
                _make(objects[-1], command, inputs=None)
        main = folder / "driver.o"
        include = [f"-DENTMASK_ISA={isa}", f"-I{extension.CSRC}"]
        _make(main, [gxx, "-std=c++20", *include, *SANITIZED, "-c", str(HERE / "driver.cpp")], inputs=None)
        target = folder / "driver"
        _make(target, [gxx, *SANITIZED, *missing, str(main), *map(str, objects)], inputs=[main, *objects])
    return target
