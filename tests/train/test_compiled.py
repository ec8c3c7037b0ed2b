"""`--compile`: the same steps, and checkpoints that do not tell how they were trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_config, tiny_trainer, write_tiny

from train.run.step import Trainer


def trained(root: Path, **changes: Any) -> tuple[Trainer, list[float]]:
    """Two steps with two views and dropped channels; dropout is on."""
    trainer = tiny_trainer(tiny_config(root, root / "run", method="unimatch", consistency_from=0, **changes))
    return trainer, [trainer.step(step).device["loss"].item() for step in range(2)]


def same(root: Path) -> None:
    torch.set_num_threads(1)
    plain, losses = trained(root)
    compiled, compiled_losses = trained(root, compile=True)
    assert compiled_losses == pytest.approx(losses, rel=1e-4)
    for part in ("student", "teacher"):
        one, other = plain.state_dict()[part], compiled.state_dict()[part]
        assert list(one) == list(other)
        for name in one:
            torch.testing.assert_close(other[name], one[name], rtol=1e-3, atol=1e-4, msg=name)
    plain.load_state_dict(compiled.state_dict())


def test_compiled_networks_train_as_they_do_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in one graph; without the code generation, which takes minutes."""
    compile_, compiled = torch.compile, []

    def traced(function: Any, **options: Any) -> Any:
        compiled.append(options)
        return compile_(function, backend="eager", fullgraph=True)

    monkeypatch.setattr(torch, "compile", traced)
    same(write_tiny(tmp_path))
    assert compiled == [{"options": {"fallback_random": True}}] * 2


@pytest.mark.long
def test_generated_code_trains_as_well(tmp_path: Path) -> None:
    same(write_tiny(tmp_path))
