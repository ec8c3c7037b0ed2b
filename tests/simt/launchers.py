"""The launchers of csrc/kernels/cuda/launch.h on tensors: what csrc/ops does before and after them, without torch.

Each takes the options of driver.run and returns its outputs, then the counts. Bytes never written are a failure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .driver import Counts, Input, Output, run
from .params import ENUMS
from .tensors import STORAGE, Tensor, grid, like, patch_counts, strides, three

Number = float | Tensor
LABELS = {"uint8": np.uint8, "int64": np.int64}


def _scalar(value: Number, name: str) -> dict[str, Any]:
    if isinstance(value, Tensor):
        return {"value": 0.0, "device": value.input(name), "dtype": ENUMS["Dtype"][value.dtype]}
    return {"value": value, "device": None, "dtype": ENUMS["Dtype"]["float64"]}


def _compute(dtype: str) -> type:
    return np.float64 if dtype == "float64" else np.float32


def written(output: Output) -> np.ndarray:
    """The answer, each byte of which must have been written: 0xFF everywhere in an element means that it was not."""
    array = output.array
    raw = np.ascontiguousarray(array).view(np.uint8).reshape(*array.shape, array.itemsize)
    holes = np.argwhere((raw == 0xFF).all(-1))
    assert holes.size == 0, f"{output.name}: {len(holes)} elements were never written, first at {tuple(holes[0])}"
    return array


def _pool_fields(
    logits: Tensor, patch: Sequence[int], count: bool, threshold: Number, labels: str, labels_offset: int
) -> tuple[dict[str, Any], Output, Output | None]:
    n, k, *size = logits.storage.shape
    scores = Output("scores", np.empty((n, *patch_counts(size, patch)), _compute(logits.dtype)))
    label_out = None if labels == "none" else Output("labels", np.empty((n, *size), LABELS[labels]), labels_offset)
    fields = {
        "logits": logits.input("logits"),
        "scores": scores,
        "labels": label_out,
        "logits_stride": strides(logits.storage),
        "dtype": ENUMS["Dtype"][logits.dtype],
        "label_dtype": ENUMS["LabelDtype"][labels],
        "batch": n,
        "classes": k,
        "grid": grid(size, patch),
        "count": count,
        "threshold": _scalar(threshold, "threshold"),
    }
    return fields, scores, label_out


def entropy_pool(
    logits: Tensor,
    patch: Sequence[int],
    *,
    count: bool = False,
    threshold: Number = 0.75,
    labels: str = "none",
    labels_offset: int = 0,
    **options: Any,
) -> tuple[np.ndarray, np.ndarray | None, Counts]:
    fields, scores, label_out = _pool_fields(logits, patch, count, threshold, labels, labels_offset)
    counts = run("entropy_pool", "EntropyPoolParams", fields, **options)
    return written(scores), None if label_out is None else label_out.array, counts


def _select_fields(
    scores: Input | Output,
    rows: int,
    ratio: Number | None,
    min_score: Number | None,
    min_patches: int,
    lowest: bool,
    hint: float,
) -> tuple[dict[str, Any], Output]:
    length = scores.array.size // rows if rows else 0
    patches = Output("patches", np.empty((rows, length), np.uint8))
    fields = {
        "scores": scores,
        "patches": patches,
        "rows": rows,
        "length": length,
        "is_double": scores.array.dtype == np.float64,
        "by_ratio": ratio is not None,
        "lowest": lowest,
        "ratio": _scalar(0.0 if ratio is None else ratio, "ratio"),
        "min_score": _scalar(0.0 if min_score is None else min_score, "min_score"),
        "min_patches": min_patches,
        "hint": hint,
    }
    return fields, patches


def _selected(patches: Output) -> np.ndarray:
    assert np.isin(patches.array, (0, 1)).all(), "patches: a bool that is neither 0 nor 1"
    return patches.array.astype(bool)


def select(
    scores: np.ndarray,  # [rows, P]
    *,
    ratio: Number | None = None,
    min_score: Number | None = None,
    min_patches: int = 0,
    lowest: bool = False,
    hint: float = 0.0,
    **options: Any,
) -> tuple[np.ndarray, Counts]:
    fields, patches = _select_fields(
        Input("scores", scores), scores.shape[0], ratio, min_score, min_patches, lowest, hint
    )
    counts = run("select", "SelectParams", fields, **options)
    return _selected(patches), counts


def entropy_pool_select(
    logits: Tensor,
    patch: Sequence[int],
    *,
    scope: str = "image",
    count: bool = False,
    threshold: Number = 0.75,
    labels: str = "none",
    ratio: Number | None = None,
    min_score: Number | None = None,
    min_patches: int = 0,
    lowest: bool = False,
    hint: float = 0.0,
    **options: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, Counts]:
    """Scores, patches [rows, P], labels."""
    pool, scores, label_out = _pool_fields(logits, patch, count, threshold, labels, 0)
    rows = logits.storage.shape[0] if scope == "image" else min(1, logits.storage.shape[0])
    chosen, patches = _select_fields(scores, rows, ratio, min_score, min_patches, lowest, hint)
    counts = run("entropy_pool_select", "PoolSelectParams", {"pool": pool, "select": chosen}, **options)
    return written(scores), _selected(patches), None if label_out is None else label_out.array, counts


def entropy_map(logits: Tensor, *, normalize: bool = True, **options: Any) -> tuple[np.ndarray, Counts]:
    n, k, *size = logits.storage.shape
    entropy = Output("entropy", np.empty((n, *size), _compute(logits.dtype)), 0 if logits.offset == 0 else 4)
    fields = {
        "logits": logits.input("logits"),
        "entropy": entropy,
        "logits_stride": strides(logits.storage),
        "dtype": ENUMS["Dtype"][logits.dtype],
        "batch": n,
        "classes": k,
        "size": three(size, 1),
        "normalize": normalize,
    }
    if logits.dtype == "float64" and entropy.offset:
        entropy.offset = 8
    counts = run("entropy_map", "EntropyMapParams", fields, **options)
    return written(entropy), counts


def entropy_backward(
    logits: Tensor, grad: np.ndarray, *, patch: Sequence[int] | None = None, normalize: bool = True, **options: Any
) -> tuple[np.ndarray, Counts]:
    """grad [N, *S], or with patch [N, *G]. Returns float64 values of grad_logits."""
    n, k, *size = logits.storage.shape
    grad_logits = like(logits, "grad_logits")
    fields = {
        "logits": logits.input("logits"),
        "grad": Input("grad", grad),
        "grad_logits": grad_logits,
        "logits_stride": strides(logits.storage),
        "grad_stride": strides(grad, channels=False),
        "grad_logits_stride": strides(grad_logits.array),
        "dtype": ENUMS["Dtype"][logits.dtype],
        "batch": n,
        "classes": k,
        "grid": grid(size, patch or size),
        "pooled": patch is not None,
        "normalize": normalize,
    }
    counts = run("entropy_backward", "EntropyBackwardParams", fields, **options)
    return Tensor(written(grad_logits), logits.dtype).values, counts


def apply_mask(
    image: Tensor,
    patches: np.ndarray,  # [N, *G] bool
    patch: Sequence[int],
    *,
    fill: float = 0.0,
    mask: str = "same",  # same | bool | none
    **options: Any,
) -> tuple[np.ndarray, np.ndarray | None, Counts]:
    """The storage of the image, the mask's values."""
    n, c, *size = image.storage.shape
    out = like(image, "out")
    mask_type = np.uint8 if mask == "bool" else STORAGE[image.dtype]
    mask_out = None if mask == "none" else Output("mask", np.empty((n, 1, *size), mask_type))
    fields = {
        "image": image.input("image"),
        "out": out,
        "mask": mask_out,
        "patches": Input("patches", patches.astype(np.uint8)),
        "image_stride": strides(image.storage),
        "out_stride": strides(out.array),
        "dtype": ENUMS["Dtype"][image.dtype],
        "mask_is_bool": mask == "bool",
        "batch": n,
        "channels": c,
        "grid": grid(size, patch),
        "fill": fill,
    }
    counts = run("apply_mask", "ApplyParams", fields, **options)
    if mask_out is None:
        return written(out), None, counts
    values = written(mask_out) if mask == "bool" else Tensor(written(mask_out), image.dtype).values
    return written(out), values, counts


def _loss_fields(
    logits: Tensor,
    labels: np.ndarray,  # [N, *S] uint8 or int64
    patches: np.ndarray | None,
    patch: Sequence[int] | None,
    class_weight: np.ndarray | None,
    weights: dict[str, float],
    labels_offset: int,
) -> dict[str, Any]:
    n, k, *size = logits.storage.shape
    number = _compute(logits.dtype)
    return {
        "logits": logits.input("logits"),
        "labels": Input("labels", labels, labels_offset),
        "patches": None if patches is None else Input("patches", patches.astype(np.uint8)),
        "class_weight": None if class_weight is None else Input("class_weight", class_weight.astype(number)),
        "logits_stride": strides(logits.storage),
        "labels_stride": strides(labels, channels=False),
        "dtype": ENUMS["Dtype"][logits.dtype],
        "label_dtype": ENUMS["LabelDtype"][labels.dtype.name],
        "batch": n,
        "classes": k,
        "grid": grid(size, patch or size),
        "mask_weight": 1.5,
        "ce_weight": 0.5,
        "dice_weight": 0.5,
        "smooth": 1e-5,
        "denominator_offset": 0.0,
        **weights,
    }


LOSSES = ("total", "ce_masked", "ce_visible", "dice")


def loss_forward(
    logits: Tensor,
    labels: np.ndarray,
    *,
    patches: np.ndarray | None = None,
    patch: Sequence[int] | None = None,
    class_weight: np.ndarray | None = None,
    weights: dict[str, float] | None = None,
    labels_offset: int = 0,
    **options: Any,
) -> tuple[dict[str, float], np.ndarray, Counts]:
    """The four losses, the sums [4 + 3 K]."""
    loss = _loss_fields(logits, labels, patches, patch, class_weight, weights or {}, labels_offset)
    sums = Output("sums", np.empty(4 + 3 * loss["classes"]))
    outputs = {name: Output(name, np.empty(1, _compute(logits.dtype))) for name in LOSSES}
    counts = run("loss_forward", "LossForwardParams", {"loss": loss, "sums": sums, **outputs}, **options)
    return {name: float(written(out)[0]) for name, out in outputs.items()}, written(sums), counts


def loss_backward(
    logits: Tensor,
    labels: np.ndarray,
    sums: np.ndarray,
    grads: dict[str, float],  # of the losses; those left out have none
    *,
    patches: np.ndarray | None = None,
    patch: Sequence[int] | None = None,
    class_weight: np.ndarray | None = None,
    weights: dict[str, float] | None = None,
    labels_offset: int = 0,
    **options: Any,
) -> tuple[np.ndarray, Counts]:
    """float64 values of grad_logits."""
    grad_logits = like(logits, "grad_logits")
    number = _compute(logits.dtype)
    fields = {
        "loss": _loss_fields(logits, labels, patches, patch, class_weight, weights or {}, labels_offset),
        "sums": Input("sums", np.asarray(sums, np.float64)),
        **{f"grad_{name}": Input(f"grad_{name}", np.array([g], number)) for name, g in grads.items()},
        "grad_logits": grad_logits,
        "grad_logits_stride": strides(grad_logits.array),
    }
    counts = run("loss_backward", "LossBackwardParams", fields, **options)
    return Tensor(written(grad_logits), logits.dtype).values, counts


def shuffle_patches(
    x: Tensor, permutation: np.ndarray, patch: Sequence[int], *, inverse: bool = False, **options: Any
) -> tuple[np.ndarray, Counts]:
    """The storage of the result: NaN bits, where the kernel leaves them alone, keep their poison."""
    n, c, *size = x.storage.shape
    out = like(x, "out")
    patches = int(np.prod(patch_counts(size, patch)))
    fields = {
        "x": x.input("x"),
        "out": out,
        "permutation": Input("permutation", permutation.astype(np.int64)),
        "x_stride": strides(x.storage),
        "out_stride": strides(out.array),
        "dtype": ENUMS["Dtype"][x.dtype],
        "batch": n,
        "channels": c,
        "group": permutation.size // patches if patches else 1,
        "grid": grid(size, patch),
        "inverse": inverse,
    }
    counts = run("shuffle_patches", "ShuffleParams", fields, **options)
    return out.array, counts
