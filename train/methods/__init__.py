"""Methods by name: what the student is shown of an unlabelled slice, and how its answer is held against the teacher's.

A strategy makes views from the whole slices and the teacher's logits; its fields are its settings. A method is a
strategy, most often a choice of train/parts, and what else it changes in a recipe. A file of this package adds a method
or a family of them: see "How to add a method" in CONTRIBUTING.md. `python -m train methods` prints them,
and docs/methods.md shows what it prints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from train.parts import Strategy
from train.parts.masking import Masking
from train.registry import Registry

if TYPE_CHECKING:
    from train.run.config import FitConfig


def unchanged(config: FitConfig) -> FitConfig:
    return config


@dataclass(frozen=True)
class Method:
    summary: str
    formula: str
    #: From what the recipe says about patches, and no mask yet, to the method's strategy.
    strategy: Callable[[Masking], Strategy]
    #: What else the method changes in a recipe.
    preset: Callable[[FitConfig], FitConfig] = unchanged
    #: Authors, venue, arXiv number; "": it is this project's own.
    source: str = ""
    #: What differs from the authors' code, and why.
    differs: str = ""


METHODS: Registry[Method] = Registry(__name__, "method")
