"""One file more in a package is one method, network or data set more, with no edit elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import command, tiny_config, write_tiny

from train.registry import Registry

REPOSITORY = Path(__file__).resolve().parents[2]
WITH_FILE = """
import importlib, sys
importlib.import_module(sys.argv[1]).__path__.append(sys.argv[2])
from train.__main__ import main
sys.exit(main(sys.argv[3:]))
"""
NETWORK = """
from torch import nn
from train.networks import NETWORKS, Network

NETWORKS.add(
    "single",
    Network(lambda model, channels, classes: nn.Conv2d(channels, classes, 5, padding=2), divisor=lambda model: 7),
)
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


def test_a_method_is_one_file(tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "examples" / "own_method.py", tmp_path / "chessboard.py")
    assert "chessboard\n    every other patch" in run("train.methods", tmp_path, "methods").stdout
    root = write_tiny(tmp_path / "data")
    done = run("train.methods", tmp_path, *command(tiny_config(root, tmp_path / "run", method="chessboard")))
    assert done.returncode == 0, done.stderr
    assert '"masked": 0.5' in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_a_network_is_one_file(tmp_path: Path) -> None:
    (tmp_path / "single.py").write_text(NETWORK)
    root = write_tiny(tmp_path / "data")
    config = tiny_config(root, tmp_path / "run", architecture="single", size=(28, 35), patch_size=7)
    done = run("train.networks", tmp_path, *command(config))
    assert done.returncode == 0, done.stderr
    done = run("train.networks", tmp_path, "evaluate", str(tmp_path / "run"), "--checkpoint", "last")
    assert done.returncode == 0 and "last.pt (student), 1 volumes" in done.stdout
    done = run("train.networks", tmp_path, *command(tiny_config(root, tmp_path / "no", architecture="single")))
    assert "size must be positive multiples of 7, got (32, 32)" in done.stderr


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
