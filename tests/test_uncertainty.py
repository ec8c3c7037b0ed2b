"""Least confidence and margin beside the entropy: formulas, accuracy, ties, special values, gradients, pooling."""

import math

import pytest
import torch
from cases import (
    LAYOUTS,
    MANY_CLASSES,
    Shape,
    assert_gradients_close,
    assert_same_bits,
    assert_scores_close,
    combinations,
    devices,
    dtypes,
    make_image,
    make_logits,
    make_sure_logits,
)
from torch import Tensor

import entmask_ext
from entmask_ext import reference

inf, nan = math.inf, math.nan
TOP_TWO = ("least_confidence", "margin")
kinds = pytest.mark.parametrize("kind", TOP_TWO)


def from_the_two_largest(logits: Tensor, kind: str) -> Tensor:
    """In probabilities, as it is written down."""
    p = logits.double().softmax(1).topk(2, 1).values
    classes = logits.shape[1]
    return (1 - p[:, 0]) * classes / (classes - 1) if kind == "least_confidence" else 1 - (p[:, 0] - p[:, 1])


@devices
@combinations
def test_values_and_gradients_equal_the_reference(shape: Shape, dtype: torch.dtype, layout: str, device: str) -> None:
    logits = make_logits(shape, dtype, device, layout).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    for kind in TOP_TWO:
        got, want = entmask_ext.uncertainty_map(logits, kind), reference.uncertainty_map(exact, kind)
        assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert got.is_contiguous()
        assert_scores_close(got, want)
        assert_scores_close(got, from_the_two_largest(logits, kind))
        assert got.min() >= 0
        assert got.max() <= 1
        incoming = torch.randn_like(want)
        of_logits, of_exact = (
            torch.autograd.grad(out, x, incoming.to(out.dtype))[0] for out, x in ((got, logits), (want, exact))
        )
        assert_gradients_close(of_logits, of_exact)

        got = entmask_ext.patch_scores(logits, shape.patch, uncertainty=kind)
        want = reference.patch_scores(exact, shape.patch, uncertainty=kind)
        assert_scores_close(got, want)
        incoming = torch.randn_like(want)
        of_logits, of_exact = (
            torch.autograd.grad(out, x, incoming.to(out.dtype))[0] for out, x in ((got, logits), (want, exact))
        )
        assert_gradients_close(of_logits, of_exact)


@devices
@dtypes
def test_entropy_is_one_of_them(dtype: torch.dtype, device: str) -> None:
    shape = Shape(2, 1, 5, (9, 11), (4, 3))
    logits = make_logits(shape, dtype, device).requires_grad_()
    got, want = entmask_ext.uncertainty_map(logits), entmask_ext.entropy_map(logits)
    assert_same_bits(got, want)
    incoming = torch.randn_like(want)
    assert_same_bits(*(torch.autograd.grad(out, logits, incoming)[0] for out in (got, want)))
    assert_same_bits(
        entmask_ext.patch_scores(logits, shape.patch, uncertainty="entropy"),
        entmask_ext.patch_scores(logits, shape.patch),
    )


@devices
@kinds
def test_the_threshold_counts_the_chosen_uncertainty(kind: str, device: str) -> None:
    shape = Shape(2, 1, 4, (21, 26), (8, 5))
    logits = make_logits(shape, device=device)
    values = entmask_ext.uncertainty_map(logits, kind)
    exact_value = values.flatten().sort().values[values.numel() // 2].item()
    per_image = torch.tensor([0.3, exact_value], device=device)
    for threshold in (exact_value, 0.0, per_image, torch.tensor(exact_value, dtype=torch.float64)):
        got = entmask_ext.patch_scores(logits, shape.patch, uncertainty=kind, score="count", threshold=threshold)
        at = threshold.view(-1, 1, 1).to(values) if isinstance(threshold, Tensor) and threshold.dim() else threshold
        passing = (values >= at).double()
        pixels = reference._patch_sums(torch.ones_like(passing), shape.patch)
        assert_same_bits(got, (reference._patch_sums(passing, shape.patch) / pixels).to(got.dtype))


@devices
@dtypes
@kinds
@pytest.mark.parametrize("classes", [2, 3, 4, 19])
def test_tiny_values_keep_their_relative_accuracy(classes: int, kind: str, dtype: torch.dtype, device: str) -> None:
    gaps = torch.linspace(0.5, 76, 303).to(dtype)
    logits = torch.zeros(classes, gaps.numel(), dtype=dtype)
    logits[1:] = -gaps - 3 * torch.arange(classes - 1)[:, None]
    for offset in (0.0, 4.0, -64.0):
        shifted = (logits + offset).reshape(1, classes, 1, -1).to(device)
        want = reference.uncertainty_map(shifted.double(), kind)
        assert want.min() < 1e-30
        assert want.max() > 0.1
        for got in (
            entmask_ext.uncertainty_map(shifted, kind),
            entmask_ext.patch_scores(shifted, 1, uncertainty=kind),
            entmask_ext.patch_scores(shifted.repeat(1, 1, 3, 1), (3, 1), uncertainty=kind),
        ):
            error = (got.double() / want - 1).abs().max().item()
            assert error < (1e-12 if dtype == torch.float64 else 1e-4)


@devices
@dtypes
@kinds
def test_pixels_that_know_nothing(kind: str, dtype: torch.dtype, device: str) -> None:
    for classes in (2, 3, 4, 7, 8, 15, 17, 33, 256, 2048):
        for layout in ("contiguous", "channels_last"):
            logits = LAYOUTS[layout](torch.full((2, classes, 3, 19), 2.5, dtype=dtype, device=device))
            uniform = entmask_ext.uncertainty_map(logits, kind)
            assert_scores_close(uniform, torch.ones_like(uniform))
            assert uniform.max() <= 1
            assert entmask_ext.patch_scores(logits, 4, uncertainty=kind).max() <= 1


@devices
@dtypes
@kinds
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_special_values(layout: str, kind: str, dtype: torch.dtype, device: str) -> None:
    big = torch.finfo(dtype).max
    half = 0.75 if kind == "least_confidence" else 1.0  # two classes of three that tie
    columns = [
        ([0.0, 0.0, -inf], half),
        ([-inf, 5.0, -inf], 0.0),
        ([-inf, -inf, -inf], nan),
        ([inf, 0.0, 0.0], nan),
        ([inf, -inf, 0.0], nan),
        ([inf, inf, inf], nan),
        ([nan, 0.0, 0.0], nan),
        ([0.0, -inf, nan], nan),
        ([big, -big, 0.0], 0.0),
        ([big, big, big], 1.0),
        ([-big, -big, -big], 1.0),
        ([big, big, -inf], half),
        ([-big, -inf, -inf], 0.0),
    ]
    values, expected = (torch.tensor(list(column), dtype=torch.float64) for column in zip(*columns, strict=True))
    # 23 copies of the list: every special pixel meets every lane of a vector, and its neighbours must not notice.
    logits = LAYOUTS[layout](values.T.repeat(1, 23).reshape(1, 3, 1, -1).to(device, dtype)).requires_grad_()
    expected = expected.repeat(23).reshape(1, 1, -1).to(device)
    got = entmask_ext.uncertainty_map(logits, kind)
    assert_scores_close(got, expected)
    assert_scores_close(entmask_ext.patch_scores(logits, 1, uncertainty=kind), expected)
    assert entmask_ext.patch_scores(logits, (1, len(columns)), uncertainty=kind).isnan().all()
    counted = entmask_ext.patch_scores(logits, (1, len(columns)), uncertainty=kind, score="count", threshold=0.5)
    assert torch.equal(counted, torch.full_like(counted, 10 / 13))

    (gradient,) = torch.autograd.grad(got, logits, torch.ones_like(got))
    assert torch.equal(gradient.isnan().all(1), expected.isnan())
    assert torch.equal(gradient.isnan().any(1), expected.isnan())
    absent = logits.detach().isneginf() & ~expected.isnan().unsqueeze(1)
    assert (gradient[absent] == 0).all()


@devices
@pytest.mark.parametrize("kind", ["entropy", *TOP_TWO])
@pytest.mark.parametrize("classes", MANY_CLASSES)
def test_probabilities_that_vanish_beside_1_count(classes: int, kind: str, device: str) -> None:
    logits = make_sure_logits(classes, device).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    got, want = entmask_ext.uncertainty_map(logits, kind), reference.uncertainty_map(exact, kind)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0)
    of_logits, of_exact = (torch.autograd.grad(out.sum(), x)[0] for out, x in ((got, logits), (want, exact)))
    torch.testing.assert_close(of_logits.double(), of_exact, rtol=0, atol=5e-6 * of_exact.abs().max().item())


@devices
@dtypes
@pytest.mark.parametrize("more", [0, 9])
def test_of_equal_classes_the_first_are_the_two_largest(more: int, dtype: torch.dtype, device: str) -> None:
    """The gradient knows which classes they are."""
    pixels = [[5, 5, 1, 1], [1, 5, 5, 5], [4, 4, 5, 1], [5, 4, 1, 4], [4, 1, 4, 5], [2, 2, 2, 2], [-inf, 3, -inf, 3]]
    first = [(0, 1), (1, 2), (2, 0), (0, 1), (3, 0), (0, 1), (1, 3)]
    logits = torch.tensor(pixels, dtype=torch.float64).T
    logits = torch.cat([logits, torch.full((more, len(pixels)), 1.0)]).reshape(1, 4 + more, 1, -1)
    logits = logits.to(device, dtype).repeat(1, 1, 1, 5).requires_grad_()
    p = logits.detach().double().softmax(1)[0, :, 0]
    one, two = (
        torch.nn.functional.one_hot(torch.tensor(list(index), device=device).repeat(5), 4 + more).T
        for index in zip(*first, strict=True)
    )
    p1, p2 = (p * one).sum(0), (p * two).sum(0)
    least, margin = -p1 * (one - p), -p1 * (one - p) + p2 * (two - p)
    for kind, want in (("least_confidence", least * (4 + more) / (3 + more)), ("margin", margin)):
        (got,) = torch.autograd.grad(entmask_ext.uncertainty_map(logits, kind).sum(), logits)
        assert_gradients_close(got[0, :, 0], want)


@devices
@kinds
@pytest.mark.parametrize("sizes", [(1024, 1024), (96, 96, 96)], ids=str)
def test_sums_of_many_pixels_stay_accurate(sizes: tuple[int, ...], kind: str, device: str) -> None:
    logits = (torch.randn(1, 2, *sizes) * 3).to(device)
    got = entmask_ext.patch_scores(logits, sizes, uncertainty=kind)
    assert_scores_close(got, reference.patch_scores(logits.double(), sizes, uncertainty=kind))


@devices
@kinds
def test_masking_ranks_by_it(kind: str, device: str) -> None:
    shape = Shape(3, 2, 5, (33, 40), (8, 8))
    image, logits = make_image(shape, device=device), make_logits(shape, device=device)
    got = entmask_ext.patch_mask(image, logits, 8, 0.4, uncertainty=kind, hint=0.1, label_dtype=torch.uint8)
    scores = entmask_ext.patch_scores(logits, 8, uncertainty=kind)
    want = entmask_ext.patch_mask_from_scores(image, scores, 8, 0.4, hint=0.1)
    for actual, expected in zip(got[:4], want[:4], strict=True):
        assert_same_bits(actual, expected)
    assert_same_bits(got.labels, logits.argmax(1).to(torch.uint8))


@devices
@kinds
def test_empty_batch(kind: str, device: str) -> None:
    logits = torch.empty(0, 3, 5, 6, device=device)
    assert entmask_ext.uncertainty_map(logits, kind).shape == (0, 5, 6)
    assert entmask_ext.patch_scores(logits, 4, uncertainty=kind).shape == (0, 2, 2)
