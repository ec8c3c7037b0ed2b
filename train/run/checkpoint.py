"""Checkpoints of a run: student, teacher, optimizer, step and configuration in one file."""

from __future__ import annotations

import io
import reprlib
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from train.data.description import Description, from_plain, read_description
from train.files import reason, write_atomically
from train.networks import build_network
from train.run.config import FitConfig
from train.run.config_file import from_json


def save(path: Path, state: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def load(path: Path, parts: Iterable[str], device: torch.device | str = "cpu") -> dict[str, Any]:
    """The checkpoint's content, all these parts among it, each of its type.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not a checkpoint of this package, is damaged, lacks a part, or a part is of another type.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        state = torch.load(io.BytesIO(verified(path)), map_location=device, weights_only=True)
    except Exception as error:
        raise ValueError(f"checkpoint {path} cannot be read: {reason(error)}") from error
    if not isinstance(state, dict) or not {"student", "teacher"} & state.keys():
        raise ValueError(f"checkpoint {path} was not written by train fit")
    check_parts(path, state, parts)
    check_types(path, state)
    return state


def verified(path: Path) -> bytes:
    """The file's bytes, read once; torch.load does not compare the records of a zip archive with their checksums.

    Raises:
        ValueError: a record is damaged.
        OSError, zipfile.BadZipFile: it cannot be read, is cut off, or is no zip archive.
    """
    content = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"record {damaged} is damaged")
    return content


def check_parts(path: Path, state: dict[str, Any], parts: Iterable[str]) -> None:
    for part in parts:
        if part not in state:
            raise ValueError(f"checkpoint {path} lacks {part!r}: it is of another version, or not whole")


def check_types(path: Path, state: dict[str, Any]) -> None:
    """Raises ValueError, naming the part, where one is not of the type that train fit writes."""
    expected = {
        "step": ("a whole number of at least 0", is_step),
        "best": ("the scores of a step, 'dice' among them", lambda best: is_scores(best) and "dice" in best),
        "last": ("the scores of a step", is_scores),
        "config": ("text", lambda config: isinstance(config, str)),
        **dict.fromkeys(
            ("student", "teacher", "optimizer", "scaler"), ("a dict", lambda part: isinstance(part, dict))
        ),
    }  # fmt: skip
    for part, (kind, fits) in expected.items():
        if part in state and not fits(state[part]):
            raise ValueError(f"checkpoint {path}: {part!r} must be {kind}, got {reprlib.repr(state[part])}")
    if "data_set" in state:
        from_plain(state["data_set"], f"checkpoint {path}")


def is_step(value: Any) -> bool:
    return type(value) is int and value >= 0


def is_scores(value: Any) -> bool:
    return (
        isinstance(value, dict) and is_step(value.get("step")) and all(type(v) in (int, float) for v in value.values())
    )


Which = Literal["judged", "student", "teacher"]


def load_network(
    path: Path, which: Which = "judged", device: torch.device | str = "cpu"
) -> tuple[nn.Module, FitConfig]:
    """A checkpoint's network in eval mode and the run's configuration; judged: the one that validation judged."""
    return network_of(path, load(path, (), device), which, device)


def network_of(
    path: Path, state: dict[str, Any], which: Which, device: torch.device | str
) -> tuple[nn.Module, FitConfig]:
    """As load_network, of what load gave."""
    check_parts(path, state, ("student", "teacher", "config"))
    config = from_json(state["config"], path)
    network = build_network(config.model, config.data.classes).to(device)
    part = config.teacher.judge if which == "judged" else which
    try:
        network.load_state_dict(state[part])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"checkpoint {path}: {part!r} does not fit: {reason(error)[:200]}") from None
    return network.eval(), config


def description_of(path: Path, state: dict[str, Any]) -> Description | None:
    """What the data set stated that the networks were trained on; None: of a version that kept none."""
    return from_plain(state["data_set"], f"checkpoint {path}") if "data_set" in state else None


def check_same_kind(path: Path, trained: Description | None, root: Path) -> None:
    """Raises ValueError if root's scaling, or its classes, are others than those that the checkpoint was trained on."""
    given = read_description(root)
    if trained is None:
        return
    if trained.scaling != given.scaling:
        raise ValueError(f"{root} is of scaling {given.scaling}, checkpoint {path} was trained on {trained.scaling}")
    if trained.classes and given.classes and trained.classes != given.classes:
        now, then = ", ".join(given.classes), ", ".join(trained.classes)
        raise ValueError(f"{root} has the classes {now}; checkpoint {path} was trained on {then}")
