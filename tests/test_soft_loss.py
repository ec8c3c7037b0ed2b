"""soft_consistency_loss: values and gradients against the reference, masks, hard numbers, two dtypes."""

import math

import pytest
import torch
import torch.nn.functional as F
from cases import (
    DTYPES,
    LAYOUTS,
    MANY_CLASSES,
    Shape,
    assert_gradients_close,
    assert_same_bits,
    combinations,
    devices,
    dtypes,
    make_logits,
    make_sure_logits,
)
from torch import Tensor

import entmask_ext
from entmask_ext import reference

ODD = Shape(3, 2, 5, (17, 23), (4, 5))
KINDS = ("mse", "kl")
kinds = pytest.mark.parametrize("kind", KINDS)


def make_pair(shape: Shape, dtype: torch.dtype, device: str, layout: str = "contiguous") -> tuple[Tensor, Tensor]:
    """A student and a teacher that is near it in some pixels and far in others; both sure of most of them."""
    student = make_logits(shape, torch.float64, absent=-60)
    near = student + 0.01 * torch.randn_like(student)
    far = make_logits(shape, torch.float64)
    teacher = torch.where(torch.rand(shape.images, 1, *shape.sizes) < 0.3, near, far)
    return LAYOUTS[layout](student.to(device, dtype)), LAYOUTS[layout](teacher.to(device, dtype))


def make_where(shape: Shape, device: str, layout: str = "contiguous") -> Tensor:
    """A mask of pixels in the same layout as the images'."""
    return LAYOUTS[layout]((torch.rand(shape.images, 1, *shape.sizes) < 0.6).to(device))[:, 0]


def check(student: Tensor, teacher: Tensor, where: Tensor | None, kind: str) -> None:
    def run(function: object, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        loss = function(x, y, where, kind=kind)  # type: ignore[operator]
        return loss, torch.autograd.grad(loss * -1.5, x)[0]

    got, gradient = run(entmask_ext.soft_consistency_loss, student, teacher)
    want, expected = run(reference.soft_consistency_loss, student.double(), teacher.double())
    is_double = torch.float64 in (student.dtype, teacher.dtype)
    assert got.shape == ()
    assert got.dtype == (torch.float64 if is_double else torch.float32)
    # A sum of logarithms carries the rounding of the largest of them.
    tolerance = {"rtol": 1e-12, "atol": 1e-13} if is_double else {"rtol": 2e-6, "atol": 4e-7}
    torch.testing.assert_close(got.double(), want, **tolerance)
    assert gradient.dtype == student.dtype
    assert gradient.stride() == torch.empty_like(student).stride() or gradient.is_contiguous()
    # p - q of two near softmaxes carries the rounding of p.
    count = student[:, 0].numel() if where is None else int(where.sum())
    negligible = (gradient - expected).abs() <= (0.0 if is_double else 6e-7 / max(count, 1))
    assert_gradients_close(gradient.masked_fill(negligible, 0), expected.masked_fill(negligible, 0))


@devices
@combinations
def test_it_equals_the_reference(shape: Shape, dtype: torch.dtype, layout: str, device: str) -> None:
    student, teacher = make_pair(shape, dtype, device, layout)
    for kind in KINDS:
        check(student, teacher, make_where(shape, device, layout), kind)
        check(student, teacher, None, kind)


@devices
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "transposed"])
@pytest.mark.parametrize("classes", [3, 4, 19])
def test_two_dtypes_and_two_layouts(classes: int, layout: str, device: str) -> None:
    shape = Shape(2, 1, classes, (7, 33), (1, 1))
    student, teacher = make_pair(shape, torch.float64, device)
    where = make_where(shape, device)
    for i, dtype in enumerate(DTYPES):
        for j, other in enumerate(DTYPES):
            x, y = LAYOUTS[layout](student.to(dtype)), LAYOUTS["channels_last" if i % 2 else "contiguous"](teacher)
            check(x, y.to(other), where, KINDS[(i + j) % 2])


@devices
@pytest.mark.parametrize("width", [1, 7, 8, 9, 15, 16, 17, 33, 127, 128, 129, 1023, 1025, 2049])
def test_widths_around_vectors_pieces_and_chunks(width: int, device: str) -> None:
    for i, classes in enumerate((2, 3, 4, 8, 9, 17)):
        shape = Shape(1, 1, classes, (2, width), (1, 1))
        student, teacher = make_pair(shape, (torch.float32, torch.bfloat16, torch.float64)[i % 3], device)
        check(student, teacher, make_where(shape, device), KINDS[i % 2])
        check(LAYOUTS["channels_last"](student), teacher, make_where(shape, device), KINDS[(i + 1) % 2])


@devices
@pytest.mark.parametrize("classes", [257, 2047, 2048])
def test_many_classes(classes: int, device: str) -> None:
    student, teacher = make_pair(Shape(1, 1, classes, (3, 49), (1, 1)), torch.float32, device)
    for kind in KINDS:
        check(student, teacher, None, kind)


@devices
@pytest.mark.parametrize("classes", MANY_CLASSES)
def test_probabilities_that_vanish_beside_1_count(classes: int, device: str) -> None:
    student, teacher = (make_sure_logits(classes, device, level=level) for level in (-19.5, -18.85))
    for kind in KINDS:
        check(student, teacher, None, kind)
    kl = entmask_ext.soft_consistency_loss(student, teacher, kind="kl")
    expected = reference.soft_consistency_loss(student.double(), teacher.double(), kind="kl")
    torch.testing.assert_close(kl.double(), expected, rtol=1e-5, atol=0)


@devices
def test_it_is_what_torch_computes(device: str) -> None:
    student, teacher = torch.randn(2, 4, 9, 14, device=device), torch.randn(2, 4, 9, 14, device=device)
    mse = F.mse_loss(student.softmax(1), teacher.softmax(1))
    torch.testing.assert_close(entmask_ext.soft_consistency_loss(student, teacher) / 4, mse)
    kl = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True).sum(1).mean()
    torch.testing.assert_close(entmask_ext.soft_consistency_loss(student, teacher, kind="kl"), kl)


@devices
@kinds
def test_pixels_outside_do_not_matter(kind: str, device: str) -> None:
    student, teacher = make_pair(ODD, torch.float32, device)
    where = make_where(ODD, device)
    want = entmask_ext.soft_consistency_loss(student, teacher, where, kind=kind)
    for x in (student, teacher):
        x.movedim(1, -1)[~where] = math.nan
    student.requires_grad_()
    got = entmask_ext.soft_consistency_loss(student, teacher, where, kind=kind)
    assert_same_bits(got.detach(), want)
    (gradient,) = torch.autograd.grad(got, student)
    assert (gradient.movedim(1, -1)[~where] == 0).all()
    assert gradient.isfinite().all()


@devices
@kinds
@pytest.mark.parametrize("empty", ["no pixel counts", "no images", "no rows"])
def test_no_pixels_give_zero(empty: str, kind: str, device: str) -> None:
    images, rows = 0 if empty == "no images" else 2, 0 if empty == "no rows" else 5
    student = torch.full((images, 3, rows, 6), math.nan, device=device, requires_grad=True)
    where = torch.zeros(images, rows, 6, dtype=torch.bool, device=device) if empty == "no pixel counts" else None
    loss = entmask_ext.soft_consistency_loss(student, student.detach(), where, kind=kind)
    assert loss == 0
    assert (torch.autograd.grad(loss, student)[0] == 0).all()


@devices
@kinds
@dtypes
def test_a_student_that_agrees_has_no_loss(dtype: torch.dtype, kind: str, device: str) -> None:
    for classes in (*range(2, 10), 300):
        shape = Shape(2, 1, classes, (7, 23), (1, 1))
        student = make_logits(shape, dtype, device, "channels_last" if classes % 2 else "contiguous").requires_grad_()
        loss = entmask_ext.soft_consistency_loss(student, student.detach(), kind=kind)
        assert loss == 0
        assert (torch.autograd.grad(loss, student)[0] == 0).all()


@devices
@pytest.mark.parametrize("classes", [3, 8, 11])
def test_classes_that_cannot_be(classes: int, device: str) -> None:
    """Of the teacher's: it adds 0. Of the student's: kl is infinite where the teacher's can, the gradient is p - q."""
    torch.manual_seed(classes)
    student, teacher = torch.randn(2, classes, 3, 40, device=device), torch.randn(2, classes, 3, 40, device=device)
    teacher[:, 0] = -math.inf
    student[1, 0] = -math.inf
    for kind in KINDS:
        check(student, teacher, None, kind)
    student[0, 1, 2, 39] = -math.inf
    student.requires_grad_()
    loss = entmask_ext.soft_consistency_loss(student, teacher, kind="kl")
    assert loss == math.inf
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(gradient, (student.softmax(1) - teacher.softmax(1)).detach() / 240)
    assert entmask_ext.soft_consistency_loss(student, teacher).isfinite()


@devices
@kinds
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_undefined_softmax_is_not_hidden(bad: float, kind: str, device: str) -> None:
    """NaN, +inf, or all classes at -inf, of either side: NaN, and a gradient of NaN in that pixel alone."""
    for which in (0, 1):
        pair = [torch.randn(1, 5, 3, 37, device=device) for _ in range(2)]
        pair[which][0, slice(None) if bad == -math.inf else 2, 1, 36] = bad
        student = pair[0].requires_grad_()
        loss = entmask_ext.soft_consistency_loss(student, pair[1], kind=kind)
        assert loss.isnan()
        (gradient,) = torch.autograd.grad(loss, student)
        assert gradient[0, :, 1, 36].isnan().all()
        assert gradient.isnan().sum() == 5


@devices
@dtypes
def test_logits_far_apart(dtype: torch.dtype, device: str) -> None:
    big = 60000.0 if dtype == torch.float16 else 1e30
    values = torch.tensor([[big, -big, 0], [0, 90, 200], [0, -math.inf, 1], [big, big, big], [-300, 0, 100]])
    student = values.repeat(13, 1).T.reshape(1, 3, 5, 13).to(device, dtype)
    teacher = values.roll(2, 0).repeat(13, 1).T.reshape(1, 3, 5, 13).clamp(-1000, 1000).to(device, dtype)
    where = student.double().log_softmax(1).isfinite().all(1)
    for kind in KINDS:
        check(student, teacher, where, kind)


@devices
@kinds
def test_sums_of_many_pixels_stay_accurate(kind: str, device: str) -> None:
    shape = Shape(2, 1, 3, (700, 701), (16, 16))
    student, teacher = make_pair(shape, torch.float32, device)
    check(student, teacher, make_where(shape, device), kind)


@devices
def test_a_target_that_wants_a_gradient_is_an_error(device: str) -> None:
    student, teacher = torch.randn(1, 3, 4, 4, device=device), torch.randn(1, 3, 4, 4, device=device)
    with pytest.raises(NotImplementedError, match=r"target_logits.*target_logits\.detach\(\)"):
        entmask_ext.soft_consistency_loss(student, teacher.requires_grad_())
    with torch.no_grad():
        assert entmask_ext.soft_consistency_loss(student, teacher) > 0
