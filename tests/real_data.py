"""Where real ACDC is, for the tests that use it; it is no part of the project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ACDC = Path(os.environ.get("ENTMASK_ACDC") or Path(__file__).resolve().parents[2] / "shared" / "data" / "acdc")
needs_acdc = pytest.mark.skipif(
    not (ACDC / "train.list").is_file(), reason=f"no ACDC in {ACDC}: set ENTMASK_ACDC to a folder in the h5 layout"
)
