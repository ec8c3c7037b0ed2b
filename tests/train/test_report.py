"""`python -m train report`: which runs make a line, and what a line says."""

from __future__ import annotations

from pathlib import Path

import pytest

from train.evaluate.report import Run, group
from train.run.recipes import configure


def test_report_names_groups_by_what_tells_them_apart() -> None:
    def run(**changes: object) -> Run:
        config = configure(**{"recipe": "reduced", "autocast": "bf16", **changes})
        return Run(config, [{"kind": "train", "step": s, "masked": s / 100} for s in (1, 99, 100, 101)])

    runs = [
        run(method="mcl"), run(), run(seed=1, output=Path("a")), run(scope="batch"), run(ratio=(0.1, 0.5), hint=0.1),
    ]  # fmt: skip
    names = {name: len(members) for name, members in group(runs).items()}
    hinted = "entropy-topr ratio=0.1,0.5 hint=0.1"
    assert names == {"mcl": 1, "entropy-topr": 2, "entropy-topr scope=batch": 1, hinted: 1}
    assert set(group([run(), run(recipe="iterations")])) == {
        "entropy-topr recipe=reduced",
        "entropy-topr recipe=iterations",
    }
    steps, values = runs[0].binned("masked")
    assert steps == [100, 200] and values == pytest.approx([2 / 3, 1.01])
