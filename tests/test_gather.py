"""gather_patches against indexing, and its gradient: patches taken by many, by one, by none."""

import pytest
import torch
from cases import DTYPES, LAYOUTS, assert_gradients_close, assert_same_bits, devices
from torch import Tensor

import entmask_ext
from entmask_ext import reference

# images, channels, sizes, patch
SHAPES = [
    ((3, 2, 12, 20), (4, 5)),
    ((2, 3, 4, 6, 8), (2, 3, 4)),
    ((4, 1, 16, 32), (8, 8)),
    ((2, 1, 5, 7), (1, 1)),
    ((1, 2, 3, 2050), (3, 1025)),
]
shapes = pytest.mark.parametrize(("shape", "patch"), SHAPES, ids=str)
MOVED = [*DTYPES, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


def make_source(shape: tuple[int, ...], patch: tuple[int, ...]) -> Tensor:
    """The first image is made of one patch, the others of any."""
    grid = [size // width for size, width in zip(shape[2:], patch, strict=True)]
    count = shape[0] * torch.Size(grid).numel()
    source = torch.randint(count, (shape[0], *grid))
    source[0] = count - 1
    return source


@devices
@pytest.mark.parametrize("layout", LAYOUTS)
@shapes
def test_values_and_gradients(shape: tuple[int, ...], patch: tuple[int, ...], layout: str, device: str) -> None:
    source = make_source(shape, patch)
    for dtype in DTYPES:
        x = LAYOUTS[layout](torch.randn(shape).to(device, dtype))
        x.requires_grad_()
        out = entmask_ext.gather_patches(x, source.to(device), patch)
        assert_same_bits(out.detach().cpu(), reference.gather_patches(x.detach().cpu(), source, patch))
        incoming = torch.randn(shape).to(device, dtype)
        (gradient,) = torch.autograd.grad(out, x, incoming)
        wide = x.detach().cpu().double().requires_grad_()
        (expected,) = torch.autograd.grad(reference.gather_patches(wide, source, patch), wide, incoming.cpu().double())
        assert gradient.dtype == dtype
        assert_gradients_close(gradient.cpu(), expected)


@devices
@pytest.mark.parametrize("dtype", MOVED, ids=str)
def test_any_dtype_and_images_without_channels(dtype: torch.dtype, device: str) -> None:
    for shape, patch in SHAPES[:2]:
        source = make_source(shape, patch)
        x = (torch.randn(shape) * 9).to(dtype)
        assert_same_bits(
            entmask_ext.gather_patches(x.to(device), source.to(device), patch).cpu(),
            reference.gather_patches(x, source, patch),
        )
        labels = x[:, 0]
        assert_same_bits(
            entmask_ext.gather_patches(labels.to(device), source.to(device), patch).cpu(),
            reference.gather_patches(labels, source, patch),
        )


def test_one_patch_taken_by_thousands() -> None:
    """The sum of what came is as good as in double, also where it is large, and the same from run to run."""
    x = torch.randn(16, 1, 64, 64, requires_grad=True)
    source = torch.full((16, 32, 32), 77)
    incoming = torch.rand(16, 1, 64, 64) + 1000
    out = entmask_ext.gather_patches(x, source, 2)
    first, second = (torch.autograd.grad(out, x, incoming, retain_graph=True)[0] for _ in range(2))
    assert_same_bits(first, second)
    expected = incoming.double().view(16, 32, 2, 32, 2).sum((0, 1, 3))
    row, column = divmod(77, 32)
    torch.testing.assert_close(
        first[0, 0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].double(), expected, rtol=1e-7, atol=0
    )
    assert first.count_nonzero() == 4


def test_differentiable_twice_and_once_more() -> None:
    source = make_source((2, 1, 4, 6), (2, 3))
    x = torch.randn(2, 1, 4, 6, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x: entmask_ext.gather_patches(x, source, (2, 3)), x)
    torch.autograd.gradgradcheck(lambda x: entmask_ext.gather_patches(x, source, (2, 3)), x)


def test_a_shuffle_is_a_case_of_it() -> None:
    x, order = torch.randn(4, 2, 8, 12), torch.randperm(2 * 6)
    source = torch.stack([order, order + 12]).view(4, 2, 3)
    assert_same_bits(entmask_ext.gather_patches(x, source, 4), entmask_ext.shuffle_patches(x, 4, order))


def test_nothing() -> None:
    for shape in ((0, 1, 4, 4), (2, 0, 4, 4), (2, 1, 0, 4)):
        x = torch.randn(shape, requires_grad=True)
        source = torch.zeros(shape[0], shape[2] // 2, 2, dtype=torch.int64)
        out = entmask_ext.gather_patches(x, source, 2)
        out.sum().backward()
        assert out.shape == shape
        assert x.grad is not None and x.grad.shape == shape


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.randn(2, 1, 4, 5)}, ValueError, "x must have spatial sizes divisible by patch_size"),
        (
            {"x": torch.randn(2, 4, 4).to(torch.complex64)},
            TypeError,
            "x must be floating, bool, uint8",
        ),
        ({"x": torch.randn(4, 4)}, ValueError, r"source must have shape \(N, \*G\)"),
        ({"source": torch.zeros(2, 2, 2)}, TypeError, "source must be int64"),
        ({"source": torch.zeros(1, 2, 2, dtype=torch.int64)}, ValueError, "source must have shape"),
        ({"source": torch.full((2, 2, 2), 8)}, ValueError, "source must hold numbers of patches, 0 to 7, got 8"),
        ({"source": torch.full((2, 2, 2), -1)}, ValueError, "source must hold numbers of patches"),
        ({"source": torch.zeros(2, 2, 2, dtype=torch.int64, device="meta")}, ValueError, "same device"),
        ({"patch_size": 0}, ValueError, "patch_size must be positive"),
        ({"patch_size": (2, 2, 2)}, ValueError, "patch_size must be an int or 2 ints"),
    ],
)
def test_wrong_arguments(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"x": torch.randn(2, 1, 4, 4), "source": torch.zeros(2, 2, 2, dtype=torch.int64), "patch_size": 2}
    with pytest.raises(error, match=message):
        entmask_ext.gather_patches(**{**arguments, **change})
