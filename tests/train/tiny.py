"""A data set of a few small slices in the ACDC layout, and the smallest run on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from train.data.batches import LABELLED, UNLABELLED, Batches, Slices
from train.data.description import Description, write_description
from train.data.layout import labelled_slices
from train.run.config import FitConfig, flatten
from train.run.recipes import configure
from train.run.step import Trainer

SIZES = ((33, 40), (40, 33), (36, 36), (29, 47))  # odd ones, as real slices have


def slice_of(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Two nested discs and a third beside them on a noisy ground, and which is which."""
    y, x = np.mgrid[: size[0], : size[1]]
    cy, cx = np.array(size) / 2 + rng.uniform(-3, 3, 2)
    label = np.zeros(size, np.uint8)
    label[np.hypot(y - cy, x - cx - 9) < 5] = 1
    label[np.hypot(y - cy, x - cx) < 8] = 2
    label[np.hypot(y - cy, x - cx) < 5] = 3
    image = np.array([0.2, 0.8, 0.4, 1.0])[label] + rng.normal(0, 0.05, size)
    return image.astype(np.float32), label


def write_tiny(root: Path, patients: int = 4, slices: int = 3) -> Path:
    """A root with its lists and files, one frame a patient; one more patient is for validation."""
    rng = np.random.default_rng(0)
    (root / "data" / "slices").mkdir(parents=True)
    frames = [f"patient{i + 1:03d}_frame01" for i in range(patients + 1)]
    names = []
    for i, frame in enumerate(frames):
        pairs = [slice_of(rng, SIZES[i % len(SIZES)]) for _ in range(slices)]
        if i == patients:
            write_h5(root / "data" / f"{frame}.h5", *map(np.stack, zip(*pairs, strict=True)))
            continue
        for k, (image, label) in enumerate(pairs):
            names.append(f"{frame}_slice_{k + 1}")
            write_h5(root / "data" / "slices" / f"{names[-1]}.h5", image, label)
    (root / "train.list").write_text("".join(f"{frame}\n" for frame in frames[:-1]))
    (root / "train_slices.list").write_text("".join(f"{name}\n" for name in names))
    (root / "val.list").write_text(f"{frames[-1]}\n")
    write_description(root, Description("none"))  # noise takes the images out of [0, 1]
    return root


def write_h5(path: Path, image: np.ndarray, label: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file["image"], file["label"] = image, label


def tiny_config(
    root: Path, output: Path, method: str = "topr", architecture: str = "unet", **changes: Any
) -> FitConfig:
    """Eight steps of 4 + 4 slices of 32x32 through a two-level network; changes name any field of the configuration."""
    small = {} if architecture != "unet" else {"channels": (4, 8), "dropout": (0.1, 0.2)}
    settings = flatten(configure(method, architecture=architecture))
    patches = {"patch_size": 8, "ratio": (0.5,), "threshold": (0.5,)}
    patches = {name: value for name, value in patches.items() if name in settings}
    return configure(
        method,
        architecture=architecture,
        **{
            "root": root, "output": output, "device": "cpu", "log_every": 3, "validate_every": 4, "panel_every": 1000,
            "labelled": 2, "size": (32, 32), "iterations": 8, "labelled_batch": 4, "unlabelled_batch": 4,
            "consistency_from": 2, "rampup": 0.5, **small, **patches, **changes,
        },
    )  # fmt: skip


def tiny_trainer(config: FitConfig) -> Trainer:
    """The trainer of a run of 8 steps on the data that write_tiny wrote, without its folder."""
    assert config.data.root is not None
    schedule, device = config.schedule, torch.device("cpu")
    labelled, unlabelled = (
        Batches(Slices(config.data.root, names, 4, device), batch, config.data.size, "nearest", config.seed, stream)
        for names, batch, stream in zip(
            labelled_slices(config.data.root, config.data.labelled),
            (schedule.labelled_batch, schedule.unlabelled_batch),
            (LABELLED, UNLABELLED),
            strict=True,
        )
    )
    return Trainer(config, 8, labelled, unlabelled if config.strategy.unlabelled else None, device)


def command(config: FitConfig) -> list[str]:
    """The arguments of `python -m train` that give this configuration."""
    usual, arguments = flatten(configure(config.method, config.recipe, config.architecture)), ["fit"]
    for name, value in ({"method": config.method, "architecture": config.architecture} | flatten(config)).items():
        flag = name.replace("_", "-")
        if name in ("method", "architecture") or value != usual[name]:
            if isinstance(value, bool):
                arguments.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                arguments += [f"--{flag}", *map(str, value if isinstance(value, tuple) else (value,))]
    return arguments
