"""`python -m train methods`: every method with its formula and what it changes in a recipe."""

from __future__ import annotations

from dataclasses import dataclass

from train.methods import METHODS
from train.run.config import flatten
from train.run.recipes import configure


def describe() -> str:
    usual = flatten(configure())
    lines = []
    for name, method in METHODS.items():
        also = [alias for alias, target in METHODS.aliases.items() if target == name]
        lines.append(f"{name}{f' (also: {also[0]})' if also else ''}\n    {method.summary}\n    {method.formula}")
        brought = {k: v for k, v in flatten(configure(name)).items() if k != "method" and usual.get(k) != v}
        if brought:
            lines.append("    brings " + ", ".join(f"{key} {value}" for key, value in brought.items()))
    return "\n".join(lines)


@dataclass(frozen=True)
class Config:
    """List the methods with their formulas."""


def main(config: Config) -> None:
    print(describe())
