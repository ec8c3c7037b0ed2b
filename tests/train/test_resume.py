"""A run that is killed and started again ends as if nothing had happened, to the bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import command, tiny_config, write_tiny

from train.run.monitor import read_rows

REPOSITORY = Path(__file__).resolve().parents[2]
# Kills itself at the n-th save of a checkpoint with half of the new file written, as a SIGKILL in a write would.
DIES_WRITING = """
import os, signal, sys
real, saves = os.replace, 0
def replace(source, target):
    global saves
    saves += str(target).endswith(sys.argv[1])
    if saves == int(sys.argv[2]):
        os.truncate(source, os.path.getsize(source) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
os.replace = replace
from train.__main__ import main
sys.exit(main(sys.argv[3:]))
"""


def start(*arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, *arguments], cwd=REPOSITORY, env=environment, **quiet)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("resume") / "data")


@pytest.fixture(scope="module")
def unbroken(root: Path) -> Path:
    """The run as it ends when nothing stops it."""
    folder = root.parent / "unbroken"
    assert start("-m", "train", *arguments(root, folder)).wait() == 0
    return folder


def arguments(root: Path, folder: Path) -> list[str]:
    return command(tiny_config(root, folder, method="random", iterations=30))


def assert_same_run(folder: Path, unbroken: Path) -> None:
    assert (folder / "metrics.jsonl").read_text() == (unbroken / "metrics.jsonl").read_text()
    for name in ("best.pt", "last.pt"):
        ours, theirs = (torch.load(f / "checkpoints" / name, weights_only=True) for f in (folder, unbroken))
        assert ours["step"] == theirs["step"] and ours["best"] == theirs["best"]
        for network in ("student", "teacher"):
            assert ours[network].keys() == theirs[network].keys()
            for key, tensor in theirs[network].items():
                assert torch.equal(ours[network][key], tensor), key
        for i, state in theirs["optimizer"]["state"].items():
            assert torch.equal(ours["optimizer"]["state"][i]["momentum_buffer"], state["momentum_buffer"])


def test_killed_at_random_moments(root: Path, unbroken: Path) -> None:
    folder = root.parent / "killed"
    seed = random.randrange(2**32)
    print("seed of the kills:", seed)
    moments = random.Random(seed)
    kills = 0
    while kills < 3:
        process = start("-m", "train", *arguments(root, folder))
        rows = folder / "metrics.jsonl"
        before = rows.stat().st_mtime_ns if rows.exists() else None
        while process.poll() is None and (not rows.exists() or rows.stat().st_mtime_ns == before):
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, 0.7))
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert start("-m", "train", *arguments(root, folder)).wait() == 0
    assert_same_run(folder, unbroken)


def test_stopped_by_signals(root: Path, unbroken: Path) -> None:
    """Ctrl-C and SIGTERM: the step at hand is finished and saved, whichever it is."""
    folder = root.parent / "stopped"
    steps = 0
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM)):
        process = start("-m", "train", *arguments(root, folder))
        while process.poll() is None and last_step(folder) <= steps:
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait() == code
        steps = last_step(folder)
        assert 0 < steps < 30 and torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["step"] == steps
    assert start("-m", "train", *arguments(root, folder)).wait() == 0
    assert_same_run(folder, unbroken)


def last_step(folder: Path) -> int:
    return max((row["step"] for row in read_rows(folder / "metrics.jsonl", warn=False)), default=0)


@pytest.mark.parametrize(("name", "save"), [("last.pt", 1), ("last.pt", 3), ("best.pt", 1)])
def test_killed_in_the_middle_of_a_write(root: Path, unbroken: Path, name: str, save: int) -> None:
    folder = root.parent / f"torn-{name}-{save}"
    assert start("-c", DIES_WRITING, name, str(save), *arguments(root, folder)).wait() == -signal.SIGKILL
    last = folder / "checkpoints" / "last.pt"
    assert list(last.parent.glob(f".{name}.*.part")), "it was not killed in a write"
    if name == "best.pt":
        assert torch.load(last, weights_only=True)["best"]["step"] == 4 and not (last.parent / name).exists()
    elif save == 1:
        assert not last.exists()
    else:
        assert torch.load(last, weights_only=True)["step"] == 4 * (save - 1)
    assert start("-m", "train", *arguments(root, folder)).wait() == 0
    assert not list(folder.rglob("*.part"))
    assert_same_run(folder, unbroken)


def test_a_finished_run_is_left_as_it_is(root: Path, unbroken: Path) -> None:
    before = (unbroken / "metrics.jsonl").read_bytes(), (unbroken / "checkpoints" / "last.pt").read_bytes()
    assert start("-m", "train", *arguments(root, unbroken)).wait() == 0
    assert before == ((unbroken / "metrics.jsonl").read_bytes(), (unbroken / "checkpoints" / "last.pt").read_bytes())
