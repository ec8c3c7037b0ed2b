"""The strong view: intensities change, pixels stay where they are, so that the labels of the weak view hold."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

STRENGTH = 0.5  # brightness and contrast are within 1 +- this
LEAST = -60.0  # an exponent that adds nothing; lower ones give denormal numbers, which are slow
SIGMA = (0.1, 2.0)  # of the blur, in pixels


@dataclass(frozen=True, kw_only=True)
class StrongView:
    #: Probability that the brightness and the contrast of an unlabelled slice are changed for the student, each by a
    #: factor within 1 +- 0.5.
    jitter: float = 0.0
    #: Probability that it is blurred for the student, by a Gaussian of a sigma within 0.1 and 2 pixels.
    blur: float = 0.0

    def check(self) -> None:
        for name, value in (("jitter", self.jitter), ("blur", self.blur)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value}")

    def __call__(self, images: Tensor) -> Tensor:
        """images (N, C, H, W); what is drawn depends on torch's seed alone, and the host reads nothing."""
        if self.jitter > 0:
            images = jittered(images, torch.rand(3, len(images), device=images.device), self.jitter)
        if self.blur > 0:
            images = blurred(images, torch.rand(2, len(images), device=images.device), self.blur)
        return images


def jittered(images: Tensor, draws: Tensor, probability: float) -> Tensor:
    """c (b x) + (1 - c) mean(b x) = b (c x + (1 - c) mean x); the order of the two does not matter.

    images (N, C, H, W); draws (3, N) in [0, 1): whether, brightness, contrast.
    """
    b, c = torch.where(draws[0] < probability, 1 + STRENGTH * (2 * draws[1:] - 1), 1.0)
    shift = b * (1 - c) * images.mean((1, 2, 3))
    return torch.addcmul(shift[:, None, None, None], images, (b * c)[:, None, None, None])


def blurred(images: Tensor, draws: Tensor, probability: float) -> Tensor:
    """K_H x K_W^T for each slice x, where K_ij = exp(-(i - j)^2 / (2 sigma^2)), normalised over j in the slice.

    images (N, C, H, W); draws (2, N) in [0, 1): whether, sigma.
    """
    sigma = torch.where(draws[0] < probability, SIGMA[0] + (SIGMA[1] - SIGMA[0]) * draws[1], 1e-3)  # 1e-3: K = 1

    def kernel(extent: int) -> Tensor:
        at = torch.arange(extent, device=images.device)
        distances = (at[:, None] - at) / sigma[:, None, None, None]
        return torch.softmax((-0.5 * distances**2).clamp(min=LEAST), -1)

    height, width = images.shape[2:]
    rows = kernel(height)
    columns = rows if width == height else kernel(width)
    return rows @ images @ columns.mT
