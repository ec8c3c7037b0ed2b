"""Checkpoints of a run: student, teacher, optimizer, step and configuration in one file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from train.files import write_atomically
from train.networks import build_network
from train.run.config import FitConfig
from train.run.config_file import from_json


def save(path: Path, state: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The checkpoint's content.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not a checkpoint of this package, or is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"checkpoint {path} cannot be read: {error}") from error
    if not isinstance(state, dict) or not {"student", "teacher", "config"} <= state.keys():
        raise ValueError(f"checkpoint {path} was not written by train fit")
    return state


def load_network(
    path: Path, which: Literal["judged", "student", "teacher"] = "judged", device: torch.device | str = "cpu"
) -> tuple[nn.Module, FitConfig]:
    """A checkpoint's network in eval mode and the run's configuration; judged: the one that validation judged."""
    state = load(path, device)
    config = from_json(state["config"], path)
    network = build_network(config.model, config.data.classes).to(device)
    network.load_state_dict(state[config.teacher.judge if which == "judged" else which])
    return network.eval(), config
