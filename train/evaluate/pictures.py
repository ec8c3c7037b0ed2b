"""Pictures of slices with their classes: the panel of a training step, and the slices of a labelled volume."""

from __future__ import annotations

import io
from collections.abc import Sequence
from math import ceil
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from train.files import write_atomically
from train.parts import IGNORED, View

TITLES = ("image", "teacher entropy", "mixed or masked", "student sees", "pseudo-label", "truth")
CLASS_COLOURS = ("#e4572e", "#f3c623", "#3c91e6", "#7bd389", "#9d4edd", "#00a6a6", "#c1666b", "#4f6d7a")
PATCH_COLOUR, MIXED_COLOUR, IGNORED_COLOUR = "#ff00e6", "#00e5c0", "#808080"  # of no class
ALPHA = 0.6
WINDOW = (1.0, 96.0)  # percentiles that are shown black and white: a few bright voxels must not darken the rest
COLUMNS = 5


def draw_panel(
    title: str,
    images: Tensor,
    entropy: Tensor,
    view: View,
    truth: Tensor,
    names: Sequence[str],
    rows: int = 4,
) -> Figure:
    """images (N, 1, H, W); entropy (N, H, W) in [0, 1]; truth (N, H, W); the view is of all of them or of the first.

    names: of every class, background first.
    """
    size = (images.shape[2], images.shape[3])
    where = [pixels(view.mixed, view.mixed_patch_size, size), pixels(view.patches, view.patch_size, size)]
    if view.mixed is view.patches:
        where[1] = None
    changed = torch.zeros(len(view.images), *size)
    for value, mask in enumerate(where, 1):
        if mask is not None:
            changed[mask.cpu()] = value
    columns = [array(x) for x in (images[:, 0], entropy, changed, view.images[:, 0], view.labels, truth)]
    image = columns[0]
    count = min(rows, len(view.images))
    figure = new_figure((12, 2.05 * count + 0.8))
    axes = figure.subplots(count, len(TITLES), squeeze=False)
    for r in range(count):
        low, high = window(image[r])
        for c, axis in enumerate(axes[r]):
            axis.set_axis_off()
            if r == 0:
                axis.set_title(TITLES[c], fontsize=10)
            if c == 1:
                shown = axis.imshow(columns[c][r], cmap="magma", vmin=0, vmax=1)
                continue
            # Pseudo-labels of a mixed slice are of what it was mixed to.
            under = columns[3][r] if c == 3 or (c == 4 and view.mixed is not None) else image[r]
            axis.imshow(under, cmap="gray", vmin=low, vmax=high)
            if c == 2:
                colours = ListedColormap([MIXED_COLOUR, PATCH_COLOUR])
                axis.imshow(np.ma.masked_equal(columns[c][r], 0), cmap=colours, vmin=1, vmax=2, alpha=ALPHA)
            elif c > 3:
                overlay(axis, columns[c][r], len(names))
    bar = figure.colorbar(shown, ax=axes[:, 1], location="bottom", fraction=0.03, pad=0.01, ticks=(0, 1))
    bar.ax.set_xticklabels(("0: sure", "1: unsure"), fontsize=8)
    figure.suptitle(title, fontsize=11)
    further = {"a partner's": MIXED_COLOUR, "masked": PATCH_COLOUR}
    further = {name: colour for (name, colour), mask in zip(further.items(), where, strict=True) if mask is not None}
    legend(figure, names, further | ({"not believed": IGNORED_COLOUR} if (view.labels == IGNORED).any() else {}))
    return figure


def draw_slices(image: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Figure:
    """Every slice of image (D, H, W) with its labels over it; names: of every class, background first."""
    depth, height, width = image.shape
    rows, columns = ceil(depth / COLUMNS), min(depth, COLUMNS)
    figure = new_figure((2.4 * columns, 2.4 * rows * height / width + 0.4))
    low, high = window(image)
    for axis in figure.subplots(rows, columns, squeeze=False).flat:
        axis.set_axis_off()
    for axis, plane, label in zip(figure.axes, image, labels, strict=False):
        axis.imshow(plane, cmap="gray", vmin=low, vmax=high)
        overlay(axis, label, len(names))
    legend(figure, names)
    return figure


def save_figure(path: Path, figure: Figure) -> None:
    """In the format that the path's suffix names."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:].lower(), dpi=100)
    write_atomically(path, buffer.getvalue())


def new_figure(size: tuple[float, float]) -> Figure:
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def class_names(names: Sequence[str], classes: int) -> tuple[str, ...]:
    """The names if the data set states them, else their numbers."""
    return tuple(names) or tuple(f"class {c}" for c in range(classes))


def window(image: np.ndarray) -> tuple[float, float]:
    """The values that are shown black and white."""
    low, high = np.percentile(image, WINDOW)
    return (float(low), float(high)) if low < high else (float(image.min()), float(image.max()))


def class_colours(classes: int) -> list[str]:
    """Of every class but 0."""
    if classes - 1 <= len(CLASS_COLOURS):
        return list(CLASS_COLOURS[: classes - 1])
    return [matplotlib.colors.to_hex(c) for c in matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, classes - 1))]


def pixels(patches: Tensor | None, patch_size: int | None, size: tuple[int, int]) -> Tensor | None:
    """Patches (N, *grid) bool as a mask of pixels (N, H, W)."""
    if patches is None or patch_size is None:
        return None
    return F.interpolate(patches[:, None].float(), scale_factor=patch_size)[:, 0, : size[0], : size[1]] > 0


def overlay(axis: Axes, labels: np.ndarray, classes: int) -> None:
    """Colours of the classes but 0 over a slice; grey where labels are IGNORED."""
    ignored = np.ma.masked_not_equal(labels, IGNORED)
    axis.imshow(ignored, cmap=ListedColormap([IGNORED_COLOUR]), alpha=ALPHA, interpolation="nearest")
    axis.imshow(
        np.ma.masked_where((labels == 0) | (labels == IGNORED), labels),
        cmap=ListedColormap(class_colours(classes)),
        vmin=0.5,
        vmax=classes - 0.5,
        alpha=ALPHA,
        interpolation="nearest",
    )


def legend(figure: Figure, names: Sequence[str], further: dict[str, str] | None = None) -> None:
    """What each colour stands for, below the pictures."""
    colours = dict(zip(names[1:], class_colours(len(names)), strict=True)) | (further or {})
    handles = [Patch(color=colour, alpha=ALPHA, label=name) for name, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5), fontsize=9, frameon=False)


def array(x: Tensor) -> np.ndarray:
    return x.detach().float().cpu().numpy()
