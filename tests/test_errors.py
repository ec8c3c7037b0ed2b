"""Bad arguments: one clear error that names the argument, what was expected and what came, before anything is computed.

Each is tried through the public function and through torch.ops, which compiled and C++ callers use.
"""

import contextlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from cases import assert_same_bits
from torch import Tensor
from torch.overrides import BaseTorchFunctionMode

import entmask_ext

IMAGE, LOGITS = torch.rand(2, 1, 16, 24), torch.randn(2, 4, 16, 24)
SCORES = torch.rand(2, 4, 6)
LABELS = torch.randint(4, (2, 16, 24))
PATCHES = torch.rand(2, 4, 6) < 0.5
PERMUTATION = torch.randperm(2 * 24)

# Valid arguments of each function; a case replaces some.
VALID: dict[str, dict[str, Any]] = {
    "patch_mask": {"image": IMAGE, "logits": LOGITS, "patch_size": 4},
    "patch_mask_from_scores": {"image": IMAGE, "scores": SCORES, "patch_size": 4},
    "random_patch_mask": {"image": IMAGE, "patch_size": 4},
    "entropy_map": {"logits": LOGITS},
    "patch_scores": {"logits": LOGITS, "patch_size": 4},
    "uncertainty_map": {"logits": LOGITS},
    "pseudo_labels": {"logits": LOGITS},
    "consistency_loss": {"logits": LOGITS, "labels": LABELS, "patches": PATCHES, "patch_size": 4},
    "soft_consistency_loss": {"logits": LOGITS, "target_logits": LOGITS + 1, "where": LABELS > 1},
    "shuffle_patches": {"x": IMAGE, "patch_size": 4, "permutation": PERMUTATION},
    "select_patches": {"scores": SCORES},
    "patch_where": {"patches": PATCHES, "inside": IMAGE, "outside": IMAGE + 1, "patch_size": 4},
}


def through_the_dispatcher(function: str, **arguments: Any) -> Any:
    """torch.ops.entmask.<function> with a public function's arguments, as the schema wants them.

    The neighbours X and X_tensor of a schema are one public argument X, a number or a tensor.
    """
    bound = inspect.signature(getattr(entmask_ext, function)).bind(**arguments)
    bound.apply_defaults()
    op = getattr(torch.ops.entmask, function).default
    names = [argument.name for argument in op._schema.arguments]
    values = []
    for name in names:
        value = bound.arguments.get(name.removesuffix("_tensor"))
        if name.endswith("_tensor"):
            value = value if isinstance(value, Tensor) else None
        elif f"{name}_tensor" in names:
            value = (0.0 if name == "threshold" else None) if isinstance(value, Tensor) else value
        elif name == "patch_size" and isinstance(value, int):
            value = [value]
        values.append(value)
    return op(*values)


@dataclass(frozen=True)
class Case:
    function: str
    bad: dict[str, Any]
    error: type[Exception] | tuple[type[Exception], ...]
    message: str
    """A regular expression: the argument, what was expected, what came."""
    public_only: bool = False
    """The dispatcher itself turns the wrong Python type away."""

    def __str__(self) -> str:
        def short(value: Any) -> str:
            if isinstance(value, (Tensor, np.ndarray)):
                return f"{list(value.shape)} {value.dtype}"
            return str(value)[:40]

        return f"{self.function}({', '.join(f'{name}={short(value)}' for name, value in self.bad.items())})"


def logits_cases(function: str) -> list[Case]:
    return [
        Case(function, {"logits": torch.zeros(4, 16, 24)}, ValueError, r"logits.*\(N, K, H, W\).*\[4, 16, 24\]"),
        Case(function, {"logits": torch.zeros(1, 1, 4, 1, 16, 24)}, ValueError, r"logits.*\[1, 1, 4, 1, 16, 24\]"),
        Case(function, {"logits": LOGITS.long()}, TypeError, r"logits.*float.*(Long|int64)"),
        Case(function, {"logits": LOGITS.bool()}, TypeError, r"logits.*float.*(Bool|bool)"),
        Case(function, {"logits": LOGITS.to(torch.complex64)}, TypeError, r"logits.*float.*[cC]omplex"),
        Case(function, {"logits": LOGITS[:, :1]}, ValueError, r"logits.*2 classes.*\[2, 1, 16, 24\].*torch\.cat\("),
        Case(function, {"logits": LOGITS[:, :0]}, ValueError, r"logits.*2 classes.*\[2, 0, 16, 24\]"),
        Case(function, {"logits": LOGITS.numpy()}, TypeError, r"logits.*Tensor.*ndarray", public_only=True),
        Case(function, {"logits": torch.zeros(1, 2049, 16, 24)}, ValueError, r"logits.*2048.*2049"),
    ]


def confidence_cases(function: str) -> list[Case]:
    def case(value: Any, error: type[Exception], message: str) -> Case:
        return Case(function, {"min_confidence": value, "label_dtype": torch.uint8}, error, message)

    return [
        case(1.01, ValueError, r"min_confidence.*\[0, 1\].*1\.01"),
        case(-0.1, ValueError, r"min_confidence.*\[0, 1\].*-0\.1"),
        case(float("nan"), ValueError, r"min_confidence.*[nN]a[nN]"),
        case(torch.tensor(1.01), ValueError, r"min_confidence.*\[0, 1\].*1\.0"),
        case(torch.tensor(float("nan")), ValueError, r"min_confidence.*[nN]a[nN]"),
        case(torch.rand(2), ValueError, r"min_confidence.*0-d.*\[2\]"),
        case(torch.tensor(1), TypeError, r"min_confidence.*float.*(Long|int64)"),
        case(torch.tensor(0.5, device="meta"), ValueError, r"min_confidence.*cpu.*meta"),
    ]


def patch_size_cases(function: str) -> list[Case]:
    return [
        Case(function, {"patch_size": 0}, ValueError, r"patch_size.*positive.*0"),
        Case(function, {"patch_size": (4, -1)}, ValueError, r"patch_size.*positive.*-1"),
        Case(function, {"patch_size": (4, 4, 4)}, ValueError, r"patch_size.*2.*\[?\(?4, 4, 4"),
        Case(function, {"patch_size": ()}, ValueError, r"patch_size.*2.*(\[\]|\(\))"),
    ]


def image_cases(function: str, name: str = "image") -> list[Case]:
    return [
        Case(function, {name: torch.zeros(16, 24)}, ValueError, rf"{name}.*\(N, \w+, H, W\).*\[16, 24\]"),
        Case(function, {name: (IMAGE * 255).to(torch.uint8)}, TypeError, rf"{name}.*float.*(Byte|uint8)"),
        Case(function, {name: None}, TypeError, rf"{name}.*Tensor.*None", public_only=True),
    ]


def selection_cases(function: str) -> list[Case]:
    numbers = [
        Case(function, {"ratio": 1.01}, ValueError, r"ratio.*\[0, 1\].*1\.01"),
        Case(function, {"ratio": -0.1}, ValueError, r"ratio.*\[0, 1\].*-0\.1"),
        Case(function, {"ratio": float("nan")}, ValueError, r"ratio.*[nN]a[nN]"),
        Case(function, {"ratio": torch.tensor(float("nan"))}, ValueError, r"ratio.*[nN]a[nN]"),
        Case(function, {"ratio": torch.tensor(1.01)}, ValueError, r"ratio.*\[0, 1\].*1\.0"),
        Case(function, {"ratio": torch.tensor([0.5, -0.5])}, ValueError, r"ratio.*\[0, 1\].*-0\.5"),
        Case(function, {"ratio": torch.rand(3)}, ValueError, r"ratio.*2.*\[3\]"),
        Case(function, {"ratio": torch.rand(2, 1)}, ValueError, r"ratio.*2.*\[2, 1\]"),
        Case(function, {"ratio": torch.tensor(True)}, TypeError, r"ratio.*(Bool|bool)"),
        Case(function, {"ratio": torch.tensor(0.5j)}, TypeError, r"ratio.*[cC]omplex"),
        *(
            Case(function, {"ratio": torch.tensor(value, device="meta")}, ValueError, r"ratio.*cpu.*meta")
            for value in (0.5, [0.5, 0.5], 3)
        ),
    ]
    if function == "random_patch_mask":
        return numbers
    selection = [
        *numbers,
        Case(function, {"ratio": torch.rand(2), "scope": "batch"}, ValueError, r"ratio.*(scope|batch).*\[2\]"),
        Case(function, {"min_score": torch.rand(2), "scope": "batch"}, ValueError, r"min_score.*(scope|batch).*\[2\]"),
        Case(function, {"ratio": 0.5, "min_score": 0.5}, ValueError, r"ratio.*min_score"),
        Case(function, {"ratio": 0.5, "min_patches": 2}, ValueError, r"min_patches.*min_score|min_patches.*ratio"),
        Case(function, {"min_patches": 2}, ValueError, r"min_patches.*min_score"),
        Case(function, {"min_score": 0.5, "min_patches": -1}, ValueError, r"min_patches.*-1"),
        Case(function, {"min_score": float("nan")}, ValueError, r"min_score.*[nN]a[nN]"),
        Case(function, {"min_score": torch.tensor(float("nan"))}, ValueError, r"min_score.*[nN]a[nN]"),
        Case(function, {"min_score": torch.rand(1)}, ValueError, r"min_score.*2.*\[1\]"),
        Case(function, {"min_score": torch.tensor(1)}, TypeError, r"min_score.*float.*(Long|int64)"),
        *(
            Case(function, {"min_score": torch.tensor(value, device="meta")}, ValueError, r"min_score.*cpu.*meta")
            for value in (0.5, [0.5, 0.5])
        ),
        Case(function, {"hint": 1.5}, ValueError, r"hint.*\[0, 1\].*1\.5"),
        Case(function, {"hint": -0.5}, ValueError, r"hint.*\[0, 1\].*-0\.5"),
        Case(function, {"hint": float("nan")}, ValueError, r"hint.*[nN]a[nN]"),
        Case(function, {"order": "top"}, ValueError, r"order.*highest.*lowest.*top"),
        Case(function, {"order": b"lowest"}, TypeError, r"order.*bytes", public_only=True),
        Case(function, {"scope": "row"}, ValueError, r"scope.*image.*batch.*row"),
        Case(function, {"scope": None}, TypeError, r"scope.*None", public_only=True),
    ]  # fmt: skip
    return selection


def fill_cases(function: str) -> list[Case]:
    """Beyond the image's dtype; infinity and NaN are legal."""
    return [
        *(
            Case(function, {"image": IMAGE.to(dtype), "fill": fill}, ValueError, rf"fill.*{name}.*-?{shown}")
            for dtype, fill, name, shown in (
                (torch.float16, 1e6, "(Half|float16)", r"1e\+0?6|1000000"),
                (torch.float16, -65536.0, "(Half|float16)", "65536"),
                (torch.bfloat16, 3.4e38, "(BFloat16|bfloat16)", r"3\.4e\+38"),
                (torch.float32, 1e39, "([fF]loat)", r"1e\+39"),
            )
        ),
        Case(function, {"mask_dtype": torch.int64}, (ValueError, TypeError), r"mask_dtype.*bool.*(Long|int64)"),
        Case(
            function, {"mask_dtype": torch.float64}, (ValueError, TypeError), r"mask_dtype.*bool.*([dD]ouble|float64)"
        ),
        Case(function, {"mask_dtype": "bool"}, TypeError, r"mask_dtype.*str", public_only=True),
    ]


WITH_PATCHES = (
    "patch_mask", "patch_mask_from_scores", "random_patch_mask", "patch_scores", "consistency_loss", "shuffle_patches",
    "patch_where",
)  # fmt: skip
WITH_SELECTION = ("patch_mask", "patch_mask_from_scores", "select_patches")
MASKING = ("patch_mask", "patch_mask_from_scores", "random_patch_mask")
LONG_AXES = [
    (function, name) for function in VALID for name in ("image", "logits", "x", "outside") if name in VALID[function]
]
CASES = [
    *(
        case
        for name in ("patch_mask", "entropy_map", "patch_scores", "uncertainty_map", "pseudo_labels")
        for case in logits_cases(name)
    ),
    *(
        Case(name, {"uncertainty": "variance"}, ValueError, r"uncertainty.*entropy.*least_confidence.*margin.*variance")
        for name in ("patch_mask", "patch_scores", "uncertainty_map")
    ),
    *(case for name in ("patch_mask", "pseudo_labels") for case in confidence_cases(name)),
    Case("patch_mask", {"min_confidence": 0.5}, ValueError, r"min_confidence.*label_dtype.*None"),
    Case("pseudo_labels", {"label_dtype": None}, TypeError, r"label_dtype.*dtype.*None", public_only=True),
    Case("pseudo_labels", {"label_dtype": torch.int32}, ValueError, r"label_dtype.*uint8.*int64.*([iI]nt)"),
    Case(
        "pseudo_labels", {"logits": torch.zeros(2, 256, 3, 4)}, ValueError, r"label_dtype.*uint8.*255.*256"
    ),
    *(case for case in logits_cases("consistency_loss")),
    *logits_cases("soft_consistency_loss"),
    *(
        case
        for name in WITH_PATCHES
        for case in patch_size_cases(name)
    ),
    *(case for name in MASKING for case in image_cases(name)),
    *image_cases("shuffle_patches", "x"),
    *(case for name in (*MASKING, "select_patches") for case in selection_cases(name)),
    *(case for name in MASKING for case in fill_cases(name)),
    # Two arguments that do not fit each other
    Case("patch_mask", {"image": IMAGE[:1]}, ValueError, r"image.*logits.*\[1, 1, 16, 24\].*\[2, 4, 16, 24\]"),
    Case("patch_mask", {"image": IMAGE[..., 1:]}, ValueError, r"image.*logits.*\[2, 1, 16, 23\].*\[2, 4, 16, 24\]"),
    Case("patch_mask", {"image": torch.rand(2, 1, 1, 16, 24)}, ValueError, r"image.*logits.*\[2, 1, 1, 16, 24\]"),
    Case("patch_mask", {"logits": LOGITS.to("meta")}, ValueError, r"(image|logits).*(cpu.*meta|meta.*cpu)"),
    Case("patch_mask", {"label_dtype": torch.int32}, (ValueError, TypeError), r"label_dtype.*uint8.*int64.*([iI]nt)"),
    Case(
        "patch_mask",
        {"logits": torch.zeros(2, 256, 16, 24), "label_dtype": torch.uint8},
        ValueError,
        r"label_dtype.*uint8.*255.*256",
    ),
    *(
        case
        for name in ("patch_mask", "patch_scores")
        for case in (
            Case(name, {"score": "median"}, ValueError, r"score.*mean.*count.*median"),
            Case(name, {"score": b"mean"}, TypeError, r"score.*bytes", public_only=True),
            Case(name, {"score": "count", "threshold": torch.rand(3)}, ValueError, r"threshold.*2.*\[3\]"),
            Case(name, {"threshold": torch.tensor(1)}, TypeError, r"threshold.*float.*(Long|int64)"),
            Case(name, {"threshold": float("nan")}, ValueError, r"threshold.*[nN]a[nN]"),
            Case(name, {"threshold": torch.tensor(float("nan"))}, ValueError, r"threshold.*[nN]a[nN]"),
            *(
                Case(name, {"score": score, "threshold": torch.tensor(value, device="meta")}, ValueError,
                     r"threshold.*cpu.*meta")
                for score in ("mean", "count") for value in (0.5, [0.5, 0.5])
            ),
        )
    ),
    Case("patch_mask_from_scores", {"scores": SCORES[:1]}, ValueError, r"scores.*\[2, 4, 6\].*\[1, 4, 6\]"),
    Case("patch_mask_from_scores", {"scores": SCORES[:, :, 1:]}, ValueError, r"scores.*\[2, 4, 6\].*\[2, 4, 5\]"),
    Case("patch_mask_from_scores", {"scores": SCORES.flatten(1)}, ValueError, r"scores.*\[2, 4, 6\].*\[2, 24\]"),
    Case("patch_mask_from_scores", {"scores": SCORES.int()}, TypeError, r"scores.*float.*(Int|int32)"),
    Case("patch_mask_from_scores", {"scores": SCORES.to("meta")}, ValueError, r"(image|scores).*(cpu.*meta|meta.*cpu)"),
    Case("patch_mask", {"threshold": torch.rand(2), "score": "count", "scope": "batch"}, ValueError,
         r"threshold.*(scope|batch).*\[2\]"),
    Case("patch_mask", {"label_dtype": "uint8"}, TypeError, r"label_dtype.*str", public_only=True),
    Case("random_patch_mask", {"generator": 3}, TypeError, r"generator.*int", public_only=True),
    # The bare selection
    Case("select_patches", {"scores": SCORES.int()}, TypeError, r"scores.*float.*(Int|int32)"),
    Case("select_patches", {"scores": SCORES.numpy()}, TypeError, r"scores.*Tensor.*ndarray", public_only=True),
    Case("select_patches", {"scores": torch.rand(())}, ValueError, r"scores.*\(N.*\[\]"),
    # One of two by patch
    Case("patch_where", {"patches": PATCHES.float()}, TypeError, r"patches.*bool.*[fF]loat"),
    Case("patch_where", {"patches": PATCHES[:, 1:]}, ValueError, r"patches.*4, 6\].*\[2, 3, 6\]"),
    Case("patch_where", {"patches": torch.cat([PATCHES, PATCHES])}, ValueError, r"patches.*4, 6\].*\[4, 4, 6\]"),
    Case("patch_where", {"patches": PATCHES[0]}, ValueError, r"patches.*\[4, 6\]"),
    Case("patch_where", {"patches": PATCHES.to("meta")}, ValueError, r"patches.*(cpu.*meta|meta.*cpu)"),
    Case("patch_where", {"inside": IMAGE[:1]}, ValueError, r"inside.*outside.*\[1, 1, 16, 24\].*\[2, 1, 16, 24\]"),
    Case("patch_where", {"inside": IMAGE[:, 0]}, ValueError, r"inside.*outside.*\[2, 16, 24\].*\[2, 1, 16, 24\]"),
    Case("patch_where", {"outside": IMAGE.double()}, (TypeError, ValueError), r"inside.*outside.*loat.*([dD]ouble|64)"),
    Case("patch_where", {"outside": IMAGE.to("meta")}, ValueError, r"(inside|outside).*(cpu.*meta|meta.*cpu)"),
    Case("patch_where", {"inside": 0.5, "outside": 1}, (TypeError, ValueError), r"inside.*outside"),
    Case("patch_where", {"inside": IMAGE[0, 0], "outside": 0.0}, ValueError, r"inside.*\[16, 24\]"),
    *(
        Case("patch_where", {side: IMAGE.to(torch.complex64), other: 0}, TypeError, rf"{side}.*[cC]omplex")
        for side, other in (("inside", "outside"), ("outside", "inside"))
    ),
    *(
        Case("patch_where", {side: number, other: (IMAGE * 100).to(dtype)}, ValueError, rf"{side}.*{name}")
        for side, other in (("inside", "outside"), ("outside", "inside"))
        for number, dtype, name in (
            (256, torch.uint8, "(Byte|uint8)"), (-1, torch.uint8, "(Byte|uint8)"), (128, torch.int8, "(Char|int8)"),
            (2**31, torch.int32, "(Int|int32)"), (0.5, torch.int64, "(Long|int64)"),
            (float("nan"), torch.int64, "(Long|int64)"), (float("inf"), torch.int16, "(Short|int16)"),
            (1e6, torch.float16, "(Half|float16)"), (1e39, torch.float32, "[fF]loat"), (2, torch.bool, "[bB]ool"),
        )
    ),
    # The loss
    Case("consistency_loss", {"labels": LABELS.int()}, TypeError, r"labels.*uint8.*int64.*(Int|int32)"),
    Case("consistency_loss", {"labels": LABELS.float()}, TypeError, r"labels.*uint8.*int64.*([fF]loat)"),
    Case("consistency_loss", {"labels": LABELS[:, None]}, ValueError, r"labels.*\[2, 16, 24\].*\[2, 1, 16, 24\]"),
    Case("consistency_loss", {"labels": LABELS[:1]}, ValueError, r"labels.*\[2, 16, 24\].*\[1, 16, 24\]"),
    Case("consistency_loss", {"labels": LABELS.to("meta")}, ValueError, r"labels.*(cpu.*meta|meta.*cpu)"),
    Case("consistency_loss", {"patches": PATCHES.float()}, TypeError, r"patches.*bool.*[fF]loat"),
    Case("consistency_loss", {"patches": PATCHES[:, 1:]}, ValueError, r"patches.*\[2, 4, 6\].*\[2, 3, 6\]"),
    Case("consistency_loss", {"patches": PATCHES[:1, 1:]}, ValueError, r"patches.*\[1, 4, 6\].*\[1, 3, 6\]"),
    Case("consistency_loss", {"patches": PATCHES[[0, 1, 0]]}, ValueError, r"patches.*\[2, 4, 6\].*\[3, 4, 6\]"),
    Case("consistency_loss", {"patches": PATCHES[:0]}, ValueError, r"patches.*\[2, 4, 6\].*\[0, 4, 6\]"),
    Case("consistency_loss", {"dice_region": "both"}, ValueError, r"dice_region.*'all' or 'each'.*'both'"),
    Case("consistency_loss", {"dice_region": None}, TypeError, r"dice_region.*str.*None", public_only=True),
    *(
        Case("consistency_loss", {name: bad}, ValueError, rf"{name} must be finite and >= 0, got {bad}")
        for name in ("mask_weight", "visible_weight")
        for bad in (-1.5, float("nan"), float("inf"))
    ),
    Case("consistency_loss", {"patches": PATCHES.to("meta")}, ValueError, r"patches.*(cpu.*meta|meta.*cpu)"),
    Case("consistency_loss", {"patch_size": None}, ValueError, r"patches.*patch_size|patch_size.*patches"),
    Case("consistency_loss", {"class_weight": torch.ones(3)}, ValueError, r"class_weight.*4.*\[3\]"),
    Case("consistency_loss", {"class_weight": torch.ones(1, 4)}, ValueError, r"class_weight.*4.*\[1, 4\]"),
    Case("consistency_loss", {"class_weight": torch.ones(4).long()}, TypeError, r"class_weight.*float.*(Long|int64)"),
    *(
        Case(
            "consistency_loss",
            {"class_weight": torch.tensor([1, 1, bad, 1])},
            ValueError,
            rf"class_weight.*finite and >= 0.*{bad}",
        )
        for bad in (-1.5, float("nan"), float("inf"))
    ),
    # The loss against soft targets
    Case("soft_consistency_loss", {"target_logits": LOGITS.int()}, TypeError, r"target_logits.*float.*(Int|int32)"),
    Case("soft_consistency_loss", {"target_logits": LOGITS[:1]}, ValueError,
         r"target_logits.*\[2, 4, 16, 24\].*\[1, 4, 16, 24\]"),
    Case("soft_consistency_loss", {"target_logits": LOGITS.to("meta")}, ValueError, r"target_.*(cpu.*meta|meta.*cpu)"),
    Case("soft_consistency_loss", {"where": LABELS}, TypeError, r"where.*bool.*(Long|int64)"),
    Case("soft_consistency_loss", {"where": LABELS[:1] > 1}, ValueError, r"where.*\[2, 16, 24\].*\[1, 16, 24\]"),
    Case("soft_consistency_loss", {"where": (LABELS > 1).to("meta")}, ValueError, r"where.*(cpu.*meta|meta.*cpu)"),
    Case("soft_consistency_loss", {"kind": "js"}, ValueError, r"kind.*'mse' or 'kl'.*'js'"),
    # Shuffling
    Case("shuffle_patches", {"patch_size": 5}, ValueError, r"x.*(divisible|multiple).*patch_size.*5.*16, 24"),
    Case("shuffle_patches", {"permutation": PERMUTATION.int()}, TypeError, r"permutation.*int64.*(Int|int32)"),
    Case("shuffle_patches", {"permutation": PERMUTATION.reshape(2, 24)}, ValueError, r"permutation.*\[2, 24\]"),
    Case("shuffle_patches", {"permutation": PERMUTATION[:25]}, ValueError, r"permutation.*24.*25"),
    Case("shuffle_patches", {"permutation": torch.randperm(3 * 24)}, ValueError, r"permutation.*72"),
    Case("shuffle_patches", {"permutation": PERMUTATION[:0]}, ValueError, r"permutation.*0"),
    Case("shuffle_patches", {"permutation": torch.full((24,), 24)}, ValueError, r"permutation.*24"),
    Case("shuffle_patches", {"permutation": torch.arange(24) - 1}, ValueError, r"permutation.*-1"),
    Case("shuffle_patches", {"permutation": torch.zeros(24, dtype=torch.int64)}, ValueError, r"permutation.*0"),
    Case("shuffle_patches", {"permutation": PERMUTATION.to("meta")}, ValueError, r"permutation.*(cpu.*meta|meta.*cpu)"),
    # A position along an axis is 32 bits in the CUDA kernels
    *(
        Case(function, {name: torch.zeros(()).expand(1, 2, *sizes)} | ({"inside": 0.0} if name == "outside" else {}),
             ValueError, rf"{name}.*2\^31.*2147483648")
        for function, name in LONG_AXES
        for sizes in ((1, 2**31), (2**31, 1, 4))
    ),
]  # fmt: skip


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("function", "dtype", "shape", "rest", "name"),
    [
        ("select_patches", torch.float32, (1, 2**31, 0), (), "scores"),
        ("largest_components", torch.uint8, (1, 2**31, 0), (2,), "labels"),
        ("box_mask", torch.int64, (1, 4), ((2**31, 0),), "size"),
    ],
)
def test_long_axes_of_nothing(
    function: str, dtype: torch.dtype, shape: tuple[int, ...], rest: tuple[Any, ...], name: str, device: str
) -> None:
    """Said of empty tensors too, with memory and without."""
    with pytest.raises(ValueError, match=rf"{name} must .*2\^31.*2147483648"):
        getattr(entmask_ext, function)(torch.empty(shape, dtype=dtype, device=device), *rest)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_public_function(case: Case) -> None:
    function = getattr(entmask_ext, case.function)
    function(**VALID[case.function])
    with pytest.raises(case.error, match=re.compile(case.message, re.DOTALL)):
        function(**VALID[case.function] | case.bad)


@pytest.mark.parametrize("case", [case for case in CASES if not case.public_only], ids=str)
def test_torch_ops(case: Case) -> None:
    through_the_dispatcher(case.function, **VALID[case.function])
    with pytest.raises(case.error, match=re.compile(case.message, re.DOTALL)):
        through_the_dispatcher(case.function, **VALID[case.function] | case.bad)


# ---------------------------------------------------------------- numbers

NUMBERS: dict[str, dict[str, float | int]] = {
    "patch_mask": {"ratio": 0.25, "threshold": 0.5, "min_score": 0.5, "hint": 0.125, "fill": -1.5},
    "patch_mask_from_scores": {"ratio": 0.25, "min_score": 0.5, "hint": 0.125, "fill": 3},
    "random_patch_mask": {"ratio": 0.25, "fill": 2},
    "patch_scores": {"threshold": 0.5},
    "select_patches": {"ratio": 0.25, "min_score": 0.5, "hint": 0.125},
    "patch_where": {"inside": -2.5, "outside": 1},
    "consistency_loss": {
        "mask_weight": 2, "visible_weight": 0.5, "ce_weight": 0.25, "dice_weight": 0.75, "smooth": 0.5,
        "denominator_offset": 3,
    },
}  # fmt: skip
each_number = pytest.mark.parametrize(
    ("function", "name"), [(f, name) for f, names in NUMBERS.items() for name in names]
)


@each_number
def test_what_is_no_number(function: str, name: str) -> None:
    truths = [True, np.bool_(True), np.array(True)]  # patch_where takes them for bool tensors alone
    arrays = [np.array([0.5]), np.array([[1]]), np.array("1")]
    for bad in ("half", b"1", 1j, [0.5], 10**400, *truths, *arrays):
        with pytest.raises((TypeError, ValueError), match=name):
            call(function, **{name: bad})


# Those that no kernel reads from memory.
FROM_THE_HOST = [(f, name) for f, names in NUMBERS.items() for name in names
                 if name not in ("ratio", "threshold", "min_score", "inside", "outside")]  # fmt: skip


@pytest.mark.parametrize(("function", "name"), FROM_THE_HOST)
@pytest.mark.parametrize("way", [contextlib.nullcontext, BaseTorchFunctionMode], ids=["eager", "traced"])
def test_a_number_on_a_device_is_refused(way: Callable[[], Any], function: str, name: str) -> None:
    """To read it, the host would have to wait."""
    message = rf"{name} must be a number.*on meta.*wait.*{name}\.item\(\)"
    with way(), pytest.raises(TypeError, match=message):
        call(function, **{name: torch.tensor(0.5, device="meta")})


@pytest.mark.parametrize("function", WITH_SELECTION)
def test_what_is_no_count(function: str) -> None:
    for bad in (1.5, "2", b"2", True, np.float32(2), np.array([2]), np.array(2.0), None, 2**70, -(2**63) - 1):
        with pytest.raises((TypeError, ValueError), match="min_patches"):
            call(function, min_score=0.5, min_patches=bad)


@pytest.mark.parametrize("function", WITH_PATCHES)
def test_what_is_no_patch_size(function: str) -> None:
    for bad, came in (
        ("4", "str"), (b"\x04\x04", "bytes"), (bytearray(b"\x04\x04"), "bytearray"), ({4: 4}, "dict"),
        (4.0, "float"), ((4, 4.5), "float"), (np.float64(4), "float"), (np.array([4.0, 4.0]), "float"),
        (True, "bool"), ((4, True), "bool"), (np.bool_(True), "bool"), (np.array([True, True]), "bool"),
        ((4, None), "NoneType"), (np.array([[4, 4]]), ""), (2**70, ""), ((4, 2**63), ""), ((4, -(2**63) - 1), ""),
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError), match=f"patch_size.*int.*{came}"):
            call(function, patch_size=bad)


def forms(value: float | int) -> list[Any]:
    """The same number in numpy's types, as a scalar and as a 0-d array."""
    if isinstance(value, int):
        scalars: list[Any] = [np.int64(value), np.int32(value), np.uint8(value)]
    else:
        scalars = [np.float64(value), np.float32(value), np.float16(value)]
    return [*scalars, *map(np.array, scalars)]


def assert_same_results(actual: Any, expected: Any) -> None:
    for one, other in zip(*(x if isinstance(x, tuple) else (x,) for x in (actual, expected)), strict=True):
        if other is None:
            assert one is None
        else:
            assert_same_bits(one, other)


def call(function: str, **arguments: Any) -> Any:
    torch.manual_seed(3)
    return getattr(entmask_ext, function)(**VALID[function] | arguments)


@each_number
def test_numbers_of_numpy(function: str, name: str) -> None:
    more = {"score": "count"} if name == "threshold" else {}
    value = NUMBERS[function][name]
    want = call(function, **more, **{name: value})
    for same in forms(value):
        assert_same_results(call(function, **more, **{name: same}), want)


@pytest.mark.parametrize("function", WITH_SELECTION)
def test_counts_of_numpy(function: str) -> None:
    want = call(function, min_score=2.0, min_patches=3)
    for same in forms(3):
        assert_same_results(call(function, min_score=2.0, min_patches=same), want)


@pytest.mark.parametrize("function", WITH_PATCHES)
def test_patch_sizes_of_numpy(function: str) -> None:
    want = call(function, patch_size=4)
    for same in (
        *forms(4), [4, 4], torch.Size([4, 4]), (np.int64(4), 4), [np.array(4), np.int32(4)], np.array([4]),
        *(np.array([4, 4], dtype) for dtype in (np.int64, np.int32, np.uint8)), np.array([4, 0, 4])[::2],
    ):  # fmt: skip
        assert_same_results(call(function, patch_size=same), want)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("function", MASKING)
def test_fills_up_to_the_largest_number(function: str, dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    for fill in (largest, -largest, float("inf"), float("-inf"), float("nan"), torch.finfo(dtype).tiny / 2):
        image = call(function, image=IMAGE.to(dtype), fill=fill).image
        filled = image[image != IMAGE.to(dtype)]
        assert filled.numel() > 0
        assert_same_bits(filled, torch.full_like(filled, fill))


# A device that torch knows and nothing has kernels for, so that the tensors live on it and no op can run.
FOREIGN_DEVICE = """
import torch
from torch.utils import backend_registration

torch.utils.rename_privateuse1_backend("nowhere")
backend_registration._setup_privateuseone_for_python_backend("nowhere")

import entmask_ext

there, here = torch._C._acc.create_empty_tensor((2, 3, 8, 8), torch.float32), torch.randn(2, 3, 8, 8)
labels = torch.zeros(2, 8, 8, dtype=torch.uint8)
for call in (
    lambda: entmask_ext.entropy_map(there),
    lambda: entmask_ext.uncertainty_map(there, "margin"),
    lambda: entmask_ext.pseudo_labels(there),
    lambda: entmask_ext.patch_scores(there, 4),
    lambda: torch.ops.entmask.entropy_map(there, True),
    lambda: entmask_ext.patch_mask(there, there),
    lambda: entmask_ext.patch_mask(here, there),
    lambda: entmask_ext.patch_mask_from_scores(there, torch.rand(2, 2, 2), 4),
    lambda: entmask_ext.consistency_loss(there, labels),
    lambda: entmask_ext.shuffle_patches(there, 4, torch.arange(4)),
):
    try:
        call()
    except (NotImplementedError, ValueError) as error:
        message = str(error)
        assert "nowhere:0" in message, message
        assert "CPU" in message or "cpu" in message, message  # the build's devices, or the other tensor's
    else:
        raise AssertionError("no error")
"""


@pytest.mark.skipif(not hasattr(torch._C, "_acc"), reason="this torch cannot make a device in Python")
def test_a_device_without_kernels() -> None:
    done = subprocess.run([sys.executable, "-c", FOREIGN_DEVICE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("convert", [Tensor.to_sparse, Tensor.to_mkldnn], ids=["sparse", "mkldnn"])
def test_a_layout_without_kernels(convert: Callable[[Tensor], Tensor]) -> None:
    strange = convert(LOGITS)
    for call in (lambda: entmask_ext.entropy_map(strange), lambda: entmask_ext.patch_mask(IMAGE, strange)):
        with pytest.raises((NotImplementedError, ValueError), match=re.compile("sparse|mkldnn", re.IGNORECASE)):
            call()


@pytest.mark.parametrize(
    "name", ["mask_weight", "visible_weight", "ce_weight", "dice_weight", "smooth", "denominator_offset"]
)
def test_a_weight_that_requires_grad(name: str) -> None:
    """Its gradient would be dropped without a word."""
    logits, labels = torch.randn(1, 3, 4, 4, requires_grad=True), torch.zeros(1, 4, 4, dtype=torch.uint8)
    weight = torch.tensor(0.5, requires_grad=True)
    with pytest.raises(NotImplementedError, match=rf"{name} has no derivative; pass {name}.detach\(\)"):
        entmask_ext.consistency_loss(logits, labels, **{name: weight})
    entmask_ext.consistency_loss(logits, labels, **{name: weight.detach()})


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint16, torch.uint64, torch.complex64], ids=str)
def test_dtypes_that_are_no_number_of_patches(dtype: torch.dtype) -> None:
    scores = torch.rand(2, 3, 3)
    for ratio in (torch.ones((), dtype=dtype), torch.ones(2, dtype=dtype)):
        with pytest.raises(TypeError, match="ratio must be a floating, uint8 or int8 to int64 tensor"):
            entmask_ext.select_patches(scores, ratio)


@pytest.mark.parametrize("weight", [1e-50, 1e300])
def test_a_class_weight_that_float32_cannot_hold(weight: float) -> None:
    logits, labels = torch.randn(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.uint8)
    weights = torch.full((3,), weight, dtype=torch.float64)
    with pytest.raises(ValueError, match=re.escape(f"got {weight:g} for class 0")):
        entmask_ext.consistency_loss(logits, labels, class_weight=weights)
    assert entmask_ext.consistency_loss(logits.double(), labels, class_weight=weights).total.isfinite()


def test_a_weight_with_a_tangent() -> None:
    logits, labels = torch.randn(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.uint8)
    one = torch.tensor(1.0)
    with pytest.raises(NotImplementedError, match="mask_weight has no derivative"):
        torch.func.jvp(lambda w: entmask_ext.consistency_loss(logits, labels, mask_weight=w).total, (one,), (one,))


def test_text_that_is_no_utf8() -> None:
    with pytest.raises(ValueError):
        entmask_ext.select_patches(torch.rand(1, 2, 2), order="\ud800")


def test_an_unknown_instruction_set() -> None:
    """A misspelt one must not run on the best there is; an empty variable is none."""

    def run(*command: str, isa: str) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"ENTMASK_CPU": isa}
        return subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True)

    code = "import torch, entmask_ext; entmask_ext.entropy_map(torch.zeros(1, 2, 4, 4))"
    message = "ENTMASK_CPU must be baseline, avx2 or avx512, got 'AVX2'"
    done = run("-c", code, isa="AVX2")
    assert done.returncode == 1 and f"ValueError: {message}" in done.stderr
    report = run("-m", "entmask_ext", isa="AVX2")
    assert report.returncode == 0 and f"none: {message}" in report.stdout
    assert run("-c", code, isa="").returncode == 0
