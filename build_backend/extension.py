"""build_ext that compiles csrc with ninja: torch-facing files, CPU kernels once an instruction set, CUDA kernels.

torch's own BuildExtension has one set of flags for all C++ files and edits the architecture flags, so the ninja file
is written here. Objects live in build/<torch>-<python>-<cuda or cpu> and no command names a temporary folder: a second
build compiles what changed.
"""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, SetupError

from build_backend import toolkit, torch_env

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"

# One copy of the kernels per instruction set, chosen at run time. Never -march=native: the build must run elsewhere.
AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mbmi2"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
AVX512 += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]  # GCC's own AVX-512 header sets them off
X86_ISAS: dict[str, list[str]] = {"baseline": [], "avx2": AVX2, "avx512": AVX512}
OTHER_ISAS: dict[str, list[str]] = {"baseline": []}

COMMON = ["-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unused-parameter", "-DNDEBUG"]
# torch's headers ask for C++20. No contraction: how many patches are selected must not hang on a fused product.
TORCH_FLAGS = ["-std=c++20", "-O2", "-fopenmp", "-ffp-contract=off", *COMMON]
# No -ffast-math: NaN, infinities and signed zeros are part of what the kernels promise.
KERNEL_FLAGS = ["-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", *COMMON]
NVCC_FLAGS = ["-std=c++17", "-O3", "-DNDEBUG", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall"]


def nvcc_flags(kit: toolkit.Toolkit) -> list[str]:
    """With machine code as small as that nvcc makes it."""
    return [*NVCC_FLAGS, "--compress-mode=size" if int(kit.version.split(".")[0]) >= 13 else "-Xfatbin=-compress-all"]


def isas() -> dict[str, list[str]]:
    return X86_ISAS if platform.machine() in ("x86_64", "AMD64") else OTHER_ISAS


def define(name: str, value: str) -> str:
    return f'-D{name}="{value}"'


def quote(words: Iterable[object]) -> str:
    """A command line for the shell that ninja starts."""
    return shlex.join(map(str, words)).replace("$", "$$")


def escape(path: object) -> str:
    """A path in a build statement."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


class NinjaBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        if sys.platform != "linux":
            raise SetupError(f"entmask_ext builds on Linux only, this is {sys.platform}")
        torch = torch_env.require()
        decision = toolkit.decide(torch)
        kind = " ".join(("CUDA", *decision.archs)) if decision.toolkit else "CPU"
        print(f"entmask_ext: {kind} build: {decision.reason}", flush=True)

        folder = build_folder(torch, decision)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "build.ninja").write_text(ninja_file(torch, decision))
        self._ninja(folder)

        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(folder / "_C.so"), str(library), preserve_mode=False)
        facts = {
            "torch": torch.version,
            "python": f"{sys.version_info.major}.{sys.version_info.minor}",
            "cuda": decision.toolkit.version if decision.toolkit else None,
            "cuda_archs": list(decision.archs),
            "reason": decision.reason,
        }
        info_file(library).write_text(json.dumps(facts, indent=2) + "\n")

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        build_py = self.get_finalized_command("build_py")
        for ext in self.extensions:
            source = info_file(Path(self.get_ext_fullpath(ext.name)))
            built = Path(self.build_lib) / self.get_ext_filename(self.get_ext_fullname(ext.name))
            package = build_py.get_package_dir("entmask_ext")
            self.copy_file(str(info_file(built)), str(Path(package) / source.name))

    @staticmethod
    def _ninja(folder: Path) -> None:
        try:
            from ninja import BIN_DIR

            command = str(Path(BIN_DIR) / "ninja")
        except ImportError:
            command = shutil.which("ninja") or ""
        if not command:
            raise SetupError("ninja is missing, and build isolation is off: pip install ninja")
        jobs = os.environ.get("MAX_JOBS") or len(os.sched_getaffinity(0))
        if subprocess.run([command, "-C", str(folder), "-j", str(jobs)]).returncode:
            raise CompileError(f"compiling csrc failed, see ninja's output above; commands: {folder}/build.ninja")


def build_folder(torch: torch_env.TorchEnv, decision: toolkit.Decision) -> Path:
    flavour = "cuda" if decision.toolkit else "cpu"
    return ROOT / "build" / f"{torch.version}-{sys.implementation.cache_tag}-{flavour}"


def info_file(library: Path) -> Path:
    """Beside the library: what it was built for, readable without loading it (entmask_ext/_build_check.py reads it)."""
    return library.with_suffix(".json")


def ninja_file(torch: torch_env.TorchEnv, decision: toolkit.Decision) -> str:
    cxx = shlex.split(os.environ.get("CXX", "")) or [shutil.which("g++") or "c++"]
    kit = decision.toolkit
    python = ["-isystem", sysconfig.get_paths()["include"]]
    system = [word for path in (*torch.include_dirs, *(kit.include_dirs if kit else ())) for word in ("-isystem", path)]
    cuda = ["-DENTMASK_CUDA"] if kit else []
    built_for = [
        define("ENTMASK_BUILD_TORCH", torch.version),
        define("ENTMASK_BUILD_CUDA", kit.version if kit else ""),
        define("ENTMASK_BUILD_ARCHS", " ".join(decision.archs)),
        "-DTORCH_EXTENSION_NAME=_C",
    ]
    lines = [
        "ninja_required_version = 1.5",
        "rule cxx",
        f"  command = {quote(cxx)} -MD -MF $out.d $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = c++ $out",
    ]
    if kit:
        host = ["-ccbin", next(word for word in cxx if not word.endswith("cache"))] if os.environ.get("CXX") else []
        nvcc = [kit.nvcc, *host, *nvcc_flags(kit), *toolkit.gencode(decision.archs)]
        lines += [
            "rule nvcc",
            f"  command = {quote(nvcc)} -MD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = nvcc $out",
        ]
    objects: list[str] = []

    def compile(source: Path, rule: str = "cxx", flags: Iterable[object] = (), isa: str = "") -> None:
        name = f"{source.relative_to(CSRC).with_suffix('')}{'.' + isa if isa else ''}.o"
        lines.append(f"build {escape(name)}: {rule} {escape(source)}")
        if rule == "cxx":
            lines.append(f"  flags = {quote(flags)}")
        objects.append(name)

    # The longest first, for ninja starts them in this order and the last one should not be waited for alone.
    if kit:
        for source in sorted((CSRC / "kernels/cuda").glob("*.cu")):
            compile(source, rule="nvcc")
    compile(CSRC / "module.cpp", flags=[*TORCH_FLAGS, *cuda, *built_for, *system, *python])
    for source in sorted((CSRC / "ops").glob("*.cpp")):
        compile(source, flags=[*TORCH_FLAGS, *cuda, *system])
    for source in sorted((CSRC / "kernels/cpu").glob("*.cpp")):
        if source.name == "dispatch.cpp":
            have_x86 = ["-DENTMASK_HAVE_X86=1"] if "avx2" in isas() else []
            compile(source, flags=[*KERNEL_FLAGS, *have_x86])
        else:
            for isa, extra in isas().items():
                compile(source, flags=[*KERNEL_FLAGS, f"-DENTMASK_ISA={isa}", *extra], isa=isa)

    # torch is imported before _C, so its libraries are found by name: no rpath, which would tie _C to one folder.
    libraries: list[object] = [f"-L{torch.library_dir}", "-ltorch_python", "-ltorch", "-ltorch_cpu", "-lc10"]
    if kit:
        libraries += ["-ltorch_cuda", "-lc10_cuda", kit.cudart]
    libraries.append(torch.openmp or "-fopenmp")
    lines += [
        "rule link",
        f"  command = {quote(cxx)} -shared -Wl,-O1 $in -o $out {quote(libraries)}",
        "  description = link $out",
        f"build _C.so: link {' '.join(map(escape, objects))}",
        "default _C.so",
    ]
    return "\n".join(lines) + "\n"
