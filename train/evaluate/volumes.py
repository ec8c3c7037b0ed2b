"""A network on whole volumes: its labels, and how they measure up against the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from train.data.layout import Spacing
from train.device import Precision, autocast
from train.evaluate.metrics import METRICS, VOXELS, measure

Row = dict[str, Any]


def nearest(count: int, wanted: int) -> np.ndarray:
    """Which of `count` pixels each of `wanted` takes, corner on corner, as scipy.ndimage.zoom with order 0."""
    step = (count - 1) / (wanted - 1) if wanted > 1 else 0.0
    return np.floor(np.arange(wanted) * step + 0.5).astype(np.int64)


def resize(volume: Tensor, size: tuple[int, int]) -> Tensor:
    """(D, H, W) -> (D, *size) by nearest neighbour."""
    rows, columns = (
        torch.from_numpy(nearest(count, wanted)).to(volume.device)
        for count, wanted in zip(volume.shape[1:], size, strict=True)
    )
    return volume[:, rows[:, None], columns]


@torch.inference_mode()
def predict_labels(
    network: nn.Module, volume: Tensor, size: tuple[int, int], precision: Precision = "no", batch: int = 16
) -> Tensor:
    """Labels (D, H, W) uint8 of a volume (D, H, W) float32 in [0, 1] on the network's device, slice by slice.

    Slices are resized to `size` and labels back, by nearest neighbour. The network, images (N, 1, *size) -> logits
    (N, K, *size) with K <= 255, runs in eval mode and mixed precision and is left in the mode it was in.
    """
    was = network.training
    network.eval()
    try:
        with autocast(volume.device, precision):
            parts = [network(part).argmax(1).to(torch.uint8) for part in resize(volume, size)[:, None].split(batch)]
    finally:
        network.train(was)
    return resize(torch.cat(parts), (volume.shape[1], volume.shape[2]))


def predict_volume(
    network: nn.Module, volume: np.ndarray, size: tuple[int, int], precision: Precision = "no", batch: int = 16
) -> np.ndarray:
    """As predict_labels, of and as an array on the host."""
    device = next(network.parameters()).device
    image = torch.from_numpy(volume.astype(np.float32, copy=False)).to(device)
    return predict_labels(network, image, size, precision, batch).cpu().numpy()


def evaluate_volumes(
    network: nn.Module,
    volumes: Mapping[str, tuple[np.ndarray, np.ndarray]],
    size: tuple[int, int],
    num_classes: int,
    metrics: Sequence[str] = METRICS,
    spacings: Mapping[str, Spacing] | None = None,
    precision: Precision = "no",
    progress: bool = False,
) -> list[Row]:
    """One row a volume: {"case": name, "dice_1": ..., "dice_mean": ..., "empty_1": ...}, see metrics.measure.

    volumes: image (D, H, W) float32 and label (D, H, W) by name; spacings in mm by name, None: distances in voxels.
    """
    rows: list[Row] = []
    for name, (image, label) in tqdm(volumes.items(), disable=not progress, unit="volume", leave=False):
        prediction = predict_volume(network, image, size, precision)
        spacing = VOXELS if spacings is None else spacings[name]
        rows.append({"case": name, **measure(prediction, label, num_classes, metrics, spacing)})
    return rows
