"""patch_mask and its relatives, and patch_where: image, mask and labels, and that they fit the scores and patches."""

import itertools
import math

import pytest
import torch
from cases import (
    DTYPES,
    LAYOUTS,
    SHAPES,
    Shape,
    assert_same_bits,
    assert_scores_close,
    combinations,
    devices,
    dtypes,
    layouts,
    make_image,
    make_logits,
    make_patches,
)
from torch import Tensor

import entmask_ext
from entmask_ext import reference

ODD = Shape(3, 2, 5, (17, 23), (4, 5))
VOLUME = Shape(2, 2, 3, (5, 9, 7), (2, 3, 4))


@devices
@combinations
def test_patch_mask_equals_the_reference(shape: Shape, dtype: torch.dtype, layout: str, device: str) -> None:
    image, logits = (make(shape, dtype, device, layout) for make in (make_image, make_logits))
    got = entmask_ext.patch_mask(image, logits, shape.patch, 0.4, hint=0.1, fill=-2, label_dtype=torch.uint8)
    assert_scores_close(got.scores, reference.patch_scores(logits.double(), shape.patch))
    assert got.scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # The rest follows from these scores without rounding.
    want = reference.patch_mask_from_scores(image, got.scores, shape.patch, 0.4, hint=0.1, fill=-2)
    assert_same_bits(got.patches, want.patches)
    assert_same_bits(got.mask, want.mask)
    assert_same_bits(got.image, want.image)
    assert got.labels is not None
    assert_same_bits(got.labels, logits.argmax(1).to(torch.uint8))


@devices
@combinations
def test_patch_mask_from_scores_equals_the_reference(
    shape: Shape, dtype: torch.dtype, layout: str, device: str
) -> None:
    image = make_image(shape, dtype, device, layout)
    scores = torch.rand(shape.images, *shape.grid, device=device)
    got = entmask_ext.patch_mask_from_scores(image, scores, shape.patch, 0.5)
    want = reference.patch_mask_from_scores(image, scores, shape.patch, 0.5)
    for actual, expected in zip(got[:4], want[:4], strict=True):
        assert_same_bits(actual, expected)
    assert got.labels is None


@devices
@pytest.mark.parametrize("image_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("logits_dtype", DTYPES, ids=str)
def test_image_and_logits_may_differ_in_dtype(image_dtype: torch.dtype, logits_dtype: torch.dtype, device: str) -> None:
    image, logits = make_image(ODD, image_dtype, device), make_logits(ODD, logits_dtype, device, "channels_last")
    got = entmask_ext.patch_mask(image, logits, ODD.patch, 0.3)
    assert got.image.dtype == got.mask.dtype == image_dtype
    assert_scores_close(got.scores, reference.patch_scores(logits.double(), ODD.patch))
    assert_same_bits(got.image, reference.patch_mask_from_scores(image, got.scores, ODD.patch, 0.3).image)


@devices
@layouts
@pytest.mark.parametrize("shape", [ODD, VOLUME], ids=str)
def test_strides_of_the_results(shape: Shape, layout: str, device: str) -> None:
    image, logits = make_image(shape, device=device, layout=layout), make_logits(shape, device=device, layout=layout)
    got = entmask_ext.patch_mask(image, logits, shape.patch, label_dtype=torch.int64)
    channels_last = torch.channels_last if len(shape.sizes) == 2 else torch.channels_last_3d
    assert got.image.is_contiguous(
        memory_format=channels_last if layout == "channels_last" else torch.contiguous_format
    )
    assert got.labels is not None
    more = (entmask_ext.entropy_map(logits), entmask_ext.patch_scores(logits, shape.patch))
    for result in (got.mask, got.patches, got.scores, got.labels, *more):
        assert result.is_contiguous()


@devices
@dtypes
def test_masked_pixels_are_fill_and_visible_ones_untouched(dtype: torch.dtype, device: str) -> None:
    image = make_image(ODD, dtype, device)
    image[torch.rand(image.shape, device=device) < 0.1] = math.nan
    image[torch.rand(image.shape, device=device) < 0.1] = math.inf
    image[torch.rand(image.shape, device=device) < 0.1] = -0.0
    before = image.clone()
    for fill in (0.0, 0.3, -math.inf, math.nan):
        got = entmask_ext.patch_mask(image, make_logits(ODD, dtype, device), ODD.patch, 0.5, fill=fill)
        masked = got.mask.bool().expand_as(image)
        assert 0 < masked.sum() < masked.numel()
        assert_same_bits(got.image[~masked], image[~masked])
        filled = got.image[masked]
        torch.testing.assert_close(filled, torch.full_like(filled, fill), rtol=0, atol=0, equal_nan=True)
    assert_same_bits(image, before)


@devices
@dtypes
def test_mask_dtype(dtype: torch.dtype, device: str) -> None:
    image, logits = make_image(ODD, dtype, device), make_logits(ODD, dtype, device)
    as_image = entmask_ext.patch_mask(image, logits, ODD.patch)
    as_bool = entmask_ext.patch_mask(image, logits, ODD.patch, mask_dtype=torch.bool)
    assert as_image.mask.dtype == dtype
    assert as_bool.mask.dtype == torch.bool
    assert as_image.mask.shape == (ODD.images, 1, *ODD.sizes)
    assert torch.equal(as_image.mask, as_bool.mask.to(dtype))
    assert set(as_image.mask.unique().tolist()) == {0.0, 1.0}
    assert_same_bits(as_image.image, as_bool.image)


@devices
@layouts
@pytest.mark.parametrize("label_dtype", [torch.uint8, torch.int64])
def test_labels_are_the_argmax(label_dtype: torch.dtype, layout: str, device: str) -> None:
    shape = Shape(2, 1, 7, (13, 37), (4, 4))
    logits = torch.randint(3, (2, 7, 13, 37)).float()  # many ties: the first maximum
    kind = torch.randint(6, (2, 13, 37))
    logits[:, 4].masked_fill_(kind == 0, math.nan)
    logits[:, 2].masked_fill_(kind <= 1, math.inf)
    logits.masked_fill_((kind == 2)[:, None], -math.inf)
    logits[:, 5].masked_fill_(kind == 3, math.nan)
    logits[:, 6].masked_fill_(kind == 3, math.nan)
    logits = LAYOUTS[layout](logits)
    on_device = LAYOUTS[layout](logits.to(device))
    got = entmask_ext.patch_mask(make_image(shape, device=device), on_device, 4, label_dtype=label_dtype)
    assert got.labels is not None
    assert got.labels.dtype == label_dtype
    assert torch.equal(got.labels.cpu().long(), logits.argmax(1))


@devices
@pytest.mark.parametrize("classes", [2, 255])
def test_labels_in_a_byte(classes: int, device: str) -> None:
    logits = torch.randn(1, classes, 5, 9, device=device)
    logits[:, classes - 1, 2] = 100
    got = entmask_ext.patch_mask(logits[:, :1], logits, 4, label_dtype=torch.uint8)
    assert got.labels is not None
    assert torch.equal(got.labels.long(), logits.argmax(1))


@devices
def test_labels_only_when_asked_for(device: str) -> None:
    image, logits = make_image(ODD, device=device), make_logits(ODD, device=device)
    assert entmask_ext.patch_mask(image, logits, 4).labels is None


@devices
def test_defaults_are_patches_of_16_and_three_quarters(device: str) -> None:
    image, logits = torch.rand(2, 1, 64, 80, device=device), torch.randn(2, 4, 64, 80, device=device)
    new, mask = entmask_ext.patch_mask(image, logits)[:2]
    want = entmask_ext.patch_mask(image, logits, 16, 0.75)
    assert want.patches.shape == (2, 4, 5)
    assert want.patches.flatten(1).sum(1).tolist() == [15, 15]
    assert_same_bits(new, want.image)
    assert_same_bits(mask, want.mask)


@devices
@pytest.mark.parametrize("shape", SHAPES[:2] + SHAPES[6:7], ids=str)
@pytest.mark.parametrize("score", ["mean", "count"])
def test_patch_mask_is_its_parts(score: str, shape: Shape, device: str) -> None:
    image, logits = make_image(shape, device=device), make_logits(shape, device=device)
    whole = entmask_ext.patch_mask(image, logits, shape.patch, 0.5, score=score, threshold=0.4)
    scores = entmask_ext.patch_scores(logits, shape.patch, score=score, threshold=0.4)
    assert_same_bits(whole.scores, scores)
    patches = entmask_ext.select_patches(scores, 0.5)
    assert_same_bits(whole.patches, patches)
    assert_same_bits(whole.image, entmask_ext.patch_where(patches, 0.0, image, shape.patch))
    assert_same_bits(whole.mask, entmask_ext.patch_where(patches, 1, torch.zeros_like(image[:, :1]), shape.patch))
    from_scores = entmask_ext.patch_mask_from_scores(image, scores, shape.patch, 0.5)
    for actual, expected in zip(from_scores[:4], whole[:4], strict=True):
        assert_same_bits(actual, expected)


@devices
@pytest.mark.parametrize("scope", ["image", "batch"])
@pytest.mark.parametrize("sizes", [(17, 23), (5, 9, 7)])
def test_empty_batch(sizes: tuple[int, ...], scope: str, device: str) -> None:
    image, logits = torch.empty(0, 2, *sizes, device=device), torch.empty(0, 3, *sizes, device=device)
    grid = tuple(math.ceil(size / 4) for size in sizes)
    for keywords in ({"ratio": 0.5}, {"min_score": 0.5, "min_patches": 2}):
        got = entmask_ext.patch_mask(image, logits, 4, scope=scope, hint=0.5, label_dtype=torch.int64, **keywords)
        assert got.labels is not None
        shapes = [(0, 2, *sizes), (0, 1, *sizes), (0, *grid), (0, *grid), (0, *sizes)]
        assert [tuple(x.shape) for x in got] == shapes
        got = entmask_ext.patch_mask_from_scores(
            image, torch.empty(0, *grid, device=device), 4, scope=scope, **keywords
        )
        assert [tuple(x.shape) for x in got[:4]] == shapes[:4]
    for shared in (False, True):
        got = entmask_ext.random_patch_mask(image, 4, shared=shared)
        assert [tuple(x.shape) for x in got[:4]] == shapes[:4]


@devices
def test_image_without_channels(device: str) -> None:
    logits = make_logits(ODD, device=device)
    got = entmask_ext.patch_mask(torch.empty(3, 0, 17, 23, device=device), logits, ODD.patch)
    assert got.image.shape == (3, 0, 17, 23)
    assert_same_bits(got.patches, entmask_ext.patch_mask(make_image(ODD, device=device), logits, ODD.patch).patches)


@devices
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("shape", [ODD, VOLUME], ids=str)
def test_random_patch_mask_is_rand_and_from_scores(shape: Shape, shared: bool, device: str) -> None:
    image = make_image(shape, device=device)

    def generator() -> torch.Generator:
        return torch.Generator(device).manual_seed(5)

    got = entmask_ext.random_patch_mask(image, shape.patch, 0.6, shared=shared, fill=3, generator=generator())
    want = reference.random_patch_mask(image, shape.patch, 0.6, shared=shared, fill=3, generator=generator())
    for actual, expected in zip(got[:4], want[:4], strict=True):
        assert_same_bits(actual, expected)
    assert got.labels is None
    k = max(1, math.floor(0.6 * shape.patches + 1e-6))
    assert got.patches.flatten(1).sum(1).tolist() == [k] * shape.images
    assert bool((got.patches == got.patches[:1]).all()) == shared


def test_random_patch_mask_follows_the_global_seed() -> None:
    image = make_image(ODD)
    torch.manual_seed(1)
    first = entmask_ext.random_patch_mask(image, 4)
    second = entmask_ext.random_patch_mask(image, 4)
    torch.manual_seed(1)
    again = entmask_ext.random_patch_mask(image, 4)
    assert torch.equal(first.patches, again.patches)
    assert not torch.equal(first.patches, second.patches)


def test_random_patch_mask_is_uniform() -> None:
    patches = entmask_ext.random_patch_mask(torch.empty(2000, 0, 8, 8), 2, 0.25).patches
    frequency = patches.double().mean(0)
    # Standard error sqrt(0.25 * 0.75 / 2000) = 0.0097
    assert (frequency - 0.25).abs().max() < 0.04


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_random_scores_are_float32_whatever_the_default_dtype(dtype: torch.dtype) -> None:
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        masked = entmask_ext.random_patch_mask(torch.zeros(1, 1, 64, 64, dtype=torch.float32), 1, 0.5)
    finally:
        torch.set_default_dtype(default)
    assert masked.scores.dtype == torch.float32
    assert masked.scores.unique().numel() > 4000  # float16 would have 2048 values, and ties go to the top left


# ---------------------------------------------------------------- patch_where

INTEGERS = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
any_dtype = pytest.mark.parametrize("dtype", [*DTYPES, *INTEGERS], ids=str)


def make_any(shape: Shape, dtype: torch.dtype, device: str, layout: str = "contiguous") -> Tensor:
    """Of any dtype; floating ones with NaN, infinities and a negative zero."""
    if dtype.is_floating_point:
        x = make_image(shape, torch.float32)
        x.view(-1)[::5] = torch.tensor([math.nan, math.inf, -math.inf, -0.0])[torch.randint(4, x.view(-1)[::5].shape)]
    else:
        x = torch.randint(-(2**31), 2**31, (shape.images, shape.channels, *shape.sizes)) * 3
        if dtype == torch.bool:
            x = x % 2
    return LAYOUTS[layout](x.to(device, dtype))


def of_pixels(patches: Tensor, shape: Shape) -> Tensor:
    """(N, *G) -> (N, *S), by looking each pixel's patch up."""
    index = [torch.arange(n) // width for n, width in zip(shape.sizes, shape.patch, strict=True)]
    return patches[(slice(None), *torch.meshgrid(*index, indexing="ij"))]


@devices
@any_dtype
@pytest.mark.parametrize("shape", SHAPES[1:4] + SHAPES[6:7], ids=str)
def test_patch_where_is_where(shape: Shape, dtype: torch.dtype, device: str) -> None:
    """Two tensors, or one and a number; with channels and without; a mask per image, or one for all."""
    names = list(LAYOUTS)
    for patches, (i, layout) in itertools.product((make_patches(shape, device), make_patches(shape, device)[:1]),
                                                  enumerate(names)):  # fmt: skip
        inside = make_any(shape, dtype, device, layout)
        outside = make_any(shape, dtype, device, names[i - 3])
        number = torch.tensor(1, dtype=dtype, device=device)
        mask = of_pixels(patches, shape).expand(shape.images, *shape.sizes)
        for one, other in ((inside, outside), (number, outside), (inside, number)):
            for channels in (True, False):
                a, b = (x if x.dim() == 0 or channels else x[:, 0] for x in (one, other))
                want = torch.where(mask[:, None] if channels else mask, a, b)
                a, b = (x.item() if x.dim() == 0 else x for x in (a, b))
                assert_same_bits(entmask_ext.patch_where(patches, a, b, shape.patch), want)


@devices
@pytest.mark.parametrize("shape", [ODD, VOLUME], ids=str)
def test_memory_format_of_patch_where(shape: Shape, device: str) -> None:
    """The outside's; the inside's where the outside is a number."""
    plain, last = (make_image(shape, device=device, layout=layout) for layout in ("contiguous", "channels_last"))
    patches = make_patches(shape, device)
    assert plain.stride() != last.stride()
    for inside, outside, like in ((plain, last, last), (last, plain, plain), (last, 0, last), (0, last, last)):
        assert entmask_ext.patch_where(patches, inside, outside, shape.patch).stride() == like.stride()


@devices
def test_numbers_that_a_dtype_represents(device: str) -> None:
    patches = torch.tensor([[[True, False]]], device=device)
    for dtype, numbers in (
        (torch.bool, (True, False, 0, 1, 1.0)),
        (torch.uint8, (0, 255, 255.0)),
        (torch.int8, (-128, 127)),
        (torch.int16, (-(2**15), 2**15 - 1)),
        (torch.int32, (-(2**31), 2**31 - 1)),
        (torch.int64, (-(2**63), 2**63 - 1, 2**53 + 1, -3.0)),
        (torch.float16, (65504, -65504.0, 0.1, math.inf, math.nan, 2**-24)),
        (torch.float32, (2**24 + 1, 0.1, -math.inf, 1e-45)),
        (torch.float64, (0.1, 2**63 - 1, 5e-324, 1e308)),
    ):
        x = torch.zeros(1, 1, 2, dtype=dtype, device=device)
        for number in numbers:
            want = torch.full((1,), number, dtype=dtype, device=device)
            assert_same_bits(entmask_ext.patch_where(patches, number, x, 1)[0, 0, :1], want)
            assert_same_bits(entmask_ext.patch_where(patches, x, number, 1)[0, 0, 1:], want)


@devices
def test_patch_where_of_nothing(device: str) -> None:
    for shape, grid in (
        ((0, 2, 4, 6), (0, 2, 3)),
        ((0, 2, 4, 6), (1, 2, 3)),
        ((2, 0, 4, 6), (2, 2, 3)),
        ((0, 4, 6), (1, 2, 3)),
    ):
        patches = torch.zeros(grid, dtype=torch.bool, device=device)
        x = torch.zeros(shape, device=device)
        assert entmask_ext.patch_where(patches, x, x, 2).shape == shape
        assert entmask_ext.patch_where(patches, 1.0, x, 2).shape == shape


@devices
def test_images_and_labels_mix_by_one_rule(device: str) -> None:
    """Patches of the next image, image and labels alike; a volume's and a pixel's as well."""
    for shape in (ODD, VOLUME, Shape(2, 1, 3, (4, 5), (1, 1))):
        image = make_image(shape, device=device)
        labels = image[:, 0].mul(100).to(torch.uint8)
        patches = make_patches(shape, device)
        mixed = entmask_ext.patch_where(patches, image.roll(1, 0), image, shape.patch)
        mixed_labels = entmask_ext.patch_where(patches, labels.roll(1, 0), labels, shape.patch)
        assert torch.equal(mixed[:, 0].mul(100).to(torch.uint8), mixed_labels)
