"""The whole volumes of a list in the h5 layout."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from train.data.description import description_path, read_description
from train.data.layout import (
    Spacing,
    read_list,
    read_slice,
    read_spacing,
    read_volume,
    slice_number,
    slice_path,
    slices_by_volume,
    volume_path,
)
from train.data.scaling import check_scaling

Volumes = dict[str, tuple[np.ndarray, np.ndarray]]  # name -> image (D, H, W) float32, label (D, H, W) uint8


def read_split(root: Path, split: str, num_classes: int) -> Volumes:
    """The volumes that a list names: image (D, H, W) float32 and label (D, H, W) uint8 by name.

    Training volumes that are there as slices only are put together from these, in the order of their numbers.

    Raises:
        FileNotFoundError, ValueError: as read_list and read_volume; an image is not scaled as the data set states; a
        slice is missing among those of a volume.
    """
    names = read_list(root / f"{split}.list")
    scaling, statement = read_description(root, num_classes).scaling, description_path(root)
    apart = split == "train" and not all(volume_path(root, name).is_file() for name in names)
    slices = slices_by_volume(root) if apart else {}
    volumes: Volumes = {}
    for name in names:
        path = volume_path(root, name)
        volumes[name] = stack_slices(root, name, slices[name], num_classes) if apart else read_volume(path, num_classes)
        check_scaling(volumes[name][0], scaling, path, statement, whole=not apart)
    return volumes


def stack_slices(root: Path, volume: str, names: Iterable[str], num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    numbered = sorted(names, key=slice_number)
    numbers = [slice_number(name) for name in numbered]
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        raise ValueError(
            f"{root / 'train_slices.list'} must name every slice of {volume} once, from its first to its last, "
            f"got the numbers {numbers}"
        )
    pairs = [read_slice(slice_path(root, name), num_classes) for name in numbered]
    shapes = sorted({image.shape for image, _ in pairs})
    if len(shapes) > 1:
        raise ValueError(
            f"{slice_path(root, numbered[0])} and the volume's other slices must have one shape, got {shapes}"
        )
    return np.stack([image for image, _ in pairs]), np.stack([label for _, label in pairs])


def own_spacings(root: Path, names: Iterable[str]) -> dict[str, Spacing]:
    spacings = {}
    for name in names:
        path = volume_path(root, name)
        spacing = read_spacing(path)
        if spacing is None:
            raise ValueError(f"{path} has no attribute 'spacing': use --unit voxel")
        spacings[name] = spacing
    return spacings
