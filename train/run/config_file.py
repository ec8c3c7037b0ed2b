"""Configurations as JSON: config.json of a run folder, and the same text in its checkpoints."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from train.files import parse_json
from train.run.config import FitConfig, typed
from train.run.recipes import configure

LATER = {"architecture", "sync_batch_norm", "compile"}  # what files of 0.1.0 lack; the default is what they mean


def to_json(config: FitConfig) -> str:
    return json.dumps(dataclasses.asdict(config), indent=2, default=str) + "\n"


def from_json(text: str, where: object) -> FitConfig:
    """The configuration that to_json wrote; where: the file that it is from, for messages.

    Raises:
        ValueError: it is no configuration of this version; the message names the field.
    """
    try:
        values = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{where}: the configuration of a run is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{where}: the configuration of a run must be a JSON object, got {type(values).__name__}")
    kind = {name: values[name] for name in ("method", "recipe", "architecture") if name in values}
    try:
        for name, value in kind.items():
            if not isinstance(value, str):
                raise ValueError(f"field {name!r} must be text, got {value!r}")
        usual = configure(**kind)
        absent = next(absent_fields(dataclasses.asdict(usual), values), None)
        if absent is not None:
            raise ValueError(f"field {absent!r} is missing")
        return typed(values, usual)
    except ValueError as error:
        raise ValueError(f"{where}: not a configuration of this version: {error}") from None


def absent_fields(wanted: dict[str, Any], given: dict[str, Any], group: str = "") -> Iterator[str]:
    for name, value in wanted.items():
        if name not in given:
            if name not in LATER:
                yield group + name
        elif isinstance(value, dict):
            if not isinstance(given[name], dict):
                raise ValueError(f"field {name!r} must be an object, got {given[name]!r}")
            yield from absent_fields(value, given[name], f"{group}{name}.")
