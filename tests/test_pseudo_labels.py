"""Pseudo-labels and their gate: alone, and in the pass of patch_mask."""

import math

import pytest
import torch
from cases import (
    LAYOUTS,
    Shape,
    assert_same_bits,
    combinations,
    devices,
    dtypes,
    make_image,
    make_logits,
)
from torch import Tensor

import entmask_ext
from entmask_ext import PseudoLabels, reference

inf, nan = math.inf, math.nan
LABELS = (torch.uint8, torch.int64)
label_dtypes = pytest.mark.parametrize("label_dtype", LABELS, ids=str)
IGNORED = {torch.uint8: 255, torch.int64: -100}


def confidences(logits: Tensor) -> Tensor:
    """p1 in float64."""
    return logits.double().softmax(1).amax(1)


def between(values: Tensor) -> float:
    """In the middle of the widest gap between any two of them: no rounding decides."""
    ordered = values.flatten().sort().values
    ordered = ordered[~ordered.isnan()]
    if ordered.numel() < 2:
        return 0.5
    gap = ordered.diff().argmax()
    return ((ordered[gap] + ordered[gap + 1]) / 2).item()


@devices
@combinations
def test_labels_equal_the_reference(shape: Shape, dtype: torch.dtype, layout: str, device: str) -> None:
    logits = make_logits(shape, dtype, device, layout)
    image = make_image(shape, device=device)
    limit = between(confidences(logits))
    for label_dtype, min_confidence in ((torch.uint8, limit), (torch.int64, limit), (torch.uint8, None)):
        got = entmask_ext.pseudo_labels(logits, min_confidence=min_confidence, label_dtype=label_dtype)
        want = reference.pseudo_labels(logits, min_confidence=min_confidence, label_dtype=label_dtype)
        assert isinstance(got, PseudoLabels)
        assert got.labels.is_contiguous()
        assert not got.labels.requires_grad
        assert not got.accepted.requires_grad
        for actual, expected in zip(got, want, strict=True):
            assert_same_bits(actual, expected)
        for keywords in ({}, {"uncertainty": "margin"}, {"score": "count"}):
            masked = entmask_ext.patch_mask(
                image, logits, shape.patch, label_dtype=label_dtype, min_confidence=min_confidence, **keywords
            )
            assert_same_bits(masked.labels, want.labels)


@devices
@dtypes
@label_dtypes
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_special_values(layout: str, label_dtype: torch.dtype, dtype: torch.dtype, device: str) -> None:
    big = torch.finfo(dtype).max
    columns = [  # logits, label, whether it is certain; None: NaN
        ([0.0, 0.0, -inf], 0, False),
        ([-inf, 5.0, -inf], 1, True),
        ([-inf, -inf, -inf], 0, None),
        ([0.0, inf, 0.0], 1, None),
        ([-inf, 0.0, inf], 2, None),
        ([inf, inf, inf], 0, None),
        ([1.0, nan, nan], 1, None),
        ([0.0, -inf, nan], 2, None),
        ([inf, nan, 0.0], 1, None),
        ([-big, 0.0, big], 2, True),
        ([big, big, big], 0, False),
        ([-big, -inf, -inf], 0, True),
        ([0.0, 0.0, 1.0], 2, False),
    ]
    values = torch.tensor([logits for logits, *_ in columns], dtype=torch.float64)
    logits = LAYOUTS[layout](values.T.repeat(1, 23).reshape(1, 3, 1, -1).to(device, dtype))
    image = torch.zeros(1, 1, 1, logits.shape[-1], device=device)

    def expected(kept: tuple[bool | None, ...]) -> Tensor:
        row = [label if sure in kept else IGNORED[label_dtype] for _, label, sure in columns]
        return torch.tensor(row, device=device, dtype=label_dtype).repeat(23).reshape(1, 1, -1)

    for min_confidence, kept in (
        (None, (True, False, None)), (0.0, (True, False)), (0.9, (True,)), (1.0, (True,)),
    ):  # fmt: skip
        want = expected(kept)
        got = entmask_ext.pseudo_labels(logits, min_confidence=min_confidence, label_dtype=label_dtype)
        assert_same_bits(got.labels, want)
        share = sum(sure in kept for *_, sure in columns) / len(columns)
        torch.testing.assert_close(got.accepted, torch.tensor([share], device=device))
        for patch in (1, (1, 13)):
            masked = entmask_ext.patch_mask(
                image, logits, patch, label_dtype=label_dtype, min_confidence=min_confidence
            )
            assert_same_bits(masked.labels, want)


@devices
def test_a_confidence_on_the_limit_is_enough(device: str) -> None:
    """Rounded to the dtype that is computed in, limit and probability alike."""
    for dtype in (torch.float32, torch.float64):
        logits = torch.zeros(1, 2, 1, 9, dtype=dtype, device=device)  # p1 = 1/2 exactly
        above = 0.5 * (1 + 2.0**-26)
        for limit, kept in ((0.5, True), (above, dtype == torch.float32), (0.5000001, False)):
            for given in (limit, torch.tensor(limit, dtype=torch.float64), torch.tensor(limit, device=device).double()):
                if isinstance(given, Tensor) and given.item() != limit:
                    continue
                got = entmask_ext.pseudo_labels(logits, min_confidence=given)
                assert got.accepted.item() == kept
                assert (got.labels == (0 if kept else 255)).all()


@devices
def test_a_limit_in_a_tensor(device: str) -> None:
    logits = make_logits(Shape(2, 1, 4, (9, 30), (3, 3)), device=device)
    want = entmask_ext.pseudo_labels(logits, min_confidence=0.625)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for where in {"cpu", device}:
            got = entmask_ext.pseudo_labels(logits, min_confidence=torch.tensor(0.625, dtype=dtype, device=where))
            for actual, expected in zip(got, want, strict=True):
                assert_same_bits(actual, expected)


@devices
def test_accepted_is_the_share_of_each_image(device: str) -> None:
    """Also of images of many pixels, in several pieces, and of none."""
    logits = torch.zeros(3, 3, 130, 260, device=device)
    logits[1, 1, :65] = 20
    logits[2, 2, ::2, ::2] = 20
    logits[2, 0, 129, 259] = nan
    got = entmask_ext.pseudo_labels(logits, min_confidence=0.9, label_dtype=torch.int64)
    assert got.accepted.dtype == torch.float32
    assert got.accepted.tolist() == [0.0, 0.5, 0.25]
    kept = (got.labels != -100).flatten(1)
    assert_same_bits(got.accepted, (kept.sum(1).double() / kept.shape[1]).float())
    assert entmask_ext.pseudo_labels(logits).accepted.tolist() == [1.0, 1.0, 1.0]
    for shape in ((0, 3, 5, 6), (2, 3, 0, 6)):
        for min_confidence in (None, 0.5):
            empty = entmask_ext.pseudo_labels(logits.new_empty(shape), min_confidence=min_confidence)
            assert empty.labels.shape == (shape[0], *shape[2:])
            assert empty.accepted.tolist() == [0.0] * shape[0]


@devices
def test_ignored_labels_are_in_no_loss(device: str) -> None:
    logits = torch.randn(2, 3, 8, 8, device=device)
    for label_dtype in LABELS:
        labels = entmask_ext.pseudo_labels(logits, min_confidence=0.6, label_dtype=label_dtype).labels
        kept = labels != IGNORED[label_dtype]
        assert 0 < kept.sum() < kept.numel()
        got = entmask_ext.consistency_loss(logits, labels, ce_weight=1.0, dice_weight=0.0).total
        want = torch.nn.functional.cross_entropy(logits, labels.long().masked_fill(~kept, -100))
        torch.testing.assert_close(got, want)
