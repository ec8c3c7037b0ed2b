"""box_mask against one interval per axis, and mixing by it."""

import pytest
import torch
from cases import devices
from torch import Tensor

import entmask_ext
from entmask_ext import reference

SIZES = [(1, 1), (7, 9), (16, 48), (3, 1025), (4, 5, 17), (2, 3, 32)]


@devices
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_reference(size: tuple[int, ...], device: str) -> None:
    boxes = torch.randint(-3, max(size) + 3, (50, 2 * len(size)))
    boxes[0], boxes[1, ::2], boxes[1, 1::2] = 0, -(2**62), 2**62
    mask = entmask_ext.box_mask(boxes.to(device), size)
    assert mask.dtype == torch.bool
    assert torch.equal(mask.cpu(), reference.box_mask(boxes, size))
    strided = boxes.repeat_interleave(2, 1)[::3, ::2]
    assert torch.equal(entmask_ext.box_mask(strided.to(device), size).cpu(), reference.box_mask(strided, size))


@devices
def test_cutmix_mixes_images_labels_and_gates_alike(device: str) -> None:
    image, labels = torch.randn(4, 2, 20, 24, device=device), torch.randint(4, (4, 20, 24), device=device)
    gate = torch.rand(4, 20, 24, device=device) < 0.5
    box = entmask_ext.box_mask(torch.tensor([[3, 11, 5, 30]], device=device), (20, 24))
    for x in (image, labels, gate):
        mixed = entmask_ext.patch_where(box, x.flip(0), x, 1)
        expected = x.clone()
        expected[..., 3:11, 5:] = x.flip(0)[..., 3:11, 5:]
        assert torch.equal(mixed, expected)


def test_nothing() -> None:
    assert entmask_ext.box_mask(torch.zeros(0, 4, dtype=torch.int64), (3, 4)).shape == (0, 3, 4)
    assert entmask_ext.box_mask(torch.zeros(2, 4, dtype=torch.int64), (0, 4)).shape == (2, 0, 4)


@pytest.mark.parametrize(
    ("boxes", "size", "error", "message"),
    [
        (torch.zeros(1, 4), (3, 3), TypeError, "boxes must be int64"),
        (torch.zeros(1, 4, dtype=torch.int64), (3, 3, 3), ValueError, r"boxes must have shape \(N, 6\)"),
        (torch.zeros(4, dtype=torch.int64), (3, 3), ValueError, r"boxes must have shape \(N, 4\)"),
        (torch.zeros(1, 2, dtype=torch.int64), (3,), ValueError, r"size must be \(H, W\)"),
        (torch.zeros(1, 4, dtype=torch.int64), (3, -1), ValueError, "size must be >= 0"),
        (torch.zeros(1, 4, dtype=torch.int64), (3, 2.5), TypeError, "size must be an int or a sequence of ints"),
    ],
)
def test_wrong_arguments(boxes: Tensor, size: tuple[int, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        entmask_ext.box_mask(boxes, size)
