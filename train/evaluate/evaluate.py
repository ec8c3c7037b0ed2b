"""`python -m train evaluate`: the best and the last checkpoint of a run on whole volumes, class by class."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from zlib import crc32

import tyro

from train.data.layout import shared_patients
from train.data.phantom import ROOT, ensure_phantom
from train.data.volumes import own_spacings, read_split
from train.device import pick_device
from train.evaluate.metrics import METRICS, mean_of
from train.evaluate.volumes import Row, evaluate_volumes
from train.files import write_atomically
from train.run import checkpoint
from train.run.config import changed_settings
from train.run.folder import RunFolder


@dataclass(frozen=True)
class Config:
    """Judge the best and the last checkpoint of a run on whole volumes.

    Prints a table per class and writes one row per volume to RUN/evaluation/SPLIT_CHECKPOINT.csv. Another network,
    unit or data set than the default has a file of its own: SPLIT_CHECKPOINT_teacher_mm_FOLDER-CHECKSUM.csv.
    """

    #: Run folder, as `python -m train fit` wrote it.
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    #: Which list of volumes: train.list, val.list or test.list.
    split: Literal["train", "val", "test"] = "val"
    #: best: of the highest validation Dice; last: of the end of the run.
    checkpoint: Literal["best", "last", "both"] = "both"
    #: Folder in the ACDC h5 layout. None: the one that the run was trained on.
    root: Path | None = None
    #: Which of the two networks; judged: the one that validation judged during training.
    network: Literal["judged", "student", "teacher"] = "judged"
    #: Unit of the distances and of the NSD's tolerance of 1. mm: by each volume's own spacing.
    unit: Literal["voxel", "mm"] = "voxel"
    #: auto: cuda if there is one, else cpu; or any torch device.
    device: str = "auto"


def main(config: Config) -> None:
    folder, device = RunFolder(config.run), pick_device(config.device)
    which: tuple[Literal["best", "last"], ...]
    which = ("best", "last") if config.checkpoint == "both" else (config.checkpoint,)
    paths = {name: folder.checkpoint(name) for name in which}
    states = {
        name: checkpoint.load(path, ("step",), device) for name, path in paths.items()
    }  # read once: a run goes on
    loaded = {name: checkpoint.network_of(paths[name], states[name], config.network, device) for name in which}
    _, fit = loaded[which[0]]
    changed = changed_settings(fit, loaded[which[-1]][1])
    if changed:
        raise ValueError(f"{folder}: best.pt and last.pt are of runs with other settings ({changed})")
    own = fit.data.root or ROOT
    root = config.root or (own if fit.data.root else ensure_phantom(own))
    for name in which:
        checkpoint.check_same_kind(paths[name], checkpoint.description_of(paths[name], states[name]), root)
    volumes = read_split(root, config.split, fit.data.classes)
    for sentence in shared_patients(root):
        print(f"warning: {sentence}")
    spacings = own_spacings(root, volumes) if config.unit == "mm" else None
    who = fit.teacher.judge if config.network == "judged" else config.network
    suffix = ""
    if who != fit.teacher.judge:
        suffix += f"_{who}"
    if config.unit != "voxel":
        suffix += f"_{config.unit}"
    if root.resolve() != own.resolve():
        suffix += f"_{root.resolve().name}-{crc32(os.fsencode(root.resolve())):08x}"
    files: dict[Path, list[Row]] = {}
    for name, (network, _) in loaded.items():
        path, step = paths[name], states[name]["step"]
        rows = evaluate_volumes(
            network, volumes, fit.data.size, fit.data.classes,
            spacings=spacings, precision=fit.autocast, progress=True,
        )  # fmt: skip
        table = folder.evaluation(f"{config.split}_{name}{suffix}")
        about = {"checkpoint": name, "step": step, "network": who, "unit": config.unit, "data": str(root.resolve())}
        files[table] = [row | about for row in rows]
        print(
            f"\n{path} (step {step}, {who}), {len(rows)} volume{'s' * (len(rows) > 1)} of {root / config.split}.list, "
            f"distances in {config.unit}s\n{format_table(rows)}per volume: {table}"
        )
    for table, rows in files.items():  # after the printing: a run folder that cannot be written gives its answer too
        write_atomically(table, to_csv(rows).encode(errors="surrogateescape"))


def to_csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def format_table(rows: Sequence[Row]) -> str:
    """Means over the volumes, a line a class and one for their mean; distances over the volumes that have them.

    `empty` counts volumes where the prediction lacks the class, `absent` those where the truth does.
    """
    metrics = [name for name in METRICS if f"{name}_mean" in rows[0]]
    classes = [key.removeprefix("empty_") for key in rows[0] if key.startswith("empty_")]
    titles = {"dice": "Dice", "jaccard": "Jaccard", "hd95": "HD95", "asd": "ASD", "nsd": "NSD"}
    lines = [f"{'class':<8}" + "".join(f"{titles[name]:>9}" for name in metrics) + f"{'empty':>8}{'absent':>8}"]
    means = {(name, c): mean_of([row[f"{name}_{c}"] for row in rows]) for name in metrics for c in classes}
    counts = {(key, c): int(sum(row[f"{key}_{c}"] for row in rows)) for key in ("empty", "absent") for c in classes}
    for c in classes:
        values = "".join(f"{means[name, c]:>9.4f}" for name in metrics)
        lines.append(f"{c:<8}{values}{counts['empty', c]:>8}{counts['absent', c]:>8}")
    values = "".join(f"{mean_of([means[name, c] for c in classes]):>9.4f}" for name in metrics)
    total = {key: sum(counts[key, c] for c in classes) for key in ("empty", "absent")}
    lines.append(f"{'mean':<8}{values}{total['empty']:>8}{total['absent']:>8}")
    return "\n".join(lines) + "\n"
