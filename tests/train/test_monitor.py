"""The numbers of a run: what they measure, what they warn of, and what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from train.run.folder import RunFolder
from train.run.monitor import Monitor, NotFinite, Watch, read_rows
from train.run.processes import Processes
from train.run.recipes import configure
from train.run.statistics import foreground_masked, label_dice, tied_share


def monitor_with(folder: Path, method: str) -> Monitor:
    return Monitor(RunFolder(folder), Processes(), Watch(configure(method).strategy, 4))


def test_a_vanished_mask_is_named_once_with_its_remedy(tmp_path: Path) -> None:
    monitor = monitor_with(tmp_path, "entropy-count")
    for step in range(1, 251):
        monitor.add(step, {}, {"loss": torch.tensor(1.0), "images_unmasked": torch.tensor(4.0 if step > 60 else 0.0)})
        if step % 20 == 0:
            monitor.flush()
    monitor.close()
    warnings = [row for row in read_rows(tmp_path / "metrics.jsonl") if row["kind"] == "warning"]
    assert [row["step"] for row in warnings] == [111]
    assert "51% of the images of the last 100 steps" in warnings[0]["text"] and "--min-patches" in warnings[0]["text"]


def test_ties_are_named_for_ranking_methods_alone(tmp_path: Path) -> None:
    for method, expected in (("entropy-topr", 1), ("entropy-count", 0)):
        monitor = monitor_with(tmp_path / method, method)
        for step in range(1, 11):
            monitor.add(step, {}, {"loss": torch.tensor(1.0), "tied": torch.tensor(0.9)})
        rows = [row for row in monitor.flush() if row["kind"] == "warning"]
        monitor.close()
        assert len(rows) == expected and all("tie" in row["text"] for row in rows)
    scores = torch.tensor([[1.0, 0.0, 0.0, 2.0], [3.0, 1.0, 2.0, 0.0]])
    assert tied_share(scores).item() == 0.25


def test_what_a_mask_covers_and_how_good_the_pseudo_labels_are() -> None:
    labels = torch.zeros(2, 6, 7, dtype=torch.uint8)
    labels[0, 0, :3], labels[1, 5, 6] = 1, 2
    patches = torch.zeros(2, 2, 2, dtype=torch.bool)  # of 4x4, cut off at the lower and right edge
    assert foreground_masked(labels, patches, 4).item() == 0.0
    patches[1, 1, 1] = True
    assert foreground_masked(labels, patches, 4).item() == 0.25
    assert foreground_masked(torch.zeros_like(labels), patches, 4).isnan()
    truth = labels.clone()
    truth[0, 0, 0] = 0
    assert label_dice(labels, truth, 4).item() == pytest.approx((2 * 2 / (3 + 2) + 1) / 2)  # class 3: neither has it
    assert label_dice(torch.zeros_like(labels), torch.zeros_like(labels), 4).isnan()


def test_not_finite_is_raised_after_the_rows_are_written(tmp_path: Path) -> None:
    monitor = monitor_with(tmp_path, "random")
    monitor.add(1, {}, {"loss": torch.tensor(float("inf"))})
    with pytest.raises(NotFinite, match="the loss is inf at step 1"):
        monitor.flush()
    assert [row["kind"] for row in read_rows(tmp_path / "metrics.jsonl")] == ["train", "stopped"]


@pytest.mark.parametrize(
    "row",
    [
        {"kind": "train", "step": 2, "images_unmasked": "x"},
        {"kind": "validation", "step": 2, "dice_mean": [1]},
        {"kind": "train", "step": True},
        {"kind": "train", "step": 1.0},
        {"kind": "warning", "step": 2, "text": 3},
        {"kind": ["train"], "step": 2},
        [[]] * 100,
    ],
)
def test_rows_of_other_types_are_damaged(row: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "metrics.jsonl"
    good = '{"kind": "train", "step": 1, "images_unmasked": null, "tied": null}'
    path.write_text(f"{good}\n{json.dumps(row)}\n{'[' * 100_000}\n")
    assert read_rows(path) == [json.loads(good)]
    assert f"{path}: line 2 is damaged" in capsys.readouterr().err
    monitor = Monitor(RunFolder(tmp_path), Processes(), Watch(configure("entropy-topr").strategy, 4), 3)
    monitor.close()
    assert capsys.readouterr().err.count("is damaged and left out") == 2
