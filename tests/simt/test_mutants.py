"""Each mutant still fits the kernels: `python -m tests.simt.mutate` can make it."""

from __future__ import annotations

import re

import pytest

from .build import HERE, ROOT
from .mutants import MUTANTS, Mutant
from .mutate import PAGE, broken

KERNELS = ROOT / "csrc" / "kernels" / "cuda"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: re.sub(r"\W+", "-", m.what))
def test_its_text_occurs_once_and_is_replaced(mutant: Mutant) -> None:
    text = (KERNELS / mutant.file).read_text()
    assert broken(mutant, text) != text
    for test in mutant.tests.split():
        file, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}" in (HERE / file).read_text()  # of a whole file: any


def test_rows_of_the_page_are_of_mutants() -> None:
    lines = PAGE.read_text().splitlines()
    rows = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")][1:]
    assert rows == [mutant.what for mutant in MUTANTS if mutant.what in rows]
    assert f"{len(rows)} mutants: " in lines[5]
