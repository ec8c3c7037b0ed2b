"""What all tests share: seeds, hypothesis' profile, and that tests for devices that are not here are left out."""

import os

# Small calls, often on a busy machine: a thread that waits for work should not spin. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import hypothesis
import pytest
import torch

# The same examples on every run, so that a failure seen once is seen again.
hypothesis.settings.register_profile(
    "entmask",
    deadline=None,
    derandomize=True,
    max_examples=40,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("entmask")


def pytest_report_header() -> str | None:
    return None if torch.cuda.is_available() else "no CUDA device: tests that need one are left out"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        left_out = [item for item in items if item.get_closest_marker("gpu")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
