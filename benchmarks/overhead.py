"""python -m benchmarks overhead: what a call costs before it computes anything, beside torch.add.

The tensors are so small that their pixels cost nothing: one image of one patch. Three ways lead to an op: the pybind11
module, torch.ops, and the public function.
"""

from collections.abc import Callable

import torch

import entmask_ext
from benchmarks.clock import make_clock
from benchmarks.measure import Sample, measure
from entmask_ext import _C


def calls(device: str) -> dict[str, Callable[[], object]]:
    patch = 4
    image = torch.randn(1, 1, patch, patch, device=device)
    logits = torch.randn(1, 2, patch, patch, device=device)
    labels = logits.argmax(1)
    teacher = torch.randn(1, 2, patch, patch, device=device)
    patches = torch.ones(1, 1, 1, dtype=torch.bool, device=device)
    scores = torch.rand(1, 1, 1, device=device)
    order = torch.zeros(1, dtype=torch.int64, device=device)
    box = torch.tensor([[1, 3, 1, 3]], device=device)
    ops = torch.ops.entmask
    masking = ("entropy", "mean", 0.75, None, 0, "highest", 0.0, "image", 0.0, None, None, None)
    selecting = (None, 0, "highest", 0.0, "image", 0.0, None)
    return {
        "torch.add": lambda: torch.add(image, image),
        "patch_mask pybind": lambda: _C.patch_mask(image, logits, patch, 0.75, *masking),
        "patch_mask torch.ops": lambda: ops.patch_mask(
            image,
            logits,
            [patch],
            0.75,
            None,
            "entropy",
            "mean",
            0.75,
            None,
            None,
            None,
            0,
            "highest",
            0.0,
            "image",
            0.0,
            None,
            None,
            None,
            None,
        ),
        "patch_mask function": lambda: entmask_ext.patch_mask(image, logits, patch, 0.75),
        "patch_mask_from_scores pybind": lambda: _C.patch_mask_from_scores(image, scores, patch, 0.75, *selecting),
        "patch_mask_from_scores torch.ops": lambda: ops.patch_mask_from_scores(
            image, scores, [patch], 0.75, None, None, None, 0, "highest", 0.0, "image", 0.0, None
        ),
        "patch_mask_from_scores function": lambda: entmask_ext.patch_mask_from_scores(image, scores, patch, 0.75),
        "random_patch_mask function": lambda: entmask_ext.random_patch_mask(image, patch, 0.75),
        "select_patches pybind": lambda: _C.select_patches(scores, 0.75, None, 0, "highest", 0.0, "image"),
        "select_patches function": lambda: entmask_ext.select_patches(scores, 0.75),
        "patch_where pybind": lambda: _C.patch_where(patches, 0.0, image, patch, None),
        "patch_where function": lambda: entmask_ext.patch_where(patches, 0.0, image, patch),
        "patch_scores pybind": lambda: _C.patch_scores(logits, patch, "entropy", "mean", 0.75),
        "patch_scores torch.ops": lambda: ops.patch_scores(logits, [patch], "entropy", "mean", 0.75, None),
        "patch_scores function": lambda: entmask_ext.patch_scores(logits, patch),
        "entropy_map pybind": lambda: _C.entropy_map(logits, True),
        "entropy_map torch.ops": lambda: ops.entropy_map(logits, True),
        "entropy_map function": lambda: entmask_ext.entropy_map(logits),
        "uncertainty_map function": lambda: entmask_ext.uncertainty_map(logits, "margin"),
        "pseudo_labels function": lambda: entmask_ext.pseudo_labels(logits, min_confidence=0.95),
        "consistency_loss pybind": lambda: _C.consistency_loss(
            logits, labels, patches, patch, 1.5, 1.0, None, 0.5, 0.5, 1e-5, 0.0, "all"
        ),
        "consistency_loss torch.ops": lambda: ops.consistency_loss(
            logits, labels, patches, [patch], 1.5, 1.0, None, 0.5, 0.5, 1e-5, 0.0, "all"
        ),
        "consistency_loss function": lambda: entmask_ext.consistency_loss(logits, labels, patches, patch),
        "soft_consistency_loss pybind": lambda: _C.soft_consistency_loss(logits, teacher, None, "mse"),
        "soft_consistency_loss torch.ops": lambda: ops.soft_consistency_loss(logits, teacher, None, "mse"),
        "soft_consistency_loss function": lambda: entmask_ext.soft_consistency_loss(logits, teacher),
        "shuffle_patches pybind": lambda: _C.shuffle_patches(image, patch, order, False),
        "shuffle_patches torch.ops": lambda: ops.shuffle_patches(image, [patch], order, False),
        "shuffle_patches function": lambda: entmask_ext.shuffle_patches(image, patch, order),
        "gather_patches function": lambda: entmask_ext.gather_patches(image, order.view(1, 1, 1), patch),
        "box_mask function": lambda: entmask_ext.box_mask(box, (patch, patch)),
        "largest_components function": lambda: entmask_ext.largest_components(labels, 2),
    }


def run(device: str, seconds: float) -> dict[str, Sample]:
    with torch.no_grad():
        return measure(calls(device), make_clock(device), cold=False, seconds=seconds)


def table(samples: dict[str, Sample]) -> str:
    floor = samples["torch.add"].median
    width = max(map(len, samples))
    lines = [f"{'call':<{width}}  {'us':>7}  {'quartiles':>15}  above torch.add"]
    for name, sample in samples.items():
        quartiles = f"{sample.quartile_1 * 1e6:.2f}-{sample.quartile_3 * 1e6:.2f}"
        above = "" if name == "torch.add" else f"{(sample.median - floor) * 1e6:.2f}"
        lines.append(f"{name:<{width}}  {sample.median * 1e6:7.2f}  {quartiles:>15}  {above:>15}")
    return "\n".join(lines)
