"""Networks by name. A file of this package adds one: see unet.py, and "How to add a network" in CONTRIBUTING.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from train.registry import Registry
from train.run.config import ModelConfig


@dataclass(frozen=True)
class Network:
    #: settings, image channels, classes K -> a module of images (N, C, H, W) to logits (N, K, H, W).
    build: Callable[[ModelConfig, int, int], nn.Module]
    #: What H and W have to be multiples of.
    divisor: Callable[[ModelConfig], int]


NETWORKS: Registry[Network] = Registry(__name__, "architecture")


def build_network(model: ModelConfig, classes: int) -> nn.Module:
    """The network in channels_last, which is the faster layout for convolutions on CPU and GPU."""
    network = NETWORKS[model.architecture].build(model, 1, classes)
    return network.to(memory_format=torch.channels_last)
