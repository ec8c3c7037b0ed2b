"""Metrics against medpy, DeepMind's surface-distance and sums over all pairs of points, all in float64."""

from __future__ import annotations

import warnings
from functools import cache
from itertools import product

import numpy as np
import pytest
from real_data import ACDC, needs_acdc

from train.data.anatomy import draw_patient
from train.data.layout import read_list, read_volume, volume_path
from train.evaluate.metrics import METRICS, asd, dice, hd95, jaccard, measure, nsd, surface_distances

FLOAT32 = 1e-6  # relative error of distances and areas, which MONAI gives in float32
SPACINGS = [(1.0, 1.0, 1.0), (10.0, 1.5625, 1.25), (0.7, 3.0, 2.0)]
EMPTY = np.zeros((4, 5, 6), bool)


def box(low: tuple[int, ...], high: tuple[int, ...], shape: tuple[int, ...] = (4, 5, 6)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def blobs(seed: int) -> np.ndarray:
    """Ragged structures of several parts that touch the edges and have holes."""
    rng = np.random.default_rng(seed)
    return rng.random((5, 9, 8)) < rng.choice([0.08, 0.3, 0.6])


PAIRS = {
    "one voxel each": (box((1, 1, 1), (2, 2, 2)), box((3, 4, 5), (4, 5, 6))),
    "the same voxel": (box((1, 1, 1), (2, 2, 2)), box((1, 1, 1), (2, 2, 2))),
    "touching faces": (box((0, 0, 0), (4, 5, 3)), box((0, 0, 3), (4, 5, 6))),
    "touching corners": (box((0, 0, 0), (2, 2, 2)), box((2, 2, 2), (4, 4, 4))),
    "inside": (box((1, 1, 1), (3, 3, 3)), box((0, 0, 0), (4, 5, 6))),
    "a plane": (box((1, 0, 0), (2, 5, 6)), box((3, 0, 0), (4, 5, 6))),
    **{f"blobs {seed}": (blobs(seed), blobs(seed + 100)) for seed in range(12)},
}
pairs = pytest.mark.parametrize("name", PAIRS)
spacings = pytest.mark.parametrize("spacing", SPACINGS, ids=str)


@cache
def phantom_pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    """Each class of a phantom at end-systole as a prediction of the same at end-diastole."""
    (_, truth, _), (_, prediction, _) = draw_patient(0, 1)
    return [(prediction == c, truth == c) for c in (1, 2, 3)]


def acdc_pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    names = read_list(ACDC / "val.list")[:2]
    volumes = [read_volume(volume_path(ACDC, name), 4)[1] for name in names]
    return [(p == c, t == c) for t, p in zip(volumes[::2], volumes[1::2], strict=True) for c in (1, 2, 3)]


def check_medpy(prediction: np.ndarray, truth: np.ndarray, spacing: tuple[float, float, float]) -> None:
    binary = pytest.importorskip("medpy.metric.binary")
    assert dice(prediction, truth) == pytest.approx(binary.dc(prediction, truth), abs=1e-12)
    assert jaccard(prediction, truth) == pytest.approx(binary.jc(prediction, truth), abs=1e-12)
    assert hd95(prediction, truth, spacing) == pytest.approx(binary.hd95(prediction, truth, spacing), rel=FLOAT32)
    assert asd(prediction, truth, spacing) == pytest.approx(binary.asd(prediction, truth, spacing), rel=FLOAT32)


def surface_dice(prediction: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...], tolerance: float) -> float:
    package = pytest.importorskip("surface_distance")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        patch.setattr(np, "Inf", np.inf, raising=False)  # the package was written for NumPy 1
        distances = package.compute_surface_distances(truth, prediction, spacing)
    return package.compute_surface_dice_at_tolerance(distances, tolerance)


@pairs
@spacings
def test_overlap_and_distances_are_medpys(name: str, spacing: tuple[float, float, float]) -> None:
    check_medpy(*PAIRS[name], spacing)


@pairs
@pytest.mark.parametrize("spacing, tolerance", list(zip(SPACINGS, (0.0, 1.0, 2.1), strict=True)))
def test_nsd_is_surface_distances(name: str, spacing: tuple[float, float, float], tolerance: float) -> None:
    prediction, truth = PAIRS[name]
    expected = surface_dice(prediction, truth, spacing, tolerance)
    assert nsd(prediction, truth, spacing, tolerance) == pytest.approx(expected, abs=FLOAT32)


@spacings
def test_phantom_against_medpy_and_surface_distance(spacing: tuple[float, float, float]) -> None:
    for prediction, truth in phantom_pairs():
        check_medpy(prediction, truth, spacing)
        expected = surface_dice(prediction, truth, spacing, 1.0)
        assert nsd(prediction, truth, spacing) == pytest.approx(expected, abs=FLOAT32)
        assert 0 < expected < 1


@needs_acdc
def test_acdc_against_medpy_and_surface_distance() -> None:
    for prediction, truth in acdc_pairs():
        check_medpy(prediction, truth, (1.0, 1.0, 1.0))
        expected = surface_dice(prediction, truth, (1.0, 1.0, 1.0), 1.0)
        assert nsd(prediction, truth) == pytest.approx(expected, abs=FLOAT32)


def edge_points(mask: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Voxels with a face neighbour outside, in the unit of spacing, by looking at each neighbour."""
    points = []
    for point in np.argwhere(mask):
        for axis, step in product(range(3), (-1, 1)):
            other = point.copy()
            other[axis] += step
            if not 0 <= other[axis] < mask.shape[axis] or not mask[tuple(other)]:
                points.append(point * spacing)
                break
    return np.array(points)


@pairs
@spacings
def test_distances_by_all_pairs(name: str, spacing: tuple[float, float, float]) -> None:
    prediction, truth = PAIRS[name]
    p, t = edge_points(prediction, spacing), edge_points(truth, spacing)
    every = np.sqrt(((p[:, None] - t[None]) ** 2).sum(-1))
    there, back = surface_distances(prediction, truth, spacing)
    np.testing.assert_allclose(np.sort(there), np.sort(every.min(1)), rtol=FLOAT32)
    np.testing.assert_allclose(np.sort(back), np.sort(every.min(0)), rtol=FLOAT32)
    assert asd(prediction, truth, spacing) == pytest.approx(every.min(1).mean(), rel=FLOAT32)


def test_nsd_of_a_shifted_box() -> None:
    """Moved by one voxel a box stays within 1 everywhere; moved by two, two of its six faces are beyond it."""
    truth = box((4, 4, 4), (16, 16, 16), (20, 20, 20))
    assert nsd(np.roll(truth, 1, 2), truth, tolerance=1.0) == 1
    assert nsd(np.roll(truth, 2, 2), truth, tolerance=1.0) == pytest.approx(1 - 2 / 6, abs=0.06)


@pytest.mark.parametrize("metric", [dice, jaccard, nsd])
def test_overlap_of_empty_masks(metric: object) -> None:
    full = ~EMPTY
    assert [metric(*pair) for pair in ((EMPTY, EMPTY), (EMPTY, full), (full, EMPTY), (full, full))] == [1, 0, 0, 1]


@pytest.mark.parametrize("metric", [hd95, asd])
def test_distance_of_empty_masks_is_nan(metric: object) -> None:
    full = ~EMPTY
    assert all(np.isnan(metric(*pair)) for pair in ((EMPTY, EMPTY), (EMPTY, full), (full, EMPTY)))
    assert metric(full, full) == 0


def test_asd_is_directed() -> None:
    small, large = PAIRS["inside"]
    assert asd(small, large) != asd(large, small)


def test_measure_counts_what_is_missing() -> None:
    truth = np.zeros((2, 6, 6), np.uint8)
    truth[:, :2], truth[:, 2:4] = 1, 2
    prediction = np.where(truth == 2, 0, truth)
    prediction[0, 5, 5] = 3
    row = measure(prediction, truth, 5)  # class 4 is in neither
    assert row["empty_4"] == 0 and row["absent_4"] == 1 and row["dice_4"] == 1
    assert [row["empty_1"], row["empty_2"], row["empty_3"]] == [0, 1, 0]
    assert [row["absent_1"], row["absent_2"], row["absent_3"]] == [0, 0, 1]
    assert [row["dice_1"], row["dice_2"], row["dice_3"]] == [1, 0, 0]
    assert row["dice_mean"] == pytest.approx(2 / 4)
    assert row["hd95_mean"] == 0 and np.isnan(row["hd95_2"]) and np.isnan(row["hd95_3"])
    assert set(measure(prediction, truth, 4, ("dice",))) == {
        *(f"dice_{c}" for c in (1, 2, 3, "mean")),
        *(f"{what}_{c}" for what in ("empty", "absent") for c in (1, 2, 3)),
    }


@pytest.mark.parametrize("metric", [dice, jaccard, hd95, asd, nsd])
def test_bad_masks(metric: object) -> None:
    with pytest.raises(TypeError, match=r"prediction must be bool, got uint8"):
        metric(EMPTY.astype(np.uint8), EMPTY)
    with pytest.raises(TypeError, match=r"truth must be bool, got float64"):
        metric(EMPTY, EMPTY.astype(float))
    with pytest.raises(ValueError, match=r"prediction must be \(D, H, W\), got shape \(4, 5\)"):
        metric(EMPTY[..., 0], EMPTY)
    with pytest.raises(ValueError, match=r"one shape, got \(4, 5, 6\) and \(3, 5, 6\)"):
        metric(EMPTY, EMPTY[1:])


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 0.0, 1.0), (1.0, float("nan"), 1.0), (1.0, -1.0, 1.0)])
def test_bad_spacing(spacing: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="spacing must be three positive numbers"):
        hd95(EMPTY, EMPTY, spacing)


def test_unknown_metric() -> None:
    with pytest.raises(ValueError, match=r"metrics must be of .*, got \['hausdorff'\]"):
        measure(EMPTY.astype(np.uint8), EMPTY.astype(np.uint8), 4, ("hausdorff",))
    assert METRICS == ("dice", "jaccard", "hd95", "asd", "nsd")
