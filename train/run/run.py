"""A run: from its folder's last checkpoint, or its start, to its end."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

import entmask_ext
from train.data.batches import LABELLED, UNLABELLED, Batches, Slices
from train.data.description import Description
from train.data.summary import summary_lines
from train.data.volumes import Volumes
from train.evaluate.metrics import mean_of
from train.evaluate.pictures import class_names, draw_panel, save_figure
from train.files import remove_parts, there, write_atomically
from train.parts import View
from train.parts.gate import pseudo_labels
from train.run import checkpoint
from train.run.config import FitConfig, changed_settings
from train.run.config_file import from_json, to_json
from train.run.folder import PATTERNS, RunFolder
from train.run.monitor import Monitor, NotFinite, Watch, read_rows
from train.run.processes import Processes
from train.run.schedule import length
from train.run.signals import StopSignals
from train.run.step import Step, Trainer
from train.run.validation import Validation, mean_dice

PARTS = ("step", "best", "config", "student", "teacher", "optimizer", "scaler")  # of a checkpoint


class Data(NamedTuple):
    root: Path
    labelled: Slices
    unlabelled: Slices | None
    volumes: Volumes
    description: Description  # what the data set states, kept in the checkpoints
    summary: dict[str, Any]  # kept in the run folder


class Run:
    def __init__(
        self, config: FitConfig, folder: RunFolder, processes: Processes, device: torch.device, data: Data
    ) -> None:
        self.config, self.folder, self.processes = config, folder, processes
        self.root, self.description, self.summary = data.root, data.description, data.summary
        schedule, size, interpolation = config.schedule, config.data.size, config.data.interpolation
        share = (config.seed, LABELLED, processes.rank, processes.size)
        labelled = Batches(data.labelled, schedule.labelled_batch, size, interpolation, *share)
        unlabelled = None
        if data.unlabelled is not None:
            share = (config.seed, UNLABELLED, processes.rank, processes.size)
            unlabelled = Batches(data.unlabelled, schedule.unlabelled_batch, size, interpolation, *share)
        self.iterations = length(config, len(data.labelled))
        self.trainer = Trainer(config, self.iterations, labelled, unlabelled, device, processes)
        self.validation = Validation(data.volumes, config.data.classes, size, device) if processes.writes else None
        self.start = 0
        self.best: dict[str, Any] = {"step": 0, "dice": -1.0}
        self.last: dict[str, Any] = {"step": 0}
        self.resume()
        if processes.writes:
            remove_parts(folder.path, PATTERNS)
            write_atomically(folder.config, to_json(config).encode())
            write_atomically(folder.data, (json.dumps(data.summary, indent=2) + "\n").encode())
        processes.wait()
        self.monitor = Monitor(folder, processes, Watch(config.strategy, schedule.unlabelled_batch), self.start)

    def resume(self) -> None:
        path, best = self.folder.checkpoint("last"), self.folder.checkpoint("best")
        if not there(path):
            return
        state = checkpoint.load(path, PARTS, self.trainer.device)
        checkpoint.check_same_kind(path, checkpoint.description_of(path, state), self.root)
        changed = changed_settings(from_json(state["config"], path), self.config)
        if changed:
            raise ValueError(f"checkpoint {path} is of a run with other settings ({changed})")
        try:
            self.trainer.load_state_dict(state)
        except ValueError as error:
            raise ValueError(f"checkpoint {path}: {error}") from None
        self.start, self.best = state["step"], state["best"]
        self.last = state.get("last", self.last)
        if not self.processes.writes:
            return
        if self.best["step"] == self.start:  # killed before the best was saved: it is this one
            checkpoint.save(best, state)
        elif not there(best):
            text = f"{best} (step {self.best['step']}) does not exist any more; a later validation has to be better"
            say(self.processes, f"warning: {text}")

    def run(self) -> Path:
        config, monitor = self.config, self.monitor
        where = f"step {self.start} of {self.iterations}, {self.trainer.device}"
        say(self.processes, f"{self.folder}: {config.method}, {where}")
        for line in summary_lines(self.summary):
            say(self.processes, line)
        bar = tqdm(
            total=self.iterations,
            initial=self.start,
            disable=not self.processes.writes,
            dynamic_ncols=True,
            mininterval=0.5,
        )
        try:
            if self.start == self.iterations != self.last["step"]:  # stopped there before it could be judged
                self.validate(self.iterations)
            with StopSignals() as stop:
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
                    asked = self.processes.most(stop.asked) if log or self.processes.size == 1 else 0
                    if asked and not last:
                        self.stop(done, asked, bar)
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

    def stop(self, done: int, number: int, bar: tqdm) -> None:
        """Saves where the run is and ends it, as the signal of this number would have."""
        self.flush(bar)
        self.save(done)
        say(self.processes, f"stopped at step {done}; the same command goes on from there")
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    def validate(self, done: int) -> None:
        """Judges the network, then saves."""
        better = False
        if self.validation is not None:
            judge = self.config.teacher.judge
            cases = self.validation.dice(self.trainer.judged, self.config.autocast)
            scores = mean_dice(cases)
            each = {f"case/{name}": mean_of(row) for name, row in cases.items()}
            self.monitor.write([{"kind": "validation", "step": done, "network": judge, **scores, **each}])
            say(self.processes, f"step {done}: validation Dice {scores['dice_mean']:.4f} ({judge})")
            self.last = {"step": done, **scores}
            better = scores["dice_mean"] > self.best["dice"]
            if better:
                self.best = {"dice": scores["dice_mean"], **self.last}
        self.save(done, better)

    def save(self, done: int, best: bool = False) -> None:
        """The last first: what it says of a best that was not saved any more is mended from itself, see resume()."""
        if self.processes.writes:
            told = {"step": done, "best": self.best, "last": self.last, "config": to_json(self.config)}
            state = {**told, "data_set": self.description.plain(), **self.trainer.state_dict()}
            checkpoint.save(self.folder.checkpoint("last"), state)
            if best:
                checkpoint.save(self.folder.checkpoint("best"), state)
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
        view = step.views[0] if step.views else None
        if view is None:
            view = View(batch.images, pseudo_labels(logits))
        picture = draw_panel(
            f"{self.config.method}, step {done}",
            batch.images,
            entmask_ext.entropy_map(logits),
            view,
            batch.labels,
            class_names(self.description.classes, self.config.data.classes),
        )
        save_figure(self.folder.panel(done), picture)

    def finish(self) -> None:
        """The table of the validations, the time split, where to look."""
        if self.validation is None:
            return
        rows = {row["step"]: row for row in read_rows(self.folder.metrics, warn=False) if row["kind"] == "validation"}
        table = dice_table(
            {
                "best": {**rows.get(self.best["step"], {}), "dice_mean": self.best["dice"], **self.best},
                "last": {**rows.get(self.iterations, {}), **self.last, "step": self.iterations},
            },
            self.config.data.classes,
        )
        write_atomically(self.folder.validation, table.encode())
        latest = self.folder.panel(self.iterations)
        count = f"{len(self.validation.volumes)} volume{'s' if len(self.validation.volumes) > 1 else ''}"
        print(f"\nvalidation Dice of the {self.config.teacher.judge} on {count}\n{table}")
        if self.trainer.timer.steps:
            print(self.trainer.timer.table())
        if latest.is_file():
            print(f"picture: {latest}")
        print(f"run:     {self.folder}")


def dice_table(rows: dict[str, dict[str, Any]], classes: int) -> str:
    """A line a checkpoint; - where a score is not known any more."""
    names = [str(c) for c in range(1, classes)] + ["mean"]
    lines = [f"{'checkpoint':<12}{'step':>7}" + "".join(f"{name:>10}" for name in names)]
    for which, row in rows.items():
        scores = [row.get(f"dice_{name}") for name in names]
        cells = ["-" if score is None else f"{score:.4f}" for score in scores]
        lines.append(f"{which:<12}{row['step']:>7}" + "".join(f"{cell:>10}" for cell in cells))
    return "\n".join(lines) + "\n"


def say(processes: Processes, text: str) -> None:
    if processes.writes:
        tqdm.write(text)
