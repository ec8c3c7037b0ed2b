"""Training on a GPU: every kind of strategy, mixed precision, and steps that never make the host wait."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_config, write_tiny

from train.data.batches import LABELLED, UNLABELLED, Batches, Slices
from train.run.fit import fit
from train.run.monitor import read_rows
from train.run.step import Trainer

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("gpu") / "data")


@pytest.mark.parametrize("autocast", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("method", ["supervised", "mcl", "entropy-count", "entropy-topr-hint", "pair-shuffle"])
def test_fit(root: Path, tmp_path: Path, method: str, autocast: str) -> None:
    folder = fit(
        tiny_config(root, tmp_path / "run", method=method, autocast=autocast, device="cuda", iterations=30, lr=0.05)
    )
    rows = [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "train"]
    assert len(rows) == 30
    assert sum(row["supervised"] for row in rows[-5:]) < 0.8 * sum(row["supervised"] for row in rows[:5])


def test_a_step_does_not_wait_for_the_device(root: Path) -> None:
    config = tiny_config(root, Path("run"), device="cuda", consistency_from=0)
    device = torch.device("cuda", 0)
    slices = Slices(root, (root / "train_slices.list").read_text().split(), config.data.classes, device)
    streams = [
        Batches(slices, 4, config.data.size, config.data.interpolation, 0, stream) for stream in (LABELLED, UNLABELLED)
    ]
    trainer = Trainer(config, 8, *streams, device)
    for step in range(2):  # what is set up once may wait
        trainer.step(step, log=True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(2, 5):
            trainer.step(step, log=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
