"""What each kernel must answer, in float64 numpy, from the formulas of params.h and of the public docstrings."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .tensors import patch_counts


def log_softmax(x: np.ndarray) -> np.ndarray:
    """[N, K, *S]; the greatest logit's own 1 is left out of the sum, so that a sure pixel keeps its digits."""
    top = x.argmax(1, keepdims=True) if x.size else np.zeros((x.shape[0], 1, *x.shape[2:]), np.int64)
    with np.errstate(invalid="ignore", over="ignore"):
        d = x - np.take_along_axis(x, top, 1)
        e = np.exp(d)
        np.put_along_axis(e, top, 0.0, 1)
        return d - np.log1p(e.sum(1, keepdims=True))


def unusable(x: np.ndarray) -> np.ndarray:
    """Pixels [N, *S] whose softmax is not defined: NaN, +inf, or nothing but -inf."""
    return np.isnan(x).any(1) | (x == np.inf).any(1) | (x == -np.inf).all(1)


def entropy(x: np.ndarray, *, normalize: bool = True) -> np.ndarray:
    """-sum p ln p [N, *S]; normalized by ln K and clamped to [0, 1]."""
    logp = log_softmax(x)
    with np.errstate(invalid="ignore"):
        terms = np.where(x == -np.inf, 0.0, np.exp(logp) * logp)
    h = np.where(unusable(x), np.nan, -terms.sum(1))
    return np.clip(h / math.log(x.shape[1]), 0, 1) if normalize else h


def _others(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """e^(x - max) but of the first maximum (0 there), their sum and largest, and the classes of the two largest x."""
    first = x.argmax(1) if x.size else np.zeros((len(x), *x.shape[2:]), np.int64)
    at = first[:, None]
    with np.errstate(invalid="ignore", over="ignore"):
        e = np.exp(x - np.take_along_axis(x, at, 1))
    np.put_along_axis(e, at, 0.0, 1)
    rest = x.copy()
    np.put_along_axis(rest, at, -np.inf, 1)
    second = rest.argmax(1) if x.size else first
    return e, e.sum(1), np.take_along_axis(e, second[:, None], 1)[:, 0], np.stack([first, second], 1)


def uncertainty(x: np.ndarray, kind: str) -> np.ndarray:
    """As params.h says, [N, *S]."""
    if kind == "entropy":
        return entropy(x)
    k = x.shape[1]
    _, z, e2, _ = _others(x)
    with np.errstate(invalid="ignore"):
        value = z / (1 + z) * k / (k - 1) if kind == "least_confidence" else (z + e2) / (1 + z)
        return np.where(unusable(x), np.nan, np.clip(value, 0, 1))


def confidence(x: np.ndarray) -> np.ndarray:
    """The probability of the label, [N, *S]."""
    return np.where(unusable(x), np.nan, 1 / (1 + _others(x)[1]))


def _patch_slices(size: Sequence[int], patch: Sequence[int]) -> list[tuple[slice, ...]]:
    """Of every patch, row by row."""
    counts = patch_counts(size, patch)
    return [
        tuple(slice(i * p, min((i + 1) * p, s)) for i, p, s in zip(index, patch, size, strict=True))
        for index in np.ndindex(*counts)
    ]


def _by_patch(values: np.ndarray) -> np.ndarray:
    """[N, *G] -> [N, P]"""
    return values.reshape(len(values), math.prod(values.shape[1:]))


def patch_scores(
    x: np.ndarray,
    patch: Sequence[int],
    *,
    uncertainty_of: str = "entropy",
    threshold: float | np.ndarray | None = None,
    dtype: type = np.float32,
) -> np.ndarray:
    """Mean uncertainty of each patch [N, *G]; with a threshold (or one per image) the fraction of pixels that reach it.

    NaN pixels count always, and are all that a threshold of NaN counts.
    """
    h = uncertainty(x, uncertainty_of)
    if threshold is not None:
        at = np.asarray(threshold, dtype).reshape(-1, *[1] * (h.ndim - 1))
        h = (np.isnan(h) | (h.astype(dtype) >= at)).astype(np.float64)
    size = x.shape[2:]
    axes = tuple(range(1, h.ndim))
    scores = [h[(slice(None), *where)].mean(axes) for where in _patch_slices(size, patch)]
    return np.stack(scores, 1).reshape(len(h), *patch_counts(size, patch))


def labels(x: np.ndarray) -> np.ndarray:
    """The first maximum; NaN counts as the greatest, as in torch and numpy."""
    return x.argmax(1)


def gated_labels(x: np.ndarray, min_confidence: float | None, ignored: int, dtype: type = np.float32) -> np.ndarray:
    """The ignored label where the label's probability is below min_confidence, or NaN."""
    if min_confidence is None:
        return labels(x)
    return np.where(confidence(x).astype(dtype) >= dtype(min_confidence), labels(x), ignored)


def whole(ratio: float, length: int, *, least: int = 0) -> int:
    """How many of so many patches a ratio above 0 is: a whole number that it falls just short of is meant."""
    clamped = min(max(ratio, 0.0), 1.0) if ratio == ratio else 0.0
    return min(length, max(least, math.floor(clamped * length + 1e-6))) if clamped > 0 else 0


def select(
    scores: np.ndarray,
    *,
    ratio: float | int | Sequence[float | int] | None = None,  # an int: k itself; a sequence: one per row
    min_score: float | Sequence[float] | None = None,
    min_patches: int = 0,
    lowest: bool = False,
    hint: float = 0.0,
) -> np.ndarray:
    """[rows, P] -> bool. Rows one by one, in the words of SelectParams; NaN ranks above +inf, and NaNs tie."""
    out = np.zeros(scores.shape, bool)
    rows, p = scores.shape
    ratios, min_scores = (v if isinstance(v, Sequence) else [v] * rows for v in (ratio, min_score))
    for row, chosen, row_ratio, row_min in zip(scores, out, ratios, min_scores, strict=True):
        if p == 0:
            continue
        nan = np.isnan(row)
        value = np.where(nan, 0.0, row) + 0.0
        highest = sorted(range(p), key=lambda i: (not nan[i], -value[i] if not nan[i] else 0.0, i))
        ranked = sorted(range(p), key=lambda i: (nan[i], value[i], i)) if lowest else highest
        if isinstance(row_ratio, int):
            k = min(p, max(0, row_ratio))
        elif row_ratio is not None:
            k = whole(row_ratio, p, least=1)
        else:
            bound = row.dtype.type(row_min)
            passing = ~nan & (row <= bound) if lowest else nan | (row >= bound)
            k = 0 if np.isnan(bound) else min(p, max(min_patches, int(passing.sum())))
        selected = set(ranked[:k])
        chosen[list(selected)] = True
        spared = min(whole(hint, p), max(k - 1, 0))
        chosen[[i for i in highest if i in selected][:spared]] = False
    return out


def pixel_mask(patches: np.ndarray, size: Sequence[int], patch: Sequence[int]) -> np.ndarray:
    """[N, *G] -> [N, *S]"""
    out = np.zeros((len(patches), *size), bool)
    for flat, where in zip(_by_patch(patches).T, _patch_slices(size, patch), strict=True):
        out[(slice(None), *where)] = flat.reshape(-1, *[1] * len(size))
    return out


def where(
    patches: np.ndarray, inside: np.ndarray, outside: np.ndarray, size: Sequence[int], patch: Sequence[int]
) -> np.ndarray:
    """Images [N, C, *S], or numbers that broadcast with them; patches [N, *G] or [1, *G]."""
    return np.where(pixel_mask(patches, size, patch)[:, None], inside, outside)


def of_pixels(grad: np.ndarray, size: Sequence[int], patch: Sequence[int] | None) -> np.ndarray:
    """The gradient of patch means [N, *G] as that of their pixels [N, *S]; without a patch it is that already."""
    if patch is None:
        return grad
    pixels = np.zeros((len(grad), *size))
    for flat, where in zip(_by_patch(grad).T, _patch_slices(size, patch), strict=True):
        area = math.prod(s.stop - s.start for s in where)
        pixels[(slice(None), *where)] = flat.reshape(-1, *[1] * len(size)) / area
    return pixels


def top_two_backward(x: np.ndarray, grad: np.ndarray, kind: str, *, patch: Sequence[int] | None = None) -> np.ndarray:
    """d(1 - p1)/dx_j = p1 (p_j - [j = 1]), times K / (K - 1); the margin's - p2 (p_j - [j = 2]) more."""
    _, k, *size = x.shape
    _, z, e2, two = _others(x)
    p = np.exp(log_softmax(x))
    first, second = (
        (two[:, i, None] == np.arange(k).reshape(1, k, *[1] * len(size))).astype(np.float64) for i in (0, 1)
    )
    p1, p2, rest = (v[:, None] for v in (1 / (1 + z), e2 / (1 + z), z / (1 + z)))
    d = np.where(first == 1, -p1 * rest, p1 * p)  # p_1 - 1 = -z / (1 + z)
    d = d - p2 * (p - second) if kind == "margin" else d * k / (k - 1)
    d = np.where(unusable(x)[:, None], np.nan, np.where(x == -np.inf, 0.0, d))
    return d * of_pixels(grad, size, patch)[:, None]


def entropy_backward(
    x: np.ndarray, grad: np.ndarray, *, patch: Sequence[int] | None = None, normalize: bool = True
) -> np.ndarray:
    """dH/dx_j = -p_j (ln p_j + H) times grad, over ln K if normalized; a class at -inf gets 0."""
    _, k, *size = x.shape
    grad = of_pixels(grad, size, patch)
    logp = log_softmax(x)
    with np.errstate(invalid="ignore"):
        d = np.where(x == -np.inf, 0.0, -np.exp(logp) * (logp + entropy(x, normalize=False)[:, None]))
        d = np.where(unusable(x)[:, None], np.nan, d)
    return d * grad[:, None] / (math.log(k) if normalize else 1.0)


def loss(
    x: np.ndarray,
    labels_: np.ndarray,
    *,
    patches: np.ndarray | None,
    patch: Sequence[int] | None,
    class_weight: np.ndarray | None,
    weights: dict[str, float],
    dice_each: bool = False,
) -> tuple[dict[str, float], np.ndarray]:
    """The four losses and the sums of LossParams."""
    k, size = x.shape[1], x.shape[2:]
    logp = log_softmax(x)
    label = labels_.astype(np.int64)
    valid = (label >= 0) & (label < k)
    safe = np.where(valid, label, 0)
    w = np.ones(k) if class_weight is None else class_weight
    pixel_weight = np.where(valid, w[safe], 0.0)
    nll = -np.take_along_axis(logp, safe[:, None], 1)[:, 0]
    with np.errstate(invalid="ignore"):
        weighted = np.where(pixel_weight == 0, 0.0, pixel_weight * nll)
    masked = masked_pixels(label, patches, patch)
    onehot = (label[:, None] == np.arange(k).reshape(1, k, *[1] * len(size))) & valid[:, None]
    p = np.where(valid[:, None], np.exp(logp), 0.0)
    axes = (0, *range(2, x.ndim))
    regions = [masked[:, None], ~masked[:, None]] if dice_each else [np.ones_like(masked[:, None])]
    of_classes = [np.where(r, v, 0.0).sum(axes) for r in regions for v in (np.where(onehot, p, 0.0), p * p, onehot)]
    of_regions = [v[r].sum() for r in (masked, ~masked) for v in (weighted, pixel_weight)]
    sums = np.concatenate([of_regions, *of_classes])
    return losses_of(sums, k, weights, dice_each), sums


def masked_pixels(labels_: np.ndarray, patches: np.ndarray | None, patch: Sequence[int] | None) -> np.ndarray:
    """[N, *S] bool from patches [N or 1, *G]."""
    if patches is None:
        return np.zeros(labels_.shape, bool)
    return np.broadcast_to(pixel_mask(patches, labels_.shape[1:], patch or labels_.shape[1:]), labels_.shape)


def losses_of(sums: np.ndarray, k: int, weights: dict[str, float], dice_each: bool = False) -> dict[str, float]:
    offset, smooth = weights["denominator_offset"], weights["smooth"]

    def mean(total: float, weight: float) -> float:
        return total / (weight + offset) if weight != 0 else 0.0

    def soft_dice(inter: np.ndarray, square: np.ndarray, count: np.ndarray) -> float:
        return float((1 - (2 * inter + smooth) / (square + count + smooth)).mean())

    visible_weight = weights.get("visible_weight", 1.0)
    if dice_each:
        weighted = zip((weights["mask_weight"], visible_weight), sums[4:].reshape(2, 3, k), strict=True)
        dice = sum(weight * soft_dice(*of) for weight, of in weighted if of[2].sum() > 0)
    else:
        dice = soft_dice(*sums[4:].reshape(3, k))
    masked, visible = mean(sums[0], sums[1]), mean(sums[2], sums[3])
    total = (
        weights["ce_weight"] * (weights["mask_weight"] * masked + visible_weight * visible)
        + weights["dice_weight"] * dice
    )
    return {"total": total, "ce_masked": masked, "ce_visible": visible, "dice": dice}


def loss_backward(
    x: np.ndarray,
    labels_: np.ndarray,
    grads: dict[str, float],
    *,
    patches: np.ndarray | None,
    patch: Sequence[int] | None,
    class_weight: np.ndarray | None,
    weights: dict[str, float],
    dice_each: bool = False,
) -> np.ndarray:
    """The chain rule through sums: d(out)/d(sums), then d(sums)/dx pixel by pixel."""
    _, k, *size = x.shape
    _, sums = loss(
        x, labels_, patches=patches, patch=patch, class_weight=class_weight, weights=weights, dice_each=dice_each
    )
    g = {name: grads.get(name, 0.0) for name in ("total", "ce_masked", "ce_visible", "dice")}
    g_masked = g["ce_masked"] + g["total"] * weights["ce_weight"] * weights["mask_weight"]
    visible_weight = weights.get("visible_weight", 1.0)
    g_visible = g["ce_visible"] + g["total"] * weights["ce_weight"] * visible_weight
    g_dice = (g["dice"] + g["total"] * weights["dice_weight"]) / k
    offset, smooth = weights["denominator_offset"], weights["smooth"]
    masked = masked_pixels(labels_, patches, patch)
    shape = (1, k, *[1] * len(size))
    d_inter, d_square = np.zeros((2, 1, *[1] * (x.ndim - 1)))
    regions = [(weights["mask_weight"], masked), (visible_weight, ~masked)] if dice_each else [(1.0, True)]
    for (weight, region), (inter, square, count) in zip(regions, sums[4:].reshape(-1, 3, k), strict=True):
        z, here = square + count + smooth, np.expand_dims(region, 1) if dice_each else True
        with np.errstate(divide="ignore", invalid="ignore"):  # a region without pixels
            d_inter = np.where(here, (weight * g_dice * -2 / z).reshape(shape), d_inter)
            d_square = np.where(here, (weight * g_dice * (2 * inter + smooth) / z**2).reshape(shape), d_square)
    d_masked = g_masked / (sums[1] + offset) if sums[1] != 0 else 0.0
    d_visible = g_visible / (sums[3] + offset) if sums[3] != 0 else 0.0

    label = labels_.astype(np.int64)
    valid = (label >= 0) & (label < k)
    w = np.ones(k) if class_weight is None else class_weight
    p = np.exp(log_softmax(x))
    onehot = (label[:, None] == np.arange(k).reshape(shape)).astype(np.float64)
    ce = np.where(masked, d_masked, d_visible) * np.where(valid, w[np.where(valid, label, 0)], 0.0)
    dp = d_inter * onehot + 2 * d_square * p
    grad = ce[:, None] * (p - onehot) + p * (dp - (p * dp).sum(1, keepdims=True))
    return np.where(valid[:, None], grad, 0.0)


def soft_distance(x: np.ndarray, y: np.ndarray, *, kl: bool) -> np.ndarray:
    """Of each pixel [N, *S]; NaN where a softmax is not defined."""
    log_p, log_q = log_softmax(x), log_softmax(y)
    p, q = np.exp(log_p), np.exp(log_q)
    with np.errstate(invalid="ignore"):
        terms = np.where(q == 0, 0.0, q * (log_q - log_p)) if kl else (p - q) ** 2
    return np.where(unusable(x) | unusable(y), np.nan, terms.sum(1))


def soft_loss(x: np.ndarray, y: np.ndarray, where: np.ndarray | None, *, kl: bool) -> tuple[float, np.ndarray]:
    """The mean over the pixels that count, the sums [2]."""
    distances = soft_distance(x, y, kl=kl)[np.ones(x[:, 0].shape, bool) if where is None else where]
    total = float(distances.sum())
    return total / distances.size if distances.size else 0.0, np.array([total, distances.size])


def soft_loss_backward(x: np.ndarray, y: np.ndarray, where: np.ndarray | None, grad: float, *, kl: bool) -> np.ndarray:
    counts = np.ones(x[:, 0].shape, bool) if where is None else where
    p, q = np.exp(log_softmax(x)), np.exp(log_softmax(y))
    d = p - q
    of_pixel = d if kl else 2 * p * (d - (p * d).sum(1, keepdims=True))
    of_pixel = np.where((unusable(x) | unusable(y))[:, None], np.nan, of_pixel)
    return np.where(counts[:, None], grad * of_pixel / max(1, counts.sum()), 0.0)


def shuffle_patches(
    x: np.ndarray, permutation: np.ndarray, patch: Sequence[int], *, inverse: bool = False
) -> np.ndarray:
    """out[i] = x[permutation[i]] within each group of images; inverse: out[permutation[i]] = x[i]."""
    where = _patch_slices(x.shape[2:], patch)
    group = permutation.size // len(where)
    out = np.empty_like(x)
    for first in range(0, len(x), group):
        for i, j in enumerate(permutation):
            to, source = (j, i) if inverse else (i, j)
            out[(first + to // len(where), slice(None), *where[to % len(where)])] = x[
                (first + source // len(where), slice(None), *where[source % len(where)])
            ]
    return out


def gather_backward(grad: np.ndarray, source: np.ndarray, patch: Sequence[int]) -> np.ndarray:
    """Of each patch the sum over those that took it; an entry out of range takes nothing."""
    where = _patch_slices(grad.shape[2:], patch)
    out = np.zeros_like(grad)
    for i, j in enumerate(source):
        if 0 <= j < source.size:
            out[(j // len(where), slice(None), *where[j % len(where)])] += grad[
                (i // len(where), slice(None), *where[i % len(where)])
            ]
    return out
