"""Which patches are selected by given scores: exact, so compared without tolerance."""

import itertools
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from cases import assert_same_bits, devices, dtypes
from torch import Tensor

import entmask_ext
from entmask_ext import reference

inf, nan = math.inf, math.nan


def select(scores: Tensor | list[float], ratio: float | Tensor | None = None, **keywords: object) -> list[int]:
    """Flat indices of the selected patches of one row of scores."""
    scores = torch.as_tensor(scores, dtype=scores.dtype if isinstance(scores, Tensor) else torch.float32)
    patches = entmask_ext.select_patches(scores.reshape(1, 1, -1), ratio, **keywords)  # type: ignore[arg-type]
    return patches.flatten().nonzero().flatten().tolist()


def counts(scores: Tensor, *args: object, **keywords: object) -> list[int]:
    """How many patches of each image are selected."""
    patches: Tensor = entmask_ext.select_patches(scores, *args, **keywords)  # type: ignore[arg-type]
    return patches.flatten(1).sum(1).tolist()


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
@dtypes
@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (31, 33), (3, 4, 5)], ids=str)
def test_selection_equals_the_reference(grid: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    for kind in (untidy_scores(2, *grid), torch.rand(2, *grid)):
        scores = kind.to(device, dtype)
        for rule, order, hint, scope in itertools.product(RULES, ("highest", "lowest"), (0.0, 0.2), ("image", "batch")):
            got = entmask_ext.select_patches(scores, order=order, hint=hint, scope=scope, **rule)
            want = reference.select_patches(scores, order=order, hint=hint, scope=scope, **rule)
            assert_same_bits(got, want)


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
    patches = entmask_ext.select_patches(scores, 0.5, scope="batch")
    assert patches.flatten().tolist() == [True] * 6 + [False] * 6
    # The one highest patch is left visible; of the whole batch, not of each image.
    hinted = entmask_ext.select_patches(scores, 0.5, scope="batch", hint=1 / 12)
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


# ---------------------------------------------------------------- how many, exactly

# k = floor(r P + 1e-6) with the product rounded before the sum. These (r, P) give another k where it is not rounded, as
# by a fused multiply-add.
KNIFE_EDGES = [
    (0.7999997999999999, 5), (0.6666664999999999, 6), (0.9999998888888888, 9), (0.8999999, 10),
    (0.1818180909090909, 11), (0.8181817272727272, 11), (0.33333324999999997, 12), (0.7499999166666667, 12),
]  # fmt: skip


def exact_share(fraction: float, length: int) -> int:
    """In Python, which fuses nothing."""
    product = fraction * length
    return math.floor(product + 1e-6)


COUNT = """
import json, sys, torch, entmask_ext
counts = []
for fraction, length in json.loads(sys.argv[1]):
    scores = torch.arange(float(length)).reshape(1, 1, length)
    tensor = torch.tensor(fraction, dtype=torch.float64)
    for selected in (
        entmask_ext.select_patches(scores, fraction),
        entmask_ext.select_patches(scores, tensor),
        entmask_ext.select_patches(scores, tensor[None]),
        ~entmask_ext.select_patches(scores, 1.0, hint=fraction),
        entmask_ext.select_patches(scores[:, 0, :, None], fraction, scope="batch"),
    ):
        counts.append(int(selected.sum()))
print(json.dumps([entmask_ext._C.build_info()["cpu_isa"], counts]))
"""


@pytest.mark.parametrize(
    "isa", ["baseline", *(pytest.param(isa, marks=pytest.mark.long) for isa in ("avx2", "avx512"))]
)
def test_the_same_number_on_every_instruction_set(isa: str) -> None:
    command = [sys.executable, "-c", COUNT, json.dumps(KNIFE_EDGES)]
    done = subprocess.run(command, env=os.environ | {"ENTMASK_CPU": isa}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    running, got = json.loads(done.stdout)
    if running != isa:
        pytest.skip(f"{isa}: this processor runs {running}")
    assert got == [max(1, exact_share(*edge)) for edge in KNIFE_EDGES for _ in range(5)]


@devices
def test_the_same_number_wherever_the_ratio_is(device: str) -> None:
    for ratio, length in KNIFE_EDGES:
        scores = torch.rand(1, 1, length, device=device)
        tensor = torch.tensor(ratio, dtype=torch.float64, device=device)
        assert counts(scores, ratio) == counts(scores, tensor) == counts(scores, tensor[None])
        assert counts(scores, ratio) == [exact_share(ratio, length)]


@devices
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
def test_an_integer_tensor_is_the_number_of_patches(dtype: torch.dtype, device: str) -> None:
    """No rounding: the float32 nearest to k / P can lie below it by more than the 1e-6 forgive."""
    scores = torch.rand(3, 5, 7, device=device)
    for k in (0, 1, 17, 34, 35, 36, 100):
        number = torch.tensor(k, dtype=dtype, device=device)
        assert counts(scores, number) == [min(k, 35)] * 3
        assert int(entmask_ext.select_patches(scores, number, scope="batch").sum()) == min(k, 105)
    assert counts(scores, torch.tensor([2, 0, 99], dtype=dtype, device=device)) == [2, 0, 35]
    if dtype.is_signed:
        assert counts(scores, torch.tensor(-1, dtype=dtype, device=device)) == [0, 0, 0]
        assert counts(scores, torch.tensor([-(2**7), 3, -1], dtype=dtype, device=device)) == [0, 3, 0]
    if dtype == torch.int64:
        assert counts(scores, torch.tensor([2**62, -(2**63), 2**32], device=device)) == [35, 0, 35]
    got = entmask_ext.select_patches(scores, torch.tensor(9, dtype=dtype, device=device), order="lowest", hint=0.1)
    want = entmask_ext.select_patches(scores, 9 / 35, order="lowest", hint=0.1)
    assert_same_bits(got, want)


@devices
@dtypes
def test_a_float32_fraction_loses_what_the_integer_keeps(dtype: torch.dtype, device: str) -> None:
    """k / P in a dtype is that dtype's number, computed with in float64."""
    for length in (10, 27, 1000):
        scores = torch.rand(1, 1, length, device=device)
        for k in (1, length // 3, length - 1):
            ratio = torch.tensor(k / length, dtype=torch.float64).to(dtype)
            assert counts(scores, ratio.to(device)) == [max(1, exact_share(ratio.item(), length))]


# ---------------------------------------------------------------- numbers as tensors


@devices
@dtypes
def test_numbers_may_be_tensors(dtype: torch.dtype, device: str) -> None:
    """0-d, and one per image."""
    logits = torch.randn(2, 3, 24, 20, device=device)
    image = torch.randn(2, 1, 24, 20, device=device)
    for value in (0.0, 0.25, 0.625, 1.0):
        for tensor in (torch.tensor(value), torch.tensor([value, value]), torch.tensor([value]).expand(2)):
            tensor = tensor.to(device, dtype)
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


@devices
@dtypes
def test_one_number_per_image(dtype: torch.dtype, device: str) -> None:
    """Each image is treated as if it were alone with its own number, wherever these lie in memory."""
    logits, image = torch.randn(4, 3, 24, 20, device=device), torch.randn(4, 1, 24, 20, device=device)
    scores = entmask_ext.patch_scores(logits, 4)
    values = torch.tensor([0.0, 0.3, 0.55, 1.0], device=device).to(dtype).repeat_interleave(2)[::2]
    assert not values.is_contiguous()
    whole = {
        "ratio": entmask_ext.patch_mask(image, logits, 4, values),
        "min_score": entmask_ext.patch_mask(image, logits, 4, min_score=values, min_patches=2),
        "threshold": entmask_ext.patch_mask(image, logits, 4, score="count", threshold=values),
    }
    for i, value in enumerate(values.double().tolist()):
        one, own = image[i : i + 1], logits[i : i + 1]
        alone = {
            "ratio": entmask_ext.patch_mask(one, own, 4, value),
            "min_score": entmask_ext.patch_mask(one, own, 4, min_score=value, min_patches=2),
            "threshold": entmask_ext.patch_mask(one, own, 4, score="count", threshold=value),
        }
        for name, expected in alone.items():
            for actual, want in zip(whole[name][:4], expected[:4], strict=True):
                assert_same_bits(actual[i : i + 1], want)
    hinted = {"order": "lowest", "hint": 0.1}
    rows = [entmask_ext.select_patches(scores[i : i + 1], value, **hinted) for i, value in enumerate(values.tolist())]
    assert_same_bits(entmask_ext.select_patches(scores, values, **hinted), torch.cat(rows))
    assert_same_bits(entmask_ext.patch_mask_from_scores(image, scores, 4, values).patches, whole["ratio"].patches)
    assert counts(scores, torch.tensor([3, 0, 30, 99], device=device)) == [3, 0, 30, 30]
    masked = entmask_ext.random_patch_mask(image, 4, values).patches
    assert masked.flatten(1).sum(1).tolist() == counts(scores, values)
    counted = entmask_ext.patch_scores(logits, 4, score="count", threshold=values)
    assert_same_bits(counted, whole["threshold"].scores)


@devices
def test_one_number_of_one_image_and_none_of_none(device: str) -> None:
    assert counts(torch.rand(1, 2, 5, device=device), torch.tensor([0.5], device=device)) == [5]
    empty = entmask_ext.select_patches(torch.rand(0, 2, 5, device=device), torch.rand(0, device=device))
    assert empty.shape == (0, 2, 5)


@devices
def test_numbers_that_are_nan(device: str) -> None:
    """In a tensor of one number per image, NaN selects nothing in its image; as the only number it is an error."""
    scores = torch.tensor([[[0.1, nan, 0.9, 0.5]]], device=device).repeat(3, 1, 1)
    values = torch.tensor([0.5, nan, 1.0], device=device)
    for hint in (0.0, 1.0):
        assert counts(scores, values, hint=hint)[1] == 0
    assert counts(scores, values) == [2, 0, 4]
    for order, many in (("highest", [3, 0, 1]), ("lowest", [2, 0, 3])):
        assert counts(scores, min_score=values, order=order) == many
        assert counts(scores, min_score=values, order=order, min_patches=4) == [4, 0, 4]
        assert counts(scores, min_score=values, order=order, min_patches=4, hint=0.25) == [3, 0, 3]


@devices
def test_a_threshold_that_is_nan(device: str) -> None:
    """No entropy reaches it; a pixel that is NaN counts all the same."""
    logits = torch.randn(2, 3, 8, 8, device=device)
    logits[:, 1, 2, 3] = nan
    threshold = torch.tensor([nan, 0.0], device=device)
    scores = entmask_ext.patch_scores(logits, 4, score="count", threshold=threshold)
    assert scores.flatten().tolist() == [1 / 16, 0, 0, 0, 1, 1, 1, 1]
    masked = entmask_ext.patch_mask(logits[:, :1], logits, 4, score="count", threshold=threshold)
    assert_same_bits(masked.scores, scores)


@pytest.mark.gpu
def test_numbers_may_be_cpu_tensors_for_cuda_inputs() -> None:
    scores = torch.rand(3, 10, 10, device="cuda")
    for number in (torch.tensor(0.25), torch.tensor([0.25, 0.5, 0.75]), torch.tensor([3, 2, 1])):
        assert counts(scores, number) == counts(scores, number.cuda())
    assert counts(scores, min_score=torch.tensor(0.25)) == counts(scores, min_score=0.25)


@pytest.mark.gpu
def test_what_the_host_does_not_know_it_does_not_check() -> None:
    """A ratio on the device is clamped, NaN selects nothing, and no pixel's entropy reaches a NaN threshold."""
    scores = torch.rand(3, 10, 10, device="cuda")
    assert counts(scores, torch.tensor([-1.0, 2.0, nan], device="cuda")) == [0, 100, 0]
    for order in ("highest", "lowest"):
        bound = torch.tensor(nan, device="cuda")
        assert counts(scores, min_score=bound, min_patches=5, order=order) == [0, 0, 0]
    assert counts(scores, torch.tensor(nan, device="cuda")) == [0, 0, 0]
    logits = torch.randn(1, 3, 8, 8, device="cuda")
    got = entmask_ext.patch_scores(logits, 4, score="count", threshold=torch.tensor(nan, device="cuda"))
    assert (got == 0).all()


# ---------------------------------------------------------------- scores as they come


@devices
@pytest.mark.parametrize("layout", ["expanded", "transposed", "sliced"])
def test_strided_scores(layout: str, device: str) -> None:
    scores = {
        "expanded": torch.rand(1, 6, 10).expand(4, 6, 10),
        "transposed": torch.rand(4, 10, 6).transpose(1, 2),
        "sliced": torch.rand(4, 12, 21)[:, ::2, 1::2],
    }[layout].to(device)
    got = entmask_ext.select_patches(scores, 0.4)
    assert got.is_contiguous()
    assert_same_bits(got, reference.select_patches(scores.contiguous(), 0.4))


@devices
def test_scores_of_any_number_of_axes(device: str) -> None:
    scores = untidy_scores(2, 3, 4, 5, 2).to(device)
    want = entmask_ext.select_patches(scores, 0.3, hint=0.1)
    for shape in ((2, 120), (2, 12, 10), (2, 3, 4, 10), (2, 1, 3, 4, 5, 2)):
        got = entmask_ext.select_patches(scores.reshape(shape), 0.3, hint=0.1)
        assert_same_bits(got, want.reshape(shape))


@devices
@dtypes
def test_select_patches_is_what_patch_mask_from_scores_masks(dtype: torch.dtype, device: str) -> None:
    scores = untidy_scores(3, 4, 5).to(device, dtype)
    image = torch.randn(3, 2, 8, 15, device=device)
    for keywords in ({"ratio": 0.3, "hint": 0.1}, {"min_score": 0.25, "min_patches": 3, "order": "lowest"}):
        masked = entmask_ext.patch_mask_from_scores(image, scores, (2, 3), **keywords)
        assert_same_bits(entmask_ext.select_patches(scores, **keywords), masked.patches)
        assert masked.scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_same_bits(masked.scores, scores.to(masked.scores.dtype))


@devices
def test_a_selection_has_no_gradient(device: str) -> None:
    scores = torch.rand(2, 3, 4, device=device, requires_grad=True)
    assert not entmask_ext.select_patches(scores, 0.5).requires_grad


@devices
@pytest.mark.parametrize("scope", ["image", "batch"])
def test_no_scores(scope: str, device: str) -> None:
    for shape in ((0, 3, 4), (2, 0, 4), (0, 2, 3, 4)):
        for keywords in ({"ratio": 0.5}, {"min_score": 0.0, "min_patches": 3}):
            got = entmask_ext.select_patches(torch.rand(shape, device=device), scope=scope, hint=0.5, **keywords)
            assert got.shape == shape
            assert got.dtype == torch.bool


@devices
@pytest.mark.parametrize(("data", "scope"), [("different", "image"), ("tied", "batch")])
def test_a_million_patches(data: str, scope: str, device: str) -> None:
    scores = torch.rand(1, 1000, 1003) if scope == "image" else torch.rand(3, 600, 601)
    if data == "tied":
        scores = (scores * 50).floor() / 50
    scores = scores.to(device)
    for keywords in (
        {"ratio": 0.3},
        {"ratio": 0.7, "order": "lowest", "hint": 0.1},
        {"min_score": 0.5, "min_patches": 900_000},
    ):
        got = entmask_ext.select_patches(scores, scope=scope, **keywords)
        assert_same_bits(got, reference.select_patches(scores, scope=scope, **keywords))
