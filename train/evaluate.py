"""`python -m train evaluate`: the best and the last checkpoint of a run on whole volumes, class by class."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from torch import nn
from tqdm import tqdm

from train import checkpoint
from train.layout import Spacing, read_list, read_slice, read_spacing, read_volume, slice_path, volume_path
from train.metrics import METRICS, VOXELS, mean_of, measure
from train.phantom import ROOT, ensure_phantom
from train.world import pick_device

Row = dict[str, Any]


@dataclass(frozen=True)
class Config:
    """Judge the best and the last checkpoint of a run on whole volumes.

    Prints a table per class and writes one row a volume to RUN/evaluation/SPLIT_CHECKPOINT.csv.
    """

    #: Run folder, as `python -m train fit` wrote it.
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    #: Which list of volumes: train.list, val.list or test.list.
    split: Literal["train", "val", "test"] = "val"
    #: best: of the highest validation Dice; last: of the end of the run.
    checkpoint: Literal["best", "last", "both"] = "both"
    #: Folder in the ACDC h5 layout. None: the one that the run was trained on.
    root: Path | None = None
    #: Which of the two networks; judged: the one that validation judged during training.
    network: Literal["judged", "student", "teacher"] = "judged"
    #: Unit of the distances and of the NSD's tolerance of 1. mm: by each volume's own spacing.
    unit: Literal["voxel", "mm"] = "voxel"
    #: auto: cuda if there is one, else cpu; or any torch device.
    device: str = "auto"


def main(config: Config) -> None:
    which = ("best", "last") if config.checkpoint == "both" else (config.checkpoint,)
    for name in which:
        path = config.run / "checkpoints" / f"{name}.pt"
        network, fit = checkpoint.load_network(path, config.network, pick_device(config.device))
        if fit.data.size is None:
            raise ValueError(f"{path} does not say which size its network was trained on")
        root = config.root or fit.data.root or ensure_phantom(ROOT)
        volumes = read_split(root, config.split, fit.data.classes)
        spacings = own_spacings(root, volumes) if config.unit == "mm" else None
        rows = evaluate_volumes(network, volumes, fit.data.size, fit.data.classes, spacings=spacings, progress=True)
        table = config.run / "evaluation" / f"{config.split}_{name}.csv"
        checkpoint.write_atomically(table, to_csv(rows).encode())
        who = fit.teacher.judge if config.network == "judged" else config.network
        print(f"\n{path} ({who}), {len(rows)} volumes of {root / config.split}.list, distances in {config.unit}s")
        print(f"{format_table(rows)}per volume: {table}")


def read_split(root: Path, split: str, num_classes: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The volumes that a list names: image (D, H, W) float32 and label (D, H, W) uint8 by name.

    Training volumes that are there as slices only are put together from these, in the order of their numbers.
    """
    names = read_list(root / f"{split}.list")
    if not names:
        raise ValueError(f"{root / split}.list names no volume")
    slices: dict[str, list[str]] = {}
    if split == "train" and not all(volume_path(root, name).is_file() for name in names):
        for name in read_list(root / "train_slices.list"):
            slices.setdefault(name.rsplit("_slice_", 1)[0], []).append(name)
    volumes = {}
    for name in names:
        if name in slices:
            numbered = sorted(slices[name], key=lambda n: int(n.rsplit("_", 1)[1]))
            pairs = [read_slice(slice_path(root, n), num_classes) for n in numbered]
            volumes[name] = (np.stack([image for image, _ in pairs]), np.stack([label for _, label in pairs]))
        else:
            volumes[name] = read_volume(volume_path(root, name), num_classes)
    return volumes


def own_spacings(root: Path, names: Iterable[str]) -> dict[str, Spacing]:
    spacings = {}
    for name in names:
        path = volume_path(root, name)
        spacing = read_spacing(path)
        if spacing is None:
            raise ValueError(f"{path} has no attribute 'spacing': use --unit voxel")
        spacings[name] = spacing
    return spacings


def nearest(count: int, wanted: int) -> np.ndarray:
    """Which of `count` pixels each of `wanted` takes, corner on corner, as scipy.ndimage.zoom with order 0."""
    step = (count - 1) / (wanted - 1) if wanted > 1 else 0.0
    return np.floor(np.arange(wanted) * step + 0.5).astype(np.int64)


def resize(volume: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(D, H, W) -> (D, *size) by nearest neighbour."""
    return volume[:, nearest(volume.shape[1], size[0])[:, None], nearest(volume.shape[2], size[1])]


@torch.inference_mode()
def predict_volume(network: nn.Module, volume: np.ndarray, size: tuple[int, int], batch: int = 16) -> np.ndarray:
    """Labels (D, H, W) uint8 of a volume (D, H, W) in [0, 1], slice by slice.

    Slices are resized to `size` and labels back, by nearest neighbour. The network, images (N, 1, *size) -> logits
    (N, K, *size) with K <= 255, runs in eval mode on its own device and is left in the mode it was in.
    """
    device = next(network.parameters()).device
    images = torch.from_numpy(resize(volume.astype(np.float32, copy=False), size))[:, None]
    was = network.training
    network.eval()
    try:
        parts = [network(part.to(device)).argmax(1).to(torch.uint8).cpu() for part in images.split(batch)]
    finally:
        network.train(was)
    height, width = volume.shape[1:]
    return resize(torch.cat(parts).numpy(), (height, width))


def evaluate_volumes(
    network: nn.Module,
    volumes: Mapping[str, tuple[np.ndarray, np.ndarray]],
    size: tuple[int, int],
    num_classes: int,
    metrics: Sequence[str] = METRICS,
    spacings: Mapping[str, Spacing] | None = None,
    progress: bool = False,
) -> list[Row]:
    """One row a volume: {"case": name, "dice_1": ..., "dice_mean": ..., "empty_1": ...}, see metrics.measure.

    volumes: image (D, H, W) float32 and label (D, H, W) by name; spacings in mm by name, None: distances in voxels.
    """
    rows: list[Row] = []
    for name, (image, label) in tqdm(volumes.items(), disable=not progress, unit="volume", leave=False):
        prediction = predict_volume(network, image, size)
        spacing = VOXELS if spacings is None else spacings[name]
        rows.append({"case": name, **measure(prediction, label, num_classes, metrics, spacing)})
    return rows


def to_csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def format_table(rows: Sequence[Row]) -> str:
    """Means over the volumes, a line a class and one for their mean; distances over the volumes that have them.

    `empty` counts volumes where the prediction lacks the class, `absent` those where the truth does.
    """
    metrics = [name for name in METRICS if f"{name}_mean" in rows[0]]
    classes = [key.removeprefix("empty_") for key in rows[0] if key.startswith("empty_")]
    titles = {"dice": "Dice", "jaccard": "Jaccard", "hd95": "HD95", "asd": "ASD", "nsd": "NSD"}
    lines = [f"{'class':<8}" + "".join(f"{titles[name]:>9}" for name in metrics) + f"{'empty':>8}{'absent':>8}"]
    means = {(name, c): mean_of([row[f"{name}_{c}"] for row in rows]) for name in metrics for c in classes}
    counts = {(key, c): int(sum(row[f"{key}_{c}"] for row in rows)) for key in ("empty", "absent") for c in classes}
    for c in classes:
        values = "".join(f"{means[name, c]:>9.4f}" for name in metrics)
        lines.append(f"{c:<8}{values}{counts['empty', c]:>8}{counts['absent', c]:>8}")
    values = "".join(f"{mean_of([means[name, c] for c in classes]):>9.4f}" for name in metrics)
    total = {key: sum(counts[key, c] for c in classes) for key in ("empty", "absent")}
    lines.append(f"{'mean':<8}{values}{total['empty']:>8}{total['absent']:>8}")
    return "\n".join(lines) + "\n"
