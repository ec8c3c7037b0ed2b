"""BCP's step: one box of labelled images pasted into unlabelled ones and the reverse, with cleaned pseudo-labels.

In plain torch, as research code has it, and by the fused calls, with the same answers. What each costs in operations,
and in waits for the device, is counted in docs/ops.md.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

import entmask_ext

Pair = tuple[Tensor, Tensor]  # images (N, 1, H, W) and labels (N, H, W)
Box = tuple[int, int, int, int]  # first and past-the-end row, first and past-the-end column
Result = tuple[Tensor, Tensor, Tensor]  # both batches, their labels, loss


def largest(mask: Tensor) -> Tensor:
    """The largest component of a mask (H, W), on the host, where most code has a library for it."""
    inside, best = mask.cpu().tolist(), []
    for start in [(y, x) for y, row in enumerate(inside) for x, on in enumerate(row) if on]:
        component, border = [], [start] if inside[start[0]][start[1]] else []
        while border:
            y, x = border.pop()
            if 0 <= y < len(inside) and 0 <= x < len(inside[0]) and inside[y][x]:
                inside[y][x] = False
                component.append((y, x))
                border += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        best = component if len(component) > len(best) else best
    out = torch.zeros(mask.shape, dtype=torch.bool)
    if best:
        out[tuple(zip(*best, strict=True))] = True
    return out.to(mask.device)


def plain(labelled: Pair, unlabelled: Tensor, teacher: Tensor, student: Tensor, box: Box) -> Result:
    """A class and image at a time on the host, then products with the mask, then four regions' losses."""
    pseudo = teacher.softmax(1).argmax(1)
    cleaned = torch.zeros_like(pseudo)
    for i in range(len(pseudo)):
        for k in range(1, teacher.shape[1]):
            cleaned[i] += k * largest(pseudo[i] == k)
    (images, labels), half = labelled, len(pseudo) // 2
    outside = torch.ones(images.shape[2:], dtype=images.dtype, device=images.device)
    outside[box[0] : box[1], box[2] : box[3]] = 0
    into_unlabelled = unlabelled[:half] * outside + images[:half] * (1 - outside)
    into_labelled = images[half:] * outside + unlabelled[half:] * (1 - outside)
    regions = [
        (student[:half], cleaned[:half], outside, 0.5),
        (student[:half], labels[:half], 1 - outside, 1.0),
        (student[half:], labels[half:], outside, 1.0),
        (student[half:], cleaned[half:], 1 - outside, 0.5),
    ]
    loss = student.new_zeros(())
    for logits, truth, where, weight in regions:
        p, where = logits.softmax(1), where.expand(truth.shape)
        cross_entropy = (F.cross_entropy(logits, truth, reduction="none") * where).sum() / where.sum()
        dice = student.new_zeros(())
        for k in range(student.shape[1]):
            target = (truth == k).float() * where
            overlap = (p[:, k] * target).sum()
            total = (p[:, k] * p[:, k] * where).sum() + target.sum()
            dice = dice + (1 - (2 * overlap + 1e-5) / (total + 1e-5)) / student.shape[1]
        loss = loss + weight * (cross_entropy + dice) / 2
    mixed = (
        torch.where(outside == 1, cleaned[:half], labels[:half]),
        torch.where(outside == 1, labels[half:], cleaned[half:]),
    )
    return torch.cat([into_unlabelled, into_labelled]), torch.cat(mixed), loss


def fused(labelled: Pair, unlabelled: Tensor, teacher: Tensor, student: Tensor, box: Tensor) -> Result:
    """box (1, 4) int64: one for the batch."""
    labels = entmask_ext.pseudo_labels(teacher, label_dtype=torch.int64).labels
    labels = entmask_ext.largest_components(labels, teacher.shape[1], connectivity=2)
    inside, half = entmask_ext.box_mask(box, unlabelled.shape[2:]), len(labels) // 2
    images, labels = (
        torch.cat(
            [
                entmask_ext.patch_where(inside, known[:half], unknown[:half], 1),
                entmask_ext.patch_where(inside, unknown[half:], known[half:], 1),
            ]
        )
        for known, unknown in zip(labelled, (unlabelled, labels), strict=True)
    )
    loss = student.new_zeros(())
    for part, weights in ((slice(half), (1.0, 0.5)), (slice(half, None), (0.5, 1.0))):  # inside, outside
        loss = (
            loss
            + entmask_ext.consistency_loss(
                student[part],
                labels[part],
                inside,
                1,
                mask_weight=weights[0],
                visible_weight=weights[1],
                dice_region="each",
            ).total
        )
    return images, labels, loss


def batch() -> tuple[tuple[Pair, Tensor, Tensor, Tensor], Box]:
    """12 labelled and 12 unlabelled images, a teacher's and a student's logits of 4 classes, a box of 2/3 x 2/3."""
    torch.manual_seed(0)
    teacher = F.interpolate(torch.randn(12, 4, 12, 12), (96, 96), mode="bilinear")
    student = torch.randn(12, 4, 96, 96, requires_grad=True)
    labelled = torch.rand(12, 1, 96, 96), torch.randint(4, (12, 96, 96))
    return (labelled, torch.rand(12, 1, 96, 96), teacher, student), (20, 84, 8, 72)


def main() -> None:
    given, box = batch()
    by_hand, (images, labels, loss) = plain(*given, box), fused(*given, torch.tensor([box]))
    torch.testing.assert_close(images, by_hand[0], rtol=0, atol=0)
    assert torch.equal(labels, by_hand[1])
    torch.testing.assert_close(loss, by_hand[2])
    gradients = [torch.autograd.grad(total, given[3])[0] for total in (loss, by_hand[2])]
    torch.testing.assert_close(*gradients)
    print(f"{tuple(images.shape)} images pasted both ways, loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
