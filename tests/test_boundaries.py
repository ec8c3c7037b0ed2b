"""Lengths at which the CPU kernels change their way: just below, at and above each, and at odd multiples of it.

Every op and gradient against the float64 reference, for planar, channels_last and strided tensors, with memory that
starts as NaN, so that nothing that was not written looks right. The CUDA kernels' own lengths: docs/simt.md.

| length | where | test |
|---|---|---|
| 1,024 pixels or elements (kChunk) | line buffers of every row; patterns of narrow patches | test_chunk, test_runs |
| a chunk's whole patches; patches wider than a chunk | pooling | test_chunk |
| 32,768 pixels (kItemPixels) | a strip is split by rows, a cut strip has fewer | test_item, test_moved_strips |
| 8,192 pixels (kMapPixels) | pieces of the entropy map, of rows behind each other or not | test_map |
| 16 rows, 8 above 128 classes (flush_rows) | products of 1 + z become logarithms | test_flush_of_rows |
| 64 vectors (kFlushVectors) | the loss's sums go to double | test_flush_of_the_loss |
| 8, 16, 32, 64, 512 bytes (copy_elements) | how a patch's row is copied | test_runs, test_copied_rows |
| exactly 8, 16, 32, 64, 128 bytes (with_copy) | a moved patch's row is copied without a branch | test_copied_rows |
| 64 patches of a strip (kPatches) | places of moved patches looked up at once | test_moved_patches |
| 256 takers of these (kTakers) | the gradient looks up more of them for each row | test_many_takers |
| 64 bytes (kRunBytes) | wider patches are copied, narrower ones blended | test_runs |
| 16 to 64 bytes (kVectorBytes), 2 to 64 pixels | a blended row's last vector is moved back | test_blended_rows |
| 2 to 16 lanes | a row's last vector is moved back, a shorter row is staged | test_lanes |
| 2 to 64 elements of 16 to 64 bytes | 2, 3, 4 or 8 interleaved classes are unzipped | test_lanes |
| 128 pixels, fewer above 256 classes | pieces of staged rows | test_staged_pieces |
| 2, 3, 4, 8 classes; groups of 8, 4, 2, 1; 128; 255; 2,048 | in registers, in groups, at most | test_classes |
| 2 to 16 lanes; 8 bits | the radix selection's vectors of scores, digits of keys | test_selected_lanes, _digits |
| 32,768 elements (kTaskElements) | fewer are one thread's | test_threads |
"""

import itertools
from collections.abc import Iterator, Sequence

import pytest
import torch
from cases import (
    LAYOUTS,
    Shape,
    assert_gradients_close,
    assert_same_bits,
    assert_scores_close,
    devices,
    make_image,
    make_labels,
    make_logits,
    make_patches,
)
from torch import Tensor

import entmask_ext
from entmask_ext import reference

THREE = ("contiguous", "channels_last", "sliced")


@pytest.fixture(autouse=True)
def memory_starts_as_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def around(*lengths: int) -> list[int]:
    """Below, at and above each length and three times it."""
    return sorted({n + step for length in lengths for n in (length, 3 * length) for step in (-1, 0, 1)} - {0})


def row(width: int, patch: int, classes: int = 3, height: int = 2, channels: int = 2) -> Shape:
    return Shape(1, channels, classes, (height, width), (1, patch))


def gradient(out: Tensor, x: Tensor, incoming: Tensor) -> Tensor:
    return torch.autograd.grad(out, x, incoming.to(out.dtype))[0]


def check_entropy(
    shape: Shape, dtype: torch.dtype, device: str, layouts: Sequence[str] = THREE, *, pooled: bool = True
) -> None:
    plain = make_logits(shape, dtype, device)
    exact = plain.double().requires_grad_()
    want = reference.entropy_map(exact)
    scores = reference.patch_scores(exact, shape.patch)
    of_pixels, of_patches = torch.randn_like(want), torch.randn_like(scores)
    want_of_pixels, want_of_patches = gradient(want, exact, of_pixels), gradient(scores, exact, of_patches)
    for layout in layouts:
        logits = LAYOUTS[layout](plain).requires_grad_()
        entropy = entmask_ext.entropy_map(logits)
        assert_scores_close(entropy, want.detach())
        assert_gradients_close(gradient(entropy, logits, of_pixels), want_of_pixels)
        if not pooled:
            continue
        got = entmask_ext.patch_scores(logits, shape.patch)
        assert_scores_close(got, scores.detach())
        assert_gradients_close(gradient(got, logits, of_patches), want_of_patches)
        counted = entmask_ext.patch_scores(logits, shape.patch, score="count", threshold=0.5)
        passing = reference._patch_sums((entropy.detach() >= 0.5).double(), shape.patch)
        pixels = reference._patch_sums(torch.ones_like(want.detach()), shape.patch)
        assert_same_bits(counted, (passing / pixels).to(counted.dtype))


def check_top_two(
    shape: Shape, dtype: torch.dtype, device: str, layouts: Sequence[str] = THREE, *, pooled: bool = True
) -> None:
    """Least confidence or margin, in one of the layouts: a case each, their rows are read as those of the entropy."""
    number = sum(shape.sizes) + shape.classes
    kind, layout = ("least_confidence", "margin")[number % 2], layouts[number // 2 % len(layouts)]
    plain = make_logits(shape, dtype, device)
    exact = plain.double().requires_grad_()
    logits = LAYOUTS[layout](plain).requires_grad_()
    got, want = entmask_ext.uncertainty_map(logits, kind), reference.uncertainty_map(exact, kind)
    incoming = torch.randn_like(want)
    assert_scores_close(got, want.detach())
    assert_gradients_close(gradient(got, logits, incoming), gradient(want, exact, incoming))
    if pooled:
        scores = entmask_ext.patch_scores(logits, shape.patch, uncertainty=kind)
        want = reference.patch_scores(exact, shape.patch, uncertainty=kind)
        incoming = torch.randn_like(want)
        assert_scores_close(scores, want.detach())
        assert_gradients_close(gradient(scores, logits, incoming), gradient(want, exact, incoming))
    labelled = entmask_ext.pseudo_labels(logits, min_confidence=0.5, label_dtype=torch.int64)
    want = reference.pseudo_labels(plain, min_confidence=0.5, label_dtype=torch.int64).labels
    confidence = plain.double().softmax(1).amax(1)
    assert torch.equal(labelled.labels[(confidence - 0.5).abs() > 4e-7], want[(confidence - 0.5).abs() > 4e-7])
    kept = (labelled.labels != -100).flatten(1)
    assert_same_bits(labelled.accepted, (kept.sum(1).double() / kept.shape[1]).float())
    image = plain[:, :1].float()
    masked = entmask_ext.patch_mask(image, logits, shape.patch, label_dtype=torch.int64, min_confidence=0.5)
    assert_same_bits(masked.labels, labelled.labels)
    assert_same_bits(entmask_ext.pseudo_labels(logits, label_dtype=torch.int64).labels, plain.argmax(1))


def check_masking(shape: Shape, dtype: torch.dtype, device: str, layouts: Sequence[str] = THREE) -> None:
    plain = make_image(shape, dtype, device)
    logits = make_logits(shape, dtype, device)
    for layout in layouts:
        image = LAYOUTS[layout](plain)
        keywords = {"fill": -2.0, "mask_dtype": torch.bool if layout == "channels_last" else None}
        got = entmask_ext.patch_mask(
            image, LAYOUTS[layout](logits), shape.patch, 0.4, label_dtype=torch.int64, **keywords
        )
        want = reference.patch_mask_from_scores(image, got.scores, shape.patch, 0.4, **keywords)
        assert_scores_close(got.scores, reference.patch_scores(logits.double(), shape.patch))
        for actual, expected in zip(got[:3], want[:3], strict=True):
            assert_same_bits(actual, expected)
        assert_same_bits(got.labels, logits.argmax(1))
    check_where(shape, dtype, device, layouts)


def check_where(shape: Shape, dtype: torch.dtype, device: str, layouts: Sequence[str] = THREE) -> None:
    """Two images of the same and of different layouts."""
    patches = make_patches(shape, device)
    inside, outside = ((make_image(shape, torch.float32, device) * 20).to(dtype) for _ in range(2))
    want = reference.patch_where(patches, inside, outside, shape.patch)
    for i, layout in enumerate(layouts):
        other = layouts[i // 2]
        got = entmask_ext.patch_where(patches, LAYOUTS[layout](inside), LAYOUTS[other](outside), shape.patch)
        assert_same_bits(got, want)


def check_loss(shape: Shape, dtype: torch.dtype, device: str, layouts: Sequence[str] = THREE) -> None:
    plain = make_logits(shape, dtype, device, absent=-60)
    labels, patches = make_labels(shape, device=device), make_patches(shape, device)
    weight = torch.rand(shape.classes, dtype=torch.float64, device=device) + 0.1
    region = "each" if shape.sizes[-1] % 2 else "all"

    def run(function: object, logits: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits.detach().requires_grad_()
        losses = torch.stack(  # Dice of each region where the width is odd
            function(logits, labels, patches, shape.patch, class_weight=weight, dice_region=region)  # type: ignore[operator]
        )
        return losses.detach(), gradient(losses, logits, torch.tensor([0.7, 1.3, -0.4, 2.1], device=device))

    want, expected = run(reference.consistency_loss, plain.double())
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for layout in layouts:
        got, actual = run(entmask_ext.consistency_loss, LAYOUTS[layout](plain))
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance / 100)
        assert_gradients_close(actual, expected)


def check_shuffle(shape: Shape, dtype: torch.dtype, device: str, layouts: Sequence[str] = THREE) -> None:
    whole = tuple(n * width for n, width in zip(shape.grid, shape.patch, strict=True))
    plain = make_image(Shape(2, shape.channels, 2, whole, shape.patch), dtype, device)
    permutation = torch.randperm(2 * shape.patches, device=device)
    want = reference.shuffle_patches(plain, shape.patch, permutation)
    for layout in layouts:
        assert_same_bits(entmask_ext.shuffle_patches(LAYOUTS[layout](plain), shape.patch, permutation), want)


def check(shape: Shape, dtype: torch.dtype, device: str, layouts: Sequence[str] = THREE) -> None:
    for part in (check_entropy, check_top_two, check_masking, check_loss, check_shuffle):
        part(shape, dtype, device, layouts)


CHUNK = [
    # narrow patches: of a pixel, of some, in chunks of whole patches
    *((width, patch) for width in around(1024) for patch in (1, 16)),
    *((1023, 341), (1025, 341), (1025, 512), (1026, 513), (3071, 3), (3074, 3), (3071, 1000), (3074, 511)),
    # as wide as a chunk
    *itertools.product((1023, 1024, 1025, 3073), (1023, 1024, 1025)),
    # wider, in two and more chunks, whole and cut, narrower and wider than the row
    *((2047, 2048), (2048, 2047), (2048, 2048), (2049, 2048), (3000, 1500), (3072, 1536), (3073, 1536), (3073, 2049)),
    *((3071, 3072), (3072, 3072), (3073, 3072), (4098, 1366), (5123, 1025), (5123, 2049), (5123, 2560), (5123, 3073)),
]


@devices
@pytest.mark.parametrize(("width", "patch"), sorted(set(CHUNK)))
def test_chunk(width: int, patch: int, device: str) -> None:
    check(row(width, patch), torch.float32, device)


@devices
def test_a_patch_over_several_chunks(device: str) -> None:
    """The second of two patches begins within a chunk."""
    logits = torch.zeros(1, 2, 1, 3000, device=device)
    logits[:, 0, :, 1500:] = 20
    scores = entmask_ext.patch_scores(logits, (1, 1500))
    assert_scores_close(scores, reference.patch_scores(logits.double(), (1, 1500)))
    image = logits[:, :1]
    assert entmask_ext.patch_mask(image, logits, (1, 1500), 0.5).patches.tolist() == [[[True, False]]]


ITEM = [
    ((31, 1057), (31, 1057)),  # 32,767 pixels
    ((32, 1024), (32, 100)),
    ((33, 993), (33, 993)),  # 32,769
    ((34, 993), (33, 100)),  # the second strip has one row for two items
    ((62, 1057), (62, 1057)),  # twice as many less 2
    ((99, 993), (99, 500)),  # three times as many and 3
    ((96, 1024), (96, 16)),
    ((130, 1013), (97, 1013)),
    ((2, 40_000), (2, 17_000)),  # more pixels than rows can share
    ((3, 40_000), (2, 40_000)),
    ((1, 33_000), (1, 700)),
    ((3, 11, 993), (3, 11, 100)),  # 32,769
    ((4, 13, 993), (3, 11, 331)),
    ((2, 16, 1024), (2, 16, 1024)),
    ((5, 70, 200), (5, 64, 7)),
]


@devices
@pytest.mark.parametrize(("sizes", "patch"), ITEM, ids=str)
def test_item(sizes: tuple[int, ...], patch: tuple[int, ...], device: str) -> None:
    """A layout each: how a strip is split does not depend on it."""
    layout = THREE[sum(sizes) % 3]
    for part in (check_entropy, check_top_two, check_masking, check_loss):
        part(Shape(1, 1, 2, sizes, patch), torch.float32, device, [layout])


@devices
@pytest.mark.parametrize(
    "sizes", [*((1, n) for n in around(8192)), (2, 4095), (2, 4097), (3, 8193), (2, 3, 4097)], ids=str
)
def test_map(sizes: tuple[int, ...], device: str) -> None:
    check_entropy(Shape(1, 1, 2, sizes, sizes), torch.float32, device, pooled=False)
    check_top_two(Shape(1, 1, 2, sizes, sizes), torch.float32, device, pooled=False)


@devices
@pytest.mark.parametrize(
    ("classes", "rows"), [*((k, n) for k in (5, 128) for n in around(16)), *((129, n) for n in around(8))]
)
def test_flush_of_rows(classes: int, rows: int, device: str) -> None:
    check_entropy(Shape(1, 1, classes, (rows + 3, 20), (rows, 9)), torch.float32, device)


@devices
@pytest.mark.parametrize("width", around(128, 256, 512, 1024))
def test_flush_of_the_loss(width: int, device: str) -> None:
    for dtype, classes in ((torch.float32, 3), (torch.float32, 5), (torch.float64, 3)):
        check_loss(Shape(1, 1, classes, (3, width), (2, 10)), dtype, device)


@devices
@pytest.mark.parametrize("width", around(4, 8, 16, 32, 64))
def test_runs(width: int, device: str) -> None:
    """Of `width` bytes and of `width` elements, in rows shorter and longer than a chunk."""
    for dtype, pixels in itertools.product((torch.float64, torch.float32, torch.float16), (50, 1100, 3080)):
        shape = row(pixels, width, classes=2, channels=1 + width % 3)
        check_masking(shape, dtype, device)
        check_where(Shape(1, shape.channels, 2, (5, pixels), (3, width)), torch.int8, device)


@devices
@pytest.mark.parametrize("width", around(2, 4, 8, 16, 32, 64))
def test_blended_rows(width: int, device: str) -> None:
    """Two tensors, and a number on either side; rows behind each other and apart; patches of a pixel and of some."""
    for patch, dtype in itertools.product((1, 3, 16), (torch.uint8, torch.int16, torch.float32, torch.int64)):
        shape = row(width, patch, height=5)
        patches = make_patches(shape, device)
        inside, outside = (torch.randint(1, 128, (1, 2, 5, width), device=device).to(dtype) for _ in range(2))
        for x, y in ((inside, outside), (7, outside), (inside, 7)):
            want = reference.patch_where(patches, x, y, shape.patch)
            for layout in THREE:
                sides = (LAYOUTS[layout](side) if isinstance(side, Tensor) else side for side in (x, y))
                assert_same_bits(entmask_ext.patch_where(patches, *sides, shape.patch), want)


def check_moving(
    images: int,
    sizes: tuple[int, ...],
    patch: tuple[int, ...],
    dtype: torch.dtype,
    device: str,
    favoured: float = 0.0,
) -> None:
    """Values and gradient of gather_patches, of which that share takes one patch, and of shuffle_patches both ways."""
    grid = [n // width for n, width in zip(sizes, patch, strict=True)]
    patches = torch.Size(grid).numel()
    source = torch.randint(images * patches, (images, *grid), device=device)
    source[torch.rand(source.shape, device=device) < favoured] = 1
    order = torch.randperm(patches, device=device)
    plain = torch.randn(images, 2, *sizes, device=device).to(dtype)
    incoming = torch.randn(plain.shape, device=device).to(dtype)
    wide = plain.double().requires_grad_()
    wanted = gradient(reference.gather_patches(wide, source, patch), wide, incoming)
    for layout in THREE:
        x = LAYOUTS[layout](plain).requires_grad_()
        out = entmask_ext.gather_patches(x, source, patch)
        assert_same_bits(out.detach(), reference.gather_patches(plain, source, patch))
        for grad in (incoming, LAYOUTS[layout](incoming)):
            assert_gradients_close(torch.autograd.grad(out, x, grad, retain_graph=True)[0], wanted)
        for inverse in (False, True):
            moved = entmask_ext.shuffle_patches(x.detach(), patch, order, inverse=inverse)
            assert_same_bits(moved, reference.shuffle_patches(plain, patch, order, inverse=inverse))


@devices
@pytest.mark.parametrize(
    ("dtype", "lengths"),
    [(torch.float16, (4, 8, 16, 32, 256)), (torch.float32, (4, 8, 16, 128)), (torch.float64, (4, 8, 64))],
    ids=str,
)
def test_copied_rows(dtype: torch.dtype, lengths: tuple[int, ...], device: str) -> None:
    for width in around(*lengths):
        check_moving(2, (4, 3 * width), (2, width), dtype, device)
    bytes_ = [n for n in around(8, 16, 32, 64, 128, 512) if dtype is torch.float16]
    for width in bytes_:
        x = torch.randint(256, (2, 1, 2, 2 * width), device=device).to(torch.uint8)
        source = torch.randint(4, (2, 1, 2), device=device)
        got = entmask_ext.gather_patches(x, source, (2, width))
        assert_same_bits(got, reference.gather_patches(x, source, (2, width)))


@devices
@pytest.mark.parametrize("count", around(64))
def test_moved_patches(count: int, device: str) -> None:
    for width in (1, 3, 17):
        check_moving(2, (4, count * width), (2, width), torch.float32, device)
    check_moving(2, (2, 4, count), (1, 2, 1), torch.float32, device)


@devices
@pytest.mark.parametrize("favoured", [0.6, 1.0])
def test_many_takers(favoured: float, device: str) -> None:
    """Of one patch, and some of the patches behind it in the strip."""
    for images in (1, 2, 3, 4, 5):
        for columns in (51, 64, 65):
            check_moving(images, (4, columns * 5), (4, 5), torch.float32, device, favoured)
    check_moving(9, (2, 64), (2, 1), torch.float32, device, favoured)


@devices
def test_moved_strips(device: str) -> None:
    """A strip of more than 32,768 pixels is several items."""
    for sizes, patch in (((66, 993), (33, 331)), ((3, 40_000), (1, 20_000)), ((4, 40, 860), (4, 20, 430))):
        check_moving(2, sizes, patch, torch.float32, device)


WIDTHS = sorted({1, 2, 3, *around(4, 8, 16, 32), 5 * 4, 63, 64, 65})


@devices
@pytest.mark.parametrize("width", WIDTHS)
def test_lanes(width: int, device: str) -> None:
    for classes in (2, 3, 4, 5, 8):
        check(row(width, 3, classes, channels=classes), torch.float32, device)
    for classes in (2, 4, 8):
        check(row(width, width, classes, channels=classes), torch.float16, device)
    for classes in (4, 5):
        check(row(width, 5, classes, channels=classes), torch.float64, device)


PIECES = [
    *((5, n) for n in around(128)),
    *((256, n) for n in (127, 128, 129, 383, 384, 385)),
    *((257, n) for n in (111, 112, 113, 119, 120, 121, 123, 124, 125, 335, 336, 337)),
    *((300, n) for n in (95, 96, 97, 103, 104, 105, 107, 108, 109)),
    *((2047, n) for n in (15, 16, 17)),
    *((2048, n) for n in around(16)),
]


@devices
@pytest.mark.parametrize(("classes", "width"), PIECES)
def test_staged_pieces(classes: int, width: int, device: str) -> None:
    shape = row(width, 10, classes)
    check_entropy(shape, torch.float32, device, THREE[1:])
    check_top_two(shape, torch.float32, device, THREE[1:])
    check_loss(shape, torch.float32, device, THREE[1:])


@devices
@pytest.mark.parametrize(
    "classes", [*range(2, 21), 31, 32, 33, *around(64), 127, 128, 129, 254, 255, 256, 257, 2047, 2048]
)
def test_classes(classes: int, device: str) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        shape = Shape(1, 1, classes, (3, 19), (2, 7))
        check_entropy(shape, dtype, device)
        check_top_two(shape, dtype, device)
        check_masking(shape, dtype, device)
        check_loss(shape, dtype, device)


def check_selection(scores: Tensor) -> None:
    images, length = scores.shape
    scores = scores.reshape(images, 1, length)
    image = torch.empty(images, 0, 1, length, device=scores.device)
    rules = [
        *({"ratio": k / length, "hint": hint} for k in {1, length // 2, length - 1} - {0} for hint in (0.0, 0.3)),
        *({"min_score": scores[0, 0, i].item(), "min_patches": n} for i in (0, -1) for n in (0, length // 2)),
    ]
    for rule, order, scope in itertools.product(rules, ("highest", "lowest"), ("image", "batch")):
        got = entmask_ext.patch_mask_from_scores(image, scores, 1, order=order, scope=scope, **rule).patches
        want = reference.patch_mask_from_scores(image, scores, 1, order=order, scope=scope, **rule).patches
        assert torch.equal(got, want), (rule, order, scope)


@devices
@pytest.mark.parametrize("length", WIDTHS)
def test_selected_lanes(length: int, device: str) -> None:
    for dtype in (torch.float32, torch.float64):
        check_selection(torch.randint(max(2, length // 2), (2, length)).to(device, dtype))


@devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_selected_digits(dtype: torch.dtype, device: str) -> None:
    """Scores that differ in one byte alone, in its lowest and in its highest bit."""
    integer = torch.int32 if dtype == torch.float32 else torch.int64
    one = torch.ones((), dtype=dtype).view(integer)
    for byte in range(dtype.itemsize):
        digits = torch.tensor([0, 1, 2, 127, 128, 129, 254, 255]).to(integer)[torch.randint(8, (2, 50))]
        if byte == dtype.itemsize - 1:
            digits = digits.where((digits & 127) != 127, 1)  # neither infinite nor NaN
        bits = one & ~(torch.tensor(255).to(integer) << 8 * byte) | digits << 8 * byte
        check_selection(bits.view(dtype).to(device))


@devices
@pytest.mark.parametrize("sizes", [(127, 129), (128, 128), (113, 145), (191, 257), (192, 256), (193, 255)], ids=str)
def test_threads(sizes: tuple[int, int], device: str) -> None:
    """Two classes of 16,384 pixels, and one row of patches fewer than there are threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for patch, layout in (((16, 16), "contiguous"), ((100, 9), "channels_last")):
            check(Shape(1, 2, 2, sizes, patch), torch.float32, device, [layout])
    finally:
        torch.set_num_threads(before)
