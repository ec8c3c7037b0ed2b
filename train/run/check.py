"""Settings are checked before anything is read or written."""

from __future__ import annotations

from math import isfinite

import torch

from train.methods import METHODS
from train.networks import NETWORKS
from train.parts.masking import Masking
from train.run.config import FitConfig, flatten

LARGEST = torch.finfo(torch.float32).max


def check(config: FitConfig, processes: int = 1) -> None:
    """Raises ValueError, naming the setting, where a value is out of range or two exclude each other.

    processes: over how many a batch is divided.
    """
    values = flatten(config)

    def require(ok: bool, name: str, expected: str) -> None:
        if not ok:
            raise ValueError(f"{name} must be {expected}, got {values[name]!r}")

    for name, value in values.items():
        for number in value if isinstance(value, tuple) else (value,):
            require(not isinstance(number, float) or isfinite(number), name, "finite")
            require(not isinstance(number, float) or abs(number) <= LARGEST, name, "in the range of float32")
            require(not isinstance(number, int) or abs(number) < 2**63, name, "in [0, 2^63)")
    schedule, strategy = config.schedule, config.strategy
    require(config.architecture in NETWORKS, "architecture", f"one of {', '.join(NETWORKS)}")
    require(config.method in METHODS, "method", f"one of {', '.join(METHODS)}")
    own = type(METHODS[config.method].strategy(Masking(patch_size=1, ratio=(0.0,))))
    require_own("strategy", strategy, own, f"method {config.method}")
    require_own("model", config.model, NETWORKS[config.architecture], f"architecture {config.architecture}")
    require(0 <= config.seed < 2**63, "seed", "in [0, 2^63)")
    require(2 <= config.data.classes <= 255, "classes", "in [2, 255]")
    if schedule.iterations is not None and schedule.epochs is not None:
        raise ValueError("iterations and epochs exclude each other: give one")
    require(schedule.iterations is not None or schedule.epochs is not None, "iterations", "given, or epochs")
    for name in (
        "labelled", "iterations", "epochs", "labelled_batch", "unlabelled_batch", "validate_every", "log_every",
        "panel_every",
    ):  # fmt: skip
        require(values[name] is None or values[name] >= 1, name, "at least 1")
    require(schedule.lr > 0, "lr", "positive")
    for name in ("lr_floor", "rampup"):
        require(0 <= values[name] <= 1, name, "in [0, 1]")
    for name in (
        "ce_weight", "dice_weight", "consistency_ce_weight", "consistency_dice_weight", "consistency_weight",
        "mask_weight", "background_weight", "denominator_offset", "consistency_from", "teacher_noise",
    ):  # fmt: skip
        require(values[name] >= 0, name, "at least 0")
    for name in ("labelled_batch", "unlabelled_batch"):
        if name == "labelled_batch" or strategy.unlabelled:
            require(values[name] % processes == 0, name, f"a multiple of the {processes} processes")
    require(0 <= config.teacher.ema_decay < 1, "ema_decay", "in [0, 1)")
    require(config.teacher.teacher_passes >= 1, "teacher_passes", "at least 1")
    if not config.teacher.ema_buffers:
        expected = "train when ema_buffers is off (its batch norm would never leave its start)"
        require(config.teacher.teacher_mode == "train", "teacher_mode", expected)
        expected = "student when the teacher never runs and ema_buffers is off"
        require(strategy.unlabelled or config.teacher.judge == "student", "judge", expected)
    if config.loss.consistency != "hard" and strategy.unlabelled:
        require(strategy.soft, "consistency", f"hard for method {config.method}, which has labels only")
    config.model.check(config.data.size)
    strategy.check(config.data.size, schedule.labelled_batch, schedule.unlabelled_batch, processes)
    if values.get("channel_dropout"):
        networks = ", ".join(name for name, network in NETWORKS.items() if network.drops_channels)
        require(config.model.drops_channels, "architecture", f"one that drops channels ({networks})")


def require_own(name: str, settings: object, own: type, of: str) -> None:
    """A configuration whose name was replaced, but not what belongs to it, would train something else."""
    if type(settings) is not own:
        raise ValueError(
            f"{name} must be {own.__name__}, the settings of {of}, got {type(settings).__name__}: "
            "train.run.recipes.configure gives both"
        )
