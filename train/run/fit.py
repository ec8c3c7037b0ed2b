"""`python -m train fit`: from a configuration to a finished run folder."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

import entmask_ext
from train.data.batches import LABELLED, UNLABELLED, Batches, Slices
from train.data.description import Description, read_description
from train.data.layout import labelled_slices
from train.data.phantom import ROOT, ensure_phantom
from train.data.summary import check_same_data, summarise, summary_lines
from train.data.volumes import Volumes, read_split
from train.device import pick_device
from train.evaluate.metrics import mean_of
from train.evaluate.pictures import save_panel
from train.evaluate.volumes import evaluate_volumes
from train.files import check_writable, lock, remove_parts, write_atomically
from train.methods import METHODS, pseudo_labels
from train.run import checkpoint
from train.run.check import check
from train.run.config import FitConfig, flatten
from train.run.config_file import from_json, to_json
from train.run.folder import RunFolder
from train.run.monitor import Monitor, NotFinite, Watch, read_rows
from train.run.processes import Processes, join
from train.run.recipes import configure
from train.run.step import Step, Trainer


class Data(NamedTuple):
    labelled: Slices
    unlabelled: Slices | None
    volumes: Volumes
    description: Description  # what the data set states, kept in the checkpoints
    summary: dict[str, Any]  # kept in the run folder


def run_folder(config: FitConfig) -> RunFolder:
    if config.output is not None:
        return RunFolder(config.output)
    data = "phantom" if config.data.root is None else config.data.root.resolve().name
    return RunFolder(Path("runs") / f"{data}-{config.method}-{config.data.labelled}-seed{config.seed}")


def check_same_run(folder: RunFolder, config: FitConfig) -> None:
    """Raises ValueError if the folder holds a run with other settings."""
    path = folder.config
    if not path.is_file():
        return
    before, now = flatten(from_json(path.read_text(), path)), flatten(config)
    changed = [f"{k} {before[k]} -> {now[k]}" for k in now if k not in ("output", "device") and before[k] != now[k]]
    if changed:
        raise ValueError(
            f"output {folder} holds a run with other settings ({'; '.join(changed)}): "
            "give another --output, or remove the folder"
        )


def read_data(config: FitConfig, device: torch.device) -> Data:
    """Everything the run reads, in memory; each file is checked before training starts."""
    data, strategy = config.data, config.mask
    root = ensure_phantom(ROOT) if data.root is None else data.root
    labelled, unlabelled = labelled_slices(root, data.labelled)
    if strategy.all_labels:
        labelled, unlabelled = labelled + unlabelled, []
    if strategy.unlabelled and not unlabelled:
        raise ValueError(f"labelled = {data.labelled} patients leaves no unlabelled slice for method {config.method}")
    return Data(
        Slices(root, labelled, data.classes, device),
        Slices(root, unlabelled, data.classes, device) if strategy.unlabelled else None,
        read_split(root, "val", data.classes),
        read_description(root, data.classes),
        summarise(root, labelled, unlabelled if strategy.unlabelled else []),
    )


def fit(config: FitConfig) -> Path:
    """Trains, or goes on with what the run folder holds; returns the folder.

    Raises:
        ValueError, OSError: bad settings or data, before anything is written, naming the thing.
        NotFinite: a loss became NaN or infinite; the last checkpoint is kept.
    """
    config = replace(config, method=METHODS.full_name(config.method))
    check(config)
    folder = run_folder(config)
    check_writable(folder.path)
    check_same_run(folder, config)
    device = pick_device(config.device)
    if config.autocast == "fp16" and device.type != "cuda":
        raise ValueError(f"autocast fp16 needs CUDA, got device {device}; use bf16")
    processes = join(device)
    try:
        check(config, processes.size)
        data = read_data(config, device)
        return Run(config, folder, processes, device, data).run()
    finally:
        processes.leave()


def length(config: FitConfig, labelled: int) -> int:
    """Steps of the run, given the number of labelled slices."""
    schedule = config.schedule
    if schedule.iterations is not None:
        return schedule.iterations
    assert schedule.epochs is not None
    return schedule.epochs * max(1, labelled // schedule.labelled_batch)


class Run:
    """A run from its folder's last checkpoint to its end."""

    def __init__(
        self, config: FitConfig, folder: RunFolder, processes: Processes, device: torch.device, data: Data
    ) -> None:
        self.config, self.folder, self.processes, self.volumes = config, folder, processes, data.volumes
        self.description, self.summary = data.description, data.summary
        schedule, size, interpolation = config.schedule, config.data.size, config.data.interpolation
        share = (config.seed, LABELLED, processes.rank, processes.size)
        labelled = Batches(data.labelled, schedule.labelled_batch, size, interpolation, *share)
        unlabelled = None
        if data.unlabelled is not None:
            share = (config.seed, UNLABELLED, processes.rank, processes.size)
            unlabelled = Batches(data.unlabelled, schedule.unlabelled_batch, size, interpolation, *share)
        self.iterations = length(config, len(data.labelled))
        self.trainer = Trainer(config, self.iterations, labelled, unlabelled, device, processes)
        self.lock = lock(folder.path) if processes.writes else None
        check_same_data(folder.data, data.summary)
        self.best: dict[str, Any] = {"step": 0, "dice": -1.0}
        self.start = self.resume()
        if processes.writes:
            remove_parts(folder.path)
            write_atomically(folder.config, to_json(config).encode())
            write_atomically(folder.data, (json.dumps(data.summary, indent=2) + "\n").encode())
        processes.wait()
        self.monitor = Monitor(folder, processes, Watch(config.mask, schedule.unlabelled_batch), self.start)

    def resume(self) -> int:
        path = self.folder.checkpoint("last")
        if not path.is_file():
            return 0
        state = checkpoint.load(path, self.trainer.device)
        self.trainer.load_state_dict(state)
        self.best = state["best"]
        return state["step"]

    def run(self) -> Path:
        config, monitor, silent = self.config, self.monitor, not self.processes.writes
        say(
            self.processes,
            f"{self.folder}: {config.method}, step {self.start} of {self.iterations}, {self.trainer.device}",
        )
        for line in summary_lines(self.summary):
            say(self.processes, line)
        bar = tqdm(total=self.iterations, initial=self.start, disable=silent, dynamic_ncols=True, mininterval=0.5)
        try:
            for index in range(self.start, self.iterations):
                done = index + 1
                last = done == self.iterations
                log = done % config.log_every == 0 or last
                step = self.trainer.step(index, log)
                monitor.add(done, step.host, step.device)
                if log or done % config.validate_every == 0:
                    self.flush(bar)
                if done % config.panel_every == 0 or last:
                    self.panel(done, step)
                if done % config.validate_every == 0 or last:
                    self.validate(done)
                bar.update()
        except NotFinite as error:
            kept = self.folder.checkpoint("last")
            where = f"{kept} is from before" if kept.is_file() else "there was no checkpoint yet"
            remedy = "Lower --lr or --consistency-weight, or use --autocast no or bf16"
            raise NotFinite(f"{error}; {where}. {remedy}") from None
        finally:
            bar.close()
            monitor.close()
        self.finish()
        return self.folder.path

    def flush(self, bar: tqdm) -> None:
        for row in self.monitor.flush():
            if row["kind"] == "warning":
                say(self.processes, f"warning (step {row['step']}): {row['text']}")
        self.trainer.timer.collect()
        names = {"loss": "loss", "supervised": "sup", "consistency": "cons", "masked": "masked"}
        latest = self.monitor.latest
        bar.set_postfix({short: f"{latest[name]:.3f}" for name, short in names.items() if name in latest})

    def validate(self, done: int) -> None:
        """Judges the network, then saves: the best first, so that last.pt never promises more than there is."""
        if self.processes.writes:
            data, judge = self.config.data, self.config.teacher.judge
            rows = evaluate_volumes(
                self.trainer.judged, self.volumes, data.size, data.classes,
                metrics=("dice",), precision=self.config.autocast,
            )  # fmt: skip
            names = [name for name in rows[0] if name.startswith("dice_")]
            scores = {name: mean_of([row[name] for row in rows]) for name in names}
            self.monitor.write([{"kind": "validation", "step": done, "network": judge, **scores}])
            say(self.processes, f"step {done}: validation Dice {scores['dice_mean']:.4f} ({judge})")
            better = scores["dice_mean"] > self.best["dice"]
            if better:
                self.best = {"step": done, "dice": scores["dice_mean"]}
            state = {"step": done, "best": self.best, "config": to_json(self.config), **self.trainer.state_dict()}
            state["data_set"] = self.description.plain()
            if better:
                checkpoint.save(self.folder.checkpoint("best"), state)
            checkpoint.save(self.folder.checkpoint("last"), state)
        self.processes.wait()

    def panel(self, done: int, step: Step) -> None:
        if not self.processes.writes:
            return
        batch = step.unlabelled or step.labelled
        logits = step.teacher_logits
        if logits is None:  # no consistency at this step: the teacher is asked for the picture alone
            was = self.trainer.teacher.training
            with torch.no_grad(), self.trainer.autocast():
                logits = self.trainer.teacher.eval()(batch.images)
            self.trainer.teacher.train(was)
        view = step.view
        save_panel(
            self.folder.panel(done),
            f"{self.config.method}, step {done}",
            batch.images,
            entmask_ext.entropy_map(logits),
            None if view is None else view.patches,
            None if view is None else view.patch_size,
            batch.images if view is None else view.images,
            pseudo_labels(logits) if view is None else view.labels,
            batch.labels,
        )

    def finish(self) -> None:
        """The table of the validations, the time split, where to look."""
        if not self.processes.writes:
            return
        rows = {row["step"]: row for row in read_rows(self.folder.metrics) if row["kind"] == "validation"}
        table = dice_table({"best": rows[self.best["step"]], "last": rows[self.iterations]})
        write_atomically(self.folder.validation, table.encode())
        latest = self.folder.panel(self.iterations)
        count = f"{len(self.volumes)} volume{'s' if len(self.volumes) > 1 else ''}"
        print(f"\nvalidation Dice of the {self.config.teacher.judge} on {count}\n{table}")
        if self.trainer.timer.steps:
            print(self.trainer.timer.table())
        print(f"picture: {latest}\nrun:     {self.folder}")


def dice_table(rows: dict[str, dict[str, Any]]) -> str:
    names = [name for name in next(iter(rows.values())) if name.startswith("dice_")]
    lines = [f"{'checkpoint':<12}{'step':>7}" + "".join(f"{name.removeprefix('dice_'):>10}" for name in names)]
    for which, row in rows.items():
        lines.append(f"{which:<12}{row['step']:>7}" + "".join(f"{row[name]:>10.4f}" for name in names))
    return "\n".join(lines) + "\n"


def say(processes: Processes, text: str) -> None:
    if processes.writes:
        tqdm.write(text)


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
