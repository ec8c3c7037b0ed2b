"""Bidirectional copy-paste (Bai et al., CVPR 2023, arXiv:2305.00673)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import entmask_ext
from train.data.batches import Batch
from train.methods import METHODS, Method
from train.parts import Given, Strategy, View
from train.parts.gate import pseudo_labels

if TYPE_CHECKING:
    from train.run.config import FitConfig

TRUE, PSEUDO = 1.0, 0.5  # weights of pixels by whose labels they have


@dataclass(frozen=True, kw_only=True)
class TwoWayPaste(Strategy):
    #: Sides of the pasted box, as a share of the slice's.
    paste_side: float = 2 / 3

    def check(self, size: tuple[int, int], labelled: int, unlabelled: int, processes: int) -> None:
        if not 0 < self.paste_side < 1:
            raise ValueError(f"paste_side must be in (0, 1), got {self.paste_side}")
        if unlabelled % (2 * processes):
            raise ValueError(f"unlabelled_batch must be a multiple of {2 * processes}, two halves, got {unlabelled}")
        if labelled != unlabelled:
            raise ValueError(f"labelled_batch must be unlabelled_batch, {unlabelled}, got {labelled}")

    def box(self, images: Tensor) -> Tensor:
        """(1, H, W) bool: one box somewhere, for the whole batch."""
        size = images.shape[2:]
        edges = []
        for extent, u in zip(size, torch.rand(2, device=images.device), strict=True):
            length = int(extent * self.paste_side)
            first = (u * (extent - length + 1)).long()
            edges += [first, first + length]
        return entmask_ext.box_mask(torch.stack(edges)[None], size)

    def supervised(self, labelled: Batch, consistency: bool) -> Batch | None:
        """Before there is a teacher, labelled slices are pasted into labelled ones."""
        if consistency:
            return None
        a, b = halves(labelled)
        return paste(self.box(labelled.images), a, b)

    def views(self, given: Given, t: float) -> list[View]:
        """Labelled slices pasted into unlabelled ones, and unlabelled into labelled; labels and weights go along."""
        classes = given.logits.shape[1]
        cleaned = entmask_ext.largest_components(pseudo_labels(given.logits), classes, connectivity=2)
        labelled, unlabelled = halves(given.labelled), halves(Batch(given.images, cleaned))
        box = self.box(given.images)
        into_unlabelled = paste(box, labelled[0], unlabelled[0])
        into_labelled = paste(box, unlabelled[1], labelled[1])
        patches = box.expand(len(into_labelled.labels), -1, -1)
        return [
            View(*into_unlabelled, patches, 1, mixed=patches, mixed_patch_size=1, region_weights=(TRUE, PSEUDO)),
            View(*into_labelled, patches, 1, mixed=patches, mixed_patch_size=1, region_weights=(PSEUDO, TRUE)),
        ]


def halves(batch: Batch) -> tuple[Batch, Batch]:
    half = len(batch.images) // 2
    return Batch(batch.images[:half], batch.labels[:half]), Batch(batch.images[half:], batch.labels[half:])


def paste(box: Tensor, inside: Batch, outside: Batch) -> Batch:
    return Batch(*(entmask_ext.patch_where(box, i, o, 1) for i, o in zip(inside, outside, strict=True)))


def preset(config: FitConfig) -> FitConfig:
    schedule = replace(config.schedule, consistency_from=0.25, rampup=0.0, lr_floor=1.0)
    if config.recipe == "iterations":
        schedule = replace(schedule, iterations=40_000)
    return replace(
        config,
        teacher=replace(config.teacher, teacher_mode="train"),
        loss=replace(config.loss, dice_region="each", consistency_weight=1.0),
        schedule=schedule,
    )


METHODS.add(
    "bcp",
    Method(
        "boxes of labelled slices pasted into unlabelled ones and the reverse",
        "u = box(labelled, unlabelled), v = box(unlabelled, labelled), a box of 2/3 x 2/3; L = (CE + Dice) / 2 of each "
        "region, 1 where the label is true, 1/2 where it is the teacher's largest component of a class",
        lambda masking: TwoWayPaste(),
        preset,
        "BCP, Bai et al., CVPR 2023, arXiv:2305.00673",
        "Consistency goes straight on from labelled slices pasted into labelled ones (a quarter of the run, as the "
        "authors' 10,000 of 40,000 steps), where they go back to the best validation checkpoint: a run has one line "
        "of weights, and validation chooses nothing in it. Until then the loss is that of the pasted slice as a "
        "whole, not by region.",
    ),
)
