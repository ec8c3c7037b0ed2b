"""What is timed on: sizes, and tensors of that size that look like a teacher's and a student's."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

PATCH = 16
RATIO = 0.75
DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}
LAYOUTS = ("contiguous", "channels_last")


@dataclass(frozen=True)
class Size:
    """Of the logits: images x classes x spatial sizes. The image has one channel."""

    images: int
    classes: int
    spatial: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> "Size":
        try:
            images, classes, *spatial = (int(part) for part in text.split("x"))
        except ValueError:
            raise ValueError(f"size must be NxKxHxW or NxKxDxHxW, got {text!r}") from None
        if len(spatial) not in (2, 3) or images < 1 or classes < 2 or any(n < 1 or n % PATCH for n in spatial):
            raise ValueError(f"size must be NxKxHxW or NxKxDxHxW, K >= 2, D, H, W multiples of {PATCH}, got {text!r}")
        return cls(images, classes, tuple(spatial))

    def __str__(self) -> str:
        return "x".join(map(str, (self.images, self.classes, *self.spatial)))

    @property
    def grid(self) -> tuple[int, ...]:
        return tuple(n // PATCH for n in self.spatial)

    @property
    def patches(self) -> int:
        """Of one image."""
        return math.prod(self.grid)

    @property
    def pixels(self) -> int:
        """Of the batch."""
        return self.images * math.prod(self.spatial)


class Workload:
    """The tensors of one size, dtype, layout and device, each made when it is first asked for."""

    def __init__(self, size: Size, dtype: torch.dtype, layout: str, device: str) -> None:
        self.size = size
        self.dtype = dtype
        self.layout = layout
        self.device = device
        self._generator = torch.Generator(device).manual_seed(0)

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def logits_bytes(self) -> int:
        return self.size.pixels * self.size.classes * self.itemsize

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, device=self.device)

    def _laid_out(self, x: Tensor) -> Tensor:
        if self.layout == "channels_last":
            form = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
            return x.to(self.dtype).contiguous(memory_format=form)
        return x.to(self.dtype).contiguous()

    def _logits(self) -> Tensor:
        """Patches that differ in how sure the network is, so that their scores spread as real ones do.

        No probability is 0 in float32: the gradient of an entropy made of p ln p would be NaN there in eager torch.
        """
        size = self.size
        scale = (1.5 * self._normal(size.images, 1, *size.grid)).exp().clamp_(max=6)
        for axis in range(2, scale.dim()):
            scale = scale.repeat_interleave(PATCH, axis)
        return self._laid_out(self._normal(size.images, size.classes, *size.spatial).mul_(scale))

    @cached_property
    def image(self) -> Tensor:
        return self._laid_out(self._normal(self.size.images, 1, *self.size.spatial))

    @cached_property
    def logits(self) -> Tensor:
        return self._logits()

    @cached_property
    def student(self) -> Tensor:
        return self._logits()

    @cached_property
    def labels(self) -> Tensor:
        return self.logits.argmax(1)

    @cached_property
    def scores(self) -> Tensor:
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        return torch.rand(
            (self.size.images, *self.size.grid), generator=self._generator, device=self.device, dtype=dtype
        )

    @cached_property
    def patches(self) -> Tensor:
        return self.scores < RATIO

    @cached_property
    def where(self) -> Tensor:
        """Four pixels of five."""
        shape = (self.size.images, *self.size.spatial)
        return torch.rand(shape, generator=self._generator, device=self.device) < 0.8

    @cached_property
    def permutation(self) -> Tensor:
        """Of the patches of pairs of images, or of each image where their number is odd."""
        group = 2 if self.size.images % 2 == 0 else 1
        return torch.randperm(group * self.size.patches, generator=self._generator, device=self.device)

    @cached_property
    def source(self) -> Tensor:
        """A patch of the batch for each patch: some are taken by many, some by none."""
        count = self.scores.numel()
        return torch.randint(count, self.scores.shape, generator=self._generator, device=self.device)

    @cached_property
    def boxes(self) -> Tensor:
        """One per image, of a third to two thirds of each axis."""
        columns = []
        for size in self.size.spatial:
            length = torch.randint(
                size // 3, 2 * size // 3, (self.size.images,), generator=self._generator, device=self.device
            )
            first = (self._normal(self.size.images).abs() % 1 * (size - length)).long()
            columns += [first, first + length]
        return torch.stack(columns, 1)

    @cached_property
    def blobs(self) -> Tensor:
        """Pseudo-labels: blobs of every class, and one pixel in a hundred of another class."""
        size = self.size
        coarse = self._normal(size.images, size.classes, *(n // PATCH + 1 for n in size.spatial))
        mode = "bilinear" if len(size.spatial) == 2 else "trilinear"
        labels = F.interpolate(coarse, size.spatial, mode=mode, align_corners=True).argmax(1)
        wrong = torch.rand(labels.shape, generator=self._generator, device=self.device) < 0.01
        return labels.add_(wrong).remainder_(size.classes).to(torch.uint8)

    def gradient(self, x: Tensor) -> Tensor:
        """An incoming gradient for an output like x."""
        noise = torch.randn(x.shape, generator=self._generator, device=self.device).to(x.dtype)
        return torch.empty_like(x).copy_(noise)
