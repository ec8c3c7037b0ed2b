"""Every public op in plain torch, written from its formula: the oracle that the kernels are tested against.

Same names, arguments and results as the package's own functions. All arithmetic is in float64, and only the result is
rounded to its dtype; autograd gives the gradients, of any order. Arguments are not checked, memory and time are not
spared, and 0-d tensors are read on the host. Nothing in the package falls back on it.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from entmask_ext.types import ConsistencyLoss, PatchMask, PseudoLabels

__all__ = [
    "box_mask",
    "consistency_loss",
    "entropy_map",
    "gather_patches",
    "largest_components",
    "patch_mask",
    "patch_mask_from_scores",
    "patch_scores",
    "patch_where",
    "pseudo_labels",
    "random_patch_mask",
    "select_patches",
    "shuffle_patches",
    "soft_consistency_loss",
    "uncertainty_map",
]


def patch_mask(
    image: Tensor,
    logits: Tensor,
    patch_size: int | Sequence[int] = 16,
    ratio: float | Tensor | None = None,
    *,
    uncertainty: str = "entropy",
    score: str = "mean",
    threshold: float | Tensor = 0.75,
    min_score: float | Tensor | None = None,
    min_patches: int = 0,
    order: str = "highest",
    hint: float = 0.0,
    scope: str = "image",
    fill: float = 0.0,
    mask_dtype: torch.dtype | None = None,
    label_dtype: torch.dtype | None = None,
    min_confidence: float | Tensor | None = None,
) -> PatchMask:
    """:func:`patch_scores`, :func:`patch_mask_from_scores` and :func:`pseudo_labels`, one after the other."""
    masked = patch_mask_from_scores(
        image,
        patch_scores(logits, patch_size, uncertainty=uncertainty, score=score, threshold=threshold),
        patch_size,
        ratio,
        min_score=min_score,
        min_patches=min_patches,
        order=order,
        hint=hint,
        scope=scope,
        fill=fill,
        mask_dtype=mask_dtype,
    )
    if label_dtype is None:
        return masked
    return masked._replace(labels=pseudo_labels(logits, min_confidence=min_confidence, label_dtype=label_dtype).labels)


def patch_mask_from_scores(
    image: Tensor,
    scores: Tensor,
    patch_size: int | Sequence[int] = 16,
    ratio: float | Tensor | None = None,
    *,
    min_score: float | Tensor | None = None,
    min_patches: int = 0,
    order: str = "highest",
    hint: float = 0.0,
    scope: str = "image",
    fill: float = 0.0,
    mask_dtype: torch.dtype | None = None,
) -> PatchMask:
    """:func:`select_patches`, then :func:`patch_where` with fill inside."""
    scores = scores.to(_result_dtype(scores.dtype))
    patches = select_patches(
        scores, ratio, min_score=min_score, min_patches=min_patches, order=order, hint=hint, scope=scope
    )
    mask = _spread(patches, _per_axis(patch_size, scores.dim() - 1), image.shape[2:]).unsqueeze(1)
    return PatchMask(
        patch_where(patches, fill, image, patch_size),
        mask.to(image.dtype if mask_dtype is None else mask_dtype),
        patches,
        scores,
        None,
    )


def select_patches(
    scores: Tensor,
    ratio: float | Tensor | None = None,
    *,
    min_score: float | Tensor | None = None,
    min_patches: int = 0,
    order: str = "highest",
    hint: float = 0.0,
    scope: str = "image",
) -> Tensor:
    """By a stable sort of each row's scores."""
    rows = scores.detach().to(_result_dtype(scores.dtype)).reshape(scores.shape[0], scores.shape[1:].numel())
    if scope == "batch":
        rows = rows.reshape(1, rows.numel())
    selected = [
        _select(row, row_ratio, row_min_score, min_patches, order == "lowest", hint)
        for row, row_ratio, row_min_score in zip(
            rows, _per_row(ratio, rows.shape[0]), _per_row(min_score, rows.shape[0]), strict=True
        )
    ]
    patches = torch.stack(selected) if selected else torch.zeros_like(rows, dtype=torch.bool)
    return patches.reshape(scores.shape)


def patch_where(
    patches: Tensor, inside: float | Tensor, outside: float | Tensor, patch_size: int | Sequence[int]
) -> Tensor:
    """torch.where with the mask of pixels."""
    axes = patches.dim() - 1
    x = outside if isinstance(outside, Tensor) else inside
    assert isinstance(x, Tensor), "two numbers have no shape"
    mask = _spread(patches, _per_axis(patch_size, axes), x.shape[x.dim() - axes :])
    if x.dim() == axes + 2:
        mask = mask.unsqueeze(1)
    taken, other = (side if isinstance(side, Tensor) else torch.full_like(x, side) for side in (inside, outside))
    return torch.where(mask, taken, other)


def random_patch_mask(
    image: Tensor,
    patch_size: int | Sequence[int] = 16,
    ratio: float | Tensor = 0.75,
    *,
    shared: bool = False,
    fill: float = 0.0,
    mask_dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> PatchMask:
    """:func:`patch_mask_from_scores` with uniform random scores, drawn once for all images if shared."""
    grid = _grid(image.shape[2:], _per_axis(patch_size, image.dim() - 2))
    scores = torch.rand(
        [1 if shared else image.shape[0], *grid], dtype=torch.float32, device=image.device, generator=generator
    )
    scores = scores.expand(image.shape[0], *grid)
    return patch_mask_from_scores(image, scores, patch_size, ratio, fill=fill, mask_dtype=mask_dtype)


def entropy_map(logits: Tensor, *, normalize: bool = True) -> Tensor:
    """H = -sum_k p_k ln p_k of p = softmax(logits); normalized: over ln K and clamped to [0, 1]."""
    return _entropy(logits, normalize).to(_result_dtype(logits.dtype))


def uncertainty_map(logits: Tensor, uncertainty: str = "entropy") -> Tensor:
    """The entropy, (1 - p1) K / (K - 1), or 1 - (p1 - p2)."""
    return _uncertainty(logits, uncertainty).to(_result_dtype(logits.dtype))


def pseudo_labels(
    logits: Tensor, *, min_confidence: float | Tensor | None = None, label_dtype: torch.dtype = torch.uint8
) -> PseudoLabels:
    """The argmax of the logits, and the ignored label where its probability is below min_confidence or NaN."""
    if logits.numel() == 0:
        empty = logits.new_empty((logits.shape[0], *logits.shape[2:]), dtype=label_dtype)
        return PseudoLabels(empty, logits.new_zeros(logits.shape[0], dtype=torch.float32))
    labels = logits.argmax(1).to(label_dtype)
    kept = torch.ones_like(labels, dtype=torch.bool)
    if min_confidence is not None:
        dtype = _result_dtype(logits.dtype)
        others, _ = _others(logits)
        kept = (1 / (1 + others)).to(dtype) >= _scalar(min_confidence, dtype)
        labels = labels.masked_fill(~kept, 255 if label_dtype == torch.uint8 else -100)
    return PseudoLabels(labels, kept.flatten(1).double().mean(1).float())


def patch_scores(
    logits: Tensor,
    patch_size: int | Sequence[int] = 16,
    *,
    uncertainty: str = "entropy",
    score: str = "mean",
    threshold: float | Tensor = 0.75,
) -> Tensor:
    """The mean uncertainty of each patch's pixels, or the fraction of them with uncertainty >= threshold."""
    dtype = _result_dtype(logits.dtype)
    patch = _per_axis(patch_size, logits.dim() - 2)
    values = _uncertainty(logits, uncertainty)
    if score == "count":
        # As everywhere in the ops, the comparison is one of numbers that were rounded to the scores' dtype.
        values = values.detach().to(dtype)
        limits = [_scalar(limit, dtype) for limit in _per_row(threshold, logits.shape[0])]
        limit = torch.tensor(limits, dtype=dtype, device=logits.device).reshape(-1, *[1] * len(patch))
        values = ((values >= limit) | values.isnan()).double()
    pixels = _patch_sums(torch.ones(logits.shape[2:], dtype=torch.float64, device=logits.device)[None], patch)
    return (_patch_sums(values, patch) / pixels).to(dtype)


def consistency_loss(
    logits: Tensor,
    labels: Tensor,
    patches: Tensor | None = None,
    patch_size: int | Sequence[int] | None = None,
    *,
    mask_weight: float = 1.5,
    visible_weight: float = 1.0,
    class_weight: Tensor | None = None,
    ce_weight: float = 0.5,
    dice_weight: float = 0.5,
    dice_region: str = "all",
    smooth: float = 1e-5,
    denominator_offset: float = 0.0,
) -> ConsistencyLoss:
    """Weighted mean cross entropy of the masked and of the visible pixels, and the soft Dice of both together or each.

    l = -ln softmax(logits)[label], w = class_weight[label]: ce = sum w l / (sum w + denominator_offset) over a region;
    dice = mean_k 1 - (2 sum p_k t_k + smooth) / (sum p_k^2 + sum t_k + smooth), t the one-hot label.
    """
    classes = logits.shape[1]
    if patches is None:
        masked = torch.zeros_like(labels, dtype=torch.bool)
    else:
        assert patch_size is not None, "a grid of patches needs their patch_size"
        masked = _spread(patches, _per_axis(patch_size, logits.dim() - 2), logits.shape[2:]).expand(labels.shape)

    # From here on, one entry a pixel that counts: (M, K) logits, (M,) labels and region.
    labels = labels.long()
    counts = (labels >= 0) & (labels < classes)
    log_p = F.log_softmax(logits.movedim(1, -1)[counts].double(), dim=-1)
    label = labels[counts].long()
    masked = masked[counts]
    weight = torch.ones(classes, dtype=torch.float64, device=logits.device)
    if class_weight is not None:
        weight = class_weight.double()
    w = weight[label]
    loss = -log_p.gather(1, label[:, None])[:, 0]

    def cross_entropy(region: Tensor) -> Tensor:
        heavy = region & (w > 0)  # 0 * inf must not get into the sum
        numerator = (w[heavy] * loss[heavy]).sum()
        denominator = w[region].sum()
        return numerator / (denominator + denominator_offset) if denominator > 0 else numerator

    ce_masked, ce_visible = cross_entropy(masked), cross_entropy(~masked)
    p, t = log_p.exp(), F.one_hot(label, classes).double()

    def weighted(weight: float, part: Tensor) -> Tensor:
        return weight * part if weight else part.new_zeros(())  # 0 * NaN must not get into the sum

    def soft_dice(region: Tensor) -> Tensor:
        p_here, t_here = p[region], t[region]
        fraction = (2 * (p_here * t_here).sum(0) + smooth) / ((p_here**2).sum(0) + t_here.sum(0) + smooth)
        return (1 - fraction).mean()

    if dice_region == "all":
        dice = soft_dice(torch.ones_like(masked))
    else:
        regions = [(mask_weight, masked), (visible_weight, ~masked)]
        parts = (weighted(weight, soft_dice(region)) for weight, region in regions if region.any())
        dice = sum(parts, ce_masked.new_zeros(()))
    ce = weighted(mask_weight, ce_masked) + weighted(visible_weight, ce_visible)
    total = weighted(ce_weight, ce) + weighted(dice_weight, dice)
    dtype = _result_dtype(logits.dtype)
    return ConsistencyLoss(total.to(dtype), ce_masked.to(dtype), ce_visible.to(dtype), dice.to(dtype))


def soft_consistency_loss(
    logits: Tensor, target_logits: Tensor, where: Tensor | None = None, *, kind: str = "mse"
) -> Tensor:
    """The mean over pixels of sum_k (p_k - q_k)^2 or of sum_k q_k (ln q_k - ln p_k), p and q the two softmaxes."""
    if where is None:
        where = torch.ones_like(logits[:, 0], dtype=torch.bool)
    # From here on, one row a pixel that counts.
    x, y = (t.movedim(1, -1)[where].double() for t in (logits, target_logits))
    log_p, log_q = F.log_softmax(x, -1), F.log_softmax(y, -1)
    p, q = log_p.exp(), log_q.exp()
    terms = (p - q) ** 2 if kind == "mse" else (q * (log_q - log_p)).masked_fill(q == 0, 0)
    mean = terms.sum() / max(len(terms), 1)
    both = torch.promote_types(_result_dtype(logits.dtype), _result_dtype(target_logits.dtype))
    return mean.to(both)


def shuffle_patches(
    x: Tensor, patch_size: int | Sequence[int], permutation: Tensor, *, inverse: bool = False
) -> Tensor:
    """out[i] = x[permutation[i]] over the patches of groups of B consecutive images, numbered image by image."""
    images, channels, *sizes = x.shape
    axes = len(sizes)
    patch = _per_axis(patch_size, axes)
    grid = _grid(sizes, patch)
    # (N, C, g0, p0, g1, p1, ...) -> (N, g0, g1, ..., C, p0, p1, ...)
    blocks = x.reshape(images, channels, *(n for pair in zip(grid, patch, strict=True) for n in pair))
    to_blocks = [0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2)]
    blocks = blocks.permute(to_blocks)
    shape = blocks.shape
    groups = images * math.prod(grid) // permutation.numel() if permutation.numel() else 0
    order = permutation.argsort() if inverse else permutation
    blocks = blocks.reshape(groups, permutation.numel(), *shape[1 + axes :])[:, order].reshape(shape)
    back = torch.tensor(to_blocks).argsort().tolist()
    return blocks.permute(back).reshape(x.shape)


def box_mask(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """The product of one interval per axis."""
    out = torch.ones(len(boxes), *size, dtype=torch.bool, device=boxes.device)
    for axis, length in enumerate(size):
        place = torch.arange(length, device=boxes.device).view(-1, *[1] * (len(size) - 1 - axis))
        first, last = (boxes[:, 2 * axis + end].view(-1, *[1] * len(size)) for end in (0, 1))
        out &= (first <= place) & (place < last)
    return out


def gather_patches(x: Tensor, source: Tensor, patch_size: int | Sequence[int]) -> Tensor:
    """Indexing: the batch as a list of patches, from which each takes its own."""
    with_channels = x if x.dim() > source.dim() else x.unsqueeze(1)
    images, channels, *sizes = with_channels.shape
    axes = len(sizes)
    patch = _per_axis(patch_size, axes)
    split = [n for pair in zip(_grid(sizes, patch), patch, strict=True) for n in pair]
    to_blocks = [0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2)]
    blocks = with_channels.reshape(images, channels, *split).permute(to_blocks)
    taken = blocks.reshape(source.numel(), *blocks.shape[1 + axes :])[source.flatten()].reshape(blocks.shape)
    back = torch.tensor(to_blocks).argsort().tolist()
    return taken.permute(back).reshape(x.shape)


def largest_components(labels: Tensor, num_classes: int, *, connectivity: int = 1) -> Tensor:
    """Each pixel takes the lowest index among its neighbours of its class until nothing changes, then the sizes."""
    images, *sizes = labels.shape
    foreground = (labels > 0) & (labels.long() < num_classes)
    root = torch.arange(math.prod(sizes), device=labels.device).view(1, *sizes).expand(labels.shape).clone()
    offsets = [o for o in itertools.product((-1, 0, 1), repeat=len(sizes)) if 0 < sum(map(abs, o)) <= connectivity]
    changed = labels.numel() > 0
    while changed:
        before = root.clone()
        for offset in offsets:
            here = (slice(None), *(slice(max(0, -o), size - max(0, o)) for o, size in zip(offset, sizes, strict=True)))
            there = (slice(None), *(slice(max(0, o), size - max(0, -o)) for o, size in zip(offset, sizes, strict=True)))
            joined = foreground[here] & (labels[here] == labels[there])
            root[here] = torch.where(joined, torch.minimum(root[here], root[there]), root[here])
        changed = not torch.equal(root, before)

    out = labels.clone()
    for n in range(images if labels.numel() else 0):
        pixels = torch.bincount(root[n][foreground[n]], minlength=root[n].numel())
        for k in labels[n][foreground[n]].unique():
            mine = labels[n] == k
            roots = root[n][mine].unique()
            largest = roots[pixels[roots].argmax()]  # roots ascend: of equal ones the first
            out[n][mine & (root[n] != largest)] = 0
    return out


def _result_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _per_axis(patch_size: int | Sequence[int], axes: int) -> list[int]:
    return [patch_size] * axes if isinstance(patch_size, int) else list(patch_size)


def _grid(sizes: Sequence[int], patch: Sequence[int]) -> list[int]:
    return [math.ceil(size / width) for size, width in zip(sizes, patch, strict=True)]


def _scalar(value: float | Tensor, dtype: torch.dtype) -> float:
    """A number or 0-d tensor, rounded to dtype."""
    return torch.as_tensor(float(value), dtype=torch.float64).to(dtype).item()


def _entropy(logits: Tensor, normalize: bool) -> Tensor:
    """Softmax entropy of each pixel, (N, K, *S) -> (N, *S) float64.

    log_softmax with the largest class kept out of the sum, ln p = x - max - log1p(sum of the others): 1 + 1e-30 is 1,
    so that with it in there a sure pixel would lose a part of its entropy.
    """
    x = logits.double()
    largest = x.argmax(1, keepdim=True)
    maximum = x.gather(1, largest)
    absent = (x - maximum).isneginf()  # p = 0; false where the maximum is NaN or infinite, which makes the pixel NaN
    shifted = torch.where(absent, maximum, x) - maximum
    others = shifted.exp().masked_fill(absent.scatter(1, largest, True), 0).sum(1, keepdim=True)
    log_p = shifted - others.log1p()
    entropy = -(log_p.exp() * log_p).masked_fill(absent, 0).sum(1)
    return _clamped(entropy / math.log(logits.shape[1])) if normalize else entropy


def _uncertainty(logits: Tensor, uncertainty: str) -> Tensor:
    """(N, K, *S) -> (N, *S) float64."""
    if uncertainty == "entropy":
        return _entropy(logits, normalize=True)
    others, second = _others(logits)
    classes = logits.shape[1]
    if uncertainty == "least_confidence":
        return _clamped(others / (1 + others) * classes / (classes - 1))
    return _clamped((others + second) / (1 + others))


def _others(logits: Tensor) -> tuple[Tensor, Tensor]:
    """With e = exp(x - max): its sum over all classes but the first maximum, and the first largest of these.

    p1 = 1 / (1 + sum), p2 = largest / (1 + sum). NaN where a class is NaN or +inf, or all are -inf.
    """
    x = logits.double()
    if x.numel() == 0:
        return x.sum(1), x.sum(1)
    largest = x.argmax(1, keepdim=True)
    maximum = x.gather(1, largest)
    left_out = x.isneginf().scatter(1, largest, True)
    e = (torch.where(left_out, maximum, x) - maximum).exp().masked_fill(left_out, 0)
    second = e.gather(1, x.scatter(1, largest, -math.inf).argmax(1, keepdim=True))
    undefined = maximum - maximum
    return (e.sum(1, keepdim=True) + undefined).squeeze(1), (second + undefined).squeeze(1)


def _clamped(values: Tensor) -> Tensor:
    """To [0, 1], with the gradient of what is not clamped."""
    return values + (values.clamp(0, 1) - values).detach()


def _patch_sums(x: Tensor, patch: Sequence[int]) -> Tensor:
    """(N, *S) -> (N, *G): sums over patches, of which the last of an axis may be cut."""
    sizes = x.shape[1:]
    patch = [min(width, max(size, 1)) for width, size in zip(patch, sizes, strict=True)]  # no padding beyond one patch
    grid = _grid(sizes, patch)
    missing = [n * width - size for n, width, size in zip(grid, patch, sizes, strict=True)]
    x = F.pad(x, [end for n in reversed(missing) for end in (0, n)])
    x = x.reshape(x.shape[0], *(n for pair in zip(grid, patch, strict=True) for n in pair))
    return x.sum(list(range(2, x.dim(), 2)))


def _spread(patches: Tensor, patch: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """(N, *G) -> (N, *S): each pixel gets the value of its patch."""
    for axis, (width, size) in enumerate(zip(patch, sizes, strict=True), start=1):
        patches = patches.repeat_interleave(min(width, max(size, 1)), axis).narrow(axis, 0, size)
    return patches


def _per_row(value: Any, rows: int) -> list[Any]:
    """A number of each row: N values are one per image."""
    return list(value) if isinstance(value, Tensor) and value.dim() == 1 else [value] * rows


def _count(ratio: float | Tensor | None, count: int) -> int:
    """How many of a row's patches a ratio selects. An integer tensor is the number itself."""
    if isinstance(ratio, Tensor) and not ratio.is_floating_point():
        return min(max(int(ratio), 0), count)
    fraction = 0.75 if ratio is None else float(ratio)
    return min(count, max(1, _share(fraction, count))) if fraction > 0 else 0  # NaN: none


def _share(fraction: float, count: int) -> int:
    return math.floor(min(fraction, 1) * count + 1e-6)


def _select(
    scores: Tensor,
    ratio: float | Tensor | None,
    min_score: float | Tensor | None,
    min_patches: int,
    lowest: bool,
    hint: float,
) -> Tensor:
    """(P,) scores -> (P,) bool. Both rankings put NaN above +inf and the lower index first among equals."""
    count = scores.numel()
    selected = torch.zeros(count, dtype=torch.bool, device=scores.device)
    if count == 0:
        return selected
    scores = scores + 0.0  # -0.0 + 0.0 = 0.0: both zeros sort as one
    ranking = scores.sort(descending=not lowest, stable=True).indices
    if min_score is None:
        chosen = _count(ratio, count)
    elif math.isnan(float(min_score)):
        chosen = 0
    else:
        bound = _scalar(min_score, scores.dtype)
        passing = scores <= bound if lowest else (scores >= bound) | scores.isnan()
        chosen = max(min_patches, int(passing.sum()))
    selected[ranking[:chosen]] = True

    visible = min(_share(hint, count), int(selected.sum()) - 1)
    highest_first = scores.sort(descending=True, stable=True).indices
    highest_first = highest_first[selected[highest_first]]
    selected[highest_first[: max(0, visible)]] = False
    return selected
