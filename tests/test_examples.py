"""The files in examples/ run as scripts, and the training one learns."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_example_runs(path: Path) -> None:
    """In a process of its own: what one registers must not be seen by other tests."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    if path.name == "mean_teacher.py":
        assert float(re.findall(r"Dice .*: ([\d.]+)", done.stdout)[-1]) > 0.8
