"""Softmax entropy of pixels and patches: accuracy, special values, pooling."""

import math

import pytest
import torch
from cases import (
    DTYPES,
    LAYOUTS,
    Shape,
    assert_same_bits,
    assert_scores_close,
    combinations,
    devices,
    dtypes,
    make_logits,
)

import entmask_ext
from entmask_ext import reference

inf, nan = math.inf, math.nan


@devices
@combinations
def test_entropy_equals_the_reference(shape: Shape, dtype: torch.dtype, layout: str, device: str) -> None:
    logits = make_logits(shape, dtype, device, layout)
    got = entmask_ext.entropy_map(logits)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert got.is_contiguous()
    assert_scores_close(got, reference.entropy_map(logits.double()))
    assert got.min() >= 0
    assert got.max() <= 1

    nats = entmask_ext.entropy_map(logits, normalize=False)
    log_k = math.log(shape.classes)
    assert_scores_close(nats / log_k, reference.entropy_map(logits.double(), normalize=False) / log_k)

    assert_scores_close(
        entmask_ext.patch_scores(logits, shape.patch), reference.patch_scores(logits.double(), shape.patch)
    )


@devices
@combinations
def test_count_is_the_fraction_of_pixels_at_or_above_the_threshold(
    shape: Shape, dtype: torch.dtype, layout: str, device: str
) -> None:
    logits = make_logits(shape, dtype, device, layout)
    entropy = entmask_ext.entropy_map(logits)
    # A threshold that some pixel has exactly, and one in the widest gap between any two.
    values = entropy.flatten().double().sort().values
    gap = values.diff().argmax()
    for threshold in (values[values.numel() // 2].item(), ((values[gap] + values[gap + 1]) / 2).item(), 0.0, 1.5):
        got = entmask_ext.patch_scores(logits, shape.patch, score="count", threshold=threshold)
        passing = (entropy >= threshold).double()
        # The reference pools; a mean of zeros and ones over few pixels is exact before its last rounding.
        want = reference._patch_sums(passing, shape.patch) / reference._patch_sums(
            torch.ones_like(passing), shape.patch
        )
        assert_same_bits(got, want.to(got.dtype))


@devices
def test_a_threshold_is_rounded_to_the_scores(device: str) -> None:
    """A little above a pixel's entropy and rounded to it, the pixel reaches it; as float64 scores it does not."""
    logits = torch.randn(1, 3, 1, 7, device=device)
    entropy = entmask_ext.entropy_map(logits)
    for i, value in enumerate(entropy.flatten().tolist()):
        above = value * (1 + 2.0**-26)
        assert value < above and torch.tensor(above, dtype=torch.float32).item() == value
        for threshold in (above, torch.tensor(above, dtype=torch.float64, device=device)):
            scores = entmask_ext.patch_scores(logits, 1, score="count", threshold=threshold)
            assert scores.flatten()[i] == 1
    exact = entmask_ext.entropy_map(logits.double()).flatten()
    scores = entmask_ext.patch_scores(logits.double(), 1, score="count", threshold=exact[3].item() * (1 + 2.0**-26))
    assert scores.flatten()[3] == 0


@devices
@dtypes
@pytest.mark.parametrize("classes", [2, 3, 4, 19])
def test_tiny_entropies_keep_their_relative_accuracy(classes: int, dtype: torch.dtype, device: str) -> None:
    gaps = torch.linspace(0.5, 76, 303).to(dtype)
    logits = torch.zeros(classes, gaps.numel(), dtype=dtype)
    logits[1:] = -gaps - 3 * torch.arange(classes - 1)[:, None]
    for offset in (0.0, 4.0, -64.0):  # what softmax must not see; small enough that half keeps different gaps apart
        shifted = (logits + offset).reshape(1, classes, 1, -1).to(device)
        want = reference.entropy_map(shifted.double())
        assert want.min() < 1e-30
        assert want.max() > 0.1
        for got in (entmask_ext.entropy_map(shifted), entmask_ext.patch_scores(shifted, 1)):
            error = (got.double() / want - 1).abs().max().item()
            assert error < (1e-12 if dtype == torch.float64 else 1e-4)


@devices
def test_sure_patches_rank_by_how_sure_they_are(device: str) -> None:
    logits = torch.zeros(1, 4, 8, 60, device=device)
    gap = torch.linspace(1, 70, 15, device=device).repeat_interleave(4)
    gap = gap.reshape(15, 4)[torch.randperm(15, device=device)].flatten()
    logits[:, 2] = gap
    scores = entmask_ext.patch_scores(logits, (8, 4))[0, 0]
    assert torch.equal(scores.argsort(), gap[::4].argsort(descending=True))
    assert scores.unique().numel() == 15


@devices
@dtypes
def test_pixels_that_know_nothing(dtype: torch.dtype, device: str) -> None:
    """Their entropy is 1 and no more, for any number of classes."""
    for classes in (2, 3, 4, 7, 8, 15, 16, 17, 33, 100, 255, 256, 2048):
        for layout in ("contiguous", "channels_last"):
            logits = LAYOUTS[layout](torch.full((2, classes, 3, 19), 2.5, dtype=dtype, device=device))
            uniform = entmask_ext.entropy_map(logits)
            assert_scores_close(uniform, torch.ones_like(uniform))
            assert uniform.max() <= 1


@devices
@pytest.mark.parametrize("classes", [17, 128, 129, 2048])
def test_a_tall_patch_that_knows_nothing(classes: int, device: str) -> None:
    """The product of so many 1 + z would leave float32, were it never ended."""
    scores = entmask_ext.patch_scores(torch.zeros(1, classes, 48, 20, device=device), (48, 10))
    assert_scores_close(scores, torch.ones_like(scores))
    assert scores.max() <= 1


@devices
@dtypes
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_special_values(layout: str, dtype: torch.dtype, device: str) -> None:
    big = torch.finfo(dtype).max
    columns = [
        ([0.0, 0.0, -inf], math.log(2) / math.log(3)),
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
        ([big, big, -inf], math.log(2) / math.log(3)),
        ([-big, -inf, -inf], 0.0),
    ]
    values, expected = (torch.tensor(list(column), dtype=torch.float64) for column in zip(*columns, strict=True))
    # 23 copies of the list: every special pixel meets every lane of a vector, and its neighbours must not notice.
    logits = LAYOUTS[layout](values.T.repeat(1, 23).reshape(1, 3, 1, -1).to(device, dtype))
    expected = expected.repeat(23).reshape(1, 1, -1).to(device)
    assert_scores_close(entmask_ext.entropy_map(logits), expected)
    assert_scores_close(entmask_ext.patch_scores(logits, 1), expected)
    assert_scores_close(entmask_ext.entropy_map(logits, normalize=False) / math.log(3), expected)
    # In a patch one NaN is enough; and it counts as unsure.
    scores = entmask_ext.patch_scores(logits, (1, len(columns)))
    assert scores.isnan().all()
    counted = entmask_ext.patch_scores(logits, (1, len(columns)), score="count", threshold=0.5)
    assert torch.equal(counted, torch.full_like(counted, 10 / 13))


@devices
def test_a_nan_stays_in_its_patch(device: str) -> None:
    logits = torch.randn(2, 3, 12, 12, device=device)
    clean = entmask_ext.patch_scores(logits, 4)
    logits[1, 2, 5, 6] = nan
    dirty = entmask_ext.patch_scores(logits, 4)
    assert dirty.isnan().nonzero().tolist() == [[1, 1, 1]]
    dirty[1, 1, 1] = clean[1, 1, 1]
    assert_same_bits(dirty, clean)


@devices
def test_cut_patches_average_over_their_own_pixels(device: str) -> None:
    logits = torch.zeros(1, 2, 5, 7, device=device)
    scores = entmask_ext.patch_scores(logits, 4)
    assert_scores_close(scores, torch.ones(1, 2, 2, device=device))
    logits[0, 0, 4, 6] = 200  # one sure pixel of the three in the last corner
    assert_scores_close(entmask_ext.patch_scores(logits, 4)[0, 1, 1], torch.tensor(2 / 3, device=device))


@devices
@pytest.mark.parametrize("sizes", [(1024, 1024), (96, 96, 96)], ids=str)
@pytest.mark.parametrize("kind", ["varied", "alike", "tiny"])
def test_sums_of_many_pixels_stay_accurate(kind: str, sizes: tuple[int, ...], device: str) -> None:
    if kind == "varied":
        logits = torch.randn(1, 2, *sizes) * 3
    elif kind == "alike":
        logits = torch.zeros(1, 2, *sizes)
        logits[:, 0] = 1.2345
    else:  # a few unsure pixels among a million that are nearly sure
        logits = torch.zeros(1, 2, *sizes)
        logits[:, 0] = 12 + torch.rand(sizes)
        logits[:, 0].view(-1)[::4099] = 0
    logits = logits.to(device)
    got = entmask_ext.patch_scores(logits, sizes)
    assert_scores_close(got, reference.patch_scores(logits.double(), sizes))
    counted = entmask_ext.patch_scores(logits, sizes, score="count", threshold=0.999)
    want = (entmask_ext.entropy_map(logits) >= 0.999).double().mean()
    assert_scores_close(counted.flatten()[0], want)


@devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("classes", [255, 2048])
def test_sums_of_many_classes_stay_accurate(classes: int, dtype: torch.dtype, device: str) -> None:
    """Nearly equal ones, where all groups make the same error, and ascending ones, where each is a new maximum."""
    steps = torch.arange(classes, dtype=dtype, device=device)[:, None, None]
    for slope in (0.0, 1e-4, 1e-3, 1e-2, 0.1):
        for leader, top in ((0, 4.376), (classes // 2, 9.0), (classes - 1, 1.5)):
            logits = (slope * steps + torch.rand(3, 37, dtype=dtype, device=device) / 100)[None]
            logits[:, leader] += top
            assert_scores_close(entmask_ext.entropy_map(logits), reference.entropy_map(logits.double()))


@devices
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_probabilities_enter_as_their_logarithm(dtype: torch.dtype, device: str) -> None:
    probabilities = torch.rand(2, 3, 6, 6, dtype=torch.float64).pow(4)
    probabilities[:, 0, :2] = 0
    probabilities = (probabilities / probabilities.sum(1, keepdim=True)).to(device)
    expected = torch.special.entr(probabilities).sum(1) / math.log(3)
    got = entmask_ext.entropy_map(probabilities.log().to(dtype))
    half = {torch.float16: 2e-3, torch.bfloat16: 2e-2}
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=half.get(dtype, 4e-7))


@devices
def test_empty_batch(device: str) -> None:
    logits = torch.empty(0, 3, 5, 6, device=device)
    assert entmask_ext.entropy_map(logits).shape == (0, 5, 6)
    assert entmask_ext.patch_scores(logits, 4).shape == (0, 2, 2)
