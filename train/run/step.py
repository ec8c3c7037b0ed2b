"""One step of the mean teacher (Tarvainen and Valpola, NeurIPS 2017) with a masked student."""

from __future__ import annotations

import contextlib
import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from train.data.batches import Batch, Batches
from train.device import autocast
from train.files import reason
from train.networks import build_network
from train.parts import Given, View
from train.run import losses
from train.run.config import FitConfig
from train.run.processes import Processes
from train.run.schedule import Schedule
from train.run.statistics import step_statistics
from train.run.timing import StepTimer


class Step(NamedTuple):
    """What one step leaves: numbers known on the host, 0-d tensors still on the device, and what it worked on."""

    host: dict[str, float]
    device: dict[str, Tensor]
    labelled: Batch
    unlabelled: Batch | None
    teacher_logits: Tensor | None
    views: list[View]


def seed_step(seed: int, step: int, rank: int) -> None:
    """Masks and dropout of a step depend on nothing before it, so that a run continues anywhere as if unbroken."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1))


def keep_statistics(network: nn.Module) -> None:
    """In train mode batch norm still normalises by the batch's statistics, but no longer moves its own by them."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.track_running_stats = False


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, decay: float, buffers: bool) -> None:
    """teacher = decay teacher + (1 - decay) student; counters are copied."""
    ours: list[Tensor] = list(teacher.parameters())
    theirs: list[Tensor] = list(student.parameters())
    if buffers:
        for mine, its in zip(teacher.buffers(), student.buffers(), strict=True):
            if mine.is_floating_point():
                ours.append(mine)
                theirs.append(its)
            else:
                mine.copy_(its)
    torch._foreach_lerp_(ours, theirs, 1.0 - decay)


def dropped(views: list[View], labelled: int) -> dict[str, Tensor]:
    """The network's argument channel_dropout, (N,) for labelled slices and all views, where a view asks for it."""
    if not any(view.channel_dropout for view in views):
        return {}
    device = views[0].images.device
    shares = [(0.0, labelled), *((view.channel_dropout, len(view.images)) for view in views)]
    return {"channel_dropout": torch.cat([torch.full((n,), share, device=device) for share, n in shares])}


class Trainer:
    """Student, teacher, optimizer and the step that moves them."""

    def __init__(
        self,
        config: FitConfig,
        iterations: int,
        labelled: Batches,
        unlabelled: Batches | None,
        device: torch.device,
        processes: Processes | None = None,
    ) -> None:
        self.config = config
        self.schedule = Schedule(iterations, config)
        self.labelled, self.unlabelled = labelled, unlabelled
        self.device = device
        self.processes = processes or Processes()
        torch.manual_seed(config.seed)
        self.student = build_network(config.model, config.data.classes).to(device)
        if config.sync_batch_norm:
            self.student = nn.SyncBatchNorm.convert_sync_batchnorm(self.student)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.teacher.train(config.teacher.teacher_mode == "train")
        if config.teacher.ema_buffers:
            keep_statistics(self.teacher)
        if config.compile:
            for network in (self.student, self.teacher):
                network.compile(options={"fallback_random": True})  # dropout draws what it draws without
        self.parallel = self.processes.parallel(self.student)
        self.optimizer = torch.optim.SGD(
            self.student.parameters(), lr=config.schedule.lr, momentum=0.9, weight_decay=1e-4
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.autocast == "fp16")
        self.class_weight = losses.class_weights(config.loss, config.data.classes, device)
        self.timer = StepTimer(device)

    @property
    def judged(self) -> nn.Module:
        return self.teacher if self.config.teacher.judge == "teacher" else self.student

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        return autocast(self.device, self.config.autocast)

    def step(self, step: int, log: bool = False) -> Step:
        """Step number `step`, from 0; log: also what costs a little to know (train/run/statistics.py)."""
        self.timer.start()
        seed_step(self.config.seed, step, self.processes.rank)
        host = self.schedule.at(step)
        weight = host["consistency_weight"]
        labelled = self.labelled.at(step)
        unlabelled = self.unlabelled.at(step) if self.unlabelled is not None and weight > 0 else None
        self.timer.mark("data")
        teacher_logits, views = None, []
        if unlabelled is not None:
            teacher_logits, doubt = self.teach(unlabelled.images)
            self.timer.mark("teacher")
            given = Given(unlabelled.images, teacher_logits, doubt, labelled)
            views = self.config.strategy.views(given, self.schedule.time(step))
            self.timer.mark("mask")
        device = self.losses(self.config.strategy.supervised(labelled, bool(views)), views, weight)
        self.backward(device["loss"], host["lr"])
        update_teacher(self.teacher, self.student, self.schedule.ema_decay(step), self.config.teacher.ema_buffers)
        self.timer.mark("optimizer")
        if views and unlabelled is not None and teacher_logits is not None:
            device |= step_statistics(views[0], teacher_logits, unlabelled.labels, host.get("threshold"), log)
        return Step(host, {k: v.detach() for k, v in device.items()}, labelled, unlabelled, teacher_logits, views)

    @torch.no_grad()
    def teach(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's logits for images (N, C, H, W), and logits that say how sure it is (see Given.doubt)."""
        noise, passes = self.config.teacher.teacher_noise, self.config.teacher.teacher_passes

        def logits() -> Tensor:
            seen = images + torch.randn_like(images).mul_(noise).clamp_(-2 * noise, 2 * noise) if noise else images
            with self.autocast():
                answer: Tensor = self.teacher(seen)
            return answer

        answer = logits()
        if passes == 1:
            return answer, answer
        return answer, torch.stack([logits().float().softmax(1) for _ in range(passes)]).mean(0).log()

    def losses(self, labelled: Batch | None, views: list[View], weight: float) -> dict[str, Tensor]:
        """The loss of one forward pass over the labelled slices and all views, and its parts."""
        config = self.config.loss
        images = [view.images for view in views]
        if labelled is not None:
            images.insert(0, labelled.images)
        counts = [len(x) for x in images]
        parts: dict[str, Tensor] = {}
        total = images[0].new_zeros(())
        drop = dropped(views, 0 if labelled is None else counts[0])
        with self.autocast():
            every = self.parallel(images[0] if len(images) == 1 else torch.cat(images), **drop)
            self.timer.mark("student")
            answers = list(every.split(counts))
            if labelled is not None:
                supervised = losses.supervised_loss(answers.pop(0), labelled.labels, config)
                total = parts["supervised"] = supervised.total
                parts |= {"supervised_ce": supervised.ce_visible, "supervised_dice": supervised.dice}
            for view, answer in zip(views, answers, strict=True):
                consistency = losses.unlabelled_loss(answer, view, config, self.class_weight)
                total = total + weight * (view.weight * consistency["consistency"])
                for name, part in consistency.items():
                    parts[name] = parts.get(name, 0) + view.weight * part
        self.timer.mark("loss")
        return {**parts, "loss": total}

    def backward(self, loss: Tensor, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.timer.mark("backward")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        own = (self.student,) if self.config.teacher.ema_buffers else (self.student, self.teacher)
        self.processes.average_(b for network in own for b in network.buffers() if b.is_floating_point())

    def state_dict(self) -> dict[str, Any]:
        return {
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError, naming the part, where one is not of this network."""
        for name in ("student", "teacher", "optimizer", "scaler"):
            try:
                getattr(self, name).load_state_dict(state[name])
            except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{name!r} does not fit: {reason(error)[:200]}") from None
