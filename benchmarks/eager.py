"""The same in tensor operations, as well as we can write it: the forms worth trying; a run keeps the fastest.

Every function is traced whole by torch.compile. Spatial sizes are multiples of the patch.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Entropy = Callable[[Tensor], Tensor]


def entropy_log_softmax(logits: Tensor) -> Tensor:
    log_p = F.log_softmax(logits, 1)
    return (log_p.exp() * log_p).sum(1) * (-1 / math.log(logits.shape[1]))


def entropy_both(logits: Tensor) -> Tensor:
    return (F.softmax(logits, 1) * F.log_softmax(logits, 1)).sum(1) * (-1 / math.log(logits.shape[1]))


def entropy_entr(logits: Tensor) -> Tensor:
    return torch.special.entr(F.softmax(logits, 1)).sum(1) * (1 / math.log(logits.shape[1]))


def entropy_logsumexp(logits: Tensor) -> Tensor:
    """ln z - sum p x: one logarithm per pixel instead of K."""
    shifted = logits - logits.amax(1, keepdim=True)
    e = shifted.exp()
    z = e.sum(1)
    return (z.log() - (e * shifted).sum(1) / z) * (1 / math.log(logits.shape[1]))


ENTROPIES: dict[str, Entropy] = {
    "log_softmax": entropy_log_softmax,
    "softmax and log_softmax": entropy_both,
    "entr": entropy_entr,
    "logsumexp": entropy_logsumexp,
}


def margin_topk(logits: Tensor) -> Tensor:
    p = F.softmax(logits, 1).topk(2, 1).values
    return 1 - (p[:, 0] - p[:, 1])


def margin_masked(logits: Tensor) -> Tensor:
    """The second largest is the largest without the first: two maxima in place of a sort."""
    p = F.softmax(logits, 1)
    first = p.max(1, keepdim=True)
    second = p.scatter(1, first.indices, -1).amax(1)
    return 1 - (first.values.squeeze(1) - second)


def margin_reduced(logits: Tensor) -> Tensor:
    """Of the logits, not of the probabilities: z and the second largest from one exponential."""
    first = logits.max(1, keepdim=True)
    e = (logits - first.values).exp().scatter(1, first.indices, 0)
    z = e.sum(1)
    return (z + e.amax(1)) / (1 + z)


MARGINS: dict[str, Entropy] = {"topk": margin_topk, "masked": margin_masked, "reduced": margin_reduced}


def pseudo_labels(logits: Tensor, min_confidence: float) -> tuple[Tensor, Tensor]:
    confidence, labels = F.softmax(logits, 1).max(1)
    return _gated(confidence >= min_confidence, labels)


def pseudo_labels_reduced(logits: Tensor, min_confidence: float) -> tuple[Tensor, Tensor]:
    """p1 = 1 / sum of exp(x - max): no softmax is written."""
    top, labels = logits.max(1, keepdim=True)
    confidence = 1 / (logits - top).exp().sum(1)
    return _gated(confidence >= min_confidence, labels.squeeze(1))


def _gated(kept: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return labels.masked_fill(~kept, 255).to(torch.uint8), kept.flatten(1).float().mean(1)


def entropy_map(logits: Tensor, *, entropy: Entropy) -> tuple[Tensor]:
    return (entropy(logits),)


def patch_scores(logits: Tensor, patch: int, *, entropy: Entropy) -> tuple[Tensor]:
    pool = F.avg_pool2d if logits.dim() == 4 else F.avg_pool3d
    return (pool(entropy(logits).unsqueeze(1), patch).squeeze(1),)


def spread(patches: Tensor, patch: int) -> Tensor:
    """(N, *G) -> (N, 1, *S)."""
    images, *grid = patches.shape
    shape = [part for n in grid for part in (n, 1)]
    wide = [part for n in grid for part in (n, patch)]
    sizes = [n * patch for n in grid]
    return patches.view(images, 1, *shape).expand(images, 1, *wide).reshape(images, 1, *sizes)


def patch_where(patches: Tensor, inside: Tensor, outside: Tensor, patch: int) -> Tensor:
    return torch.where(spread(patches, patch), inside, outside)


def select(scores: Tensor, ratio: float) -> Tensor:
    rows = scores.flatten(1)
    chosen = rows.topk(max(1, int(ratio * rows.shape[1])), sorted=False).indices
    return torch.zeros_like(rows, dtype=torch.bool).scatter_(1, chosen, True).view(scores.shape)


def patch_mask_from_scores(image: Tensor, scores: Tensor, patch: int, ratio: float) -> tuple[Tensor, Tensor]:
    mask = spread(select(scores, ratio), patch)
    return image.masked_fill(mask, 0), mask.to(image.dtype)


def patch_mask(
    image: Tensor, logits: Tensor, patch: int, ratio: float, *, entropy: Entropy
) -> tuple[Tensor, Tensor, Tensor]:
    (scores,) = patch_scores(logits, patch, entropy=entropy)
    new, mask = patch_mask_from_scores(image, scores.detach(), patch, ratio)
    return new, scores, mask


def random_patch_mask(image: Tensor, patch: int, ratio: float) -> tuple[Tensor, Tensor]:
    grid = [n // patch for n in image.shape[2:]]
    return patch_mask_from_scores(image, torch.rand(image.shape[0], *grid, device=image.device), patch, ratio)


def _blocks(x: Tensor, patch: int) -> tuple[Tensor, list[int]]:
    """(N, C, *S) -> (N, *G, C, *patch), and the order of axes that leads back."""
    axes = x.dim() - 2
    split = [part for n in x.shape[2:] for part in (n // patch, patch)]
    forth = [0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2)]
    back = sorted(range(len(forth)), key=forth.__getitem__)
    return x.reshape(*x.shape[:2], *split).permute(forth), back


def shuffle_patches(x: Tensor, patch: int, permutation: Tensor) -> tuple[Tensor]:
    blocks, back = _blocks(x, patch)
    flat = blocks.reshape(-1, permutation.numel(), x.shape[1] * patch ** (x.dim() - 2)).index_select(1, permutation)
    return (flat.view(blocks.shape).permute(back).reshape(x.shape),)


def gather_patches(x: Tensor, patch: int, source: Tensor) -> tuple[Tensor]:
    blocks, back = _blocks(x, patch)
    flat = blocks.reshape(source.numel(), -1).index_select(0, source.flatten())
    return (flat.view(blocks.shape).permute(back).reshape(x.shape),)


def box_mask(boxes: Tensor, sizes: Sequence[int]) -> tuple[Tensor]:
    inside = None
    for axis, size in enumerate(sizes):
        at = torch.arange(size, device=boxes.device).view(-1, *[1] * (len(sizes) - 1 - axis))
        first, end = (boxes[:, 2 * axis + i].view(-1, *[1] * len(sizes)) for i in (0, 1))
        along = (at >= first) & (at < end)
        inside = along if inside is None else inside & along
    assert inside is not None
    return (inside,)


def largest_components(labels: Tensor, classes: int) -> tuple[Tensor]:
    """Each pixel takes the smallest number among its neighbours', and its number's, until no number changes.

    A component's number is that of its first pixel. The host waits once a round.
    """
    number = torch.arange(labels.numel(), device=labels.device).view(labels.shape)
    same = [labels.narrow(axis, 1, n - 1) == labels.narrow(axis, 0, n - 1) for axis, n in enumerate(labels.shape)]
    while True:
        low = number.clone()
        for axis in range(1, labels.dim()):
            n = labels.shape[axis] - 1
            first, second = low.narrow(axis, 0, n), low.narrow(axis, 1, n)
            least = torch.minimum(first, second)
            first.copy_(torch.where(same[axis], least, first))
            second.copy_(torch.where(same[axis], torch.minimum(least, second), second))
        # What a pixel found holds for the whole tree that it hangs in.
        root = number.flatten()
        root = root.scatter_reduce(0, root, low.flatten(), "amin")
        root = root[root[root]]
        if torch.equal(root, number.flatten()):
            break
        number = root.view(labels.shape)
    count = torch.bincount(root, minlength=root.numel())
    # Of each image and class the largest count, then the first pixel: in one number.
    pixels = labels[0].numel()
    rank = count * root.numel() + (root.numel() - 1 - torch.arange(root.numel(), device=root.device))
    group = torch.arange(root.numel(), device=root.device) // pixels * classes + labels.flatten()
    best = torch.zeros(labels.shape[0] * classes, dtype=rank.dtype, device=root.device)
    best = best.scatter_reduce(0, group, rank, "amax")
    keeps = (rank[root] == best[group]).view(labels.shape)
    return (torch.where(keeps, labels, 0),)


def _wide(p: Tensor) -> torch.dtype:
    """Half precision would overflow in the sums over all pixels."""
    return torch.promote_types(p.dtype, torch.float32)


def dice_one_hot(p: Tensor, labels: Tensor, smooth: float = 1e-5) -> Tensor:
    classes, axes = p.shape[1], [0, *range(2, p.dim())]
    target = F.one_hot(labels, classes).movedim(-1, 1).to(p.dtype)
    wide = _wide(p)
    overlap, squares, counts = (
        (p * target).sum(axes, dtype=wide),
        (p * p).sum(axes, dtype=wide),
        target.sum(axes, dtype=wide),
    )
    return (1 - (2 * overlap + smooth) / (squares + counts + smooth)).mean()


def dice_compared(p: Tensor, labels: Tensor, smooth: float = 1e-5) -> Tensor:
    """The one-hot target as a broadcast comparison: no int64 tensor of K times the labels."""
    classes, axes = p.shape[1], [0, *range(2, p.dim())]
    target = labels.unsqueeze(1) == torch.arange(classes, device=p.device).view(-1, *[1] * (p.dim() - 2))
    wide = _wide(p)
    overlap, squares = p.masked_fill(~target, 0).sum(axes, dtype=wide), (p * p).sum(axes, dtype=wide)
    return (1 - (2 * overlap + smooth) / (squares + target.sum(axes) + smooth)).mean()


def dice_gathered(p: Tensor, labels: Tensor, smooth: float = 1e-5) -> Tensor:
    """No target at all: the labels' probabilities are gathered, then summed by label."""
    classes, axes = p.shape[1], [0, *range(2, p.dim())]
    flat = labels.reshape(-1)
    wide = _wide(p)
    chosen = p.gather(1, labels.unsqueeze(1)).reshape(-1).to(wide)
    overlap = chosen.new_zeros(classes).index_add(0, flat, chosen)
    counts = chosen.new_zeros(classes).index_add(0, flat, torch.ones_like(chosen))
    return (1 - (2 * overlap + smooth) / ((p * p).sum(axes, dtype=wide) + counts + smooth)).mean()


Dice = Callable[[Tensor, Tensor], Tensor]
DICES: dict[str, Dice] = {"one_hot": dice_one_hot, "compared": dice_compared, "gathered": dice_gathered}


def region_loss(logits: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor]:
    """The op's total with a Dice of each region. mask: (N, 1, *S) bool."""
    classes, axes, smooth = logits.shape[1], [0, *range(2, logits.dim())], 1e-5
    log_p = F.log_softmax(logits, 1)
    p, loss, wide = log_p.exp(), F.nll_loss(log_p, labels, reduction="none").unsqueeze(1), _wide(logits)
    target = labels.unsqueeze(1) == torch.arange(classes, device=p.device).view(-1, *[1] * (p.dim() - 2))
    total = torch.zeros((), dtype=wide, device=p.device)
    for weight, region in ((1.5, mask), (1.0, ~mask)):
        cross_entropy = loss.masked_fill(~region, 0).sum(dtype=wide) / region.sum().clamp(min=1)
        here, own = p.masked_fill(~region, 0), target & region
        overlap, squares = p.masked_fill(~own, 0).sum(axes, dtype=wide), (here * here).sum(axes, dtype=wide)
        dice = (1 - (2 * overlap + smooth) / (squares + own.sum(axes) + smooth)).mean()
        total = total + weight * (0.5 * cross_entropy + 0.5 * dice)
    return (total,)


def consistency_loss(logits: Tensor, labels: Tensor, mask: Tensor | None, *, dice: Dice) -> tuple[Tensor]:
    """The op's total with its default weights. mask: (N, 1, *S), 1 = masked."""
    log_p = F.log_softmax(logits, 1)
    if mask is None:
        cross_entropy = F.nll_loss(log_p, labels)
    else:
        loss = F.nll_loss(log_p, labels, reduction="none")
        mask = mask.squeeze(1).to(loss.dtype)
        wide = _wide(loss)
        masked, everything = mask.sum(dtype=wide), mask.numel()
        inside = (loss * mask).sum(dtype=wide)
        outside = loss.sum(dtype=wide) - inside
        cross_entropy = 1.5 * inside / masked.clamp(min=1) + outside / (everything - masked).clamp(min=1)
    return (0.5 * cross_entropy + 0.5 * dice(log_p.exp(), labels),)


def soft_mse(logits: Tensor, target: Tensor, where: Tensor) -> tuple[Tensor]:
    distance = (F.softmax(logits, 1) - F.softmax(target, 1)).square().sum(1)
    return (_mean_of(distance, where),)


def soft_mse_loss(logits: Tensor, target: Tensor, where: Tensor) -> tuple[Tensor]:
    distance = F.mse_loss(F.softmax(logits, 1), F.softmax(target, 1), reduction="none").sum(1)
    return (_mean_of(distance, where),)


def soft_kl(logits: Tensor, target: Tensor, where: Tensor) -> tuple[Tensor]:
    log_q = F.log_softmax(target, 1)
    return (_mean_of((log_q.exp() * (log_q - F.log_softmax(logits, 1))).sum(1), where),)


def soft_kl_div(logits: Tensor, target: Tensor, where: Tensor) -> tuple[Tensor]:
    distance = F.kl_div(F.log_softmax(logits, 1), F.log_softmax(target, 1), reduction="none", log_target=True).sum(1)
    return (_mean_of(distance, where),)


def _mean_of(distance: Tensor, where: Tensor) -> Tensor:
    wide = _wide(distance)
    return distance.masked_fill(~where, 0).sum(dtype=wide) / where.sum(dtype=wide).clamp(min=1)


def step(
    image: Tensor, teacher: Tensor, student: Tensor, patch: int, ratio: float, *, entropy: Entropy, dice: Dice
) -> tuple[Tensor, Tensor, Tensor]:
    """Masking by the teacher and the student's loss against its labels."""
    (scores,) = patch_scores(teacher, patch, entropy=entropy)
    mask = spread(select(scores, ratio), patch)
    labels = teacher.max(1).indices  # argmax takes ten times as long on the CPU
    (total,) = consistency_loss(student, labels, mask, dice=dice)
    return total, image.masked_fill(mask, 0), mask.to(image.dtype)
