"""The device that a name means on this machine, and the precision of networks on it."""

from __future__ import annotations

import contextlib
import os
from typing import Any, Literal

import torch

Precision = Literal["no", "bf16", "fp16"]


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
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        first = str(error).strip().split("\n")[0]
        raise ValueError(f"device {name!r} is not usable here: {first}") from None
    return device


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision of what runs inside; no: as the tensors are."""
    if precision == "no":
        return contextlib.nullcontext()
    return torch.autocast(device.type, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision])
