"""What decides which checkpoint is the best: Dice of the validation volumes, counted on the device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from train.data.volumes import Volumes
from train.device import Precision
from train.evaluate.metrics import mean_of
from train.evaluate.volumes import predict_labels


class Validation:
    """Whole volumes, kept on the device."""

    def __init__(self, volumes: Volumes, classes: int, size: tuple[int, int], device: torch.device) -> None:
        self.classes, self.size = classes, size
        self.volumes = {
            name: tuple(torch.from_numpy(array).to(device) for array in pair) for name, pair in volumes.items()
        }

    def dice(self, network: nn.Module, precision: Precision) -> dict[str, list[float]]:
        """Dice of every class but 0 of each volume by name, as train.evaluate.metrics.measure defines it."""
        counts = []
        for image, label in self.volumes.values():
            labels = predict_labels(network, image, self.size, precision)
            counts.append(overlap(labels, label, self.classes))
        rows = [[2 * both / either if either else 1.0 for both, either in row] for row in torch.stack(counts).tolist()]
        return dict(zip(self.volumes, rows, strict=True))


def mean_dice(cases: dict[str, list[float]]) -> dict[str, float]:
    """{"dice_1": ..., "dice_mean": ...}: means over the volumes."""
    rows = list(cases.values())
    scores = {f"dice_{c}": mean_of(column) for c, column in enumerate(zip(*rows, strict=True), 1)}
    return {**scores, "dice_mean": mean_of([mean_of(row) for row in rows])}


def overlap(prediction: Tensor, truth: Tensor, classes: int) -> Tensor:
    """(classes - 1, 2) int64: voxels of both and voxels of each, added, of every class but 0."""
    masks = [(prediction == c, truth == c) for c in range(1, classes)]
    return torch.stack([torch.stack([(p & t).sum(), p.sum() + t.sum()]) for p, t in masks])
