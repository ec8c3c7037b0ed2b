"""The launchers of csrc/kernels/cuda/launch.h on tensors: what csrc/ops does before and after them, without torch.

Each takes the options of driver.run and returns its outputs, then the counts. Bytes never written are a failure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .driver import Counts, Input, Output, run
from .params import ENUMS
from .reference import whole
from .tensors import STORAGE, Tensor, bits, grid, like, patch_counts, strides, three, to_storage

Number = float | Tensor  # a tensor: one value for all rows, or one per row
LABELS = {"uint8": np.uint8, "int64": np.int64}


def _number(value: Number, name: str) -> dict[str, Any]:
    if isinstance(value, Tensor):
        array = value.storage
        stride = 0 if array.size == 1 else array.strides[0] // array.itemsize
        return {"value": 0.5, "data": value.input(name), "stride": stride, "dtype": ENUMS["Dtype"][value.dtype]}
    return {"value": value, "data": None, "stride": 0, "dtype": ENUMS["Dtype"]["float64"]}


def _compute(dtype: str) -> type:
    return np.float64 if dtype == "float64" else np.float32


def written(output: Output) -> np.ndarray:
    """The answer, each byte of which must have been written: 0xFF everywhere in an element means that it was not."""
    array = output.array
    raw = np.ascontiguousarray(array).view(np.uint8).reshape(*array.shape, array.itemsize)
    holes = np.argwhere((raw == 0xFF).all(-1))
    assert holes.size == 0, f"{output.name}: {len(holes)} elements were never written, first at {tuple(holes[0])}"
    return array


def entropy_pool(
    logits: Tensor,
    patch: Sequence[int],
    *,
    uncertainty: str = "entropy",
    count: bool = False,
    threshold: Number = 0.75,
    labels: str = "none",
    labels_offset: int = 0,
    min_confidence: Number | None = None,
    **options: Any,
) -> tuple[np.ndarray, np.ndarray | None, Counts]:
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
        "uncertainty": ENUMS["Uncertainty"][uncertainty],
        "count": count,
        "gated": min_confidence is not None,
        "threshold": _number(threshold, "threshold"),
        "min_confidence": _number(0.5 if min_confidence is None else min_confidence, "min_confidence"),
    }
    counts = run("entropy_pool", "EntropyPoolParams", fields, **options)
    return written(scores), None if label_out is None else label_out.array, counts


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
    rows, length = scores.shape
    patches = Output("patches", np.empty((rows, length), np.uint8))
    fields = {
        "scores": Input("scores", scores),
        "patches": patches,
        "rows": rows,
        "length": length,
        "is_double": scores.dtype == np.float64,
        "by_ratio": ratio is not None,
        "lowest": lowest,
        "k": whole(ratio, length, least=1) if isinstance(ratio, float) else 1 << 40,
        "ratio": _number(ratio if isinstance(ratio, Tensor) else 0.5, "ratio"),
        "min_score": _number(0.5 if min_score is None else min_score, "min_score"),
        "min_patches": min_patches,
        "hinted": whole(hint, length),
    }
    counts = run("select", "SelectParams", fields, **options)
    assert np.isin(patches.array, (0, 1)).all(), "patches: a bool that is neither 0 nor 1"
    return patches.array.astype(bool), counts


def pseudo_labels(
    logits: Tensor,
    *,
    labels: str = "uint8",
    min_confidence: Number | None = None,
    labels_offset: int | None = None,
    **options: Any,
) -> tuple[np.ndarray, np.ndarray, Counts]:
    """The labels [N, *S], the accepted share [N]."""
    n, k, *size = logits.storage.shape
    if labels_offset is None:
        labels_offset = 0 if logits.offset == 0 else 8
    out = Output("labels", np.empty((n, *size), LABELS[labels]), labels_offset)
    accepted = Output("accepted", np.empty(n, np.float32))
    fields = {
        "logits": logits.input("logits"),
        "labels": out,
        "accepted": accepted,
        "logits_stride": strides(logits.storage),
        "dtype": ENUMS["Dtype"][logits.dtype],
        "label_dtype": ENUMS["LabelDtype"][labels],
        "batch": n,
        "classes": k,
        "size": three(size, 1),
        "gated": min_confidence is not None,
        "min_confidence": _number(0.5 if min_confidence is None else min_confidence, "min_confidence"),
    }
    counts = run("pseudo_labels", "PseudoLabelsParams", fields, **options)
    return out.array, written(accepted), counts


def entropy_map(
    logits: Tensor,
    *,
    uncertainty: str = "entropy",
    normalize: bool = True,
    entropy_offset: int | None = None,
    **options: Any,
) -> tuple[np.ndarray, Counts]:
    n, k, *size = logits.storage.shape
    if entropy_offset is None:
        entropy_offset = 0 if logits.offset == 0 else 8 if logits.dtype == "float64" else 4
    entropy = Output("entropy", np.empty((n, *size), _compute(logits.dtype)), entropy_offset)
    fields = {
        "logits": logits.input("logits"),
        "entropy": entropy,
        "logits_stride": strides(logits.storage),
        "dtype": ENUMS["Dtype"][logits.dtype],
        "batch": n,
        "classes": k,
        "size": three(size, 1),
        "uncertainty": ENUMS["Uncertainty"][uncertainty],
        "normalize": normalize,
    }
    counts = run("entropy_map", "EntropyMapParams", fields, **options)
    return written(entropy), counts


def entropy_backward(
    logits: Tensor,
    grad: np.ndarray,
    *,
    patch: Sequence[int] | None = None,
    uncertainty: str = "entropy",
    normalize: bool = True,
    **options: Any,
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
        "uncertainty": ENUMS["Uncertainty"][uncertainty],
        "pooled": patch is not None,
        "normalize": normalize,
    }
    counts = run("entropy_backward", "EntropyBackwardParams", fields, **options)
    return Tensor(written(grad_logits), logits.dtype).values, counts


def where(
    patches: np.ndarray,  # [N, *G] bool, or [1, *G]
    inside: Number,
    outside: Number,
    patch: Sequence[int],
    *,
    mask: str = "none",  # none | bool | same
    mask_offset: int = 0,
    **options: Any,
) -> tuple[np.ndarray, np.ndarray | None, Counts]:
    """The storage of the result, the mask's values [N, *S]. A tensor may lack its last images: N is the other's."""
    tensors = [side for side in (outside, inside) if isinstance(side, Tensor)]
    full = max(tensors, key=lambda t: len(t.storage))
    n, c, *size = full.storage.shape
    dtype, storage = full.dtype, STORAGE[full.dtype]
    out = like(Tensor(np.broadcast_to(tensors[0].storage[:1], full.storage.shape), dtype, full.offset), "out")
    mask_out = None
    if mask != "none":
        mask_out = Output("mask", np.empty((n, *size), np.uint8 if mask == "bool" else storage), mask_offset)
    numbers = [side for side in (inside, outside) if not isinstance(side, Tensor)]
    fields: dict[str, Any] = {"out": out, "mask": mask_out, "out_stride": strides(out.array)}
    for name, side in (("inside", inside), ("outside", outside)):
        fields[name] = side.input(name) if isinstance(side, Tensor) else None
        fields[f"{name}_stride"] = strides(side.storage if isinstance(side, Tensor) else full.storage)
    fields |= {
        "patches": Input("patches", patches.astype(np.uint8)),
        "patches_stride": int(np.prod(patches.shape[1:])) if len(patches) == n else 0,
        "bytes": np.dtype(storage).itemsize,
        "mask_bytes": 0 if mask_out is None else mask_out.array.itemsize,
        "number": bits(to_storage(np.array(numbers[0] if numbers else 0.5), dtype)).item(),
        "one": 1 if mask == "bool" else bits(to_storage(np.array(1.0), dtype)).item(),
        "batch": n,
        "channels": c,
        "grid": grid(size, patch),
    }
    counts = run("where", "WhereParams", fields, **options)
    if mask_out is None:
        return written(out), None, counts
    return written(out), Tensor(written(mask_out), "uint8" if mask == "bool" else dtype).values, counts


def _loss_fields(
    logits: Tensor,
    labels: np.ndarray,  # [N, *S] uint8 or int64
    patches: np.ndarray | None,
    patch: Sequence[int] | None,
    class_weight: np.ndarray | None,
    weights: dict[str, float],
    labels_offset: int,
    dice_each: bool,
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
        "patches_stride": 0 if patches is None or len(patches) != n else patches.size // max(1, n),
        "dtype": ENUMS["Dtype"][logits.dtype],
        "label_dtype": ENUMS["LabelDtype"][labels.dtype.name],
        "batch": n,
        "classes": k,
        "grid": grid(size, patch or size),
        "dice_each": dice_each,
        "mask_weight": 1.5,
        "visible_weight": 1.0,
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
    dice_each: bool = False,
    **options: Any,
) -> tuple[dict[str, float], np.ndarray, Counts]:
    """The four losses, the sums [4 + 3 K], with dice_each [4 + 6 K]."""
    loss = _loss_fields(logits, labels, patches, patch, class_weight, weights or {}, labels_offset, dice_each)
    sums = Output("sums", np.empty(4 + (6 if dice_each else 3) * loss["classes"]))
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
    dice_each: bool = False,
    **options: Any,
) -> tuple[np.ndarray, Counts]:
    """float64 values of grad_logits."""
    grad_logits = like(logits, "grad_logits")
    number = _compute(logits.dtype)
    fields = {
        "loss": _loss_fields(logits, labels, patches, patch, class_weight, weights or {}, labels_offset, dice_each),
        "sums": Input("sums", np.asarray(sums, np.float64)),
        **{f"grad_{name}": Input(f"grad_{name}", np.array([g], number)) for name, g in grads.items()},
        "grad_logits": grad_logits,
        "grad_logits_stride": strides(grad_logits.array),
    }
    counts = run("loss_backward", "LossBackwardParams", fields, **options)
    return Tensor(written(grad_logits), logits.dtype).values, counts


def _soft_loss_fields(
    logits: Tensor, target: Tensor, where: np.ndarray | None, kl: bool, offset: int
) -> dict[str, Any]:
    n, k, *size = logits.storage.shape
    return {
        "logits": logits.input("logits"),
        "target": target.input("target"),
        "where": None if where is None else Input("where", where.view(np.uint8), offset),
        "logits_stride": strides(logits.storage),
        "target_stride": strides(target.storage),
        "where_stride": strides(np.empty((n, *size), np.uint8) if where is None else where, channels=False),
        "dtype": ENUMS["Dtype"][logits.dtype],
        "target_dtype": ENUMS["Dtype"][target.dtype],
        "batch": n,
        "classes": k,
        "size": three(size, 1),
        "kl": kl,
    }


def soft_loss_forward(
    logits: Tensor,
    target: Tensor,
    where: np.ndarray | None = None,  # [N, *S] bool
    *,
    kl: bool,
    where_offset: int = 0,
    **options: Any,
) -> tuple[float, np.ndarray, Counts]:
    """The mean, the sums [2]."""
    number = np.float64 if "float64" in (logits.dtype, target.dtype) else np.float32
    mean, sums = Output("mean", np.empty(1, number)), Output("sums", np.empty(2))
    loss = _soft_loss_fields(logits, target, where, kl, where_offset)
    counts = run("soft_loss_forward", "SoftLossForwardParams", {"loss": loss, "sums": sums, "mean": mean}, **options)
    return float(written(mean)[0]), written(sums), counts


def soft_loss_backward(
    logits: Tensor,
    target: Tensor,
    where: np.ndarray | None,
    sums: np.ndarray,
    grad: float,
    *,
    kl: bool,
    where_offset: int = 0,
    grad_offset: int | None = None,
    **options: Any,
) -> tuple[np.ndarray, Counts]:
    """float64 values of grad_logits."""
    number = np.float64 if "float64" in (logits.dtype, target.dtype) else np.float32
    grad_logits = like(
        logits if grad_offset is None else Tensor(logits.storage, logits.dtype, grad_offset), "grad_logits"
    )
    fields = {
        "loss": _soft_loss_fields(logits, target, where, kl, where_offset),
        "sums": Input("sums", np.asarray(sums, np.float64)),
        "grad": Input("grad", np.array([grad], number)),
        "grad_logits": grad_logits,
        "grad_logits_stride": strides(grad_logits.array),
    }
    counts = run("soft_loss_backward", "SoftLossBackwardParams", fields, **options)
    return Tensor(written(grad_logits), logits.dtype).values, counts


def shuffle_patches(
    x: Tensor, permutation: np.ndarray, patch: Sequence[int], *, inverse: bool = False, **options: Any
) -> tuple[np.ndarray, Counts]:
    """The storage of the result: what the kernel leaves alone keeps its poison."""
    n, c, *size = x.storage.shape
    out = like(x, "out")
    patches = int(np.prod(patch_counts(size, patch)))
    fields = {
        "x": x.input("x"),
        "out": out,
        "source": Input("source", permutation.astype(np.int64)),
        "x_stride": strides(x.storage),
        "out_stride": strides(out.array),
        "bytes": x.storage.itemsize,
        "batch": n,
        "channels": c,
        "group": permutation.size // patches if patches else 1,
        "grid": grid(size, patch),
        "inverse": inverse,
    }
    counts = run("gather", "GatherParams", fields, **options)
    return out.array, counts


def gather_backward(
    grad: Tensor, source: np.ndarray, patch: Sequence[int], **options: Any
) -> tuple[np.ndarray, Counts]:
    """float64 values of the gradient of out[i] = x[source[i]]; entries of source may be out of range."""
    n, c, *size = grad.storage.shape
    out = like(grad, "out")
    flat = source.reshape(-1).astype(np.int64)
    takers = flat.argsort(kind="stable")
    fields = {
        "grad": grad.input("grad"),
        "out": out,
        "takers": Input("takers", takers),
        "first": Input("first", np.searchsorted(flat[takers], np.arange(flat.size + 1))),
        "grad_stride": strides(grad.storage),
        "out_stride": strides(out.array),
        "dtype": ENUMS["Dtype"][grad.dtype],
        "batch": n,
        "channels": c,
        "grid": grid(size, patch),
    }
    counts = run("gather_backward", "GatherBackwardParams", fields, **options)
    return Tensor(written(out), grad.dtype).values, counts


def components(
    labels: np.ndarray,  # [N, *S] uint8 or int64
    classes: int,
    connectivity: int,
    **options: Any,
) -> tuple[np.ndarray, Counts]:
    n, *size = labels.shape
    out = Output("out", np.empty_like(labels))
    fields = {
        "labels": Input("labels", labels),
        "out": out,
        "label_dtype": ENUMS["LabelDtype"][labels.dtype.name],
        "batch": n,
        "size": three(size, 1),
        "classes": classes,
        "connectivity": connectivity,
    }
    counts = run("components", "ComponentsParams", fields, **options)
    return out.array, counts


def box_mask(boxes: np.ndarray, size: Sequence[int], out_offset: int = 0, **options: Any) -> tuple[np.ndarray, Counts]:
    """boxes [N, 2 * axes] -> bool [N, *size]."""
    out = Output("out", np.empty((len(boxes), *size), np.uint8), out_offset)
    fields = {
        "boxes": Input("boxes", boxes.astype(np.int64)),
        "out": out,
        "batch": len(boxes),
        "axes": len(size),
        "size": three(size, 1),
    }
    counts = run("box_mask", "BoxMaskParams", fields, **options)
    assert np.isin(out.array, (0, 1)).all(), "a bool that is neither 0 nor 1"
    return out.array.astype(bool), counts
