"""shuffle_patches: exact moves, within and across images, there and back."""

import math

import pytest
import torch
from cases import Shape, assert_same_bits, combined, devices, make_image

import entmask_ext
from entmask_ext import reference

WHOLE = [
    Shape(4, 2, 2, (12, 20), (4, 5)),
    Shape(4, 3, 2, (7, 5), (1, 1)),
    Shape(4, 1, 2, (9, 11), (9, 11)),
    Shape(4, 2, 2, (4, 9, 8), (2, 3, 4)),
]


@devices
@combined(WHOLE)
def test_shuffle_equals_the_reference(shape: Shape, dtype: torch.dtype, layout: str, device: str) -> None:
    x = make_image(shape, dtype, device, layout)
    for group in (1, 2, 4):
        permutation = torch.randperm(group * shape.patches, device=device)
        for inverse in (False, True):
            got = entmask_ext.shuffle_patches(x, shape.patch, permutation, inverse=inverse)
            assert_same_bits(got, reference.shuffle_patches(x, shape.patch, permutation, inverse=inverse))
        there = entmask_ext.shuffle_patches(x, shape.patch, permutation)
        assert_same_bits(entmask_ext.shuffle_patches(there, shape.patch, permutation, inverse=True), x)


@devices
def test_which_patch_goes_where(device: str) -> None:
    """Two groups of two images with two patches each; out[i] = x[permutation[i]], numbered image by image."""
    x = torch.arange(8.0, device=device).reshape(4, 1, 1, 2)
    permutation = torch.tensor([3, 0, 1, 2], device=device)
    got = entmask_ext.shuffle_patches(x, 1, permutation)
    assert got.flatten().tolist() == [3, 0, 1, 2, 7, 4, 5, 6]
    back = entmask_ext.shuffle_patches(x, 1, permutation, inverse=True)
    assert back.flatten().tolist() == [1, 2, 3, 0, 5, 6, 7, 4]


@devices
def test_the_identity_and_special_values(device: str) -> None:
    x = torch.randn(2, 1, 8, 8, device=device)
    x[0, 0, :3, :3] = torch.tensor([math.nan, -0.0, -math.inf], device=device)
    got = entmask_ext.shuffle_patches(x, 4, torch.arange(4, device=device))
    assert_same_bits(got, x)
    assert got.data_ptr() != x.data_ptr()


@devices
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", WHOLE[::3], ids=str)
def test_memory_format_is_kept(shape: Shape, layout: str, device: str) -> None:
    x = make_image(shape, device=device, layout=layout)
    got = entmask_ext.shuffle_patches(x, shape.patch, torch.randperm(shape.patches, device=device))
    assert got.stride() == x.stride()


@devices
@pytest.mark.parametrize("inverse", [False, True])
def test_gradient_moves_back(inverse: bool, device: str) -> None:
    x = torch.randn(4, 2, 12, 20, device=device, requires_grad=True)
    permutation = torch.randperm(2 * 12, device=device)
    out = entmask_ext.shuffle_patches(x, (4, 5), permutation, inverse=inverse)
    incoming = torch.randn_like(out)
    (gradient,) = torch.autograd.grad(out, x, incoming)
    assert_same_bits(gradient, entmask_ext.shuffle_patches(incoming, (4, 5), permutation, inverse=not inverse).detach())


@devices
def test_strided_permutation(device: str) -> None:
    x = torch.randn(2, 1, 8, 8, device=device)
    permutation = torch.randperm(4, device=device)
    doubled = permutation.repeat_interleave(2)[::2]
    assert not doubled.is_contiguous()
    assert_same_bits(entmask_ext.shuffle_patches(x, 4, doubled), entmask_ext.shuffle_patches(x, 4, permutation))


@devices
def test_empty_batch(device: str) -> None:
    x = torch.empty(0, 2, 8, 8, device=device)
    for permutation in (torch.arange(4, device=device), torch.arange(8, device=device)):
        assert entmask_ext.shuffle_patches(x, 4, permutation).shape == x.shape
