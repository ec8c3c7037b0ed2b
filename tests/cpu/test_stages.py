"""The CPU kernels under ASan and UBSan, without torch: odd geometries on memory of exactly their size.

Every case runs with all items at once, one by one from the last, and mixed, and must give the same bits; then it is
compared with float64 numpy. The ordinary run has the stages that compile in seconds, for the baseline; `make simt` has
all, for every instruction set that the processor runs. The lengths: tests/test_boundaries.py.
"""

import itertools
import subprocess
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from simt import data, launchers, reference, test_box_mask, test_components, test_pseudo_labels
from simt.tensors import Tensor, bits, image, patch_counts, tensor

from build_backend import extension

from . import build

RUNS = (("forward", 0), ("reverse", 0), ("random", 1))
QUICK = ("select", "where", "box_mask", "shuffle", "components")
ALL_STAGES = [pytest.param(isa, marks=pytest.mark.long) for isa in extension.isas()]

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")


@pytest.fixture(scope="module", params=["quick", *ALL_STAGES])
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What a launcher of tests/simt takes to run on the CPU kernels instead."""
    isa, stages = ("baseline", QUICK) if request.param == "quick" else (request.param, ())
    executable = build.driver(isa, stages)
    if subprocess.run([executable, "runs here?"]).returncode:
        pytest.skip(f"this processor does not run {isa}")
    return {"mode": "asan", "executable": executable, "runs": RUNS}


def some(cases: list[Any], number: int, request: pytest.FixtureRequest) -> list[Any]:
    """A quarter of the cases in the ordinary run, each number another one."""
    return cases if request.node.get_closest_marker("long") else cases[number % 4 :: 4]


every_stage = pytest.mark.parametrize("options", ALL_STAGES, indirect=True)


def around(*lengths: int) -> list[int]:
    return sorted({m * n + step for n in lengths for m in (1, 3) for step in (-1, 0, 1)} - {0})


LANES = sorted({1, 2, 3, *around(4, 8, 16), 31, 32, 33, 63, 64, 65})
LAYOUTS = ("contiguous", "channels_last", "strided", "offset")


RELATIVE = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-3, "bfloat16": 8e-3}


def assert_gradient(actual: np.ndarray, expected: np.ndarray, dtype: str) -> None:
    largest = np.nanmax(np.abs(expected)) if expected.size else 0.0
    tiny = 6e-8 if dtype == "float16" else 0.0
    np.testing.assert_allclose(actual, expected, rtol=RELATIVE[dtype], atol=RELATIVE[dtype] * largest + tiny)


# ---------------------------------------------------------------- moved elements


WHERE_DTYPES = ["uint8", "bfloat16", "float32", "float64"]  # 1, 2, 4 and 8 bytes

# size, patch
PLACES = [
    *(((2, width), (1, patch)) for width, patch in itertools.product((1, 3, 17, 50), (1, 2, 3, 8, 17, 60))),
    *(((2, width), (1, patch)) for width, patch in itertools.product((15, 63, 64, 65, 193), (1, 16, 31, 63, 64))),
    *(((2, width), (2, patch)) for width in (1023, 1025, 3074) for patch in (1, 3, 7, 31, 1024, 1500)),
    ((34, 993), (33, 100)),  # two items, of which the last strip has a row for one
    ((2, 40_000), (2, 17_000)),
    ((4, 13, 993), (3, 11, 331)),
    ((5, 6, 7), (2, 4, 3)),
]


@pytest.mark.parametrize("dtype", WHERE_DTYPES)
def test_where(dtype: str, options: dict[str, Any], request: pytest.FixtureRequest) -> None:
    for i, (size, patch) in some(list(enumerate(PLACES)), WHERE_DTYPES.index(dtype), request):
        layout, other = LAYOUTS[i % 4], LAYOUTS[i // 4 % 4]
        shape = (2 if len(size) == 2 else 1, 1 + i % 4, *size)
        x, y = image(shape, dtype, layout), image(shape, dtype, other)
        for shared, mask, (inside, outside) in (
            (False, "same", (7.0, x)), (True, "bool", (x, y)), (False, "none", (y, 3.0)),
        ):  # fmt: skip
            patches = data.rng(i).random((1 if shared else shape[0], *patch_counts(size, patch))) < 0.6
            out, pixels, _ = launchers.where(patches, inside, outside, patch, mask=mask, **options)
            sides = [
                s.storage if isinstance(s, Tensor) else tensor(np.array([s]), dtype).storage[0]
                for s in (inside, outside)
            ]
            np.testing.assert_array_equal(bits(out), bits(reference.where(patches, *sides, size, patch)))
            if pixels is not None:
                wanted = np.broadcast_to(reference.pixel_mask(patches, size, patch), pixels.shape)
                np.testing.assert_array_equal(pixels, wanted)


@pytest.mark.parametrize("dtype", WHERE_DTYPES)
def test_shuffle(dtype: str, options: dict[str, Any]) -> None:
    for i, (width, layout) in enumerate(itertools.product((1, 3, 8, 17, 33), LAYOUTS)):
        patch = (2, width) if i % 3 else (2, 1, width)
        size = (4, 3 * width) if i % 3 else (2, 3, 2 * width)
        x = image((4, 1 + i % 4, *size), dtype, layout)
        group = (1, 2, 4)[i % 3]
        permutation = data.rng(i).permutation(group * int(np.prod(patch_counts(size, patch))))
        out, _ = launchers.shuffle_patches(x, permutation, patch, **options)
        np.testing.assert_array_equal(bits(out), bits(reference.shuffle_patches(x.storage, permutation, patch)))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_gather_backward(dtype: str, options: dict[str, Any]) -> None:
    """Some patches are taken by many, some by none."""
    for i, (width, layout) in enumerate(itertools.product((1, 3, 8, 17, 33), LAYOUTS)):
        patch, size = ((2, width), (4, 3 * width)) if i % 3 else ((2, 1, width), (2, 3, 2 * width))
        grad = tensor(data.rng(i).normal(size=(2, 1 + i % 4, *size)), dtype, layout)
        patches = 2 * int(np.prod(patch_counts(size, patch)))
        source = data.rng(i).integers(0, max(1, patches // 2), patches)
        out, _ = launchers.gather_backward(grad, source, patch, **options)
        assert_gradient(out, reference.gather_backward(grad.values, source, patch), dtype)


# ---------------------------------------------------------------- boxes and components


def test_boxes(options: dict[str, Any]) -> None:
    for size in ((7, 9), (5, 16), (1, 1), (3, 65), (4, 5, 17)):
        boxes = data.rng(1).integers(-3, max(size) + 3, (20, 2 * len(size)))
        boxes[0], boxes[1, ::2], boxes[1, 1::2] = 0, -(1 << 62), 1 << 62
        out, _ = launchers.box_mask(boxes, size, **options)
        np.testing.assert_array_equal(out, test_box_mask.expected(boxes, size))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_largest_components(dtype: type, options: dict[str, Any]) -> None:
    for i, shape in enumerate(test_components.SHAPES):
        labels = data.rng(i).integers(0, 4, shape).astype(dtype)
        labels[data.rng(i + 1).random(shape) < 0.05] = 255
        for connectivity in range(1, len(shape)):
            out, _ = launchers.components(labels, 4, connectivity, **options)
            np.testing.assert_array_equal(out, test_components.expected(labels, 4, connectivity))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
@pytest.mark.parametrize("classes", [2, 5, 256, 257, 65536])
def test_rows_of_words_and_bits_of_classes(classes: int, dtype: type, options: dict[str, Any]) -> None:
    """Rows are read 64 pixels at a time, into a plane for each bit of the class."""
    g = data.rng(classes)
    last = min(classes - 1, np.iinfo(dtype).max)
    kinds = np.unique([1, last, last ^ 1 << last.bit_length() // 2, max(1, last >> 1)])
    for shape in ((2, 4, 63), (1, 4, 64), (1, 3, 3, 65), (1, 4, 128), (1, 3, 191), (1, 2, 193)):
        labels = g.choice(kinds, shape).astype(dtype)
        labels[g.random(shape) < 0.3] = 0
        for connectivity in range(1, len(shape)):
            out, _ = launchers.components(labels, classes, connectivity, **options)
            np.testing.assert_array_equal(out, test_components.expected(labels, classes, connectivity))


# ---------------------------------------------------------------- selection


RULES: list[dict[str, Any]] = [
    {"ratio": 0.4},
    {"ratio": 1.0, "hint": 0.3},
    {"ratio": 0.01, "lowest": True},
    {"ratio": 0.7, "lowest": True, "hint": 0.2},
    {"min_score": 0.5},
    {"min_score": 0.5, "min_patches": 9, "hint": 0.1},
    {"min_score": 0.3, "min_patches": 4, "lowest": True},
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_select(dtype: type, options: dict[str, Any]) -> None:
    for i, length in enumerate([*LANES, 257, 1025]):
        scores = data.scores(3, length, seed=i, dtype=dtype)
        rule = RULES[i % len(RULES)]
        patches, _ = launchers.select(scores, **rule, **options)
        np.testing.assert_array_equal(patches, reference.select(scores, **rule))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_select_by_a_number_per_row(dtype: str, options: dict[str, Any]) -> None:
    scores = data.scores(4, 37, dtype=np.dtype(dtype).type)
    counts = [0, 5, 1 << 40, -3]
    patches, _ = launchers.select(scores, ratio=Tensor(np.array(counts), "int64"), **options)
    np.testing.assert_array_equal(patches, reference.select(scores, ratio=counts))
    bounds = [0.5, np.nan, np.inf, -1.0]
    for lowest in (False, True):
        held = tensor(np.array(bounds), dtype)
        patches, _ = launchers.select(scores, min_score=held, min_patches=2, lowest=lowest, **options)
        wanted = reference.select(scores, min_score=bounds, min_patches=2, lowest=lowest)
        np.testing.assert_array_equal(patches, wanted)


# ---------------------------------------------------------------- computed elements
#
# shape, patch. Widths around vectors, staged pieces and chunks; rows around flushes; strips around items; classes in
# registers, in groups, at most.
CLASSES = (*range(2, 14), 15, 16, 17, 31, 33, 127, 128, 255, 256)
MANY = ((257, 113), (257, 121), (257, 125), (2047, 17), (2048, 16), (2048, 49))  # classes, width
ROWS = (
    (1023, 1024), (1024, 1023), (1025, 1024), (1025, 1), (1025, 3), (2049, 2047), (3000, 1500), (3073, 1025),
    (3073, 3072), (5123, 2049), (8191, 16), (8193, 8193), (24577, 9000),
)  # fmt: skip
STRIPS = (
    ((34, 993), (33, 100)), ((62, 1057), (62, 1057)), ((2, 40_000), (2, 17_000)), ((4, 13, 993), (3, 11, 331)),
    ((3, 5, 7), (2, 2, 3)),
)  # fmt: skip
COMPUTED = [
    *(((1, k, 2, width), (2, 3)) for width, k in zip(LANES, itertools.cycle((2, 3, 4, 5, 8)), strict=False)),
    *(((1, 4 if width % 2 else 9, 2, width), (1, width // 2 + 1)) for width in (*around(128), *around(256, 512))),
    *(((1, 3, 1, width), (1, patch)) for width, patch in ROWS),
    *(((1, 2, rows + 2, 9), (rows, 4)) for rows in (15, 16, 17, 47, 48, 49)),
    *(((1, 129, rows + 2, 9), (rows, 4)) for rows in (7, 8, 9, 23, 24, 25)),
    *(((1, k, 2, 19), (2, 7)) for k in CLASSES),
    *(((1, k, 1, width), (1, 10)) for k, width in MANY),
    *(((1, 2, *size), patch) for size, patch in STRIPS),
    ((0, 3, 4, 5), (2, 2)),
]


def usable(shape: tuple[int, ...], dtype: str, layout: str) -> Tensor:
    return tensor(data.usable_logits(shape, seed=shape[-1]), dtype, layout)


Shape = tuple[int, ...]


def each_case(check: Callable[..., None], dtypes: tuple[str, ...], options: dict[str, Any]) -> None:
    for i, (shape, patch) in enumerate(COMPUTED):
        if shape[1] > 256 and "float32" not in dtypes:
            continue
        dtype, layout = dtypes[i % len(dtypes)], LAYOUTS[(i // len(dtypes)) % 4]
        try:
            check(shape, patch, dtype, layout, options)
        except AssertionError as error:
            raise AssertionError(f"{shape} {patch} {dtype} {layout}: {error}") from error


DTYPES = pytest.mark.parametrize("dtypes", [("float32",), ("float64",), ("float16", "bfloat16")], ids="-".join)


def check_pool(
    shape: tuple[int, ...], patch: tuple[int, ...], dtype: str, layout: str, options: dict[str, Any]
) -> None:
    x = tensor(data.logits(shape, seed=shape[-1]), dtype, layout)
    compute = np.float64 if dtype == "float64" else np.float32
    scores, labels, _ = launchers.entropy_pool(x, patch, labels="int64", **options)
    tolerance = 1e-13 if dtype == "float64" else 4e-7
    np.testing.assert_allclose(scores, reference.patch_scores(x.values, patch), rtol=0, atol=tolerance)
    np.testing.assert_array_equal(labels, reference.labels(x.values))
    counted, labels, _ = launchers.entropy_pool(x, patch, count=True, threshold=2.0, labels="uint8", **options)
    np.testing.assert_allclose(
        counted, reference.patch_scores(x.values, patch, threshold=2.0, dtype=compute), atol=1e-7
    )
    np.testing.assert_array_equal(labels, reference.labels(x.values).astype(np.uint8))


@every_stage
@DTYPES
def test_pool(dtypes: tuple[str, ...], options: dict[str, Any]) -> None:
    each_case(check_pool, dtypes, options)


def check_top_two(shape: Shape, patch: Shape, dtype: str, layout: str, options: dict[str, Any]) -> None:
    """Least confidence and margin, and the labels with and without a gate."""
    x = tensor(data.logits(shape, seed=shape[-1]), dtype, layout)
    compute = np.float64 if dtype == "float64" else np.float32
    tolerance = 1e-13 if dtype == "float64" else 4e-7
    for kind in ("least_confidence", "margin"):
        values, _ = launchers.entropy_map(x, uncertainty=kind, **options)
        np.testing.assert_allclose(values, reference.uncertainty(x.values, kind), rtol=0, atol=tolerance)
        scores, labels, _ = launchers.entropy_pool(
            x, patch, uncertainty=kind, labels="int64", min_confidence=0.0, **options
        )
        wanted = reference.patch_scores(x.values, patch, uncertainty_of=kind)
        np.testing.assert_allclose(scores, wanted, rtol=0, atol=tolerance)
        np.testing.assert_array_equal(labels, reference.gated_labels(x.values, 0.0, -100))
        grad = data.rng(1).normal(size=(shape[0], *shape[2:])).astype(compute)
        actual, _ = launchers.entropy_backward(x, grad, uncertainty=kind, **options)
        assert_gradient(actual, reference.top_two_backward(x.values, grad.astype(np.float64), kind), dtype)
    limit = test_pseudo_labels.limit_of(x)
    for kind, given in (("uint8", limit), ("int64", None)):
        if kind == "int64" or shape[1] <= 255:
            test_pseudo_labels.check(x, kind, given, given, **options)


@every_stage
@DTYPES
def test_top_two(dtypes: tuple[str, ...], options: dict[str, Any]) -> None:
    each_case(check_top_two, dtypes, options)


def check_map(shape: Shape, patch: Shape, dtype: str, layout: str, options: dict[str, Any]) -> None:
    x = tensor(data.logits(shape, seed=shape[-1]), dtype, layout)
    tolerance = 1e-13 if dtype == "float64" else 4e-7
    entropy, _ = launchers.entropy_map(x, **options)
    np.testing.assert_allclose(entropy, reference.entropy(x.values), rtol=0, atol=tolerance)


@every_stage
@DTYPES
def test_map(dtypes: tuple[str, ...], options: dict[str, Any]) -> None:
    each_case(check_map, dtypes, options)


def check_backward(
    shape: tuple[int, ...], patch: tuple[int, ...], dtype: str, layout: str, options: dict[str, Any]
) -> None:
    x = usable(shape, dtype, layout)
    compute = np.float64 if dtype == "float64" else np.float32
    n, _, *size = shape
    of_pixels = data.rng(1).normal(size=(n, *size)).astype(compute)
    of_patches = data.rng(2).normal(size=(n, *patch_counts(size, patch))).astype(compute)
    actual, _ = launchers.entropy_backward(x, of_pixels, normalize=False, **options)
    assert_gradient(actual, reference.entropy_backward(x.values, of_pixels, normalize=False), dtype)
    actual, _ = launchers.entropy_backward(x, of_patches, patch=patch, **options)
    assert_gradient(actual, reference.entropy_backward(x.values, of_patches, patch=patch), dtype)


@every_stage
@DTYPES
def test_backward(dtypes: tuple[str, ...], options: dict[str, Any]) -> None:
    each_case(check_backward, dtypes, options)


WEIGHTS = {
    "mask_weight": 1.5,
    "visible_weight": 0.8,
    "ce_weight": 0.5,
    "dice_weight": 0.5,
    "smooth": 1e-5,
    "denominator_offset": 1.0,
}


def check_loss(
    shape: tuple[int, ...], patch: tuple[int, ...], dtype: str, layout: str, options: dict[str, Any]
) -> None:
    x = usable(shape, dtype, layout)
    n, classes, *size = shape
    label = np.uint8 if layout in ("strided", "contiguous") and classes < 256 else np.int64
    labels = data.labels((n, *size), classes, seed=classes, dtype=label)
    if layout == "strided":
        wide = np.zeros((*labels.shape[:-1], 2 * labels.shape[-1]), labels.dtype)
        wide[..., ::2] = labels
        labels = wide[..., : 2 * labels.shape[-1] - 1 : 2]
    masked: dict[str, Any] = {
        "patches": data.rng(3).random((n, *patch_counts(size, patch))) < 0.5,
        "patch": patch,
        "class_weight": data.rng(4).random(classes) + 0.1,
        "weights": WEIGHTS,
    }
    plain: dict[str, Any] = {"patches": None, "patch": None, "class_weight": None, "weights": WEIGHTS}
    shared = {**masked, "patches": masked["patches"][:1], "dice_each": True}
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    for arguments in (masked, shared, plain):
        if arguments["class_weight"] is not None and dtype != "float64":
            arguments["class_weight"] = arguments["class_weight"].astype(np.float32).astype(np.float64)
        losses, sums, _ = launchers.loss_forward(x, labels, **arguments, **options)
        wanted, wanted_sums = reference.loss(x.values, labels, **arguments)
        np.testing.assert_allclose(sums, wanted_sums, rtol=tolerance, atol=tolerance)
        for name, value in losses.items():
            np.testing.assert_allclose(value, wanted[name], rtol=tolerance, atol=tolerance / 100, err_msg=name)
        grads = {"total": 0.7, "ce_masked": 1.3, "ce_visible": -0.4, "dice": 2.1}
        actual, _ = launchers.loss_backward(x, labels, wanted_sums, grads, **arguments, **options)
        assert_gradient(actual, reference.loss_backward(x.values, labels, grads, **arguments), dtype)


@every_stage
@DTYPES
def test_loss(dtypes: tuple[str, ...], options: dict[str, Any]) -> None:
    each_case(check_loss, dtypes, options)


def check_soft_loss(
    shape: tuple[int, ...], patch: tuple[int, ...], dtype: str, layout: str, options: dict[str, Any]
) -> None:
    """A target of the same dtype and layout, and one of another."""
    x = usable(shape, dtype, layout)
    y = data.logits(shape, seed=shape[-1] + 1, odd=False)
    where = data.rng(2).random((shape[0], *shape[2:])) < 0.7
    other = {"float32": "bfloat16", "float64": "float16", "float16": "float64", "bfloat16": "float32"}[dtype]
    for i, (target, pixels) in enumerate(((tensor(y, dtype, layout), where), (tensor(y, other), None))):
        kl = (shape[-1] + i) % 2 == 0
        tolerance = 1e-12 if "float64" in (dtype, target.dtype) else 1e-5
        mean, sums, _ = launchers.soft_loss_forward(x, target, pixels, kl=kl, **options)
        wanted, wanted_sums = reference.soft_loss(x.values, target.values, pixels, kl=kl)
        np.testing.assert_allclose(mean, wanted, rtol=tolerance, atol=tolerance / 10)
        assert sums[1] == wanted_sums[1]
        actual, _ = launchers.soft_loss_backward(x, target, pixels, wanted_sums, 0.7, kl=kl, **options)
        assert_gradient(actual, reference.soft_loss_backward(x.values, target.values, pixels, 0.7, kl=kl), dtype)


@every_stage
@DTYPES
def test_soft_loss(dtypes: tuple[str, ...], options: dict[str, Any]) -> None:
    each_case(check_soft_loss, dtypes, options)
