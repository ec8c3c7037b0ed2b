"""A network on whole volumes: its labels, and how they measure up against the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from train.data.layout import Spacing
from train.device import Precision, autocast
from train.evaluate.metrics import METRICS, VOXELS, measure

Row = dict[str, Any]


def nearest(count: int, wanted: int) -> np.ndarray:
    """Which of `count` pixels each of `wanted` takes, corner on corner, as scipy.ndimage.zoom with order 0."""
    step = (count - 1) / (wanted - 1) if wanted > 1 else 0.0
    return np.floor(np.arange(wanted) * step + 0.5).astype(np.int64)


def resize(volume: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(D, H, W) -> (D, *size) by nearest neighbour."""
    return volume[:, nearest(volume.shape[1], size[0])[:, None], nearest(volume.shape[2], size[1])]


@torch.inference_mode()
def predict_volume(
    network: nn.Module, volume: np.ndarray, size: tuple[int, int], precision: Precision = "no", batch: int = 16
) -> np.ndarray:
    """Labels (D, H, W) uint8 of a volume (D, H, W) in [0, 1], slice by slice.

    Slices are resized to `size` and labels back, by nearest neighbour. The network, images (N, 1, *size) -> logits
    (N, K, *size) with K <= 255, runs in eval mode and mixed precision on its own device and is left in the mode it was
    in.
    """
    device = next(network.parameters()).device
    images = torch.from_numpy(resize(volume.astype(np.float32, copy=False), size))[:, None]
    was = network.training
    network.eval()
    try:
        with autocast(device, precision):
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
