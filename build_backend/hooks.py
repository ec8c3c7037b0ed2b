"""PEP 517/660 hooks: setuptools', plus the rule by which a build finds torch.

A build in isolation gets only what it asks for here. Asking for torch would fetch a second one, perhaps of another
version, and the extension would not load into the first. So torch is asked for only where the environment has none;
else the build looks through the isolation (see torch_env.py).
"""

from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

from build_backend import torch_env

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

Settings = dict[str, Any] | None


def _torch_if_none() -> list[str]:
    return [] if torch_env.find() else [f"torch>={torch_env.OLDEST}", "numpy"]


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    return build_meta.get_requires_for_build_wheel(config_settings) + _torch_if_none()


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    return build_meta.get_requires_for_build_editable(config_settings) + _torch_if_none()
