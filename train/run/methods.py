"""`python -m train methods`: every method with its formula, where it is from and what it sets in a recipe, as Markdown.

docs/methods.md ends with what this prints; a test compares the two.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

from train.methods import METHODS, Method
from train.run.config import flatten
from train.run.recipes import RECIPES, configure

WIDTH = 150


def describe() -> str:
    return "\n".join(section(name, method) for name, method in METHODS.items())


def section(name: str, method: Method) -> str:
    also = [alias for alias, target in METHODS.aliases.items() if target == name]
    title = f"## {name}{f' (also: {also[0]})' if also else ''}\n"
    formula = textwrap.indent(filled(method.formula, WIDTH - 4), "    ")
    parts = [title, filled(f"{method.summary[0].upper()}{method.summary[1:]}."), "", formula, ""]
    said = {"Source": method.source, "Differs": method.differs, "Sets": settings(name)}
    parts += [filled(f"- {what}: {text}", indent="  ") for what, text in said.items() if text]
    return "\n".join(parts).rstrip() + "\n"


def filled(text: str, width: int = WIDTH, indent: str = "") -> str:
    return textwrap.fill(text, width, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)


def settings(name: str) -> str:
    """What the method has or sets that the quick recipe does not, as flags."""
    usual = flatten(RECIPES["quick"]("supervised", "unet"))
    brought = {key: value for key, value in flatten(configure(name)).items() if key not in usual or usual[key] != value}
    flags = " ".join(flag(key, value) for key, value in brought.items() if key != "method")
    return flags and f"`{flags}`"


def flag(name: str, value: Any) -> str:
    """As the command line takes it."""
    name = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    values = value if isinstance(value, tuple) else (value,)
    return " ".join([f"--{name}", *(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values)])


@dataclass(frozen=True)
class Config:
    """List the methods with their formulas, their sources and what they set."""


def main(config: Config) -> None:
    print(describe(), end="")
