"""Whether the extension was built for the torch and the Python that run, found out before it is loaded.

Loaded into another torch it would die of an undefined symbol, or of a struct that has changed its layout. The build
leaves a note of what it was for beside the library; nothing here loads the library.
"""

import json
import sys
import sysconfig
from pathlib import Path
from typing import TypedDict

_PACKAGE = Path(__file__).resolve().parent


class BuildRecord(TypedDict):
    """What the build wrote down: versions as torch.__version__ and nvcc say them; cuda is None in a CPU build."""

    torch: str
    python: str
    cuda: str | None
    cuda_archs: list[str]
    reason: str


def library(package: Path = _PACKAGE) -> Path:
    """Where the extension for this Python is, or would be."""
    return package / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"


def mending_command(package: Path = _PACKAGE) -> str:
    """The command that builds the extension for this environment."""
    root = package.parent
    python = sys.executable
    if (root / "setup.py").is_file() and (root / "csrc").is_dir():
        return f"{python} -m pip install -e {root}"
    return f"{python} -m pip install --force-reinstall --no-deps --no-cache-dir SOURCE (SOURCE: a checkout or an sdist)"


def read_record(package: Path = _PACKAGE) -> BuildRecord:
    """The record of the build for this Python; ImportError where there is none."""
    record = library(package).with_suffix(".json")
    if library(package).is_file() and record.is_file():
        content: BuildRecord = json.loads(record.read_text())
        return content
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    others = sorted(json.loads(path.read_text())["python"] for path in package.glob("_C.*.json"))
    built = f"was built for Python {', '.join(others)}, this is Python {running}" if others else "is not built"
    raise ImportError(f"entmask_ext {built}. Build it with: {mending_command(package)}")


def check(running_torch: str, package: Path = _PACKAGE) -> BuildRecord:
    """Raises ImportError unless the build was for this torch (torch.__version__) and this Python.

    Any difference counts, a patch release or CPU against CUDA too: torch promises no ABI between any two of its builds.
    """
    record = read_record(package)
    if record["torch"] != running_torch:
        raise ImportError(
            f"entmask_ext was built for torch {record['torch']}, this is torch {running_torch} "
            f"(Python {sys.executable}). Build it again with: {mending_command(package)}"
        )
    return record
