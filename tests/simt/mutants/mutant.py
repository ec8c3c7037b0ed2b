"""What a mutant is, and the test files that can see one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """`old` must occur exactly once in `file`. `equivalent`: why no test can see it, or "" where one must."""

    what: str
    file: str
    old: str
    new: str
    tests: str  # of tests/simt, those that can see it
    build: str = "plain"  # the first that should
    equivalent: str = ""


ENTROPY = "test_entropy.py"
UNCERTAINTY = "test_uncertainty.py"
PSEUDO_LABELS = "test_pseudo_labels.py"
SELECT = "test_select.py"
WHERE = "test_where.py"
SHUFFLE = "test_shuffle.py"
BOUNDARIES = "test_boundaries.py"
LOSS = "test_loss.py"
SOFT = "test_soft_loss.py"
RACES = "test_races.py"
INDEX = "test_index.py"
BOX_MASK = "test_box_mask.py"
TRAFFIC = "test_traffic.py"
