"""Gloo processes: equal networks on all, the step of one process that averages two half-batches, and resume."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import command, tiny_config, write_tiny

from train.data.batches import LABELLED, UNLABELLED, Batches, Slices
from train.networks import build_network
from train.parts import Given
from train.run import losses
from train.run.config import FitConfig

REPOSITORY = Path(__file__).resolve().parents[2]
SAVES_EACH_RANK = """
import sys
from pathlib import Path
import torch
from train.run import run
finish = run.Run.finish
def save_rank(self):
    torch.save(self.trainer.state_dict(), Path(sys.argv[1]) / f"rank{self.processes.rank}.pt")
    finish(self)
run.Run.finish = save_rank
"""
FREEZES_BATCH_NORM = """
start = run.Run.__init__
def frozen(self, *arguments):
    start(self, *arguments)
    for module in self.trainer.student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
run.Run.__init__ = frozen
"""
DIES_AT_STEP_6 = """
import os, signal
step = run.Trainer.step
def die(self, index, log=False):
    if index == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, index, log)
run.Trainer.step = die
"""
RUN = """
from train.__main__ import main
sys.exit(main(sys.argv[2:]))
"""


def torchrun(tmp_path: Path, config: FitConfig, *patches: str, processes: int = 2) -> int:
    script = tmp_path / "script.py"
    script.write_text("\n".join([SAVES_EACH_RANK, *patches, RUN]))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])}
    done = subprocess.run(
        [*launch, str(script), str(tmp_path), *command(config)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    print(done.stdout, done.stderr)
    return done.returncode


def ranks(tmp_path: Path) -> list[dict[str, dict[str, torch.Tensor]]]:
    return [
        torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        for rank in range(len(list(tmp_path.glob("rank*.pt"))))
    ]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("distributed") / "data")


def test_all_ranks_stay_equal_and_resume(root: Path, tmp_path: Path) -> None:
    """Three: the order of a sum of two numbers does not matter."""
    batches = {"method": "random", "labelled_batch": 6, "unlabelled_batch": 6, "teacher_mode": "train"}
    config = tiny_config(root, tmp_path / "whole", **batches)
    assert torchrun(tmp_path, config, processes=3) == 0
    whole = ranks(tmp_path)
    for network in ("student", "teacher"):
        for name, tensor in whole[0][network].items():
            assert all(torch.equal(tensor, rank[network][name]) for rank in whole), (network, name)

    config = tiny_config(root, tmp_path / "broken", **batches)
    assert torchrun(tmp_path, config, DIES_AT_STEP_6, processes=3) != 0
    assert torch.load(tmp_path / "broken" / "checkpoints" / "last.pt", weights_only=True)["step"] == 4
    assert torchrun(tmp_path, config, processes=3) == 0
    for network in ("student", "teacher"):
        for name, tensor in ranks(tmp_path)[0][network].items():
            assert torch.equal(tensor, whole[0][network][name]), (network, name)
    rows = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "broken")]
    assert rows[0] == rows[1]


def test_a_step_is_the_mean_of_two_half_batches(root: Path, tmp_path: Path) -> None:
    changes = {"iterations": 1, "dropout": (0.0, 0.0), "consistency_from": 0, "rampup": 0.0, "consistency_weight": 1.0}
    config = tiny_config(root, tmp_path / "run", **changes)
    assert torchrun(tmp_path, config, FREEZES_BATCH_NORM) == 0

    data = config.data
    torch.manual_seed(config.seed)
    student = build_network(config.model, config.data.classes)
    teacher = copy.deepcopy(student).eval()
    student.eval()
    names = [(root / file).read_text().split() for file in ("train.list", "train_slices.list")]
    few = {frame.split("_")[0] for frame in names[0][: data.labelled]}
    groups = [[n for n in names[1] if (n.split("_")[0] in few) == labelled] for labelled in (True, False)]
    streams = [Slices(root, group, data.classes, torch.device("cpu")) for group in groups]
    for share in (0, 1):
        labelled = Batches(streams[0], 4, data.size, data.interpolation, 0, LABELLED, share, 2).at(0)
        unlabelled = Batches(streams[1], 4, data.size, data.interpolation, 0, UNLABELLED, share, 2).at(0)
        with torch.no_grad():
            logits = teacher(unlabelled.images)
        (view,) = config.strategy.views(Given(unlabelled.images, logits, logits, labelled), 0.0)
        loss = losses.supervised_loss(student(labelled.images), labelled.labels, config.loss).total
        loss = loss + losses.unlabelled_loss(student(view.images), view, config.loss, None)["consistency"]
        (loss / 2).backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None
        expected = parameter.detach() - config.schedule.lr * (parameter.grad + 1e-4 * parameter.detach())
        torch.testing.assert_close(ranks(tmp_path)[0]["student"][name], expected, rtol=1e-5, atol=1e-7)
