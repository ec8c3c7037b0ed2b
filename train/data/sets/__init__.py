"""Data sets as their owners publish them. A file of this package adds one: see acdc.py, and CONTRIBUTING.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from train.registry import Registry


@dataclass(frozen=True)
class DataSet:
    #: Names of the classes, background first; label k in the h5 layout is classes[k].
    classes: tuple[str, ...]
    #: The published folder, the root to write in the h5 layout -> a summary in one line.
    convert: Callable[[Path, Path], str]


DATA_SETS: Registry[DataSet] = Registry(__name__, "data_set")
