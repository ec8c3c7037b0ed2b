"""Untidy data shared by the tests of the ops: shapes, dtypes, memory layouts, devices, and how close is close."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else ["cpu"]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]

# What scores may differ by between implementations.
SCORE_TOLERANCE = {torch.float32: 4e-7, torch.float64: 1e-13}


@dataclass(frozen=True)
class Shape:
    images: int
    channels: int
    classes: int
    sizes: tuple[int, ...]
    patch: tuple[int, ...]

    @property
    def grid(self) -> tuple[int, ...]:
        return tuple(math.ceil(size / width) for size, width in zip(self.sizes, self.patch, strict=True))

    @property
    def patches(self) -> int:
        return math.prod(self.grid)

    def __str__(self) -> str:
        sizes, patch = ("x".join(map(str, numbers)) for numbers in (self.sizes, self.patch))
        return f"{self.images}*{self.channels}*{self.classes}*{sizes}/{patch}"


SHAPES = [
    Shape(2, 1, 4, (32, 48), (16, 16)),  # whole patches
    Shape(3, 2, 5, (17, 23), (4, 5)),  # cut patches on both axes
    Shape(1, 3, 2, (7, 5), (1, 1)),  # pixels
    Shape(2, 1, 3, (9, 11), (9, 11)),  # one patch an image
    Shape(2, 1, 3, (6, 5), (64, 3)),  # a patch larger than the image
    Shape(1, 2, 19, (1, 70), (1, 33)),  # one row
    Shape(2, 1, 3, (5, 9, 7), (2, 3, 4)),
    Shape(1, 2, 2, (8, 8, 8), (4, 4, 4)),
]
devices = pytest.mark.parametrize("device", DEVICES)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)


def _poisoned(x: Tensor, *shape: int) -> Tensor:
    """Memory around x that no kernel should see."""
    return x.new_full(shape, math.nan if x.is_floating_point() else 77)


def _sliced(x: Tensor) -> Tensor:
    wide = _poisoned(x, *x.shape[:-1], 2 * x.shape[-1] + 3)
    view = wide[..., 1 : 1 + 2 * x.shape[-1] : 2]
    return view.copy_(x)


def _transposed(x: Tensor) -> Tensor:
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


def _misaligned(x: Tensor) -> Tensor:
    flat = _poisoned(x, x.numel() + 1)
    return flat[1:].view(x.shape).copy_(x)


def _expanded(x: Tensor) -> Tensor:
    """The first image for all of them: other values, and the stride of the batch is 0."""
    return x[:1].contiguous().expand(x.shape)


def _cropped(x: Tensor) -> Tensor:
    """A window of larger images, rows apart from each other."""
    large = _poisoned(x, *x.shape[:2], *(size + 3 for size in x.shape[2:]))
    view = large[(..., *(slice(1, 1 + size) for size in x.shape[2:]))]
    return view.copy_(x)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": _channels_last,
    "sliced": _sliced,
    "cropped": _cropped,
    "transposed": _transposed,
    "misaligned": _misaligned,
    "expanded": _expanded,
}
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def combined(shapes: Sequence[Shape]) -> pytest.MarkDecorator:
    """A shape, a dtype and a layout: every two of them together; all three only in the long run."""
    cases = []
    for (i, shape), (j, layout), dtype in itertools.product(enumerate(shapes), enumerate(LAYOUTS), DTYPES):
        marks = [] if dtype == DTYPES[(i + j) % len(DTYPES)] else [pytest.mark.long]
        name = f"{shape}-{str(dtype).removeprefix('torch.')}-{layout}"
        cases.append(pytest.param(shape, dtype, layout, marks=marks, id=name))
    return pytest.mark.parametrize(("shape", "dtype", "layout"), cases)


combinations = combined(SHAPES)


def make_image(
    shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu", layout: str = "contiguous"
) -> Tensor:
    return LAYOUTS[layout](torch.randn(shape.images, shape.channels, *shape.sizes).to(device, dtype))


def make_logits(
    shape: Shape,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    layout: str = "contiguous",
    *,
    absent: float = -math.inf,
) -> Tensor:
    """Sure and unsure pixels side by side, absent classes, equal classes, and an offset that softmax must not see."""
    logits = torch.randn(shape.images, shape.classes, *shape.sizes)
    logits = logits * 10 ** torch.empty(shape.images, 1, *shape.sizes).uniform_(-1.5, 1.5)
    logits += 5 * torch.randn(shape.images, 1, *shape.sizes)
    kind = torch.randint(12, (shape.images, *shape.sizes))
    logits[:, 0].masked_fill_(kind == 0, absent)
    logits.masked_fill_((kind == 1)[:, None], 1.25)
    return LAYOUTS[layout](logits.to(device, dtype))


# Around a register's and a cache's classes, and the most.
MANY_CLASSES = [2, 64, 65, 300, 2048]


def make_sure_logits(classes: int, device: str = "cpu", *, level: float = -18.85) -> Tensor:
    """Each pixel's class at 0 and all others at `level`, where not even eight of them show beside 1 in float32."""
    logits = level + 0.1 * torch.rand(2, classes, 3, 19)
    logits.scatter_(1, torch.arange(2 * 3 * 19).reshape(2, 1, 3, 19) * 31 % classes, 0.0)
    return logits.to(device)


def make_labels(shape: Shape, dtype: torch.dtype = torch.int64, device: str = "cpu") -> Tensor:
    """All classes, and some labels that are none: 255, and -1 where the dtype has it."""
    labels = torch.randint(shape.classes, (shape.images, *shape.sizes))
    labels[torch.rand(labels.shape) < 0.1] = 255
    if dtype == torch.int64:
        labels[torch.rand(labels.shape) < 0.1] = -1
    return labels.to(device, dtype)


def make_patches(shape: Shape, device: str = "cpu") -> Tensor:
    return (torch.rand(shape.images, *shape.grid) < 0.4).to(device)


def bits(x: Tensor) -> Tensor:
    """Equal where every bit is: a NaN equals itself, and -0.0 differs from 0.0."""
    if not x.is_floating_point():
        return x
    integer = {8: torch.int64, 4: torch.int32, 2: torch.int16}[x.itemsize]
    return x.contiguous().view(integer)


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    different = bits(actual) != bits(expected)
    assert not different.any(), f"{int(different.sum())} of {actual.numel()} values differ"


def assert_scores_close(actual: Tensor, expected: Tensor) -> None:
    """Of two implementations; expected may be of higher precision. NaN must be in the same places."""
    assert actual.shape == expected.shape
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=0, atol=SCORE_TOLERANCE[actual.dtype], equal_nan=True
    )


def assert_gradients_close(actual: Tensor, expected: Tensor) -> None:
    """Relative to the largest of them; half-precision gradients are rounded once."""
    assert actual.shape == expected.shape
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[actual.dtype]
    largest = expected.double().abs().max().item() if expected.numel() else 0.0
    smallest = 6e-8 if actual.dtype == torch.float16 else 0.0  # its subnormals are that far apart
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance * largest + smallest)
