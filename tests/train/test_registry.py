"""One file more in a package is one method, network or data set more, with no edit elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import write_tiny

from train.registry import Registry

REPOSITORY = Path(__file__).resolve().parents[2]
WITH_FILE = """
import importlib, sys
importlib.import_module(sys.argv[1]).__path__.append(sys.argv[2])
from train.__main__ import main
sys.exit(main(sys.argv[3:]))
"""
NETWORK = """
from dataclasses import dataclass

from torch import nn
from train.networks import NETWORKS, Network


@dataclass(frozen=True, kw_only=True)
class Single(Network):
    #: Side of the filter.
    kernel: int = 3

    def check(self, size):
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {self.kernel}")

    def build(self, in_channels, classes):
        return nn.Conv2d(in_channels, classes, self.kernel, padding=self.kernel // 2)


NETWORKS.add("single", Single)
"""
DATA_SET = """
from train.data.sets import DATA_SETS, DataSet

DATA_SETS.add("discs", DataSet(("background", "disc"), lambda source, root: f"{source} -> {root}"))
"""


def run(package: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m train ...` as it is with the folder's files added to the package."""
    return subprocess.run(
        [sys.executable, "-c", WITH_FILE, package, str(folder), *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def short_run(tmp_path: Path) -> list[str]:
    root = write_tiny(tmp_path / "data")
    short = "--labelled 2 --size 32 32 --iterations 4 --consistency-from 2 --log-every 1 --device cpu"
    return ["fit", "--root", str(root), "--output", str(tmp_path / "run"), *short.split()]


def test_a_method_is_one_file(tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "examples" / "own_method.py", tmp_path / "chessboard.py")
    assert "## chessboard\n\nEvery other patch." in run("train.methods", tmp_path, "methods").stdout
    arguments = [*short_run(tmp_path), "--method", "chessboard", "--patch-size", "4"]
    done = run("train.methods", tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert '"masked": 0.5' in (tmp_path / "run" / "metrics.jsonl").read_text()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["strategy"] == {"patch_size": 4}
    assert "--ratio" in run("train.methods", tmp_path, *arguments, "--ratio", "0.5").stderr  # it has no such setting


def test_a_network_is_one_file(tmp_path: Path) -> None:
    (tmp_path / "single.py").write_text(NETWORK)
    arguments = [*short_run(tmp_path), "--architecture", "single"]
    done = run("train.networks", tmp_path, *arguments, "--kernel", "4")
    assert done.stderr == "error: kernel must be odd, got 4\n"
    done = run("train.networks", tmp_path, *arguments, "--kernel", "5")
    assert done.returncode == 0, done.stderr
    done = run("train.networks", tmp_path, "evaluate", str(tmp_path / "run"), "--checkpoint", "last")
    assert done.returncode == 0 and "student), 1 volume of " in done.stdout


def test_a_data_set_is_one_file(tmp_path: Path) -> None:
    (tmp_path / "discs.py").write_text(DATA_SET)
    done = run("train.data.sets", tmp_path, "convert", "from", "to", "--data-set", "discs")
    assert done.stdout == "from -> to\n", done.stderr
    done = run("train.data.sets", tmp_path, "convert", "from", "to", "--data-set", "disks")
    assert done.stderr == "error: data_set must be one of acdc, discs; got 'disks'\n"


def test_a_name_is_given_once() -> None:
    registry: Registry[int] = Registry("train.data.sets", "number")
    registry.add("two", 2, "pair")
    assert registry["pair"] == 2 and registry.full_name("pair") == "two" and list(registry) == ["two"]
    for name in ("two", "pair"):
        with pytest.raises(ValueError, match=f"number '{name}' is there already"):
            registry.add(name, 3)
        with pytest.raises(ValueError, match=f"number '{name}' is there already"):
            registry.add("other", 3, name)
