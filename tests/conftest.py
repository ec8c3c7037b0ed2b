"""What all tests share: seeds, hypothesis' profile, and the skipping of tests for devices that are not here."""

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
