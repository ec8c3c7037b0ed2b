from __future__ import annotations

import pytest

from . import build


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = build.missing()
    if reason is None:
        return
    for item in items:
        if build.HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=f"CUDA kernels on the CPU: {reason}"))
