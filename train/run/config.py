"""What a run can be told. Fields left at None take the method's value, then the recipe's (train/run/recipes.py)."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints


@dataclass(frozen=True)
class DataConfig:
    #: Folder in the ACDC h5 layout (train.list, train_slices.list, val.list, data/). None: the embedded phantom, which
    #: is written to data/phantom.
    root: Path | None = None
    #: How many patients, the first of train.list, have labels.
    labelled: int | None = None
    #: Number of classes, background included.
    classes: int = 4
    #: Height and width that every slice is resized to; multiples of 16.
    size: tuple[int, int] | None = None
    #: How images are resampled when they are rotated and resized; labels always by nearest neighbour.
    interpolation: Literal["nearest", "cubic"] = "nearest"


@dataclass(frozen=True)
class ModelConfig:
    #: Which network: a file of train/networks.
    architecture: str = "unet"
    #: Channels of the U-Net's levels, finest first.
    channels: tuple[int, ...] = (16, 32, 64, 128, 256)
    #: Dropout of the encoder's levels.
    dropout: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.5)
    #: How the decoder doubles the resolution: 1x1 convolution and bilinear, or a transposed convolution.
    up: Literal["bilinear", "transposed"] = "bilinear"


@dataclass(frozen=True)
class TeacherConfig:
    #: Decay of the teacher's moving average: min(1 - 1 / (t + 1), ema_decay) at step t.
    ema_decay: float = 0.99
    #: The teacher's batch-norm statistics follow the student's by the same average. False: it keeps its own, from its
    #: own forward passes, which needs teacher_mode train and a method that runs the teacher.
    ema_buffers: bool = True
    #: Mode of the teacher when it makes pseudo-labels. In train mode its dropout is on, which raises the entropy and
    #: makes the mask vary from step to step.
    teacher_mode: Literal["eval", "train"] = "eval"
    #: Which network the validation judges, and `predict` and `evaluate` take by default.
    judge: Literal["student", "teacher"] = "student"


@dataclass(frozen=True)
class LossConfig:
    #: Weight of cross entropy, in the supervised and in the consistency loss.
    ce_weight: float | None = None
    #: Weight of soft Dice, in both losses.
    dice_weight: float | None = None
    #: Weight of the consistency loss after its ramp.
    consistency_weight: float = 0.1
    #: region: mask_weight x mean over masked pixels + mean over visible ones, an empty region adds 0. unweighted: the
    #: mean over all.
    consistency_ce: Literal["region", "unweighted"] = "region"
    #: Weight of the masked pixels' cross entropy against the visible ones'.
    mask_weight: float = 1.5
    #: Class weight of background in the consistency cross entropy; the other classes have 1.
    background_weight: float | None = None
    #: Added to the denominator of each region's mean; for replaying how an offset of 1 or 1e6 silences the loss.
    denominator_offset: float = 0.0


@dataclass(frozen=True)
class MaskConfig:
    #: Side of a patch in pixels.
    patch_size: int | None = None
    #: Share of the patches that is masked (random and top-r methods); two numbers: ramped from one to the other.
    ratio: tuple[float, ...] | None = None
    #: Normalised entropy from which a pixel counts as unsure (entropy-pixel, entropy-count); two numbers: ramped.
    threshold: tuple[float, ...] = (0.75,)
    #: Fewest patches of an image that the threshold methods mask, so that their mask cannot vanish.
    min_patches: int = 0
    #: Share of the patches, the most uncertain of those selected, that stays visible.
    hint: float | None = None
    #: Patches compete within their image, or over the whole batch.
    scope: Literal["image", "batch"] = "image"
    #: Random masks: one for the batch instead of one an image.
    shared: bool = False


@dataclass(frozen=True)
class ScheduleConfig:
    #: Length of the run in steps.
    iterations: int | None = None
    #: Length in passes over the labelled slices, instead of iterations.
    epochs: int | None = None
    #: Labelled slices a step, over all processes.
    labelled_batch: int | None = None
    #: Unlabelled slices a step, over all processes.
    unlabelled_batch: int | None = None
    #: Learning rate of SGD (momentum 0.9, weight decay 1e-4) at the start; it falls as (1 - t / iterations)^0.9.
    lr: float | None = None
    #: Share of lr below which it does not fall.
    lr_floor: float | None = None
    #: Step at which the consistency loss sets in; below 1: as a share of the run.
    consistency_from: float | None = None
    #: Share of the run over which the consistency weight rises after that, by exp(-5 (1 - t)^2). 0: at once.
    rampup: float | None = None


@dataclass(frozen=True)
class FitConfig:
    """Train one network with one method.

    What has no default of its own (None) comes from the method, then from the recipe; see docs/training.md.
    """

    #: What the student is shown and told about unlabelled slices; `python -m train methods` lists them.
    method: str = "topr"
    #: Where unset fields come from. quick: minutes on two cores; reduced: 1500 steps of 6 + 6 slices at 128x128;
    #: iterations: 30000 steps of 12 + 12 at 256x256, consistency from step 1000; epochs: 1000 epochs of 2 + 18.
    recipe: Literal["quick", "reduced", "iterations", "epochs"] = "quick"
    #: Seed of the weights, the data order, the augmentation, the masks and dropout.
    seed: int = 0
    #: Run folder. None: runs/<data>-<method>-<labelled>-seed<seed>. The same command on the same folder continues the
    #: run.
    output: Path | None = None
    #: auto: cuda if there is one, else cpu; or any torch device.
    device: str = "auto"
    #: Mixed precision; fp16 (CUDA only) with a gradient scaler.
    autocast: Literal["no", "bf16", "fp16"] = "no"
    #: Steps between validations; each is followed by a checkpoint.
    validate_every: int | None = None
    #: Steps between flushes of the metrics to disk, the only moments when the host waits for the device.
    log_every: int = 20
    #: Steps between pictures of image, entropy, patches, student's view, pseudo-label and truth.
    panel_every: int | None = None
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)


def flatten(config: Any) -> dict[str, Any]:
    """All fields of a config and its groups by name; the names are unique over the groups."""
    flat: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        flat.update(flatten(value) if dataclasses.is_dataclass(value) else {f.name: value})
    return flat


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


def to_json(config: FitConfig) -> str:
    return json.dumps(dataclasses.asdict(config), indent=2, default=str) + "\n"


def from_dict(values: dict[str, Any], cls: type = FitConfig) -> Any:
    """The config from what json gave back."""
    hints = get_type_hints(cls)
    fields = {}
    for f in dataclasses.fields(cls):
        if f.name not in values:
            continue
        value = values[f.name]
        if dataclasses.is_dataclass(hints[f.name]):
            value = from_dict(value, hints[f.name])
        elif isinstance(value, list):
            value = tuple(value)
        elif value is not None and f.name in ("root", "output"):
            value = Path(value)
        fields[f.name] = value
    return cls(**fields)
