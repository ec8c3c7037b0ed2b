"""What is timed: the ops, each with the implementations that it is compared with."""

import itertools
import math
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import entmask_ext
from benchmarks import eager, loop
from benchmarks.peers import Function, Op
from benchmarks.workload import PATCH, RATIO, Workload


def _pixels(w: Workload) -> int:
    """Bytes of one value per pixel."""
    return w.size.pixels * w.itemsize


def _logits(w: Workload) -> int:
    return w.logits_bytes


def _masking(w: Workload) -> int:
    """The visible part of the image is read, image and mask are written."""
    return int((1 - RATIO + 2) * _pixels(w))


def _ours_patch_mask(image: Tensor, logits: Tensor) -> tuple[Tensor, ...]:
    masked = entmask_ext.patch_mask(image, logits, PATCH, RATIO)
    return masked.image, masked.scores, masked.mask


def _ours_step(image: Tensor, teacher: Tensor, student: Tensor) -> tuple[Tensor, ...]:
    masked = entmask_ext.patch_mask(image, teacher, PATCH, RATIO, label_dtype=torch.uint8)
    assert masked.labels is not None
    loss = entmask_ext.consistency_loss(student, masked.labels, masked.patches, PATCH)
    return loss.total, masked.image, masked.mask


def _loop_step(image: Tensor, teacher: Tensor, student: Tensor) -> tuple[Tensor, ...]:
    new, _, mask = loop.patch_mask(image, teacher, PATCH, RATIO)
    return *eager.consistency_loss(student, teacher.argmax(1), mask, dice=eager.dice_one_hot), new, mask


def _categorical_entropy(logits: Tensor) -> tuple[Tensor, ...]:
    """torch.distributions on the classes' axis, in units of ln K."""
    distribution = torch.distributions.Categorical(logits=logits.movedim(1, -1), validate_args=False)
    return (distribution.entropy() / math.log(logits.shape[1]),)


CONFIDENCE = 0.95


def _eager_loss(logits: Tensor, labels: Tensor, patches: Tensor, *, dice: eager.Dice) -> tuple[Tensor, ...]:
    return eager.consistency_loss(logits, labels, eager.spread(patches, PATCH), dice=dice)


def _eager_region_loss(logits: Tensor, labels: Tensor, patches: Tensor) -> tuple[Tensor, ...]:
    return eager.region_loss(logits, labels, eager.spread(patches, PATCH))


@cache
def _monai_loss() -> Callable[[Tensor, Tensor], Tensor]:
    from monai.losses.dice import DiceCELoss  # optional, and slow to import

    loss: Callable[[Tensor, Tensor], Tensor] = DiceCELoss(
        to_onehot_y=True,
        softmax=True,
        squared_pred=True,
        batch=True,
        smooth_nr=1e-5,
        smooth_dr=1e-5,
        lambda_dice=0.5,
        lambda_ce=0.5,
    )
    return loss


def _monai(logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    return (_monai_loss()(logits, labels.unsqueeze(1)),)


def _soft_op(name: str, kind: str, forms: dict[str, Function], compiled: Function) -> Op:
    return Op(
        name,
        inputs=lambda w: (w.student, w.logits, w.where),
        results=("total",),
        traffic=lambda w: (2 * _logits(w) + w.size.pixels, 3 * _logits(w) + w.size.pixels),
        ours=lambda logits, target, where: (entmask_ext.soft_consistency_loss(logits, target, where, kind=kind),),
        eager=forms,
        compiled=compiled,
        leaves=(0,),
    )


def _cc3d(labels: Tensor, classes: int) -> tuple[Tensor, ...]:
    """connected_components of all classes at once, their sizes by bincount, and a table of what stays."""
    import cc3d  # optional

    images = labels.cpu().numpy()
    out = np.empty_like(images)
    for image, kept in zip(images, out, strict=True):
        components, count = cc3d.connected_components(image, connectivity=2 * image.ndim, return_N=True)
        table = np.zeros(count + 1, image.dtype)
        table[components] = image  # the class of each component
        sizes = np.bincount(components.ravel(), minlength=count + 1)
        for number in range(1, classes):
            own = np.flatnonzero(table == number)
            table[np.delete(own, sizes[own].argmax())] = 0
        kept[...] = table[components]
    return (torch.from_numpy(out).to(labels.device),)


def _each_entropy(function: Callable[..., tuple[Tensor, ...]], **settings: Any) -> dict[str, Function]:
    return {name: partial(function, entropy=entropy, **settings) for name, entropy in eager.ENTROPIES.items()}


def _each_dice(function: Callable[..., tuple[Tensor, ...]], **settings: Any) -> dict[str, Function]:
    return {name: partial(function, dice=dice, **settings) for name, dice in eager.DICES.items()}


_masked: dict[str, Any] = {"patch": PATCH, "ratio": RATIO}

OPS = {
    op.name: op
    for op in (
        Op(
            "patch_mask",
            inputs=lambda w: (w.image, w.logits),
            results=("image", "scores", "mask"),
            decided=("image", "mask", "gradient 0"),
            traffic=lambda w: (_logits(w) + _masking(w), 2 * _logits(w) + int((1 - RATIO + 1) * _pixels(w))),
            ours=_ours_patch_mask,
            eager=_each_entropy(eager.patch_mask, **_masked),
            compiled=partial(eager.patch_mask, entropy=eager.entropy_logsumexp, **_masked),
            loop=partial(loop.patch_mask, **_masked),
            leaves=(0, 1),
            differentiable=2,
        ),
        Op(
            "consistency_loss",
            inputs=lambda w: (w.student, w.labels, w.patches),
            results=("total",),
            traffic=lambda w: (_logits(w) + 8 * w.size.pixels, 2 * _logits(w) + 8 * w.size.pixels),
            ours=lambda logits, labels, patches: (entmask_ext.consistency_loss(logits, labels, patches, PATCH).total,),
            eager=_each_dice(_eager_loss),
            compiled=partial(_eager_loss, dice=eager.dice_compared),
            leaves=(0,),
        ),
        Op(
            "step",
            inputs=lambda w: (w.image, w.logits, w.student),
            results=("total", "image", "mask"),
            decided=("image", "mask"),
            traffic=lambda w: (2 * _logits(w) + _masking(w) + 2 * w.size.pixels, 2 * _logits(w) + w.size.pixels),
            ours=_ours_step,
            eager={
                f"{entropy}, {dice}": partial(
                    eager.step, entropy=eager.ENTROPIES[entropy], dice=eager.DICES[dice], **_masked
                )
                for entropy, dice in itertools.product(("log_softmax", "entr"), eager.DICES)
            },
            compiled=partial(eager.step, entropy=eager.entropy_logsumexp, dice=eager.dice_compared, **_masked),
            loop=_loop_step,
            loop_backward=True,
            leaves=(2,),
        ),
        Op(
            "patch_scores",
            inputs=lambda w: (w.logits,),
            results=("scores",),
            traffic=lambda w: (_logits(w), 2 * _logits(w)),
            ours=lambda logits: (entmask_ext.patch_scores(logits, PATCH),),
            eager=_each_entropy(eager.patch_scores, patch=PATCH),
            compiled=partial(eager.patch_scores, patch=PATCH, entropy=eager.entropy_logsumexp),
            loop=lambda logits: (loop.patch_scores(logits, PATCH),),
            leaves=(0,),
        ),
        Op(
            "entropy_map",
            inputs=lambda w: (w.logits,),
            results=("entropy",),
            traffic=lambda w: (
                _logits(w) + max(4, w.itemsize) * w.size.pixels,
                2 * _logits(w) + max(4, w.itemsize) * w.size.pixels,
            ),
            ours=lambda logits: (entmask_ext.entropy_map(logits),),
            eager=_each_entropy(eager.entropy_map),
            compiled=partial(eager.entropy_map, entropy=eager.entropy_logsumexp),
            library={"torch.distributions.Categorical": _categorical_entropy},
            leaves=(0,),
        ),
        Op(
            "uncertainty_map",
            inputs=lambda w: (w.logits,),
            results=("margin",),
            traffic=lambda w: (
                _logits(w) + max(4, w.itemsize) * w.size.pixels,
                2 * _logits(w) + max(4, w.itemsize) * w.size.pixels,
            ),
            ours=lambda logits: (entmask_ext.uncertainty_map(logits, "margin"),),
            eager={name: partial(eager.entropy_map, entropy=margin) for name, margin in eager.MARGINS.items()},
            compiled=partial(eager.entropy_map, entropy=eager.margin_reduced),
            leaves=(0,),
        ),
        Op(
            "pseudo_labels",
            inputs=lambda w: (w.logits,),
            results=("labels", "accepted"),
            decided=("labels",),
            traffic=lambda w: (_logits(w) + w.size.pixels, 0),
            ours=lambda logits: entmask_ext.pseudo_labels(logits, min_confidence=CONFIDENCE),
            eager={
                "softmax": partial(eager.pseudo_labels, min_confidence=CONFIDENCE),
                "reduced": partial(eager.pseudo_labels_reduced, min_confidence=CONFIDENCE),
            },
            compiled=partial(eager.pseudo_labels_reduced, min_confidence=CONFIDENCE),
        ),
        Op(
            "cross_entropy",
            inputs=lambda w: (w.student, w.labels),
            results=("total",),
            traffic=lambda w: (_logits(w) + 8 * w.size.pixels, 2 * _logits(w) + 8 * w.size.pixels),
            ours=lambda logits, labels: (
                entmask_ext.consistency_loss(logits, labels, ce_weight=1.0, dice_weight=0.0).total,
            ),
            eager={"nll_loss": lambda logits, labels: (F.nll_loss(F.log_softmax(logits, 1), labels),)},
            compiled=lambda logits, labels: (F.cross_entropy(logits, labels),),
            library={"torch.nn.functional.cross_entropy": lambda logits, labels: (F.cross_entropy(logits, labels),)},
            leaves=(0,),
        ),
        Op(
            "dice_cross_entropy",
            inputs=lambda w: (w.student, w.labels),
            results=("total",),
            traffic=lambda w: (_logits(w) + 8 * w.size.pixels, 2 * _logits(w) + 8 * w.size.pixels),
            ours=lambda logits, labels: (entmask_ext.consistency_loss(logits, labels).total,),
            eager=_each_dice(eager.consistency_loss, mask=None),
            compiled=partial(eager.consistency_loss, mask=None, dice=eager.dice_compared),
            library={"monai.losses.DiceCELoss": _monai} if find_spec("monai") else {},
            leaves=(0,),
        ),
        Op(
            "region_loss",
            inputs=lambda w: (w.student, w.labels, w.patches),
            results=("total",),
            traffic=lambda w: (_logits(w) + 8 * w.size.pixels, 2 * _logits(w) + 8 * w.size.pixels),
            ours=lambda logits, labels, patches: (
                entmask_ext.consistency_loss(logits, labels, patches, PATCH, dice_region="each").total,
            ),
            eager={"compared": _eager_region_loss},
            compiled=_eager_region_loss,
            leaves=(0,),
        ),
        _soft_op(
            "soft_consistency_loss", "mse", {"square": eager.soft_mse, "mse_loss": eager.soft_mse_loss}, eager.soft_mse
        ),
        _soft_op("soft_kl", "kl", {"log_softmax": eager.soft_kl, "kl_div": eager.soft_kl_div}, eager.soft_kl),
        Op(
            "patch_mask_from_scores",
            inputs=lambda w: (w.image, w.scores),
            results=("image", "mask"),
            decided=("image", "mask"),
            traffic=lambda w: (_masking(w), 0),
            ours=lambda image, scores: entmask_ext.patch_mask_from_scores(image, scores, PATCH, RATIO)[:2],
            eager={"topk": partial(eager.patch_mask_from_scores, **_masked)},
            compiled=partial(eager.patch_mask_from_scores, **_masked),
            loop=partial(loop.patch_mask_from_scores, **_masked),
        ),
        Op(
            "random_patch_mask",
            inputs=lambda w: (w.image,),
            results=("image", "mask"),
            decided=("image", "mask"),
            traffic=lambda w: (_masking(w), 0),
            ours=lambda image: entmask_ext.random_patch_mask(image, PATCH, RATIO)[:2],
            eager={"topk": partial(eager.random_patch_mask, **_masked)},
            compiled=partial(eager.random_patch_mask, **_masked),
            loop=partial(loop.random_patch_mask, **_masked),
            random=True,
        ),
        Op(
            "select_patches",
            inputs=lambda w: (w.scores,),
            results=("patches",),
            decided=("patches",),
            traffic=lambda w: ((w.scores.itemsize + 1) * w.scores.numel(), 0),
            ours=lambda scores: (entmask_ext.select_patches(scores, RATIO),),
            eager={"topk": lambda scores: (eager.select(scores, RATIO),)},
            compiled=lambda scores: (eager.select(scores, RATIO),),
        ),
        Op(
            "patch_where",
            inputs=lambda w: (w.image.flip(0), w.image, w.patches),
            results=("out",),
            traffic=lambda w: (2 * _pixels(w), 3 * _pixels(w)),
            ours=lambda inside, outside, patches: (entmask_ext.patch_where(patches, inside, outside, PATCH),),
            eager={"where": lambda inside, outside, patches: (eager.patch_where(patches, inside, outside, PATCH),)},
            compiled=lambda inside, outside, patches: (eager.patch_where(patches, inside, outside, PATCH),),
            leaves=(0, 1),
        ),
        Op(
            "shuffle_patches",
            inputs=lambda w: (w.image, w.permutation),
            results=("out",),
            traffic=lambda w: (2 * _pixels(w), 2 * _pixels(w)),
            ours=lambda x, permutation: (entmask_ext.shuffle_patches(x, PATCH, permutation),),
            eager={
                "index_select": lambda x, permutation: eager.shuffle_patches(x, PATCH, permutation),
            },
            compiled=lambda x, permutation: eager.shuffle_patches(x, PATCH, permutation),
            loop=lambda x, permutation: loop.shuffle_patches(x, PATCH, permutation),
            leaves=(0,),
        ),
        Op(
            "gather_patches",
            inputs=lambda w: (w.image, w.source),
            results=("out",),
            traffic=lambda w: (2 * _pixels(w) + w.source.nbytes, 2 * _pixels(w) + w.source.nbytes),
            ours=lambda x, source: (entmask_ext.gather_patches(x, source, PATCH),),
            eager={"index_select": lambda x, source: eager.gather_patches(x, PATCH, source)},
            compiled=lambda x, source: eager.gather_patches(x, PATCH, source),
            loop=lambda x, source: loop.gather_patches(x, PATCH, source),
            leaves=(0,),
        ),
        Op(
            "box_mask",
            inputs=lambda w: (w.boxes, w.size.spatial),
            results=("mask",),
            traffic=lambda w: (w.size.pixels + w.boxes.nbytes, 0),
            ours=lambda boxes, sizes: (entmask_ext.box_mask(boxes, sizes),),
            eager={"comparisons": eager.box_mask},
            compiled=eager.box_mask,
            loop=loop.box_mask,
        ),
        Op(
            "largest_components",
            inputs=lambda w: (w.blobs, w.size.classes),
            results=("labels",),
            traffic=lambda w: (2 * w.size.pixels, 0),
            ours=lambda labels, classes: (entmask_ext.largest_components(labels, classes),),
            eager={"smallest neighbour": eager.largest_components},
            compiled=None,  # how many rounds it takes follows from the labels
            library={"cc3d.connected_components": _cc3d} if find_spec("cc3d") else {},
            loop=loop.largest_components if find_spec("scipy") else None,
            syncs=("eager", "library", "loop"),
        ),
    )
}
