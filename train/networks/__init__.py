"""Networks by name. A file of this package adds one: see unet.py, and "How to add a network" in CONTRIBUTING.md."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import nn

from train.registry import Registry


class Network(ABC):
    """A frozen dataclass whose fields are the network's settings: flags of `fit` and keys of config.json."""

    #: The module takes channel_dropout (N,), the probability that a channel of an image's features is dropped.
    drops_channels: ClassVar[bool] = False

    @abstractmethod
    def check(self, size: tuple[int, int]) -> None:
        """Raises ValueError, naming the setting, where one is wrong or does not suit slices of this (H, W)."""

    @abstractmethod
    def build(self, in_channels: int, classes: int) -> nn.Module:
        """The module from images (N, in_channels, H, W) to logits (N, classes, H, W)."""


NETWORKS: Registry[type[Network]] = Registry(__name__, "architecture")


def build_network(network: Network, classes: int) -> nn.Module:
    """The network in channels_last, which is the faster layout for convolutions on CPU and GPU."""
    return network.build(1, classes).to(memory_format=torch.channels_last)
