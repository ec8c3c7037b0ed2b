"""What a data set states of itself, and that its files and raw scans are held to it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from train.data.description import Description, read_description, write_description
from train.data.layout import volume_path, write_list, write_volume
from train.data.scaling import scale
from train.data.volumes import read_split

RAW = np.random.default_rng(0).normal(300, 80, (3, 11, 9))


def test_description_round_trip(tmp_path: Path) -> None:
    assert read_description(tmp_path) == Description("min-max", ())
    written = Description("z-score", ("background", "left ventricle"))
    write_description(tmp_path, written)
    assert read_description(tmp_path, 2) == written
    with pytest.raises(ValueError, match=r"data_set\.json names 2 classes, the run has 4"):
        read_description(tmp_path, 4)
    (tmp_path / "data_set.json").write_bytes(b'\xef\xbb\xbf{"scaling": "none"}')
    assert read_description(tmp_path, 4) == Description("none", ())


@pytest.mark.parametrize(
    "content, message",
    [
        ("", " is damaged or no JSON"),
        ('{"scaling": "none"', " is damaged or no JSON"),
        ("[]", r" must hold an object with 'scaling' and 'classes', got \[\]"),
        ('{"scale": "none"}', " may have the fields 'scaling' and 'classes', got 'scale'"),
        ('{"scaling": "minmax"}', ": 'scaling' must be one of min-max, z-score, none, got 'minmax'"),
        ('{"scaling": ["none"]}', r": 'scaling' must be one of min-max, z-score, none, got \['none'\]"),
        ('{"classes": "ab"}', ": 'classes' must be different names, background first, got 'ab'"),
        ('{"classes": ["a"]}', ": 'classes' must be different names"),
        ('{"classes": ["a", "a"]}', ": 'classes' must be different names"),
        ('{"classes": ["a", 1]}', ": 'classes' must be different names"),
    ],
)
def test_bad_descriptions(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "data_set.json").write_text(content)
    with pytest.raises(ValueError, match=rf"^[^\n]*data_set\.json{message}[^\n]*$"):
        read_description(tmp_path)


def test_scaling_a_raw_volume() -> None:
    np.testing.assert_allclose(scale(RAW, "min-max", "v"), (RAW - RAW.min()) / (RAW.max() - RAW.min()), atol=1e-6)
    np.testing.assert_allclose(scale(RAW, "z-score", "v"), (RAW - RAW.mean()) / RAW.std(), atol=1e-5)
    np.testing.assert_array_equal(scale(RAW, "none", "v"), RAW.astype(np.float32))
    for scaling in ("min-max", "z-score", "none"):
        with pytest.raises(ValueError, match=r"^v is the same everywhere \(7\)"):
            scale(np.full((1, 2, 2), 7.0), scaling, "v")
        with pytest.raises(ValueError, match=r"^v must fit into float32, got values up to 1.7e\+308"):
            scale(np.array([[[-1.7e308, 1.7e308, 0]]]), scaling, "v")


@pytest.mark.parametrize(
    "scaling, good, bad, message",
    [
        ("min-max", scale(RAW, "min-max", ""), RAW, r"fill \[0, 1\] by the data set's scaling min-max, got \[\d+"),
        ("min-max", scale(RAW, "min-max", ""), scale(RAW, "min-max", "") / 255, r"fill \[0, 1\] .*, got \[0, 0.0039"),
        ("z-score", scale(RAW, "z-score", ""), scale(RAW, "min-max", ""), "have mean 0 and standard deviation 1 by"),
        ("none", RAW, None, ""),
    ],
)
def test_volumes_are_held_to_the_statement(
    tmp_path: Path, scaling: str, good: np.ndarray, bad: np.ndarray | None, message: str
) -> None:
    label = np.zeros(RAW.shape, np.uint8)
    (tmp_path / "data_set.json").write_text(json.dumps({"scaling": scaling}))
    write_list(tmp_path / "val.list", ["a_frame01", "b_frame01"])
    for name in ("a_frame01", "b_frame01"):
        write_volume(volume_path(tmp_path, name), good, label)
    assert list(read_split(tmp_path, "val", 4)) == ["a_frame01", "b_frame01"]
    if bad is not None:
        write_volume(volume_path(tmp_path, "b_frame01"), bad, label)
        with pytest.raises(
            ValueError, match=rf"b_frame01\.h5: 'image' must {message}.* state its scaling in .*set\.json"
        ):
            read_split(tmp_path, "val", 4)
