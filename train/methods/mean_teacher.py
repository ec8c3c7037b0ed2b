"""A noisy teacher whose probabilities the student is to have: mean teacher and UA-MT, as SSL4MIS has them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from train.methods import METHODS, Method
from train.parts.composed import Composed
from train.parts.gate import Gate

if TYPE_CHECKING:
    from train.run.config import FitConfig


def noisy_teacher(config: FitConfig, weight: float, passes: int = 1) -> FitConfig:
    """The teacher is in train mode, with batch-norm statistics of its own; the weight rises over the whole run."""
    teacher = replace(config.teacher, teacher_noise=0.1, teacher_passes=passes, teacher_mode="train", ema_buffers=False)
    loss = replace(config.loss, consistency="mse", consistency_weight=weight)
    return replace(config, teacher=teacher, loss=loss, schedule=replace(config.schedule, rampup=1.0))


METHODS.add(
    "mean-teacher",
    Method(
        "the teacher's probabilities of a noisy image",
        "L = mean_x sum_k (p_k - q_k)^2 / K, q = softmax(teacher(x + clamp(0.1 n, +-0.2)))",
        Composed.of,
        lambda config: noisy_teacher(config, 0.1 / config.data.classes),
        "mean teacher, Tarvainen and Valpola, NeurIPS 2017, arXiv:1703.01780, as SSL4MIS (Luo et al.) has it",
        "The ramp of the weight is smooth and starts where consistency does; theirs has stairs of 150 steps from step "
        "0, and the loss is 0 before step 1,000.",
    ),
)
METHODS.add(
    "ua-mt",
    Method(
        "mean teacher where eight noisy passes agree",
        "L = mean sum_k (p_k - q_k)^2 / 2 over the pixels where the entropy of the passes' mean softmax is below "
        "(0.75 + 0.25 ramp) ln 2, in nats: 0.375 to 0.5 of ln 4",
        lambda masking: Composed(masking=masking, gate=Gate(max_entropy=(0.375, 0.5))),
        lambda config: noisy_teacher(config, 0.05, passes=8),
        "UA-MT, Yu et al., MICCAI 2019, arXiv:1907.07034, as SSL4MIS (Luo et al.) has it",
        "Eight passes over the batch, where theirs are four over the batch twice. The bound is a share of ln K, equal "
        "to theirs for 4 classes. The loss sets in where consistency does, theirs at step 0, with the ramp of "
        "mean-teacher.",
    ),
)
