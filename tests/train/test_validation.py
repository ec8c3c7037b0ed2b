"""The Dice that decides which checkpoint is the best: counted on the device, the same as on the host."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from train.evaluate.metrics import mean_of
from train.evaluate.volumes import evaluate_volumes
from train.run.validation import Validation, mean_dice


def test_dice_is_that_of_evaluate() -> None:
    """Volumes of odd sizes, one without a class, one whose classes are all missing."""
    rng = np.random.default_rng(0)
    volumes = {}
    for name, shape, top in (("a", (3, 33, 40), 4), ("b", (1, 29, 47), 3), ("c", (2, 36, 31), 1)):
        volumes[name] = (rng.random(shape, np.float32), rng.integers(0, top, shape).astype(np.uint8))
    network = nn.Conv2d(1, 4, 3, padding=1)
    rows = evaluate_volumes(network, volumes, (32, 48), 4, metrics=("dice",))
    expected = {name: mean_of([row[name] for row in rows]) for name in rows[0] if name.startswith("dice_")}
    cases = Validation(volumes, 4, (32, 48), torch.device("cpu")).dice(network, "no")
    assert mean_dice(cases) == expected
    assert {name: mean_of(row) for name, row in cases.items()} == {row["case"]: row["dice_mean"] for row in rows}
    assert 0 < expected["dice_mean"] < 1
