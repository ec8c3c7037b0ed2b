"""Which patches are masked for given scores: exact, so compared without tolerance."""

import itertools
import math

import pytest
import torch
from cases import DEVICES, assert_same_bits, devices
from torch import Tensor

import entmask_ext
from entmask_ext import reference

inf, nan = math.inf, math.nan


def select(scores: Tensor | list[float], ratio: float | Tensor | None = None, **keywords: object) -> list[int]:
    """Flat indices of the selected patches of one row of scores."""
    scores = torch.as_tensor(scores, dtype=scores.dtype if isinstance(scores, Tensor) else torch.float32)
    row = scores.reshape(1, 1, -1)
    image = torch.zeros(1, 1, 1, row.numel(), device=row.device)
    patches = entmask_ext.patch_mask_from_scores(image, row, 1, ratio, **keywords).patches  # type: ignore[arg-type]
    return patches.flatten().nonzero().flatten().tolist()


def untidy_scores(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Few different values, so that nearly all of them tie, and every special one."""
    values = torch.tensor([0.0, -0.0, 0.25, 0.5, 1.0, nan, inf, -inf, 1e-40, 2e-40, -1e-40, 0.1])
    return values[torch.randint(len(values), shape)].to(dtype)


RULES = [
    *({"ratio": ratio} for ratio in (None, 0.0, 1e-9, 1 / 3, 0.999, 1.0)),
    *(
        {"min_score": min_score, "min_patches": min_patches}
        for min_score, min_patches in ((-inf, 0), (0.0, 4), (0.1, 0), (0.5, 4), (inf, 0), (inf, 1000))
    ),
]


@devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (31, 33), (3, 4, 5)], ids=str)
def test_selection_equals_the_reference(grid: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    images = 2
    image = torch.zeros(images, 0, *grid, device=device)
    for kind in (untidy_scores(images, *grid), torch.rand(images, *grid)):
        scores = kind.to(device, dtype)
        for rule, order, hint, scope in itertools.product(RULES, ("highest", "lowest"), (0.0, 0.2), ("image", "batch")):
            got = entmask_ext.patch_mask_from_scores(image, scores, 1, order=order, hint=hint, scope=scope, **rule)
            want = reference.patch_mask_from_scores(image, scores, 1, order=order, hint=hint, scope=scope, **rule)
            assert torch.equal(got.patches, want.patches), (rule, order, hint, scope)
            assert got.scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@devices
@pytest.mark.parametrize("order", ["highest", "lowest"])
def test_ties_go_to_the_lower_index(order: str, device: str) -> None:
    assert select(torch.full((100,), 0.3, device=device), 0.1, order=order) == list(range(10))
    scores = torch.tensor([0.0, 2, 1, 1, 2, 1, 1, 0, 1], device=device)
    if order == "lowest":
        scores = -scores
    assert select(scores, 4 / 9, order=order) == [1, 2, 3, 4]


@devices
def test_ties_of_a_batch_go_to_the_lower_image(device: str) -> None:
    scores = torch.full((3, 2, 2), 0.5, device=device)
    image = torch.zeros(3, 1, 2, 2, device=device)
    patches = entmask_ext.patch_mask_from_scores(image, scores, 1, 0.5, scope="batch").patches
    assert patches.flatten().tolist() == [True] * 6 + [False] * 6
    # The one highest patch is left visible; of the whole batch, not of each image.
    hinted = entmask_ext.patch_mask_from_scores(image, scores, 1, 0.5, scope="batch", hint=1 / 12).patches
    assert hinted.flatten().tolist() == [False] + [True] * 5 + [False] * 6


@devices
def test_zeros_are_equal(device: str) -> None:
    scores = torch.tensor([-0.0, 0.0, -0.0, 0.0], device=device)
    assert select(scores, 0.5) == [0, 1]
    assert select(scores, 0.5, order="lowest") == [0, 1]
    assert select(scores, min_score=0.0) == [0, 1, 2, 3]
    assert select(scores, min_score=-0.0, order="lowest") == [0, 1, 2, 3]


@devices
def test_nan_ranks_above_infinity(device: str) -> None:
    scores = torch.tensor([inf, 1, nan, -inf, -nan, 2], device=device)
    assert select(scores, 2 / 6) == [2, 4]
    assert select(scores, 3 / 6) == [0, 2, 4]
    assert select(scores, 3 / 6, order="lowest") == [1, 3, 5]
    assert select(scores, min_score=inf) == [0, 2, 4]
    assert select(scores, min_score=inf, order="lowest") == [0, 1, 3, 5]
    assert select(scores, 1.0, hint=2 / 6) == [0, 1, 3, 5]


@devices
def test_subnormal_scores_are_ranked(device: str) -> None:
    scores = torch.tensor([1e-42, 3e-42, 0.0, 2e-42, -1e-42], device=device)
    assert select(scores, 2 / 5) == [1, 3]
    assert select(scores, 2 / 5, order="lowest") == [2, 4]
    assert select(scores, min_score=1e-42) == [0, 1, 3]


@devices
def test_float64_scores_are_not_rounded(device: str) -> None:
    scores = 0.5 + torch.tensor([0, 3, 1, 2], dtype=torch.float64, device=device) * 1e-15
    assert select(scores, 0.5) == [1, 3]
    assert select(scores, min_score=0.5 + 1.5e-15) == [1, 3]


@devices
@pytest.mark.parametrize(
    ("count", "ratio", "k"),
    [
        (10, 0.3, 3),
        (100, 0.29, 29),
        (10, 0.7, 7),
        (7, 0.5, 3),
        (7, 0.01, 1),
        (7, 0.0, 0),
        (7, 1.0, 7),
        (1, 0.5, 1),
        (3, 1 / 3, 1),
    ],
)
def test_number_of_selected_patches(count: int, ratio: float, k: int, device: str) -> None:
    scores = torch.arange(count, device=device, dtype=torch.float32)
    assert select(scores, ratio) == list(range(count - k, count))
    assert select(scores, torch.tensor(ratio, dtype=torch.float64, device=device)) == list(range(count - k, count))


@devices
def test_three_quarters_by_default(device: str) -> None:
    assert len(select(torch.rand(16, device=device))) == 12


@devices
def test_min_score_includes_its_own_value(device: str) -> None:
    scores = torch.tensor([0.1, 0.2, 0.3], device=device)  # float32: 0.1 is above the double 0.1, 0.3 above 0.3
    assert select(scores, min_score=0.2) == [1, 2]
    for bound, above, below in ((0.1, [0, 1, 2], [0]), (0.2, [1, 2], [0, 1]), (0.3, [2], [0, 1, 2])):
        assert select(scores, min_score=bound) == above
        assert select(scores, min_score=bound, order="lowest") == below
        tensor = torch.tensor(bound, dtype=torch.float64, device=device)
        assert select(scores, min_score=tensor) == above
        assert select(scores, min_score=tensor, order="lowest") == below


@devices
def test_min_patches_fill_up(device: str) -> None:
    scores = torch.tensor([0.4, 0.9, 0.1, 0.4, 0.6], device=device)
    assert select(scores, min_score=0.5) == [1, 4]
    assert select(scores, min_score=0.5, min_patches=1) == [1, 4]
    assert select(scores, min_score=0.5, min_patches=3) == [0, 1, 4]
    assert select(scores, min_score=0.5, min_patches=99) == [0, 1, 2, 3, 4]
    assert select(scores, min_score=2.0) == []
    assert select(scores, min_score=2.0, min_patches=2) == [1, 4]
    assert select(scores, min_score=0.2, min_patches=3, order="lowest") == [0, 2, 3]


@devices
def test_hint_leaves_the_highest_of_the_selected_visible(device: str) -> None:
    scores = torch.tensor([5.0, 1, 4, 2, 3, 0, 6, 7, 8, 9], device=device)
    assert select(scores, 0.5, hint=0.2) == [0, 6, 7]
    assert select(scores, 0.5, hint=1.0) == [0]  # never the last one
    assert select(scores, 0.5, order="lowest", hint=0.2) == [1, 3, 5]  # of 0 1 2 3 4: 4 and 3 stay visible
    assert select(scores, min_score=7.0, hint=0.1) == [7, 8]
    assert select(scores, 0.0, hint=0.5) == []
    assert select(scores, 0.1, hint=0.5) == [9]


@devices
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_numbers_may_be_tensors(dtype: torch.dtype, device: str) -> None:
    logits = torch.randn(2, 3, 24, 20, device=device)
    image = torch.randn(2, 1, 24, 20, device=device)
    for value in (0.0, 0.25, 0.625, 1.0):
        tensor = torch.tensor(value, dtype=dtype, device=device)
        for keywords, number in (
            ({"ratio": tensor}, {"ratio": value}),
            ({"min_score": tensor}, {"min_score": value}),
            (
                {"score": "count", "threshold": tensor, "ratio": 0.5},
                {"score": "count", "threshold": value, "ratio": 0.5},
            ),
        ):
            got = entmask_ext.patch_mask(image, logits, 4, **keywords)
            want = entmask_ext.patch_mask(image, logits, 4, **number)
            assert_same_bits(got.patches, want.patches)
            assert_same_bits(got.scores, want.scores)
            assert_same_bits(got.image, want.image)


@pytest.mark.gpu
def test_numbers_may_be_cpu_tensors_for_cuda_inputs() -> None:
    scores = torch.rand(100, device="cuda")
    assert select(scores, torch.tensor(0.25)) == select(scores, 0.25)
    assert select(scores, min_score=torch.tensor(0.25)) == select(scores, min_score=0.25)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["expanded", "transposed", "sliced"])
def test_strided_scores(layout: str, device: str) -> None:
    scores = {
        "expanded": torch.rand(1, 6, 10).expand(4, 6, 10),
        "transposed": torch.rand(4, 10, 6).transpose(1, 2),
        "sliced": torch.rand(4, 12, 21)[:, ::2, 1::2],
    }[layout].to(device)
    image = torch.randn(4, 2, 6, 10, device=device)
    got = entmask_ext.patch_mask_from_scores(image, scores, 1, 0.4)
    want = reference.patch_mask_from_scores(image, scores.contiguous(), 1, 0.4)
    assert_same_bits(got.patches, want.patches)
    assert torch.equal(got.scores, scores)


@devices
@pytest.mark.parametrize("scope", ["image", "batch"])
@pytest.mark.parametrize("data", ["different", "tied"])
def test_a_million_patches(data: str, scope: str, device: str) -> None:
    scores = torch.rand(1, 1000, 1003) if scope == "image" else torch.rand(3, 600, 601)
    if data == "tied":
        scores = (scores * 50).floor() / 50
    scores = scores.to(device)
    image = torch.empty(scores.shape[0], 0, *scores.shape[1:], device=device)
    for keywords in (
        {"ratio": 0.3},
        {"ratio": 0.7, "order": "lowest", "hint": 0.1},
        {"min_score": 0.5, "min_patches": 900_000},
    ):
        got = entmask_ext.patch_mask_from_scores(image, scores, 1, scope=scope, **keywords)
        want = reference.patch_mask_from_scores(image, scores, 1, scope=scope, **keywords)
        assert torch.equal(got.patches, want.patches)
