"""How intensities are scaled: what a data set states, what its files must then hold, and how a raw scan is made so."""

from __future__ import annotations

from pathlib import Path

import numpy as np

MIN_MAX, Z_SCORE, NONE = "min-max", "z-score", "none"
#: Each is of one whole volume.
SCALINGS = {
    MIN_MAX: "the minimum at 0, the maximum at 1",
    Z_SCORE: "mean 0, standard deviation 1",
    NONE: "the values of the scan's file, as they are",
}
TOLERANCE = 0.01  # of a file that is checked against its data set's statement


def scale(volume: np.ndarray, scaling: str, name: object) -> np.ndarray:
    """A raw volume (D, H, W) float64 as a network is to see it, float32; name is the file's, for messages.

    Raises:
        ValueError: the volume is the same everywhere, or too large for float32 once scaled.
    """
    offset, unit = 0.0, 1.0
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below
        if scaling == MIN_MAX:
            offset, unit = volume.min(), volume.max() - volume.min()
        elif scaling == Z_SCORE:
            offset, unit = volume.mean(), volume.std()
        if volume.min() == volume.max():
            raise ValueError(f"{name} is the same everywhere ({volume.flat[0]:g}): expected an image")
        scaled = volume if scaling == NONE else (volume - offset) / unit
        image: np.ndarray = scaled.astype(np.float32)
    if not np.isfinite(image).all():
        raise ValueError(f"{name} must fit into float32, got values up to {np.abs(volume).max():g}")
    return image


def check_scaling(image: np.ndarray, scaling: str, path: Path, statement: Path, whole: bool) -> None:
    """Raises ValueError where an image of a data set cannot have been scaled as `statement` says.

    A whole volume is held to the scaling's definition. One slice of it says less: that it lies in the range.
    """
    low, high = float(image.min()), float(image.max())
    if scaling == MIN_MAX:
        good = low >= -TOLERANCE and high <= 1 + TOLERANCE
        if whole:
            good = abs(low) <= TOLERANCE and abs(high - 1) <= TOLERANCE
        expected, got = "fill [0, 1]" if whole else "lie in [0, 1]", f"[{low:g}, {high:g}]"
    elif scaling == Z_SCORE and whole:
        mean, deviation = image.mean(dtype=np.float64), image.std(dtype=np.float64)
        good = abs(mean) <= TOLERANCE and abs(deviation - 1) <= TOLERANCE
        expected, got = "have mean 0 and standard deviation 1", f"{mean:g} and {deviation:g}"
    else:
        return
    if not good:
        others = ", ".join(f'"{name}"' for name in SCALINGS)
        raise ValueError(
            f"{path}: 'image' must {expected} by the data set's scaling {scaling}, got {got}; "
            f'state its scaling in {statement} ({{"scaling": ...}}, one of {others})'
        )
