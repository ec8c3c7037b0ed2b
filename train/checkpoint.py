"""Files of a run: written beside and renamed, so that whatever happens there is a whole one under the name."""

from __future__ import annotations

import fcntl
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Literal, TextIO

import torch

from train.config import FitConfig, from_dict
from train.network import UNet

UMASK = os.umask(0)
os.umask(UMASK)


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces path by content, or leaves it as it was and raises OSError (a full disk, a write-protected folder)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, 0o666 & ~UMASK)  # mkstemp's own mode shuts everybody else out
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk names no file by itself
        raise


def remove_parts(folder: Path) -> None:
    """Removes what a killed process left half-written."""
    for part in folder.glob("**/.*.part"):
        part.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Raises OSError, naming the folder, unless files can be written in it; makes nothing."""
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise NotADirectoryError(f"output {folder}: {existing} is not a folder")
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise PermissionError(f"output {folder} cannot be written: {error.strerror}") from None


def lock(folder: Path) -> TextIO:
    """Makes the folder this process's own until it ends, however it ends; keep what is returned.

    Raises:
        ValueError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = (folder / ".lock").open("w")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        held.close()
        raise ValueError(f"output {folder}: another process is training there") from None
    return held


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


def build_network(config: FitConfig) -> UNet:
    """The U-Net in channels_last, which is the faster layout for its convolutions on CPU and GPU."""
    model = config.model
    network = UNet(1, config.data.classes, model.channels, model.dropout, model.up)
    return network.to(memory_format=torch.channels_last)


def load_network(
    path: Path, which: Literal["judged", "student", "teacher"] = "judged", device: torch.device | str = "cpu"
) -> tuple[UNet, FitConfig]:
    """A checkpoint's network in eval mode and the run's configuration; judged: the one that validation judged."""
    state = load(path, device)
    config: FitConfig = from_dict(json.loads(state["config"]))
    network = build_network(config).to(device)
    network.load_state_dict(state[config.teacher.judge if which == "judged" else which])
    return network.eval(), config
