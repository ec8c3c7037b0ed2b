"""Metrics of one structure in a volume: overlap, and distances between surfaces.

prediction and truth are bool (D, H, W) of one shape. Distances have the unit of `spacing`, the distance between voxel
centres along (D, H, W); 1 along each, the default, gives voxels.

dice, jaccard, hd95 and asd are dc, jc, hd95 and asd of medpy.metric.binary, which the field's scripts call. A surface
is there the voxels of the structure with a face neighbour outside it, beyond the image's edge included. hd95 is the
95th percentile (linearly interpolated) of the distances from both surfaces' voxels to the other surface, taken
together. asd is the mean distance from the prediction's surface to the truth's and so not symmetric; medpy's
symmetric one is assd.

nsd is compute_surface_dice_at_tolerance of DeepMind's surface-distance (Nikolov et al., 2018, arXiv:1809.04430), with
surfaces between the voxels, weighed by area. That package's compute_robust_hausdorff differs from hd95: it uses those
surfaces and weights, does not interpolate, and takes the larger of the two directed percentiles; so does MONAI's
compute_hausdorff_distance, with the surfaces of hd95.

MONAI finds the surfaces, in the box that holds both structures, and the distances from voxel to voxel, which it rounds
to float32: the results are right to 1e-6 of their value.

Empty structures: there is no distance to a surface that does not exist, and 0 would say that it fits.

    prediction   truth    dice, jaccard, nsd   hd95, asd
    empty        empty    1                    NaN
    one of them empty     0                    NaN

(medpy raises for its distances here; surface-distance gives NaN when both are empty.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from train.data.layout import Spacing

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
    return percentile_95(*surface_distances(prediction, truth, spacing))


def asd(prediction: np.ndarray, truth: np.ndarray, spacing: Spacing = VOXELS) -> float:
    """Mean distance from the prediction's surface to the truth's; NaN if one is empty."""
    return mean_of(surface_distances(prediction, truth, spacing)[0])


def nsd(
    prediction: np.ndarray, truth: np.ndarray, spacing: Spacing = VOXELS, tolerance: float = NSD_TOLERANCE
) -> float:
    """Share of both surfaces' area that is within tolerance (in the unit of spacing) of the other one, in [0, 1]."""
    check(prediction, truth, spacing)
    if not prediction.any() or not truth.any():
        return float(prediction.any() == truth.any())
    from monai.metrics.utils import get_mask_edges, get_surface_distance  # here: the import takes seconds

    is_p, is_t, area_p, area_t = get_mask_edges(prediction, truth, spacing=spacing)
    near_p = area_p[is_p][get_surface_distance(is_p, is_t, spacing=spacing) <= tolerance]
    near_t = area_t[is_t][get_surface_distance(is_t, is_p, spacing=spacing) <= tolerance]
    total = area_p[is_p].sum(dtype=np.float64) + area_t[is_t].sum(dtype=np.float64)
    return float((near_p.sum(dtype=np.float64) + near_t.sum(dtype=np.float64)) / total)


def surface_distances(
    prediction: np.ndarray, truth: np.ndarray, spacing: Spacing = VOXELS
) -> tuple[np.ndarray, np.ndarray]:
    """From each surface voxel of the prediction to the truth's surface, and back: 1-D float64; empty if a mask is."""
    check(prediction, truth, spacing)
    if not prediction.any() or not truth.any():
        return np.zeros(0), np.zeros(0)
    from monai.metrics.utils import get_mask_edges, get_surface_distance  # here: the import takes seconds

    edge_p, edge_t = get_mask_edges(prediction, truth)
    there = get_surface_distance(edge_p, edge_t, spacing=spacing)
    back = get_surface_distance(edge_t, edge_p, spacing=spacing)
    return np.asarray(there, np.float64), np.asarray(back, np.float64)


def percentile_95(there: np.ndarray, back: np.ndarray) -> float:
    return float(np.percentile(np.concatenate([there, back]), 95)) if there.size else float("nan")


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
    distances = {}
    if {"hd95", "asd"} & set(metrics):
        distances = {c: surface_distances(p, t, spacing) for c, (p, t) in masks.items()}
    functions: dict[str, Callable[[int], float]] = {
        "dice": lambda c: dice(*masks[c]),
        "jaccard": lambda c: jaccard(*masks[c]),
        "hd95": lambda c: percentile_95(*distances[c]),
        "asd": lambda c: mean_of(distances[c][0]),
        "nsd": lambda c: nsd(*masks[c], spacing),
    }
    row: dict[str, float] = {}
    for name in metrics:
        values = {c: functions[name](c) for c in masks}
        row.update({f"{name}_{c}": value for c, value in values.items()})
        row[f"{name}_mean"] = mean_of(list(values.values()))
    for c, (p, t) in masks.items():
        row[f"empty_{c}"] = float(t.any() and not p.any())
        row[f"absent_{c}"] = float(not t.any())
    return row


def mean_of(values: Sequence[float] | np.ndarray) -> float:
    """The mean of those that are not NaN; NaN if none is left."""
    measured = np.asarray(values, np.float64)
    measured = measured[~np.isnan(measured)]
    return float(measured.mean()) if measured.size else float("nan")
