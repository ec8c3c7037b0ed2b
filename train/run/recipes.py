"""Recipes: whole configurations, and what a method and the user change in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from train.methods import METHODS
from train.networks import NETWORKS
from train.parts.masking import Masking
from train.run.config import DataConfig, FitConfig, ScheduleConfig, flatten, replace_fields, typed


def quick(method: str, architecture: str) -> FitConfig:
    return FitConfig(
        recipe="quick",
        method=method,
        architecture=architecture,
        validate_every=100,
        panel_every=200,
        data=DataConfig(size=(96, 96), labelled=3),
        model=NETWORKS[architecture](),
        strategy=METHODS[method].strategy(Masking(patch_size=8, ratio=(0.2,))),
        schedule=ScheduleConfig(iterations=1000, labelled_batch=4, unlabelled_batch=4, lr=0.05, consistency_from=0.25),
    )


def reduced(method: str, architecture: str) -> FitConfig:
    return FitConfig(
        recipe="reduced",
        method=method,
        architecture=architecture,
        validate_every=200,
        panel_every=1000,
        data=DataConfig(size=(128, 128), labelled=7),
        model=NETWORKS[architecture](),
        strategy=METHODS[method].strategy(Masking(patch_size=8, ratio=(0.5,))),
        schedule=ScheduleConfig(iterations=6000, labelled_batch=6, unlabelled_batch=6, lr=0.05, consistency_from=600),
    )


def iterations(method: str, architecture: str) -> FitConfig:
    return FitConfig(
        recipe="iterations",
        method=method,
        architecture=architecture,
        validate_every=200,
        panel_every=1000,
        data=DataConfig(size=(256, 256), labelled=7),
        model=NETWORKS[architecture](),
        strategy=METHODS[method].strategy(Masking(patch_size=16, ratio=(0.5,))),
        schedule=ScheduleConfig(iterations=30_000, labelled_batch=12, unlabelled_batch=12, consistency_from=1000),
    )


def epochs(method: str, architecture: str) -> FitConfig:
    return FitConfig(
        recipe="epochs",
        method=method,
        architecture=architecture,
        validate_every=500,
        panel_every=2000,
        data=DataConfig(size=(256, 256), labelled=7),
        model=NETWORKS[architecture](),
        strategy=METHODS[method].strategy(Masking(patch_size=16, ratio=(0.5,))),
        schedule=ScheduleConfig(epochs=1000, labelled_batch=2, unlabelled_batch=18, consistency_from=0.1),
    )


RECIPES: Mapping[str, Callable[[str, str], FitConfig]] = {
    "quick": quick,
    "reduced": reduced,
    "iterations": iterations,
    "epochs": epochs,
}


def configure(
    method: str = "entropy-topr", recipe: str = "quick", architecture: str = "unet", **changes: Any
) -> FitConfig:
    """A whole configuration: the recipe's, with what the method changes in it, with the changes, each a field's name.

    Raises:
        ValueError: there is no such method, recipe or network; a change names no field, or is not of its type.
    """
    if recipe not in RECIPES:
        raise ValueError(f"recipe must be one of {', '.join(RECIPES)}; got {recipe!r}")
    method = METHODS.full_name(method)
    config = METHODS[method].preset(RECIPES[recipe](method, architecture))
    unknown = changes.keys() - flatten(config).keys()
    if unknown:
        raise ValueError(f"{method} has no setting {', '.join(sorted(unknown))}; it has {', '.join(flatten(config))}")
    if ("iterations" in changes) != ("epochs" in changes):  # one length replaces the recipe's, whichever that is
        config = replace(config, schedule=replace(config.schedule, iterations=None, epochs=None))
    usual = flatten(config)
    changes = {name: plain(value, usual[name]) for name, value in changes.items()}
    return typed(asdict(replace_fields(config, changes)), config)


def plain(value: Any, usual: Any) -> Any:
    """A numpy number as Python's, and one number where a setting has several as a tuple, as on the command line."""
    value = value.item() if isinstance(value, np.generic) else value
    return (value,) if isinstance(usual, tuple) and isinstance(value, (int, float)) else value
