"""The builds that a kernel's cases run in: the plain one always, ASan with UBSan in the long run (make simt).

TSan takes half a second a case: test_races.py has a choice of them.
"""

from __future__ import annotations

import pytest

LONG = pytest.mark.long
MODES = ["plain", pytest.param("asan", marks=LONG)]
each_mode = pytest.mark.parametrize("mode", MODES)
