"""The 2-D U-Net that semi-supervised cardiac segmentation compares methods on.

Five levels of two 3x3 convolutions (batch norm, LeakyReLU), dropout between the two in the encoder, max pooling down,
skip connections across (Ronneberger et al., MICCAI 2015), with the widths and dropout that the field's code has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from train.networks import NETWORKS, Network


def conv_block(inputs: int, outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(inplace=True),
    )


def upsample(inputs: int, outputs: int, how: Literal["bilinear", "transposed"]) -> nn.Module:
    if how == "transposed":
        return nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1),
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
    )


def drop_channels(features: Tensor, probability: Tensor) -> Tensor:
    """As nn.Dropout2d, with a probability (N,) for each image."""
    kept = 1 - probability[:, None].expand(features.shape[:2])
    factor = torch.bernoulli(kept) / kept
    return features * factor[:, :, None, None].to(features.dtype)


class UNet(nn.Module):
    """images (N, C, H, W) -> logits (N, K, H, W); H and W are multiples of 2 ** (levels - 1), 16 by default."""

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 4,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        dropout: Sequence[float] = (0.05, 0.1, 0.2, 0.3, 0.5),
        up: Literal["bilinear", "transposed"] = "bilinear",
    ) -> None:
        super().__init__()
        if len(channels) != len(dropout) or len(channels) < 2:
            raise ValueError(
                f"channels and dropout must be of one length, at least 2, got {len(channels)} and {len(dropout)}"
            )
        self.encoder = nn.ModuleList(
            conv_block(i, o, p) for i, o, p in zip((in_channels, *channels[:-1]), channels, dropout, strict=True)
        )
        self.pool = nn.MaxPool2d(2)
        pairs = list(pairwise(channels))[::-1]
        self.up = nn.ModuleList(upsample(coarse, fine, up) for fine, coarse in pairs)
        self.decoder = nn.ModuleList(conv_block(2 * fine, fine, 0.0) for fine, _ in pairs)
        self.head = nn.Conv2d(channels[0], num_classes, 3, padding=1)

    def forward(self, x: Tensor, channel_dropout: Tensor | None = None) -> Tensor:
        """channel_dropout (N,): the probability that a channel of an image's features is 0 for the decoder."""
        skips = []
        for level, block in enumerate(self.encoder):
            x = block(self.pool(x) if level else x)
            skips.append(x)
        if channel_dropout is not None:
            skips = [drop_channels(features, channel_dropout) for features in skips]
            x = skips[-1]
        for up, block, skip in zip(self.up, self.decoder, skips[-2::-1], strict=True):
            x = block(torch.cat([skip, up(x)], 1))
        return self.head(x)


@dataclass(frozen=True, kw_only=True)
class UNetConfig(Network):
    drops_channels: ClassVar[bool] = True
    #: Channels of the U-Net's levels, finest first.
    channels: tuple[int, ...] = (16, 32, 64, 128, 256)
    #: Dropout of the encoder's levels.
    dropout: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.5)
    #: How the decoder doubles the resolution: 1x1 convolution and bilinear, or a transposed convolution.
    up: Literal["bilinear", "transposed"] = "bilinear"

    def check(self, size: tuple[int, int]) -> None:
        levels = len(self.channels)
        if levels < 2 or min(self.channels) < 1:
            raise ValueError(f"channels must be two or more positive numbers, got {self.channels}")
        if len(self.dropout) != levels or not all(0 <= p < 1 for p in self.dropout):
            raise ValueError(f"dropout must be {levels} numbers in [0, 1), one per level, got {self.dropout}")
        divisor = 2 ** (levels - 1)
        if min(size) < 1 or any(n % divisor for n in size):
            raise ValueError(f"size must be positive multiples of {divisor}, got {size}")

    def build(self, in_channels: int, classes: int) -> UNet:
        return UNet(in_channels, classes, self.channels, self.dropout, self.up)


NETWORKS.add("unet", UNetConfig)
