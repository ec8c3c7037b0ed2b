"""From what the user gave to a whole configuration: what is unset comes from the method, then from the recipe."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from train.methods import METHODS, Method
from train.networks import NETWORKS
from train.run.config import FitConfig, flatten, replace_fields

COMMON: dict[str, Any] = {
    "ce_weight": 0.5,
    "dice_weight": 0.5,
    "background_weight": 1.0,
    "ratio": (0.5,),
    "hint": 0.0,
    "lr": 0.01,
    "lr_floor": 0.0,
    "rampup": 0.4,
}
RECIPES: dict[str, dict[str, Any]] = {
    "quick": {
        "size": (96, 96),
        "labelled": 3,
        "iterations": 1000,
        "labelled_batch": 4,
        "unlabelled_batch": 4,
        "patch_size": 8,
        "ratio": (0.2,),
        "lr": 0.05,
        "consistency_from": 0.25,
        "validate_every": 100,
        "panel_every": 200,
    },
    "reduced": {
        "size": (128, 128),
        "labelled": 7,
        "iterations": 1500,
        "labelled_batch": 6,
        "unlabelled_batch": 6,
        "patch_size": 8,
        "lr": 0.05,
        "consistency_from": 300,
        "validate_every": 100,
        "panel_every": 500,
    },
    "iterations": {
        "size": (256, 256),
        "labelled": 7,
        "iterations": 30_000,
        "labelled_batch": 12,
        "unlabelled_batch": 12,
        "patch_size": 16,
        "consistency_from": 1000,
        "validate_every": 200,
        "panel_every": 1000,
    },
    "epochs": {
        "size": (256, 256),
        "labelled": 7,
        "epochs": 1000,
        "labelled_batch": 2,
        "unlabelled_batch": 18,
        "patch_size": 16,
        "consistency_from": 0.1,
        "validate_every": 500,
        "panel_every": 2000,
    },
}


def resolve(config: FitConfig) -> FitConfig:
    """The configuration with nothing left open, checked.

    Raises:
        ValueError: a value out of range, or two that exclude each other; the message names the field.
    """
    config = replace_fields(config, {"method": METHODS.full_name(config.method)})
    method = METHODS[config.method]
    flat = flatten(config)
    defaults = {**COMMON, **RECIPES[config.recipe], **method.defaults}
    if flat["iterations"] is not None and flat["epochs"] is not None:
        raise ValueError("iterations and epochs exclude each other: give one")
    if flat["iterations"] is not None or flat["epochs"] is not None:
        defaults = {k: v for k, v in defaults.items() if k not in ("iterations", "epochs")}
    config = replace_fields(config, {k: v for k, v in defaults.items() if flat[k] is None})
    check(config, method)
    return config


def settings(config: FitConfig) -> SimpleNamespace:
    """All fields of a resolved configuration, flat."""
    return SimpleNamespace(**flatten(config))


def check(config: FitConfig, method: Method) -> None:
    s = settings(config)

    def require(ok: bool, name: str, expected: str) -> None:
        if not ok:
            raise ValueError(f"{name} must be {expected}, got {getattr(s, name)!r}")

    require(len(s.dropout) == len(s.channels) >= 2, "dropout", f"one number for each of the {len(s.channels)} channels")
    require(all(0 <= p < 1 for p in s.dropout), "dropout", "in [0, 1)")
    require(min(s.channels) > 0, "channels", "positive")
    require(2 <= s.classes <= 255, "classes", "in [2, 255]")
    divisor = NETWORKS[s.architecture].divisor(config.model)
    require(min(s.size) > 0 and all(n % divisor == 0 for n in s.size), "size", f"positive multiples of {divisor}")
    for name in (
        "labelled",
        "labelled_batch",
        "unlabelled_batch",
        "patch_size",
        "validate_every",
        "log_every",
        "panel_every",
    ):
        require(getattr(s, name) >= 1, name, "at least 1")
    length = "epochs" if s.iterations is None else "iterations"
    require(getattr(s, length) >= 1, length, "at least 1")
    require(s.lr > 0, "lr", "positive")
    for name in ("lr_floor", "hint", "rampup"):
        require(0 <= getattr(s, name) <= 1, name, "in [0, 1]")
    for name in ("ratio", "threshold"):
        bounds = getattr(s, name)
        require(len(bounds) in (1, 2) and all(0 <= v <= 1 for v in bounds), name, "one number or two in [0, 1]")
    for name in (
        "ce_weight", "dice_weight", "consistency_weight", "mask_weight", "background_weight",
        "denominator_offset", "consistency_from", "min_patches", "seed",
    ):  # fmt: skip
        require(getattr(s, name) >= 0, name, "at least 0")
    require(0 <= s.ema_decay < 1, "ema_decay", "in [0, 1)")
    if not s.ema_buffers:
        require(
            s.teacher_mode == "train",
            "teacher_mode",
            "train when ema_buffers is off (its batch norm would never leave its start)",
        )
        require(
            method.strategy is not None or s.judge == "student",
            "judge",
            "student when the teacher never runs and ema_buffers is off",
        )
    if method.strategy is not None:
        method.strategy.check(s, processes=1)
