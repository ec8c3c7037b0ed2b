"""The tests of train are left out by name where a package of the `train` extra is not installed."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

_MODULES = {"pillow": "PIL"}  # where the module is not called as the package


def missing() -> list[str]:
    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
    extra = re.search(r"^train = \[(.*)\]$", text, re.MULTILINE)
    assert extra is not None
    packages = re.findall(r'"([\w-]+)', extra[1])
    return [name for name in packages if find_spec(_MODULES.get(name, name.replace("-", "_"))) is None]


MISSING = missing()


class _LeftOut(pytest.Module):
    def collect(self) -> list[pytest.Item]:
        pytest.skip(f"train needs {', '.join(MISSING)}: pip install -e '.[train]'", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return _LeftOut.from_parent(parent, path=module_path) if MISSING else None
