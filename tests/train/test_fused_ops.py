"""Training with the fused ops is training with plain torch: a few steps both ways end in the same networks."""

from pathlib import Path

import pytest
import torch
from tiny import tiny_config, write_tiny

import entmask_ext
from entmask_ext import reference
from train.run.fit import fit


def trained(root: Path, output: Path, method: str) -> dict[str, dict[str, torch.Tensor]]:
    fit(tiny_config(root, output, method=method))
    return torch.load(output / "checkpoints" / "last.pt", weights_only=True)


@pytest.mark.parametrize("method", ["topr", "entropy-count", "pair-shuffle"])
def test_fused_ops_train_as_the_reference_does(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_tiny(tmp_path / "data")
    fused = trained(root, tmp_path / "fused", method)
    calls = []
    for name in ("patch_mask", "consistency_loss", "shuffle_patches", "entropy_map"):

        def plain(*args: object, name: str = name, **options: object) -> object:
            calls.append(name)
            return getattr(reference, name)(*args, **options)

        monkeypatch.setattr(entmask_ext, name, plain)
    again = trained(root, tmp_path / "plain", method)
    assert {"consistency_loss", "shuffle_patches" if method == "pair-shuffle" else "patch_mask"} <= set(calls)
    moved = False
    for network in ("student", "teacher"):
        for name, parameter in fused[network].items():
            torch.testing.assert_close(parameter, again[network][name], rtol=1e-4, atol=1e-5, msg=f"{network} {name}")
            moved |= not torch.equal(parameter, again[network][name])
    assert moved  # float32 against float64 sums: not the same code twice
