"""The torch that a build is for: where it is, its version, its CUDA version and architectures.

torch is asked in a process of its own, so that neither its import nor its libraries touch the build. pip's build
isolation works through PYTHONPATH; without that variable the same interpreter sees the environment that the package is
installed into.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from setuptools.errors import SetupError

OLDEST = "2.11"

_ASK = """
import importlib.util, json, sys
if importlib.util.find_spec("torch") is None:
    sys.exit(3)
import torch
flags = torch._C._cuda_getArchFlags() if torch.version.cuda else ""
print("\\n" + json.dumps(dict(version=torch.__version__, cuda=torch.version.cuda, arch_flags=(flags or "").split(),
                              root=torch.__path__[0])))
"""


@dataclass(frozen=True)
class TorchEnv:
    version: str  # torch.__version__, "2.13.0+cpu"
    cuda: str | None  # torch.version.cuda, "13.0"
    arch_flags: tuple[str, ...]  # what torch itself was compiled for, "sm_75"
    root: Path  # the package's folder

    @property
    def include_dirs(self) -> list[Path]:
        return [self.root / "include", self.root / "include/torch/csrc/api/include"]

    @property
    def library_dir(self) -> Path:
        return self.root / "lib"

    @property
    def openmp(self) -> Path | None:
        """The OpenMP runtime that torch brings: with another, torch.set_num_threads would not reach the kernels."""
        return next(iter(sorted(self.library_dir.glob("libgomp*.so*"))), None)


def _ask(env: dict[str, str]) -> TorchEnv | None:
    done = subprocess.run([sys.executable, "-c", _ASK], env=env, cwd="/", capture_output=True, text=True)
    if done.returncode == 3:
        return None
    if done.returncode:
        raise SetupError(f"torch is installed but does not import ({sys.executable}):\n{done.stderr.strip()}")
    facts = json.loads(done.stdout.strip().splitlines()[-1])
    return TorchEnv(facts["version"], facts["cuda"], tuple(facts["arch_flags"]), Path(facts["root"]))


def find() -> TorchEnv | None:
    """The torch that this process would import, else that of the environment around the build isolation, else None."""
    env = dict(os.environ)
    if importlib.util.find_spec("torch") is None:
        for name in ("PYTHONPATH", "PYTHONNOUSERSITE"):
            env.pop(name, None)
    return _ask(env)


def require() -> TorchEnv:
    """As find(), but no torch, or one older than OLDEST, is an error."""
    torch = find()
    if torch is None:
        raise SetupError(
            f"no torch for {sys.executable}: with build isolation off, "
            f"install torch>={OLDEST}, numpy, setuptools and ninja first"
        )
    number = re.match(r"(\d+)\.(\d+)", torch.version)
    if number is None or tuple(map(int, number.groups())) < tuple(map(int, OLDEST.split("."))):
        raise SetupError(f"entmask_ext needs torch >= {OLDEST}, found torch {torch.version} in {torch.root}")
    return torch
