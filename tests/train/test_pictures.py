"""Pictures of steps and volumes: what a colour stands for, and whether the image can be seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from train.evaluate.pictures import (
    IGNORED_COLOUR,
    MIXED_COLOUR,
    PATCH_COLOUR,
    class_colours,
    class_names,
    draw_panel,
    draw_slices,
    save_figure,
)
from train.parts import IGNORED, View

NAMES = ("background", "wall", "cavity")
OTHERS = (PATCH_COLOUR, MIXED_COLOUR, IGNORED_COLOUR)


def slices() -> tuple[torch.Tensor, torch.Tensor]:
    """Two dim slices with one bright corner each, and labels of which each class is in one slice only."""
    images = torch.linspace(0.05, 0.15, 32).expand(2, 1, 32, 32).clone()
    images[:, :, :2, :2] = 1.0
    labels = torch.zeros(2, 32, 32, dtype=torch.uint8)
    labels[0, 8:24, 8:24], labels[1, 8:24, 8:24] = 1, 2
    return images, labels


def panel(names: Sequence[str] = NAMES, **changes: Any) -> Figure:
    images, labels = slices()
    patches = torch.zeros(2, 4, 4, dtype=torch.bool)
    patches[:, 1:3, 1:3] = True
    given = {"patches": patches, "patch_size": 8, **changes}
    return draw_panel("step 1", images, torch.rand(2, 32, 32), View(images, labels, **given), labels, names)


def legend_of(figure: Figure) -> dict[str, tuple[float, ...]]:
    (legend,) = figure.legends
    return {
        text.get_text(): handle.get_facecolor()[:3]
        for text, handle in zip(legend.get_texts(), legend.get_patches(), strict=True)
    }


def shown(figure: Figure, path: Path, row: int, column: int) -> np.ndarray:
    """What is seen of one picture of the panel, RGB in [0, 1]; whatever else is drawn over it included."""
    save_figure(path, figure)
    pixels = imread(path)[..., :3]
    axis = figure.axes[row * 6 + column]
    box = axis.get_window_extent()
    height = pixels.shape[0]
    return pixels[height - int(box.y1) + 1 : height - int(box.y0) - 1, int(box.x0) + 1 : int(box.x1) - 1]


@pytest.mark.parametrize("classes", [2, 4, 9, 10, 40])
def test_no_class_has_the_colour_of_patches_or_of_another_class(classes: int) -> None:
    colours = np.array([to_rgb(colour) for colour in (*OTHERS, *class_colours(classes))])
    assert len(colours) == classes + 2
    apart = np.abs(colours[:, None] - colours).sum(-1) + 9 * np.eye(len(colours))
    assert apart[0].min() > 0.4 and apart[:3].min() > 0.1 and apart.min() > 0.02


def test_the_legend_names_the_colours_that_are_drawn(tmp_path: Path) -> None:
    """The middle of every picture is one colour over a dim image: the legend's, though each slice has one class."""
    figure = panel()
    legend = legend_of(figure)
    assert list(legend) == ["wall", "cavity", "masked"]
    for row, name in enumerate(("wall", "cavity")):
        for column, expected in ((2, "masked"), (4, name), (5, name)):
            pixels = shown(figure, tmp_path / "panel.png", row, column)
            height, width = pixels.shape[:2]
            tint = pixels[height // 2, width // 2] - pixels[height // 2, width // 2].min()
            colour = np.array(legend[expected]) - min(legend[expected])
            np.testing.assert_allclose(tint, 0.6 * colour, atol=0.02, err_msg=f"{row} {column}")


def test_what_is_mixed_masked_and_not_believed_is_told_apart(tmp_path: Path) -> None:
    """The mixed patches are around the masked one; the label of the middle is not believed."""
    images, labels = slices()
    patches, mixed = torch.zeros(2, 2, 4, 4, dtype=torch.bool)
    patches[:, 2, 2], mixed[:, :, 2] = True, True
    labels[:, 14:18, 14:18] = IGNORED
    view = View(images, labels, patches, 8, mixed=mixed, mixed_patch_size=8)
    figure = draw_panel("step 1", images, torch.rand(2, 32, 32), view, labels, NAMES)
    legend = legend_of(figure)
    assert list(legend) == ["wall", "cavity", "a partner's", "masked", "not believed"]
    pixels = shown(figure, tmp_path / "panel.png", 0, 2)
    for at, name in (((0.6, 0.6), "masked"), ((0.9, 0.6), "a partner's")):
        pixel = pixels[tuple(int(f * n) for f, n in zip(at, pixels.shape, strict=False))]
        colour = np.array(legend[name]) - min(legend[name])
        np.testing.assert_allclose(pixel - pixel.min(), 0.6 * colour, atol=0.02, err_msg=name)
    middle = shown(figure, tmp_path / "panel.png", 0, 4)
    middle = middle[middle.shape[0] // 2, middle.shape[1] // 2]
    assert np.ptp(middle) < 0.02  # grey


def test_a_volume_has_a_legend_and_classes_without_names_have_numbers() -> None:
    images, labels = slices()
    figure = draw_slices(images[:, 0].numpy(), labels.numpy(), class_names((), 4))
    assert list(legend_of(figure)) == ["class 1", "class 2", "class 3"]
    assert list(legend_of(panel(names=class_names(NAMES, 3), patches=None, patch_size=None)))[:2] == ["wall", "cavity"]


def test_a_few_bright_voxels_leave_the_rest_to_be_seen(tmp_path: Path) -> None:
    """The image goes from 0.05 to 0.15 of its brightest voxel: shown as it is, it would be nearly black."""
    for column in (0, 3):
        pixels = shown(panel(), tmp_path / "panel.png", 0, column)
        assert 0.3 < pixels.mean() < 0.7 and pixels.std() > 0.2
    flat = draw_slices(np.zeros((1, 8, 8)), np.zeros((1, 8, 8), np.uint8), NAMES)
    save_figure(tmp_path / "flat.png", flat)
