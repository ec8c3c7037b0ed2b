"""`python -m train fit`: from a configuration to a finished run folder."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from train.data.batches import Slices
from train.data.description import read_description
from train.data.layout import labelled_slices
from train.data.phantom import ROOT, ensure_phantom
from train.data.summary import check_same_data, summarise
from train.data.volumes import read_split
from train.device import pick_device
from train.files import check_writable, locked, there
from train.methods import METHODS
from train.run import checkpoint
from train.run.check import check
from train.run.config import FitConfig, changed_settings
from train.run.config_file import from_json
from train.run.folder import RunFolder
from train.run.monitor import read_rows
from train.run.processes import end_if_one_of_several, join
from train.run.recipes import configure
from train.run.run import Data, Run
from train.run.schedule import Schedule, length


def run_folder(config: FitConfig) -> RunFolder:
    if config.output is not None:
        return RunFolder(config.output)
    data = "phantom" if config.data.root is None else config.data.root.resolve().name
    return RunFolder(Path("runs") / f"{data}-{config.method}-{config.data.labelled}-seed{config.seed}")


def read_data(config: FitConfig, device: torch.device) -> Data:
    """Everything the run reads, in memory; each file is checked before training starts."""
    data, strategy = config.data, config.strategy
    root = ensure_phantom(ROOT) if data.root is None else data.root
    labelled, unlabelled = labelled_slices(root, data.labelled)
    if strategy.all_labels:
        labelled, unlabelled = labelled + unlabelled, []
    if strategy.unlabelled and not unlabelled:
        raise ValueError(f"labelled = {data.labelled} patients leaves no unlabelled slice for method {config.method}")
    return Data(
        root,
        Slices(root, labelled, data.classes, device),
        Slices(root, unlabelled, data.classes, device) if strategy.unlabelled else None,
        read_split(root, "val", data.classes),
        read_description(root, data.classes),
        summarise(root, labelled, unlabelled if strategy.unlabelled else []),
    )


def check_whole(folder: RunFolder) -> None:
    """Raises ValueError where a start would write over what it cannot go on from.

    Without last.pt a run starts again: it was killed before its first checkpoint, which follows a validation.
    """
    best, last = folder.checkpoint("best"), folder.checkpoint("last")
    if there(last):
        return
    otherwise = "give another --output, or remove the folder"
    if there(best):
        raise ValueError(
            f"output {folder} has {best.name} but no {last}: put it back, copy {best.name} there, {otherwise}"
        )
    results = folder.results()
    if results and not there(folder.config):
        raise ValueError(
            f"output {folder} has {', '.join(results)} but neither {folder.config.name} nor {last}: {otherwise}"
        )
    rows = read_rows(folder.metrics, warn=False)
    validated = min((row["step"] for row in rows if row["kind"] == "validation"), default=math.inf)
    done = max((row["step"] for row in rows), default=0)
    if done > validated or there(folder.validation):
        raise ValueError(
            f"output {folder} has {done} steps in {folder.metrics.name} but no {last}: put it back, {otherwise}"
        )


def check_same_run(folder: RunFolder, config: FitConfig) -> FitConfig | None:
    """The configuration of the run that the folder holds, if it holds one.

    Raises:
        ValueError: its settings, but for MAY_CHANGE, are others, or check_whole raises it.
    """
    check_whole(folder)
    if there(folder.config):
        before = from_json(folder.config.read_text(encoding="utf-8", errors="replace"), folder.config)
    elif there(folder.checkpoint("last")):
        path = folder.checkpoint("last")
        before = from_json(checkpoint.load(path, ("config",))["config"], path)
    else:
        return None
    changed = changed_settings(before, config)
    if changed:
        raise ValueError(
            f"output {folder} holds a run with other settings ({changed}): give another --output, or remove the folder"
        )
    return before


def check_length(folder: RunFolder, before: FitConfig, config: FitConfig, labelled: int) -> None:
    """Raises ValueError if another length would have changed what the steps that are done were trained with.

    labelled: number of labelled slices.
    """
    old, new = length(before, labelled), length(config, labelled)
    path = folder.checkpoint("last")
    if old == new or not there(path):
        return
    done = checkpoint.load(path, ("step",))["step"]
    if new < done:
        raise ValueError(f"output {folder} has {done} steps already, more than the {new} asked for")
    schedules = Schedule(old, before), Schedule(new, config)
    for step in range(done):
        one, other = (schedule.at(step) for schedule in schedules)
        if one != other:
            name = next(name for name in {**one, **other} if one.get(name) != other.get(name))
            raise ValueError(
                f"output {folder} holds a run of {old} steps; with {new} the {name} of step {step + 1}, which is done, "
                f"would have been {other.get(name)} instead of {one.get(name)}. A run can be lengthened if nothing in "
                "it depends on its length: --lr-floor 1, --consistency-from a step, --rampup 0, one --ratio and "
                "--threshold"
            )


def fit(config: FitConfig) -> Path:
    """Trains, or goes on with what the run folder holds; returns the folder.

    Ctrl-C and SIGTERM end it after the step at hand with a checkpoint; the same call goes on from there.

    Raises:
        ValueError, OSError: bad settings or data, before anything is written, naming the thing.
        NotFinite: a loss became NaN or infinite; the last checkpoint is kept.
    """
    root = config.data.root and config.data.root.resolve()  # what a checkpoint says holds from any folder
    config = replace(config, method=METHODS.full_name(config.method), data=replace(config.data, root=root))
    check(config)
    folder = run_folder(config)
    check_writable(folder.path)
    check_same_run(folder, config)
    device = pick_device(config.device)
    if device.type != "cuda":
        if config.autocast == "fp16":
            raise ValueError(f"autocast fp16 needs CUDA, got device {device}; use bf16")
        if config.sync_batch_norm:
            raise ValueError(f"sync_batch_norm needs CUDA, got device {device}")
    processes = join(device)
    with contextlib.ExitStack() as stack:
        stack.callback(processes.leave)
        check(config, processes.size)
        data = read_data(config, device)
        if processes.writes:
            busy = f"output {folder}: another process is training there"
            stack.enter_context(locked(folder.path / ".lock", busy))
            before = check_same_run(folder, config)  # again: another start may have been quicker
            if before is not None:
                check_length(folder, before, config, len(data.labelled))
            check_same_data(folder.data, data.summary)
        processes.wait()
        return Run(config, folder, processes, device, data).run()


def default(arguments: list[str]) -> FitConfig:
    """The configuration that these arguments of the command line change: that of their method, recipe and network."""
    given: dict[str, Any] = {}
    for argument, following in pairwise([*arguments, ""]):
        name, equals, value = argument.partition("=")
        name = name.removeprefix("--").replace("-", "_")
        if not argument.startswith("--"):
            continue
        if name in ("method", "recipe", "architecture"):
            given[name] = value if equals else following
        elif name in ("iterations", "epochs"):
            given[name] = None  # the recipe's length makes room for the one that is given
    return configure(**given)


Config = FitConfig


def main(config: FitConfig) -> None:
    fit(config)
    end_if_one_of_several()
