"""The build: which torch and nvcc it takes, what it compiles and how, what is packed, and what import refuses."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
from collections.abc import Sequence
from pathlib import Path

import pytest
import setuptools
import torch
from setuptools.errors import SetupError

import entmask_ext
from build_backend import extension, toolkit, torch_env
from entmask_ext import _build_check

ROOT = Path(__file__).resolve().parent.parent

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH")


@pytest.fixture(autouse=True)
def no_build_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENTMASK_CUDA", "TORCH_CUDA_ARCH_LIST", "CXX"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def here() -> torch_env.TorchEnv:
    return torch_env.require()


def torch_like(tmp_path: Path, cuda: str | None = "13.0") -> torch_env.TorchEnv:
    (tmp_path / "site/torch").mkdir(parents=True, exist_ok=True)
    return torch_env.TorchEnv("2.14.1+cu130", cuda, ("sm_75", "sm_90", "sm_120"), tmp_path / "site/torch")


def fake_nvcc(folder: Path, release: str, archs: str = "compute_75 compute_90 compute_100") -> Path:
    """A compiler driver that answers the questions the build asks; its toolkit is in folder."""
    for part in ("bin", "include", "lib"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "lib/libcudart.so.13").touch()
    nvcc = folder / "bin/nvcc"
    nvcc.write_text(
        f"""#!/bin/sh
case "$*" in
  *--version*) echo "Cuda compilation tools, release {release}, V{release}.88" ;;
  *--list-gpu-arch*) printf '%s\\n' {archs} ;;
  *--dryrun*) echo '#$ TOP={folder}/bin/..' >&2; echo '#$ INCLUDES="-I{folder}/bin/../include"  ' >&2 ;;
esac
"""
    )
    nvcc.chmod(0o755)
    return nvcc


# Which torch


def test_torch_of_this_environment_is_taken(here: torch_env.TorchEnv) -> None:
    assert here.version == torch.__version__
    assert here.cuda == torch.version.cuda
    assert here.root == Path(torch.__path__[0])
    assert (here.include_dirs[0] / "ATen/ATen.h").is_file()


def isolated(python: str, tmp_path: Path, code: str) -> str:
    """Runs code as pip does an isolated build: the packages hidden, the build requirements on PYTHONPATH."""
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    site = Path(setuptools.__file__).parent.parent
    for source in (site / "_distutils_hack", *site.glob("setuptools*")):  # with its entry points
        (overlay / source.name).symlink_to(source)
    (overlay / "sitecustomize.py").write_text(
        "import sys, sysconfig\n"
        "hidden = {sysconfig.get_path('purelib'), sysconfig.get_path('platlib')}\n"
        "sys.path[:] = [path for path in sys.path if path not in hidden]\n"
        "sys.meta_path[:] = [finder for finder in sys.meta_path if 'editable' not in repr(finder)]\n"
    )
    env = {**os.environ, "PYTHONPATH": str(overlay), "PYTHONNOUSERSITE": "1"}
    done = subprocess.run([python, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_isolated_build_asks_for_no_second_torch_and_writes_the_same_commands(
    tmp_path: Path, here: torch_env.TorchEnv
) -> None:
    code = """if True:
        import importlib.util, json
        assert importlib.util.find_spec("torch") is None
        from build_backend import extension, hooks, toolkit, torch_env
        found = torch_env.require()
        print(json.dumps([found.version, hooks.get_requires_for_build_editable(),
                          extension.ninja_file(found, toolkit.decide(found))]))
    """
    version, requires, commands = json.loads(isolated(sys.executable, tmp_path, code))
    assert version == torch.__version__
    assert not [name for name in requires if name.startswith("torch")]
    # so that a second install, whose temporary folder is another, compiles nothing
    assert commands == extension.ninja_file(here, toolkit.decide(here))
    assert str(tmp_path) not in commands


def test_torch_is_asked_for_where_there_is_none(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    code = "from build_backend import hooks; print(hooks.get_requires_for_build_wheel())"
    assert f"'torch>={torch_env.OLDEST}'" in isolated(str(tmp_path / "venv/bin/python"), tmp_path, code)


def test_oldest_torch_is_the_one_that_the_package_asks_for() -> None:
    assert f'"torch>={torch_env.OLDEST}"' in (ROOT / "pyproject.toml").read_text()


def test_too_old_torch_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = torch_env.TorchEnv("2.9.1+cpu", None, (), tmp_path)
    monkeypatch.setattr(torch_env, "find", lambda: old)
    with pytest.raises(SetupError, match=re.escape(f"needs torch >= {torch_env.OLDEST}, found torch 2.9.1+cpu")):
        torch_env.require()


# Which nvcc


def test_cpu_torch_makes_a_cpu_build(tmp_path: Path) -> None:
    decision = toolkit.decide(torch_like(tmp_path, cuda=None))
    assert decision.toolkit is None
    assert "without CUDA" in decision.reason


def test_cuda_home_comes_before_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, other = fake_nvcc(tmp_path / "home", "13.1"), fake_nvcc(tmp_path / "other", "13.0")
    monkeypatch.setenv("CUDA_HOME", str(home.parent.parent))
    monkeypatch.setenv("PATH", str(other.parent), prepend=os.pathsep)
    decision = toolkit.decide(torch_like(tmp_path))
    assert decision.toolkit is not None
    assert (decision.toolkit.nvcc, decision.toolkit.version) == (home, "13.1")
    assert decision.toolkit.include_dirs == (tmp_path / "home/include",)
    assert decision.toolkit.cudart == tmp_path / "home/lib/libcudart.so.13"


def test_nvcc_of_another_major_version_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, fitting = fake_nvcc(tmp_path / "old", "12.9"), fake_nvcc(tmp_path / "new", "13.2")
    monkeypatch.setenv("CUDA_HOME", str(old.parent.parent))
    monkeypatch.setenv("PATH", str(fitting.parent), prepend=os.pathsep)
    decision = toolkit.decide(torch_like(tmp_path))
    assert decision.toolkit is not None
    assert decision.toolkit.nvcc == fitting


def test_nvcc_from_pypi_beside_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setattr(toolkit.shutil, "which", lambda name: None)
    nvcc = fake_nvcc(tmp_path / "site/nvidia/cu13", "13.0")
    decision = toolkit.decide(torch_like(tmp_path))
    assert decision.toolkit is not None
    assert decision.toolkit.nvcc == nvcc


@pytest.mark.parametrize("present", [None, "12.9"])
def test_missing_or_mismatched_nvcc(present: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    nvcc = fake_nvcc(tmp_path / "old", present) if present else None
    monkeypatch.setattr(toolkit.shutil, "which", lambda name: nvcc and str(nvcc))
    decision = toolkit.decide(torch_like(tmp_path))
    assert decision.toolkit is None
    monkeypatch.setenv("ENTMASK_CUDA", "1")
    with pytest.raises(SetupError, match=r"ENTMASK_CUDA=1.*CUDA 13\.0") as error:
        toolkit.decide(torch_like(tmp_path))
    assert decision.reason in str(error.value)
    if present:
        assert f"nvcc {present}" in decision.reason


def test_entmask_cuda_0_skips_and_other_values_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(fake_nvcc(tmp_path / "home", "13.0").parent.parent))
    monkeypatch.setenv("ENTMASK_CUDA", "0")
    assert toolkit.decide(torch_like(tmp_path)).toolkit is None
    monkeypatch.setenv("ENTMASK_CUDA", "yes")
    with pytest.raises(SetupError, match="'yes'"):
        toolkit.decide(torch_like(tmp_path))


@needs_nvcc
def test_nvcc_behind_wrapper_scripts_tells_its_toolkit(tmp_path: Path) -> None:
    real = toolkit.describe(Path(str(shutil.which("nvcc"))))
    wrapper = tmp_path / "nvcc"
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("nvcc")} "$@"\n')
    wrapper.chmod(0o755)
    wrapped = toolkit.describe(wrapper)
    assert real is not None
    assert wrapped is not None
    assert any((folder / "cuda_runtime_api.h").is_file() for folder in wrapped.include_dirs)
    assert wrapped.cudart.is_file()
    assert (wrapped.include_dirs, wrapped.library_dirs) == (real.include_dirs, real.library_dirs)


# Which architectures


def test_default_archs_are_those_of_both_from_75_up_with_ptx_of_the_newest() -> None:
    flags = ("sm_50", "sm_75", "sm_80", "sm_90", "sm_100", "sm_120", "compute_120")
    assert toolkit.default_archs(flags, [75, 80, 87, 90, 100]) == ("7.5", "8.0", "9.0", "10.0+PTX")
    assert toolkit.gencode(("7.5", "10.0+PTX")) == [
        "-gencode=arch=compute_75,code=sm_75",
        "-gencode=arch=compute_100,code=sm_100",
        "-gencode=arch=compute_100,code=compute_100",
    ]
    with pytest.raises(SetupError, match="none in common"):
        toolkit.default_archs(("sm_50", "sm_70"), [70, 75])


# torch's wheels for x86-64 with CUDA 13, and all that nvcc 13.0 compiles for.
TORCH_FLAGS = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")
NVCC_ARCHS = (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121)


def runs_on(archs: Sequence[str], device: int) -> bool:
    """Machine code runs on the same major version from its minor version up, PTX on every later version."""
    for arch in archs:
        number = int(arch.removesuffix("+PTX").replace(".", ""))
        if number <= device and (number // 10 == device // 10 or arch.endswith("+PTX")):
            return True
    return False


@needs_nvcc
def test_every_architecture_of_nvcc_has_code(here: torch_env.TorchEnv) -> None:
    kit = toolkit.describe(Path(str(shutil.which("nvcc"))))
    assert kit is not None
    built = toolkit.default_archs(here.arch_flags or TORCH_FLAGS, kit.archs)
    assert [arch for arch in kit.archs if not runs_on(built, arch)] == []


def test_a_major_version_that_torch_leaves_out_gets_code() -> None:
    archs = toolkit.default_archs(TORCH_FLAGS, NVCC_ARCHS)
    assert archs == ("7.5", "8.0", "8.6", "9.0", "10.0", "11.0", "12.0+PTX")
    assert [arch for arch in NVCC_ARCHS if not runs_on(archs, arch)] == []
    assert not runs_on(tuple(arch for arch in archs if arch != "11.0"), 110)


def test_arch_list_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(fake_nvcc(tmp_path / "home", "13.0").parent.parent))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5;9.0+PTX")
    assert toolkit.decide(torch_like(tmp_path)).archs == ("7.5", "9.0+PTX")
    for wrong in ("7.0", "9.0;8.9", "Hopper", "90"):
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wrong)
        with pytest.raises(SetupError, match=r"takes?.* 7\.5, 9\.0, 10\.0"):
            toolkit.decide(torch_like(tmp_path))


# What is compiled


def test_each_source_is_compiled_and_no_flag_trades_exactness_or_portability(here: torch_env.TorchEnv) -> None:
    text = extension.ninja_file(here, toolkit.decide(here))
    for source in sorted((ROOT / "csrc").rglob("*.cpp")):
        per_isa = source.parent.name == "cpu" and source.name != "dispatch.cpp"
        times = len(extension.isas()) if per_isa else 1
        assert len(re.findall(rf": cxx {re.escape(extension.escape(source))}$", text, re.MULTILINE)) == times, source
    for flag in ("-march=native", "-ffast-math", "-Ofast", "--use_fast_math", "-use_fast_math"):
        assert flag not in text


def test_cuda_kernels_are_there_where_they_can_be(here: torch_env.TorchEnv) -> None:
    decision = toolkit.decide(here)
    record = _build_check.read_record()
    if decision.toolkit is None:
        pytest.skip(decision.reason)
    assert record["cuda"] == decision.toolkit.version, f"_C has no CUDA kernels ({record['reason']}), {decision.reason}"
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    on_cpu = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("entmask::")]
    on_cpu = [name for name in on_cpu if has_kernel(name, "CPU")]
    assert on_cpu
    assert [name for name in on_cpu if not has_kernel(name, "CUDA")] == []


def objects() -> list[Path]:
    record = _build_check.read_record()
    flavour = "cuda" if record["cuda"] else "cpu"
    folder = ROOT / "build" / f"{record['torch']}-{sys.implementation.cache_tag}-{flavour}" / "kernels/cpu"
    return sorted(path for path in folder.glob("*.o") if len(path.suffixes) == 2)


def outside_namespace(symbols: str, isa: str) -> list[str]:
    """Of nm's lines, the weak and global definitions that another instruction set's copy could stand in for."""
    own = f"3cpu{len(isa)}{isa}"
    lines = [line.split() for line in symbols.splitlines()]
    return [line[-1] for line in lines if len(line) == 3 and line[1] in "TWVBDRuGSi" and own not in line[2]]


def test_no_function_of_one_instruction_set_can_be_linked_for_all() -> None:
    # An inline function that an AVX-512 object also defines may be the copy that the linker keeps for everybody.
    if not objects():
        pytest.skip("the objects of the build are not here")
    seen = set()
    for path in objects():
        isa = path.suffixes[0][1:]
        seen.add(isa)
        symbols = subprocess.run(["nm", "--defined-only", path], capture_output=True, text=True, check=True).stdout
        if isa != "baseline":
            assert outside_namespace(symbols, isa) == [], path
    assert seen == set(extension.isas())


def test_the_symbol_check_sees_a_shared_inline_function(tmp_path: Path) -> None:
    source = tmp_path / "shared.cpp"
    source.write_text(
        "#include <vector>\n"
        "namespace entmask::cpu::avx2 { template <class T> __attribute__((noinline)) T own(T x) { return x + 1; }\n"
        "float f(float x) { return own(x); }\n"
        "void g(std::vector<float>& v) { v.push_back(1.f); } }\n"
    )
    command = ["g++", "-std=c++17", "-O1", "-c", source, "-o", tmp_path / "shared.o"]
    subprocess.run(list(map(str, command)), check=True)
    nm = subprocess.run(["nm", "--defined-only", tmp_path / "shared.o"], capture_output=True, text=True, check=True)
    found = outside_namespace(nm.stdout, "avx2")
    assert found
    assert all("vector" in name for name in found)


def test_library_is_small_and_knows_what_it_was_built_for(here: torch_env.TorchEnv) -> None:
    assert _build_check.library().stat().st_size < 20e6
    info = entmask_ext._C.build_info()
    record = _build_check.read_record()
    assert info["torch"] == record["torch"] == here.version
    assert (info["cuda"] or None) == record["cuda"]
    assert info["cuda_archs"].split() == record["cuda_archs"]
    assert info["cpu_isa"] in extension.isas()


# What is packed


def test_sdist_holds_all_that_a_build_needs(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    ignore = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "runs", "data")
    shutil.copytree(ROOT, tree, ignore=ignore)
    code = f"from build_backend import hooks; print(hooks.build_sdist({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    archive = tmp_path / done.stdout.splitlines()[-1]
    with tarfile.open(archive) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
    needed = [path for folder in ("csrc", "build_backend") for path in (tree / folder).rglob("*.*") if path.is_file()]
    needed += [path for path in (tree / "entmask_ext").glob("*") if path.suffix in (".py", ".pyi", ".typed")]
    needed += [tree / name for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE")]
    assert (
        sorted(
            str(path.relative_to(tree))
            for path in needed
            if path.suffix != ".pyc" and str(path.relative_to(tree)) not in packed
        )
        == []
    )
    assert [name for name in packed if name.endswith(".so") or re.search(r"_C\..*\.json$", name)] == []


# What import refuses


def unbuilt_copy(tmp_path: Path) -> Path:
    package = tmp_path / "entmask_ext"
    package.mkdir()
    return package


def built_copy(tmp_path: Path, **changed: object) -> Path:
    package = unbuilt_copy(tmp_path)
    library = _build_check.library(package)
    library.touch()
    library.with_suffix(".json").write_text(json.dumps({**_build_check.read_record(), **changed}))
    return package


def test_build_for_this_torch_passes(tmp_path: Path) -> None:
    assert _build_check.check(torch.__version__)["torch"] == torch.__version__
    _build_check.check(torch.__version__, built_copy(tmp_path))


def test_build_for_another_torch_is_refused(tmp_path: Path) -> None:
    package = built_copy(tmp_path, torch="2.12.0+cu126")
    with pytest.raises(ImportError, match="pip install") as error:
        _build_check.check(torch.__version__, package)
    assert "built for torch 2.12.0+cu126" in str(error.value)
    assert f"this is torch {torch.__version__}" in str(error.value)


def test_build_for_another_python_is_refused(tmp_path: Path) -> None:
    package = unbuilt_copy(tmp_path)
    (package / "_C.cpython-39-x86_64-linux-gnu.json").write_text(json.dumps({"python": "3.9"}))
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    with pytest.raises(ImportError, match=rf"built for Python 3\.9, this is Python {re.escape(running)}.*pip install"):
        _build_check.check(torch.__version__, package)


def test_checkout_that_was_never_built_says_how(tmp_path: Path) -> None:
    package = unbuilt_copy(tmp_path)
    (tmp_path / "csrc").mkdir()
    (tmp_path / "setup.py").touch()
    with pytest.raises(ImportError, match=rf"not built.*pip install -e {re.escape(str(tmp_path))}"):
        _build_check.check(torch.__version__, package)


def test_import_checks_before_it_loads_the_library(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "entmask_ext", tmp_path / "entmask_ext", ignore=shutil.ignore_patterns("__pycache__"))
    package = tmp_path / "entmask_ext"
    record = _build_check.library(package).with_suffix(".json")
    record.write_text(json.dumps({**json.loads(record.read_text()), "torch": "2.12.0"}))
    _build_check.library(package).write_bytes(b"not a library: loading it is an error of its own")
    done = subprocess.run([sys.executable, "-c", "import entmask_ext"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "ImportError: entmask_ext was built for torch 2.12.0, this is torch" in done.stderr


def test_environment_report() -> None:
    done = subprocess.run([sys.executable, "-m", "entmask_ext"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for part in (
        torch.__version__,
        entmask_ext._C.build_info()["cpu_isa"],
        "GPU",
        _build_check.read_record()["reason"],
    ):
        assert part in done.stdout
