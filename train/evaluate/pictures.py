"""The picture of a step: image, teacher's entropy, masked patches, the student's view, pseudo-label, truth."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from train.files import write_atomically

TITLES = ("image", "teacher entropy", "masked patches", "student sees", "pseudo-label", "truth")
CLASS_COLOURS = ("#e4572e", "#f3c623", "#3c91e6", "#7bd389", "#9d4edd", "#00a6a6", "#c1666b", "#4f6d7a")


def save_panel(
    path: Path,
    title: str,
    images: Tensor,
    entropy: Tensor,
    patches: Tensor | None,
    patch_size: int | None,
    view: Tensor,
    labels: Tensor,
    truth: Tensor,
    rows: int = 4,
) -> None:
    """images, view (N, 1, H, W); entropy (N, H, W) in [0, 1]; patches (N, Gh, Gw) bool; labels, truth (N, H, W)."""
    height, width = images.shape[2:]
    if patches is None or patch_size is None:
        masked = torch.zeros(len(images), height, width)
    else:
        masked = F.interpolate(patches[:, None].float(), scale_factor=patch_size)[:, 0, :height, :width].cpu()
    columns = [array(x) for x in (images[:, 0], entropy, masked, view[:, 0], labels, truth)]
    image = columns[0]
    count = min(rows, len(image))
    figure = Figure(figsize=(12, 2.05 * count + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(count, len(TITLES), squeeze=False)
    for r in range(count):
        low, high = float(image[r].min()), float(image[r].max())
        for c, axis in enumerate(axes[r]):
            axis.set_axis_off()
            if r == 0:
                axis.set_title(TITLES[c], fontsize=10)
            if c == 1:
                shown = axis.imshow(columns[c][r], cmap="magma", vmin=0, vmax=1)
                continue
            axis.imshow(columns[3][r] if c == 3 else image[r], cmap="gray", vmin=low, vmax=high)
            if c == 2:
                axis.imshow(np.ma.masked_equal(columns[c][r], 0), cmap=ListedColormap(["#e4572e"]), alpha=0.45)
            elif c > 3:
                overlay(axis, columns[c][r])
    figure.colorbar(shown, ax=axes[:, 1], location="bottom", fraction=0.03, pad=0.01)
    figure.suptitle(title, fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    write_atomically(path, buffer.getvalue())


def overlay(axis: Axes, labels: np.ndarray) -> None:
    colours = [CLASS_COLOURS[i % len(CLASS_COLOURS)] for i in range(max(int(labels.max()), 1))]
    axis.imshow(
        np.ma.masked_equal(labels, 0),
        cmap=ListedColormap(colours),
        vmin=0.5,
        vmax=len(colours) + 0.5,
        alpha=0.6,
        interpolation="nearest",
    )


def array(x: Tensor) -> np.ndarray:
    return x.detach().float().cpu().numpy()
