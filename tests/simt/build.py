"""Builds the drivers that run the CUDA kernels' source on the CPU: one a mode, rebuilt when a source changes.

``python -m tests.simt.build [MODE ...]`` builds from the command line; the tests call :func:`driver`.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import platform
import shutil
import site
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RUNTIME = ("fiber.cpp", "scheduler.cpp", "runtime.cpp", "memory.cpp", "counters.cpp", "driver.cpp")


@dataclass(frozen=True)
class Mode:
    """Flags of a build: for every file, for the kernels alone (their accesses are instrumented), for the link."""

    common: tuple[str, ...]
    kernels: tuple[str, ...] = ()
    link: tuple[str, ...] = ()


MODES = {
    # Correct answers, under any schedule.
    "plain": Mode(("-O1",)),
    # Accesses outside a buffer or an array, undefined behaviour.
    "asan": Mode(
        ("-O1", "-g1", "-DSIMT_ASAN"),
        ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
        ("-fsanitize=address,undefined",),
    ),
    # Races: accesses that no barrier and no fence orders.
    "tsan": Mode(("-O1", "-g1", "-DSIMT_TSAN"), ("-fsanitize=thread",), ("-fsanitize=thread",)),
    # Memory requests, counted: hooks of our own in place of TSan's. Fixed addresses, for addr2line.
    "count": Mode(("-O1", "-g1", "-DSIMT_COUNT", "-fno-pie"), ("-fsanitize=thread",), ("-no-pie",)),
}

ENVIRONMENT = {
    "asan": {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"},
    "tsan": {"TSAN_OPTIONS": "exitcode=66:history_size=0"},
}


def cuda_headers() -> Path | None:
    """The headers of a toolkit, or of PyPI's nvidia-cuda-runtime with nvidia-cuda-crt; None where there is neither."""
    toolkits = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    nvcc = shutil.which("nvcc")
    if nvcc:
        toolkits.append(str(Path(nvcc).resolve().parent.parent))
    folders = [Path(t) / "include" for t in toolkits]
    folders += sorted(Path("/usr/local").glob("cuda*/include"), reverse=True)
    for packages in site.getsitepackages():
        folders += sorted(Path(packages).glob("nvidia/cu*/include"), reverse=True)
        folders.append(Path(packages) / "triton" / "backends" / "nvidia" / "include")
    needed = ("cuda_runtime_api.h", "cuda_fp16.h", "cuda_bf16.h", "vector_functions.h", "crt/host_defines.h")
    return next((f for f in folders if all((f / header).is_file() for header in needed)), None)


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")


def missing() -> str | None:
    """Why nothing can be built here, or None."""
    if platform.system() != "Linux":
        return f"the harness runs on Linux, this is {platform.system()}"
    if compiler() is None:
        return "no C++ compiler"
    if cuda_headers() is None:
        return "no CUDA headers: pip install nvidia-cuda-runtime nvidia-cuda-crt"
    return None


def source_folder() -> Path:
    """csrc; another copy of it where ENTMASK_SIMT_SOURCE says so (mutations)."""
    return Path(os.environ.get("ENTMASK_SIMT_SOURCE", ROOT / "csrc"))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _up_to_date(target: Path, command: Sequence[str]) -> bool:
    try:
        record = json.loads(target.with_suffix(".json").read_text())
    except (OSError, ValueError):
        return False
    return (
        target.exists()
        and record["command"] == list(command)
        and all(Path(f).exists() and _digest(Path(f)) == d for f, d in record["inputs"].items())
    )


def _make(target: Path, command: Sequence[str], inputs: Iterable[Path] | None) -> None:
    """Runs the command, which writes `target`, unless its inputs (None: what the compiler reports) are unchanged."""
    if _up_to_date(target, command):
        return
    partial = target.with_suffix(".partial")
    dependencies = target.with_suffix(".d")
    extra = ["-MMD", "-MT", "x", "-MF", str(dependencies)] if inputs is None else []
    done = subprocess.run([*command, *extra, "-o", str(partial)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-20000:]}")
    if inputs is None:
        inputs = [Path(f) for f in dependencies.read_text().partition(":")[2].replace("\\\n", " ").split()]
    record = {"command": list(command), "inputs": {str(f): _digest(f) for f in inputs}}
    partial.replace(target)
    target.with_suffix(".json").write_text(json.dumps(record))


@functools.cache
def driver(mode: str, kernels: tuple[Path, ...] | None = None, name: str = "kernels") -> Path:
    """Builds a driver and returns its path. `kernels`: .cu files, one with operations; default: the project's."""
    source = source_folder()
    if kernels is None:
        kernels = (*sorted((source / "kernels" / "cuda").glob("*.cu")), HERE / "operations.cpp")
    folder = ROOT / "build" / "simt" / (source.name if source.parent == ROOT else _digest_of_path(source)) / name / mode
    folder.mkdir(parents=True, exist_ok=True)
    flags = MODES[mode]
    headers = cuda_headers()
    assert headers is not None, missing()
    include = [f"-I{source}", f"-I{HERE}", "-isystem", str(headers)]
    gxx = compiler()
    assert gxx is not None
    extra = os.environ.get("CXXFLAGS", "").split()
    jobs: list[tuple[Path, list[str]]] = []
    for path in [*(HERE / f for f in RUNTIME), *kernels]:
        command = [gxx, "-c", *flags.common, *include]
        if path.parent == HERE and path.name in RUNTIME:
            command += ["-std=c++20", "-Wall", "-Wextra"]
        else:  # nvcc warns about these; g++ does not know their pragmas
            command += ["-std=c++17", "-w", "-DENTMASK_SIMT", *flags.kernels]
        if path.name == "counters.cpp" and mode != "count":
            continue
        jobs.append((folder / f"{path.stem}.o", [*command, *extra, "-x", "c++", str(path)]))
    with (folder / "lock").open("w") as lock, ThreadPoolExecutor(os.cpu_count()) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        list(pool.map(lambda job: _make(*job, inputs=None), jobs))
        objects = [target for target, _ in jobs]
        target = folder / "driver"
        _make(target, [gxx, *map(str, objects), *flags.link, "-pthread"], inputs=objects)
    return target


def _digest_of_path(path: Path) -> str:
    return hashlib.sha256(str(path).encode()).hexdigest()[:12]


def command(mode: str, executable: Path) -> list[str]:
    """How to start a driver. TSan cannot place its shadow where addresses are too random."""
    setarch = shutil.which("setarch")
    return [setarch, "-R", str(executable)] if mode == "tsan" and setarch else [str(executable)]


if __name__ == "__main__":
    for chosen in sys.argv[1:] or MODES:
        print(driver(chosen))
