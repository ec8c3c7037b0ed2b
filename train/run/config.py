"""What a run can be told, as one tree: FitConfig and its groups. train/run/recipes.py gives whole ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import dacite

from train.networks import Network
from train.parts import Strategy


def folder(name: str, given: Path | str | None) -> Path | None:
    """Text as a path; name: the setting's. Raises ValueError where it is empty, which a path reads as '.'."""
    if given == "":
        raise ValueError(f"{name} must name a folder, got ''")
    if not isinstance(given, (str, Path, type(None))):
        raise ValueError(f"{name} must name a folder, got {given!r}")
    return Path(given) if isinstance(given, str) else given


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    #: Folder in the ACDC h5 layout (train.list, train_slices.list, val.list, data/). None: the embedded phantom, which
    #: is written to data/phantom.
    root: Path | None = None
    #: How many patients, the first of train.list, have labels.
    labelled: int
    #: Number of classes, background included.
    classes: int = 4
    #: Height and width that every slice is resized to; multiples of 16.
    size: tuple[int, int]
    #: How images are resampled when they are rotated and resized; labels always by nearest neighbour.
    interpolation: Literal["nearest", "cubic"] = "nearest"

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", folder("root", self.root))


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    #: Decay of the teacher's moving average: min(1 - 1 / (t + 1), ema_decay) at step t.
    ema_decay: float = 0.99
    #: The teacher's batch-norm statistics follow the student's by the same average. False: it keeps its own, from its
    #: own forward passes, which needs teacher_mode train and a method that runs the teacher.
    ema_buffers: bool = True
    #: Standard deviation of the noise on the teacher's images, cut off at twice that.
    teacher_noise: float = 0.0
    #: Passes of the teacher, each with its own noise and dropout, whose mean softmax says how sure it is; 1: the pass
    #: that makes the pseudo-labels.
    teacher_passes: int = 1
    #: Mode of the teacher when it makes pseudo-labels. In train mode its dropout is on, which raises the entropy and
    #: makes the mask vary from step to step.
    teacher_mode: Literal["eval", "train"] = "eval"
    #: Which network the validation judges, and `predict` and `evaluate` take by default.
    judge: Literal["student", "teacher"] = "student"


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    #: Weight of cross entropy in the supervised loss.
    ce_weight: float = 0.5
    #: Weight of soft Dice in the supervised loss.
    dice_weight: float = 0.5
    #: What the student is held to. hard: pseudo-labels, by cross entropy and Dice. mse: the teacher's probabilities, by
    #: sum_k (p_k - q_k)^2; kl: by sum_k q_k (ln q_k - ln p_k); means over the pixels.
    consistency: Literal["hard", "mse", "kl"] = "hard"
    #: Weight of cross entropy in the consistency loss.
    consistency_ce_weight: float = 0.5
    #: Weight of soft Dice in the consistency loss.
    consistency_dice_weight: float = 0.5
    #: Weight of the consistency loss after its ramp.
    consistency_weight: float = 0.1
    #: region: mask_weight x mean over masked pixels + mean over visible ones, an empty region adds 0. unweighted: the
    #: mean over all.
    consistency_ce: Literal["region", "unweighted"] = "region"
    #: all: one Dice over all pixels. each: mask_weight x Dice of the masked pixels + Dice of the visible ones.
    dice_region: Literal["all", "each"] = "all"
    #: Weight of the masked pixels' cross entropy against the visible ones'.
    mask_weight: float = 1.5
    #: Class weight of background in the consistency cross entropy; the other classes have 1.
    background_weight: float = 1.0
    #: Added to the denominator of each region's mean; for replaying how an offset of 1 or 1e6 silences the loss.
    denominator_offset: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    #: Length of the run in steps; None: in epochs.
    iterations: int | None = None
    #: Length in passes over the labelled slices, instead of iterations.
    epochs: int | None = None
    #: Labelled slices a step, over all processes.
    labelled_batch: int
    #: Unlabelled slices a step, over all processes.
    unlabelled_batch: int
    #: Learning rate of SGD (momentum 0.9, weight decay 1e-4) at the start; it falls as (1 - t / iterations)^0.9.
    lr: float = 0.01
    #: Share of lr below which it does not fall.
    lr_floor: float = 0.0
    #: Step at which the consistency loss sets in; below 1: as a share of the run.
    consistency_from: float
    #: Share of the run over which the consistency weight rises after that, by exp(-5 (1 - t)^2). 0: at once.
    rampup: float = 0.4


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Train one network with one method.

    The defaults shown are those of the method and the recipe given beside --help; see docs/training.md.
    """

    #: What the student is shown and told about unlabelled slices; `python -m train methods` lists them.
    method: str
    #: Where the other settings come from. quick: minutes on two cores; reduced: 6000 steps of 6 + 6 slices at 128x128;
    #: iterations: 30000 steps of 12 + 12 at 256x256, consistency from step 1000; epochs: 1000 epochs of 2 + 18.
    recipe: Literal["quick", "reduced", "iterations", "epochs"]
    #: Which network: a file of train/networks.
    architecture: str = "unet"
    #: Seed of the weights, the data order, the augmentation, the masks and dropout.
    seed: int = 0
    #: Run folder. None: runs/<data>-<method>-<labelled>-seed<seed>. The same command on the same folder continues the
    #: run.
    output: Path | None = None
    #: auto: cuda if there is one, else cpu; or any torch device.
    device: str = "auto"
    #: Mixed precision; fp16 (CUDA only) with a gradient scaler.
    autocast: Literal["no", "bf16", "fp16"] = "no"
    #: Batch norm over all processes instead of each one's share (CUDA only).
    sync_batch_norm: bool = False
    #: Student and teacher run through torch.compile: the same results but for rounding, after a start that takes
    #: minutes; needs a C++ compiler, on CUDA Triton. Checkpoints are the same.
    compile: bool = False
    #: Steps between validations; each is followed by a checkpoint.
    validate_every: int
    #: Steps between flushes of the metrics to disk, the only moments when the host waits for the device.
    log_every: int = 20
    #: Steps between pictures of image, entropy, patches, student's view, pseudo-label and truth.
    panel_every: int
    data: DataConfig
    model: Network
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    strategy: Strategy
    schedule: ScheduleConfig

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", folder("output", self.output))


def flatten(config: Any) -> dict[str, Any]:
    """All fields of a config and its groups by name; the names are unique over the groups."""
    flat: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        flat.update(flatten(value) if dataclasses.is_dataclass(value) else {f.name: value})
    return flat


MAY_CHANGE = {
    "recipe",
    "output",
    "device",
    "compile",
    "validate_every",
    "log_every",
    "panel_every",
    "iterations",
    "epochs",
}


def changed_settings(before: FitConfig, after: FitConfig) -> str:
    """What differs of the settings that a run cannot change on its way; a relative root is the same as an absolute."""
    old, new = (
        {name: value for name, value in flatten(config).items() if name not in MAY_CHANGE}
        | {"root": config.data.root and config.data.root.resolve()}
        for config in (before, after)
    )
    return "; ".join(f"{k} {old.get(k)} -> {new.get(k)}" for k in {**new, **old} if old.get(k) != new.get(k))


def replace_fields(config: Any, values: dict[str, Any]) -> Any:
    """The config with these fields, its own or its groups', replaced."""
    changes: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            changes[f.name] = replace_fields(value, values)
        elif f.name in values:
            changes[f.name] = values[f.name]
    return dataclasses.replace(config, **changes)


def typed(values: dict[str, Any], usual: FitConfig) -> FitConfig:
    """The configuration of these values, as dataclasses.asdict or JSON has them; usual: one of the same method.

    Raises:
        ValueError: a value is missing, too many, or not of its field's type; the message names the field.
    """

    def number(value: Any) -> Any:
        return float(value) if type(value) is int else value

    def several(value: Any) -> Any:
        return tuple(map(number, value)) if isinstance(value, (tuple, list)) else (number(value),)

    simple: dict[Any, Any] = {float: number, tuple[float, ...]: several}
    cast: list[type] = [tuple, Path]

    def group(kind: type) -> Callable[[dict[str, Any]], Any]:
        return lambda given: dacite.from_dict(kind, given, dacite.Config(simple, cast, strict=True))

    hooks = {**simple, Strategy: group(type(usual.strategy)), Network: group(type(usual.model))}
    try:
        return dacite.from_dict(FitConfig, values, dacite.Config(hooks, cast, strict=True))
    except dacite.DaciteError as error:
        raise ValueError(str(error)) from None
