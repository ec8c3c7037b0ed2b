"""The gate: pseudo-labels, and which of them are believed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

import entmask_ext
from train.parts import IGNORED, View
from train.ramps import ramped


@dataclass(frozen=True, kw_only=True)
class Gate:
    #: Probability of its class from which the teacher's label of a pixel is believed; None: every label is.
    min_confidence: float | None = None
    #: Normalised entropy of the teacher below which its label is believed; two numbers: ramped; None: every label is.
    max_entropy: tuple[float, ...] | None = None
    #: pixel: labels that are not believed are in no loss. batch: all are, and the loss is multiplied by the share of
    #: the batch's pixels that is believed.
    gate: Literal["pixel", "batch"] = "pixel"

    def at(self, t: float) -> dict[str, float]:
        return {} if self.max_entropy is None else {"max_entropy": ramped(self.max_entropy, t)}

    def check(self) -> None:
        if self.min_confidence is not None and not 0 <= self.min_confidence <= 1:
            raise ValueError(f"min_confidence must be in [0, 1], got {self.min_confidence}")
        bounds = self.max_entropy
        if bounds is not None and (len(bounds) not in (1, 2) or not all(0 <= v <= 1 for v in bounds)):
            raise ValueError(f"max_entropy must be one number or two in [0, 1], got {bounds}")

    def __call__(self, view: View, logits: Tensor, doubt: Tensor, t: float) -> View:
        """A view whose labels are pseudo_labels(logits, min_confidence) already; logits, doubt (N, K, H, W)."""
        labels = view.labels
        if self.max_entropy is not None:
            sure = entmask_ext.entropy_map(doubt) < ramped(self.max_entropy, t)
            labels = entmask_ext.patch_where(sure, labels, IGNORED, 1)
        if self.gate == "batch":
            share = believed_share(labels)
            return view._replace(labels=pseudo_labels(logits), weight=view.weight * share, believed=share)
        return view._replace(labels=labels)


def pseudo_labels(logits: Tensor, min_confidence: float | None = None) -> Tensor:
    """(N, H, W) uint8: the first most probable class of logits (N, K, H, W), IGNORED where it is less probable."""
    return entmask_ext.pseudo_labels(logits, min_confidence=min_confidence).labels


def believed_share(labels: Tensor) -> Tensor:
    return (labels != IGNORED).float().mean()
