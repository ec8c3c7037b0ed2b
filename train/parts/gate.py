"""Pseudo-labels, and which of them are believed."""

from __future__ import annotations

import torch
from torch import Tensor

from train.parts import IGNORED


def pseudo_labels(logits: Tensor, min_confidence: float | None = None) -> Tensor:
    """(N, H, W) uint8: the first most probable class of logits (N, K, H, W), IGNORED where it is less probable."""
    labels = logits.argmax(1).to(torch.uint8)
    if min_confidence is None:
        return labels
    return labels.masked_fill_(~(logits.float().softmax(1).amax(1) >= min_confidence), IGNORED)
