"""Bad arguments: one clear error that names the argument, what was expected and what came, before anything is computed.

Each is tried through the public function and through torch.ops, which compiled and C++ callers use.
"""

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

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
    "consistency_loss": {"logits": LOGITS, "labels": LABELS, "patches": PATCHES, "patch_size": 4},
    "shuffle_patches": {"x": IMAGE, "patch_size": 4, "permutation": PERMUTATION},
}


def _list(patch_size: Any) -> Any:
    return [patch_size] if isinstance(patch_size, int) else patch_size


def _pair(value: Any) -> tuple[Any, Any]:
    return (None, value) if isinstance(value, Tensor) else (value, None)


def _op_patch_mask(
    image: Any, logits: Any, patch_size: Any, ratio: Any = None, score: Any = "mean", threshold: Any = 0.75,
    min_score: Any = None, min_patches: Any = 0, order: Any = "highest", hint: Any = 0.0, scope: Any = "image",
    fill: Any = 0.0, mask_dtype: Any = None, label_dtype: Any = None,
) -> Any:  # fmt: skip
    number, tensor = _pair(threshold)
    return torch.ops.entmask.patch_mask(
        image, logits, _list(patch_size), *_pair(ratio), score, 0.0 if number is None else number, tensor,
        *_pair(min_score), min_patches, order, hint, scope, fill, mask_dtype, label_dtype,
    )  # fmt: skip


def _op_from_scores(
    image: Any, scores: Any, patch_size: Any, ratio: Any = None, min_score: Any = None, min_patches: Any = 0,
    order: Any = "highest", hint: Any = 0.0, scope: Any = "image", fill: Any = 0.0, mask_dtype: Any = None,
) -> Any:  # fmt: skip
    return torch.ops.entmask.patch_mask_from_scores(
        image, scores, _list(patch_size), *_pair(ratio), *_pair(min_score), min_patches, order, hint, scope, fill,
        mask_dtype,
    )  # fmt: skip


def _op_patch_scores(logits: Any, patch_size: Any, score: Any = "mean", threshold: Any = 0.75) -> Any:
    number, tensor = _pair(threshold)
    return torch.ops.entmask.patch_scores(logits, _list(patch_size), score, 0.0 if number is None else number, tensor)


def _op_loss(
    logits: Any, labels: Any, patches: Any = None, patch_size: Any = None, mask_weight: Any = 1.5,
    class_weight: Any = None, ce_weight: Any = 0.5, dice_weight: Any = 0.5, smooth: Any = 1e-5,
    denominator_offset: Any = 0.0,
) -> Any:  # fmt: skip
    return torch.ops.entmask.consistency_loss(
        logits, labels, patches, _list(patch_size), mask_weight, class_weight, ce_weight, dice_weight, smooth,
        denominator_offset,
    )  # fmt: skip


OPS: dict[str, Callable[..., Any]] = {
    "patch_mask": _op_patch_mask,
    "patch_mask_from_scores": _op_from_scores,
    "entropy_map": lambda logits, normalize=True: torch.ops.entmask.entropy_map(logits, normalize),
    "patch_scores": _op_patch_scores,
    "consistency_loss": _op_loss,
    "shuffle_patches": lambda x, patch_size, permutation, inverse=False: torch.ops.entmask.shuffle_patches(
        x, _list(patch_size), permutation, inverse
    ),
}


@dataclass(frozen=True)
class Case:
    function: str
    bad: dict[str, Any]
    error: type[Exception]
    message: str
    """A regular expression: the argument, what was expected, what came."""
    public_only: bool = False
    """The dispatcher itself turns the wrong Python type away."""

    def __str__(self) -> str:
        def short(value: Any) -> str:
            return f"{list(value.shape)} {value.dtype}" if isinstance(value, Tensor) else str(value)

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


def patch_size_cases(function: str) -> list[Case]:
    return [
        Case(function, {"patch_size": 0}, ValueError, r"patch_size.*positive.*0"),
        Case(function, {"patch_size": (4, -1)}, ValueError, r"patch_size.*positive.*-1"),
        Case(function, {"patch_size": (4, 4, 4)}, ValueError, r"patch_size.*2.*\[?\(?4, 4, 4"),
        Case(function, {"patch_size": ()}, ValueError, r"patch_size.*2.*(\[\]|\(\))"),
        Case(function, {"patch_size": "4"}, TypeError, r"patch_size.*int.*str", public_only=True),
        Case(function, {"patch_size": 4.0}, TypeError, r"patch_size.*int.*float", public_only=True),
        Case(function, {"patch_size": (4, 4.5)}, TypeError, r"patch_size.*int.*float", public_only=True),
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
        Case(function, {"ratio": torch.rand(2)}, ValueError, r"ratio.*0-d.*\[2\]"),
        Case(function, {"ratio": torch.tensor(1)}, TypeError, r"ratio.*float.*(Long|int64)"),
        Case(function, {"ratio": "half"}, TypeError, r"ratio.*(number|float).*str", public_only=True),
    ]
    if function == "random_patch_mask":
        return numbers
    return [
        *numbers,
        Case(function, {"ratio": 0.5, "min_score": 0.5}, ValueError, r"ratio.*min_score"),
        Case(function, {"ratio": 0.5, "min_patches": 2}, ValueError, r"min_patches.*min_score|min_patches.*ratio"),
        Case(function, {"min_patches": 2}, ValueError, r"min_patches.*min_score"),
        Case(function, {"min_score": 0.5, "min_patches": -1}, ValueError, r"min_patches.*-1"),
        Case(function, {"min_score": torch.rand(1)}, ValueError, r"min_score.*0-d.*\[1\]"),
        Case(function, {"min_score": "a"}, TypeError, r"min_score.*(number|float).*str", public_only=True),
        Case(function, {"hint": 1.5}, ValueError, r"hint.*\[0, 1\].*1\.5"),
        Case(function, {"hint": -0.5}, ValueError, r"hint.*\[0, 1\].*-0\.5"),
        Case(function, {"hint": float("nan")}, ValueError, r"hint.*[nN]a[nN]"),
        Case(function, {"order": "top"}, ValueError, r"order.*highest.*lowest.*top"),
        Case(function, {"scope": "row"}, ValueError, r"scope.*image.*batch.*row"),
        Case(function, {"mask_dtype": torch.int64}, (ValueError, TypeError), r"mask_dtype.*bool.*(Long|int64)"),
        Case(
            function, {"mask_dtype": torch.float64}, (ValueError, TypeError), r"mask_dtype.*bool.*([dD]ouble|float64)"
        ),
    ]


WITH_PATCHES = (
    "patch_mask", "patch_mask_from_scores", "random_patch_mask", "patch_scores", "consistency_loss", "shuffle_patches",
)  # fmt: skip
CASES = [
    *(case for name in ("patch_mask", "entropy_map", "patch_scores") for case in logits_cases(name)),
    *(case for case in logits_cases("consistency_loss")),
    *(
        case
        for name in WITH_PATCHES
        for case in patch_size_cases(name)
    ),
    *(case for name in ("patch_mask", "patch_mask_from_scores", "random_patch_mask") for case in image_cases(name)),
    *image_cases("shuffle_patches", "x"),
    *(case for name in ("patch_mask", "patch_mask_from_scores", "random_patch_mask") for case in selection_cases(name)),
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
            Case(name, {"score": "count", "threshold": torch.rand(3)}, ValueError, r"threshold.*0-d.*\[3\]"),
            Case(name, {"threshold": "high"}, TypeError, r"threshold.*(number|float).*str", public_only=True),
        )
    ),
    Case("patch_mask_from_scores", {"scores": SCORES[:1]}, ValueError, r"scores.*\[2, 4, 6\].*\[1, 4, 6\]"),
    Case("patch_mask_from_scores", {"scores": SCORES[:, :, 1:]}, ValueError, r"scores.*\[2, 4, 6\].*\[2, 4, 5\]"),
    Case("patch_mask_from_scores", {"scores": SCORES.flatten(1)}, ValueError, r"scores.*\[2, 4, 6\].*\[2, 24\]"),
    Case("patch_mask_from_scores", {"scores": SCORES.int()}, TypeError, r"scores.*float.*(Int|int32)"),
    Case("patch_mask_from_scores", {"scores": SCORES.to("meta")}, ValueError, r"(image|scores).*(cpu.*meta|meta.*cpu)"),
    # The loss
    Case("consistency_loss", {"labels": LABELS.int()}, TypeError, r"labels.*uint8.*int64.*(Int|int32)"),
    Case("consistency_loss", {"labels": LABELS.float()}, TypeError, r"labels.*uint8.*int64.*([fF]loat)"),
    Case("consistency_loss", {"labels": LABELS[:, None]}, ValueError, r"labels.*\[2, 16, 24\].*\[2, 1, 16, 24\]"),
    Case("consistency_loss", {"labels": LABELS[:1]}, ValueError, r"labels.*\[2, 16, 24\].*\[1, 16, 24\]"),
    Case("consistency_loss", {"labels": LABELS.to("meta")}, ValueError, r"labels.*(cpu.*meta|meta.*cpu)"),
    Case("consistency_loss", {"patches": PATCHES.float()}, TypeError, r"patches.*bool.*[fF]loat"),
    Case("consistency_loss", {"patches": PATCHES[:, 1:]}, ValueError, r"patches.*\[2, 4, 6\].*\[2, 3, 6\]"),
    Case("consistency_loss", {"patches": PATCHES[:1]}, ValueError, r"patches.*\[2, 4, 6\].*\[1, 4, 6\]"),
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
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_public_function(case: Case) -> None:
    function = getattr(entmask_ext, case.function)
    function(**VALID[case.function])
    with pytest.raises(case.error, match=re.compile(case.message, re.DOTALL)):
        function(**VALID[case.function] | case.bad)


@pytest.mark.parametrize("case", [case for case in CASES if case.function in OPS and not case.public_only], ids=str)
def test_torch_ops(case: Case) -> None:
    op = OPS[case.function]
    op(**VALID[case.function])
    with pytest.raises(case.error, match=re.compile(case.message, re.DOTALL)):
        op(**VALID[case.function] | case.bad)


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
