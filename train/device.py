"""The device that a name means on this machine."""

from __future__ import annotations

import os

import torch


def pick_device(name: str) -> torch.device:
    """auto: this process's GPU if there is one, else the CPU; or the device of that name.

    Raises:
        ValueError: the device cannot be used here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} is not usable here: {error}") from None
    return device
