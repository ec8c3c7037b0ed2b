"""The builds that a kernel's tests run in: the plain one always, the sanitizers in the long run (make simt)."""

from __future__ import annotations

import pytest

LONG = pytest.mark.long
MODES = ["plain", pytest.param("asan", marks=LONG), pytest.param("tsan", marks=LONG)]
each_mode = pytest.mark.parametrize("mode", MODES)
