"""`python -m train convert`: a data set as its owners publish it to the h5 layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from train.data.sets import DATA_SETS


@dataclass(frozen=True)
class Config:
    """Turn a published data set into the h5 layout; the same command goes on with a broken conversion."""

    #: Folder with the data as published; ACDC: patient001 to patient100, or one above it (training/ or
    #: database/training/).
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    #: Folder to write.
    root: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="ROOT")]
    #: Which data set: a file of train/data/sets.
    data_set: str = "acdc"


def main(config: Config) -> None:
    print(DATA_SETS[config.data_set].convert(config.source, config.root))
