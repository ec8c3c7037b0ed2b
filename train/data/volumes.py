"""The whole volumes of a list in the h5 layout."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from train.data.layout import Spacing, read_list, read_slice, read_spacing, read_volume, slice_path, volume_path

Volumes = dict[str, tuple[np.ndarray, np.ndarray]]  # name -> image (D, H, W) float32, label (D, H, W) uint8


def read_split(root: Path, split: str, num_classes: int) -> Volumes:
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
    volumes: Volumes = {}
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
