"""Slices in memory, their order over the steps, and their augmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import write_tiny

from train.data.batches import LABELLED, UNLABELLED, Batches, Slices, indices, random_transforms


def test_batches_are_the_same_whoever_takes_them(tmp_path: Path) -> None:
    root = write_tiny(tmp_path / "data")
    slices = Slices(root, (root / "train_slices.list").read_text().split(), 4, torch.device("cpu"))
    whole = Batches(slices, 4, (32, 48), "cubic", 5, UNLABELLED)
    halves = [Batches(slices, 4, (32, 48), "cubic", 5, UNLABELLED, share, 2) for share in (0, 1)]
    for step in (0, 7):
        batch = whole.at(step)
        assert batch.images.shape == (4, 1, 32, 48) and batch.labels.shape == (4, 32, 48)
        parts = [half.at(step) for half in halves]
        assert torch.equal(batch.images, torch.cat([part.images for part in parts]))
        assert torch.equal(batch.labels, torch.cat([part.labels for part in parts]))
        assert set(batch.labels.unique().tolist()) <= {0, 1, 2, 3}
    with pytest.raises(ValueError, match="unlabelled_batch must be a multiple of the 3 processes, got 4"):
        Batches(slices, 4, (32, 48), "cubic", 5, UNLABELLED, 0, 3)


def test_every_slice_comes_once_a_pass() -> None:
    passes = [i for step in range(6) for i in indices(3, LABELLED, step, 4, 12)]
    assert sorted(passes[:12]) == sorted(passes[12:]) == list(range(12))
    assert passes[:12] != passes[12:]


def test_augmentation_turns_image_and_label_alike() -> None:
    """Quarter turns with a flip and small rotations about the centre, at the rates of the field's scripts."""
    rng = np.random.default_rng(0)
    theta = random_transforms(rng, np.tile([30, 50], (4000, 1)))[:, :, :2]
    plain = (theta == np.eye(2)).all((1, 2))
    square = (np.abs(theta).round(9) % 1 == 0).all((1, 2))
    assert np.mean(square & ~plain) == pytest.approx(0.5, abs=0.03)
    assert (
        len(np.unique(theta[square & ~plain], axis=0)) == 4
    )  # a turn and then a flip is a reflection, of which there are 4
    np.testing.assert_array_equal(np.linalg.det(theta[square & ~plain]).round(9), -1)
    assert np.mean(~square) == pytest.approx(0.25, abs=0.03)
    pixels = np.diag([49 / 2, 29 / 2])
    turned = pixels @ theta[~square] @ np.linalg.inv(pixels)  # in pixels it is a rotation
    angles = np.degrees(np.arctan2(turned[:, 1, 0], turned[:, 0, 0]))
    np.testing.assert_allclose(turned @ turned.transpose(0, 2, 1), np.broadcast_to(np.eye(2), turned.shape), atol=1e-12)
    assert 18 < np.abs(angles).max() <= 20
