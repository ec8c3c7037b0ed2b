"""Metrics of one structure in a volume: overlap, and distances between surfaces.

prediction and truth are bool (D, H, W) of one shape. Distances have the unit of `spacing`, the distance between voxel
centres along (D, H, W); 1 along each, the default, gives voxels.

dice, jaccard, hd95 and asd are dc, jc, hd95 and asd of medpy.metric.binary, which the field's scripts call. A surface
is there the voxels of the structure with a face neighbour outside it, beyond the image's edge included. hd95 is the
95th percentile (linearly interpolated) of the distances from both surfaces' voxels to the other surface, taken
together. asd is the mean distance from the prediction's surface to the truth's and so not symmetric; medpy's
symmetric one is assd.

nsd is compute_surface_dice_at_tolerance of DeepMind's surface-distance (Nikolov et al., 2018, arXiv:1809.04430), with
surfaces between the voxels, weighed by area (surfels.py). That package's compute_robust_hausdorff differs from
hd95: it uses those surfaces and weights, does not interpolate, and takes the larger of the two directed percentiles.

Empty structures: there is no distance to a surface that does not exist, and 0 would say that it fits.

    prediction   truth    dice, jaccard, nsd   hd95, asd
    empty        empty    1                    NaN
    one of them empty     0                    NaN

(medpy raises for its distances here; surface-distance gives NaN when both are empty.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt

from train.data.layout import Spacing
from train.evaluate.surfels import surfels

VOXELS: Spacing = (1.0, 1.0, 1.0)
METRICS = ("dice", "jaccard", "hd95", "asd", "nsd")
NSD_TOLERANCE = 1.0


def dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """2 |P n T| / (|P| + |T|), in [0, 1]."""
    check(prediction, truth)
    total = np.count_nonzero(prediction) + np.count_nonzero(truth)
    return 2 * np.count_nonzero(prediction & truth) / total if total else 1.0


def jaccard(prediction: np.ndarray, truth: np.ndarray) -> float:
    """|P n T| / |P u T|, in [0, 1]."""
    check(prediction, truth)
    union = np.count_nonzero(prediction | truth)
    return np.count_nonzero(prediction & truth) / union if union else 1.0


def hd95(prediction: np.ndarray, truth: np.ndarray, spacing: Spacing = VOXELS) -> float:
    """95th percentile of the distances between the surfaces, both ways together; NaN if one is empty."""
    there, back = surface_distances(prediction, truth, spacing)
    return float(np.percentile(np.concatenate([there, back]), 95)) if there.size else float("nan")


def asd(prediction: np.ndarray, truth: np.ndarray, spacing: Spacing = VOXELS) -> float:
    """Mean distance from the prediction's surface to the truth's; NaN if one is empty."""
    there, _ = surface_distances(prediction, truth, spacing)
    return float(there.mean()) if there.size else float("nan")


def nsd(
    prediction: np.ndarray, truth: np.ndarray, spacing: Spacing = VOXELS, tolerance: float = NSD_TOLERANCE
) -> float:
    """Share of both surfaces' area that is within tolerance (in the unit of spacing) of the other one, in [0, 1]."""
    check(prediction, truth, spacing)
    if not prediction.any() or not truth.any():
        return float(prediction.any() == truth.any())
    prediction, truth = crop(prediction, truth)
    (is_p, area_p), (is_t, area_t) = surfels(prediction, spacing), surfels(truth, spacing)
    near_p = area_p[is_p][distance_transform_edt(~is_t, sampling=spacing)[is_p] <= tolerance].sum()
    near_t = area_t[is_t][distance_transform_edt(~is_p, sampling=spacing)[is_t] <= tolerance].sum()
    return float((near_p + near_t) / (area_p[is_p].sum() + area_t[is_t].sum()))


def surface_distances(
    prediction: np.ndarray, truth: np.ndarray, spacing: Spacing = VOXELS
) -> tuple[np.ndarray, np.ndarray]:
    """From each surface voxel of the prediction to the truth's surface, and back: 1-D float64; empty if a mask is."""
    check(prediction, truth, spacing)
    if not prediction.any() or not truth.any():
        return np.zeros(0), np.zeros(0)
    prediction, truth = crop(prediction, truth)
    edge_p, edge_t = prediction & ~binary_erosion(prediction), truth & ~binary_erosion(truth)
    there = distance_transform_edt(~edge_t, sampling=spacing)[edge_p]
    back = distance_transform_edt(~edge_p, sampling=spacing)[edge_t]
    return there, back


def crop(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both cut to the box that holds them: the same distances, in a fraction of the voxels."""
    either = prediction | truth
    box = []
    for axis in range(either.ndim):
        filled = np.flatnonzero(either.any(axis=tuple(a for a in range(either.ndim) if a != axis)))
        box.append(slice(filled[0], filled[-1] + 1))
    return prediction[tuple(box)], truth[tuple(box)]


def check(prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float] = VOXELS) -> None:
    for name, mask in (("prediction", prediction), ("truth", truth)):
        if mask.dtype != bool:
            raise TypeError(f"{name} must be bool, got {mask.dtype}")
        if mask.ndim != 3:
            raise ValueError(f"{name} must be (D, H, W), got shape {mask.shape}")
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction and truth must have one shape, got {prediction.shape} and {truth.shape}")
    if len(spacing) != 3 or not all(0 < s < float("inf") for s in spacing):
        raise ValueError(f"spacing must be three positive numbers, got {tuple(spacing)}")


def measure(
    prediction: np.ndarray,
    truth: np.ndarray,
    num_classes: int,
    metrics: Sequence[str] = METRICS,
    spacing: Spacing = VOXELS,
) -> dict[str, float]:
    """Every metric of every class but 0 of label volumes (D, H, W): {"dice_1": ..., "dice_mean": ..., "empty_1": ...}.

    <metric>_mean is over the classes that have a value (distances: NaN when none has); empty_<class> is 1 where the
    prediction lacks a class that the truth has, absent_<class> is 1 where the truth lacks it.
    """
    unknown = set(metrics) - set(METRICS)
    if unknown:
        raise ValueError(f"metrics must be of {METRICS}, got {sorted(unknown)}")
    masks = {c: (prediction == c, truth == c) for c in range(1, num_classes)}
    functions = {
        "dice": dice,
        "jaccard": jaccard,
        "hd95": lambda p, t: hd95(p, t, spacing),
        "asd": lambda p, t: asd(p, t, spacing),
        "nsd": lambda p, t: nsd(p, t, spacing),
    }
    row: dict[str, float] = {}
    for name in metrics:
        values = [functions[name](*pair) for pair in masks.values()]
        row.update({f"{name}_{c}": value for c, value in zip(masks, values, strict=True)})
        row[f"{name}_mean"] = mean_of(values)
    for c, (p, t) in masks.items():
        row[f"empty_{c}"] = float(t.any() and not p.any())
        row[f"absent_{c}"] = float(not t.any())
    return row


def mean_of(values: Sequence[float]) -> float:
    """The mean of those that are not NaN; NaN if none is left."""
    measured = [value for value in values if not np.isnan(value)]
    return float(np.mean(measured)) if measured else float("nan")
