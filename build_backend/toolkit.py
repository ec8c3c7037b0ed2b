"""The CUDA toolkit to compile with, if any, and the architectures to compile for.

Whether CUDA is built depends on torch and nvcc alone, never on the GPU of the machine that builds.
"""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from setuptools.errors import SetupError

from build_backend.torch_env import TorchEnv

OLDEST_ARCH = 75


@dataclass(frozen=True)
class Toolkit:
    nvcc: Path
    version: str  # "13.0"
    include_dirs: tuple[Path, ...]
    library_dirs: tuple[Path, ...]
    archs: tuple[int, ...]  # what this nvcc compiles for, 75 = compute capability 7.5

    @property
    def cudart(self) -> Path:
        """The CUDA runtime library; the PyPI packages have it without the name that -lcudart looks for."""
        for folder in self.library_dirs:
            for library in sorted(folder.glob("libcudart.so*")):
                return library
        raise SetupError(f"nvcc {self.version} ({self.nvcc}) is there, but no libcudart.so in {self.library_dirs}")


@dataclass(frozen=True)
class Decision:
    """Whether CUDA kernels are built, and why, in one line."""

    toolkit: Toolkit | None
    archs: tuple[str, ...]  # "7.5", ..., "12.0+PTX"
    reason: str


def _candidates(torch: TorchEnv) -> Iterator[Path]:
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(name):
            yield Path(os.environ[name]) / "bin/nvcc"
    on_path = shutil.which("nvcc")
    if on_path:
        yield Path(on_path)
    # PyPI: nvidia-cuda-nvcc, beside torch in site-packages/nvidia/cu13
    yield from sorted((torch.root.parent / "nvidia").glob("cu*/bin/nvcc"))


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    return done.stdout + done.stderr


def describe(nvcc: Path) -> Toolkit | None:
    """Asks nvcc itself: the one on PATH may be a script that calls another, or a link into another folder."""
    release = re.search(r"release (\d+\.\d+)", _run(nvcc, "--version"))
    if release is None:
        return None
    facts = dict(re.findall(r"^#\$ (\w+)= *(.*)$", _run(nvcc, "--dryrun", "-x", "cu", "/dev/null"), re.MULTILINE))

    top = Path(os.path.realpath(facts.get("TOP", nvcc.parent.parent)))

    def folders(option: str, *names: str) -> tuple[Path, ...]:
        words = [word for name in names for word in shlex.split(facts.get(name, ""))]
        found = [Path(os.path.realpath(word[len(option) :])) for word in words if word.startswith(option)]
        return tuple(dict.fromkeys(folder for folder in found if folder.is_dir()))

    return Toolkit(
        nvcc,
        release[1],
        folders("-I", "INCLUDES"),
        # the PyPI packages keep in lib what nvcc expects in lib64
        (*folders("-L", "LIBRARIES"), *(folder for folder in (top / "lib", top / "lib64") if folder.is_dir())),
        tuple(sorted(int(arch) for arch in re.findall(r"compute_(\d+)\b", _run(nvcc, "--list-gpu-arch")))),
    )


def _dotted(arch: int) -> str:
    return f"{arch // 10}.{arch % 10}"


def default_archs(torch_flags: Iterable[str], nvcc_archs: Iterable[int]) -> tuple[str, ...]:
    """From 7.5 up: what torch was compiled for and nvcc compiles for, and PTX of the newest for GPUs still to come.

    Code for X.y runs on X.z, z >= y, and on no other X (CUDA C++ Programming Guide, binary compatibility): of a major
    version that torch leaves out, nvcc's first is added.
    """
    wanted = {int(flag) for flag in re.findall(r"(?:sm|compute)_(\d+)", " ".join(torch_flags))}
    known = [arch for arch in sorted(nvcc_archs) if arch >= OLDEST_ARCH]
    both = wanted & set(known)
    if not both:
        raise SetupError(
            f"torch was compiled for {sorted(wanted)} and nvcc compiles for {sorted(nvcc_archs)}: none in common from "
            f"{OLDEST_ARCH} up. Name the architectures in TORCH_CUDA_ARCH_LIST."
        )
    for arch in known:
        if all(one // 10 != arch // 10 for one in both):
            both.add(arch)
    *others, newest = sorted(both)
    return (*map(_dotted, others), _dotted(newest) + "+PTX")


def parse_archs(text: str, nvcc_archs: Iterable[int]) -> tuple[str, ...]:
    """TORCH_CUDA_ARCH_LIST, "8.0;9.0+PTX" (semicolons or spaces)."""
    known = {arch for arch in nvcc_archs if arch >= OLDEST_ARCH}
    archs = tuple(dict.fromkeys(text.replace(";", " ").split()))
    for arch in archs:
        number = re.fullmatch(r"(\d+)\.(\d)a?f?(\+PTX)?", arch)
        if number is None or int(number[1] + number[2]) not in known:
            raise SetupError(
                f"TORCH_CUDA_ARCH_LIST has {arch!r}; this nvcc and these kernels take "
                f"{', '.join(map(_dotted, sorted(known)))}, each also with +PTX"
            )
    return archs


def gencode(archs: Iterable[str]) -> list[str]:
    flags = []
    for arch in archs:
        number = arch.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def decide(torch: TorchEnv) -> Decision:
    """ENTMASK_CUDA=0: CPU only. ENTMASK_CUDA=1: CUDA or an error. Unset: CUDA where torch has it and nvcc fits."""
    wish = os.environ.get("ENTMASK_CUDA", "")
    if wish not in ("", "0", "1"):
        raise SetupError(f"ENTMASK_CUDA must be 0, 1 or unset, got {wish!r}")
    if wish == "0":
        return Decision(None, (), "ENTMASK_CUDA=0")
    toolkit, reason = _matching_toolkit(torch)
    if toolkit is None:
        if wish == "1":
            raise SetupError(f"ENTMASK_CUDA=1, but no CUDA build is possible: {reason}")
        return Decision(None, (), reason)
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    archs = parse_archs(listed, toolkit.archs) if listed else default_archs(torch.arch_flags, toolkit.archs)
    return Decision(toolkit, archs, reason)


def _matching_toolkit(torch: TorchEnv) -> tuple[Toolkit | None, str]:
    if torch.cuda is None:
        return None, f"torch {torch.version} is a build without CUDA"
    major = torch.cuda.split(".")[0]
    others = []
    for nvcc in _candidates(torch):
        toolkit = describe(nvcc) if nvcc.is_file() else None
        if toolkit is None:
            continue
        if toolkit.version.split(".")[0] == major:
            return toolkit, f"torch {torch.version} has CUDA {torch.cuda}, nvcc {toolkit.version} is {nvcc}"
        others.append(f"nvcc {toolkit.version} ({nvcc})")
    need = f"torch {torch.version} has CUDA {torch.cuda} and needs an nvcc {major}.x"
    if others:
        return None, f"{need}, found only {', '.join(others)}"
    pypi = f"pip install 'cuda-toolkit[nvcc,cccl]=={torch.cuda}.*'"
    return None, f"{need}, none found in CUDA_HOME, on PATH or from PyPI ({pypi})"
