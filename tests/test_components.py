"""largest_components against scipy.ndimage, on blobs, noise, and shapes that are hard for union-find."""

import itertools

import numpy as np
import pytest
import torch
from cases import devices
from scipy import ndimage
from torch import Tensor

import entmask_ext
from entmask_ext import reference

SIZES = [(1, 1), (1, 70), (70, 1), (17, 23), (64, 65), (33, 256), (5, 9, 7), (1, 8, 8), (12, 1, 9), (16, 17, 33)]
sizes = pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
kinds = pytest.mark.parametrize("kind", ["noise", "sparse", "blobs"])


def oracle(labels: Tensor, num_classes: int, connectivity: int) -> Tensor:
    """One class at a time by scipy, whose components are numbered by their first pixels."""
    out = labels.cpu().numpy().copy()
    structure = ndimage.generate_binary_structure(out.ndim - 1, connectivity)
    for image, k in itertools.product(out, [k for k in np.unique(out) if 0 < k < num_classes]):
        found, count = ndimage.label(image == k, structure)
        if count > 1:
            pixels = np.bincount(found.ravel())[1:]
            image[(found > 0) & (found != 1 + pixels.argmax())] = 0
    return torch.from_numpy(out)


def make_labels(size: tuple[int, ...], kind: str, dtype: torch.dtype, images: int = 3, classes: int = 4) -> Tensor:
    noise = torch.rand(images, classes, *size)
    if kind == "blobs":
        pool = torch.nn.functional.avg_pool2d if len(size) == 2 else torch.nn.functional.avg_pool3d
        noise = pool(torch.nn.functional.pad(noise, [2, 2] * len(size)), 5, stride=1)
    labels = noise.argmax(1)
    if kind == "sparse":
        labels[torch.rand(labels.shape) < 0.6] = 0
    labels[torch.rand(labels.shape) < 0.02] = 255  # ignored
    if dtype == torch.int64:
        labels[torch.rand(labels.shape) < 0.02] = -100
    return labels.to(dtype)


@devices
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@kinds
@sizes
def test_equals_scipy(size: tuple[int, ...], kind: str, dtype: torch.dtype, device: str) -> None:
    labels = make_labels(size, kind, dtype)
    for connectivity in range(1, len(size) + 1):
        expected = oracle(labels, 4, connectivity)
        out = entmask_ext.largest_components(labels.to(device), 4, connectivity=connectivity)
        assert out.dtype == dtype
        assert torch.equal(out.cpu(), expected), connectivity
        assert torch.equal(reference.largest_components(labels, 4, connectivity=connectivity), expected)


@devices
@kinds
@pytest.mark.parametrize("width", [8 * n + e for n in (1, 7, 8, 9, 16, 24) for e in (-1, 0, 1)])
def test_rows_of_words(width: int, kind: str, device: str) -> None:
    """The CPU takes 64 pixels of a row at a time, from 8 bytes each."""
    for size in ((9, width), (3, 4, width)):
        labels = make_labels(size, kind, torch.uint8)
        labels[0, ..., -2:] = labels[0, ..., :1]  # a class that ends with the row
        for connectivity in range(1, len(size) + 1):
            out = entmask_ext.largest_components(labels.to(device), 4, connectivity=connectivity)
            assert torch.equal(out.cpu(), oracle(labels, 4, connectivity)), connectivity


@devices
@pytest.mark.parametrize("classes", [2, 3, 4, 5, 8, 9, 128, 129, 255, 256, 257, 258, 512, 65535, 65536])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_classes_that_differ_in_one_bit(dtype: torch.dtype, classes: int, device: str) -> None:
    last = classes - 1
    for bit in range(last.bit_length()):
        other = last ^ 1 << bit
        if dtype == torch.uint8 and max(last, other) > 255:
            continue
        pair = torch.tensor([last, other, last, other, 255, -1 if dtype == torch.int64 else 0]).to(dtype)
        labels = pair[torch.randint(0, 6, (2, 3, 4, 70))]
        for connectivity in (1, 2, 3):
            out = entmask_ext.largest_components(labels.to(device), classes, connectivity=connectivity)
            assert torch.equal(out.cpu(), oracle(labels, classes, connectivity)), (bit, connectivity)


def spiral(n: int) -> np.ndarray:
    """One line of ones, a pixel wide, turned inwards: as long a chain as an image holds."""
    image = np.zeros((n, n), np.uint8)
    y, x, dy, dx = 0, 0, 0, 1
    image[0, 0] = 1
    while True:
        for turn in range(2):
            ahead = (y + 2 * dy, x + 2 * dx)
            free = 0 <= y + dy < n and 0 <= x + dx < n and not image[y + dy, x + dx]
            clear = not (0 <= ahead[0] < n and 0 <= ahead[1] < n) or not image[ahead]
            if free and clear:
                break
            if turn == 1:
                return image
            dy, dx = dx, -dy
        y, x = y + dy, x + dx
        image[y, x] = 1


def comb(n: int, up: bool) -> np.ndarray:
    """Teeth that meet in the last row, or in the first."""
    image = np.zeros((n, n), np.uint8)
    image[:, ::2] = 1
    image[-1 if up else 0] = 1
    return image


HARD = {
    "spiral": spiral(65),
    "comb": comb(65, up=True),
    "comb down": comb(64, up=False),
    "checkerboard": (np.indices((64, 65)).sum(0) % 2).astype(np.uint8),
    "two colours": (1 + np.indices((65, 64)).sum(0) % 2).astype(np.uint8),
    "full": np.ones((70, 70), np.uint8),
    "empty": np.zeros((70, 70), np.uint8),
    "lines": np.tile(np.arange(64, dtype=np.uint8)[:, None] % 3, (1, 65)),
    "columns": np.tile(np.arange(65, dtype=np.uint8)[None] % 3, (64, 1)),
    "diagonals": (np.indices((66, 66)).sum(0) % 3).astype(np.uint8),
    "rings": np.maximum(*np.abs(np.indices((65, 65)) - 32)).astype(np.uint8) % 3,
}


@devices
@pytest.mark.parametrize("shape", HARD)
def test_shapes_that_are_hard_to_unite(shape: str, device: str) -> None:
    image = HARD[shape]
    labels = torch.from_numpy(np.stack([np.ascontiguousarray(a) for a in (image, image[::-1])]))
    if image.shape[0] == image.shape[1]:
        labels = torch.cat([labels, labels.transpose(1, 2)])
    for connectivity in (1, 2):
        out = entmask_ext.largest_components(labels.to(device), 3, connectivity=connectivity)
        assert torch.equal(out.cpu(), oracle(labels, 3, connectivity)), connectivity


@devices
def test_of_equal_components_the_first_stays(device: str) -> None:
    labels = torch.tensor([[[0, 1, 0, 2, 2], [0, 1, 0, 0, 0], [1, 0, 2, 2, 0], [1, 0, 0, 0, 0]]], device=device)
    out = entmask_ext.largest_components(labels, 3)
    assert out.tolist() == [[[0, 1, 0, 2, 2], [0, 1, 0, 0, 0], [0] * 5, [0] * 5]]


@devices
def test_labels_outside_the_classes_stay_and_join_nothing(device: str) -> None:
    labels = torch.tensor([[[1, 255, 1, 1], [7, 3, 2, 255]]], dtype=torch.uint8, device=device)
    assert entmask_ext.largest_components(labels, 3).tolist() == [[[0, 255, 1, 1], [7, 3, 2, 255]]]
    assert entmask_ext.largest_components(labels, 256).tolist() == [[[0, 255, 1, 1], [7, 3, 2, 0]]]


@devices
def test_many_classes_strides_and_nothing(device: str) -> None:
    labels = torch.randint(0, 65536, (2, 40, 41), device=device)
    labels[:, ::2] = 65535
    expected = oracle(labels, 65536, 1) if device == "cpu" else None
    out = entmask_ext.largest_components(labels, 65536)
    if expected is not None:
        assert torch.equal(out, expected)
    wide = torch.randint(0, 3, (4, 9, 20, 2), device=device)[::2, :, 3:17, 1]
    for view in (wide, wide.transpose(1, 2), wide[:1].expand(3, -1, -1)):
        assert torch.equal(entmask_ext.largest_components(view, 3).cpu(), oracle(view.contiguous(), 3, 1))
    for shape in ((0, 4, 4), (2, 0, 4), (2, 3, 0, 4)):
        assert entmask_ext.largest_components(torch.zeros(shape, dtype=torch.int64, device=device), 2).shape == shape


@pytest.mark.parametrize(
    ("labels", "num_classes", "connectivity", "error", "message"),
    [
        (torch.zeros(1, 4, 4), 2, 1, TypeError, "labels must be uint8 or int64"),
        (torch.zeros(4, 4, dtype=torch.uint8), 2, 1, ValueError, r"labels must have shape \(N, H, W\)"),
        (torch.zeros(1, 4, 4, dtype=torch.uint8), 1, 1, ValueError, "num_classes must be in"),
        (torch.zeros(1, 4, 4, dtype=torch.int64), 65537, 1, ValueError, "num_classes must be in"),
        (torch.zeros(1, 4, 4, dtype=torch.uint8), 2, 0, ValueError, r"connectivity must be in \[1, 2\]"),
        (torch.zeros(1, 4, 4, dtype=torch.uint8), 2, 3, ValueError, r"connectivity must be in \[1, 2\]"),
        (torch.zeros(1, 4, 4, dtype=torch.uint8), 2.5, 1, TypeError, "num_classes must be an int"),
    ],
)
def test_wrong_arguments(
    labels: Tensor, num_classes: int, connectivity: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        entmask_ext.largest_components(labels, num_classes, connectivity=connectivity)
