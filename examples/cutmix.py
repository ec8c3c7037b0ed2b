"""FixMatch's unlabelled step with CutMix: a gate of sure pseudo-labels, and boxes of another image of the batch.

In plain torch, as research code has it, and by the fused calls, with the same answers. What each costs in operations,
and in waits for the device, is counted in docs/ops.md.
"""

import math
import random

import torch
import torch.nn.functional as F
from torch import Tensor

import entmask_ext

IGNORED = 255
Box = tuple[int, int, int, int]  # first and past-the-end row, first and past-the-end column
Result = tuple[Tensor, Tensor, Tensor]  # mixed images, mixed and gated labels, loss


def random_box(height: int, width: int) -> Box:
    """2 to 40 % of the image, somewhere."""
    area, aspect = random.uniform(0.02, 0.4) * height * width, random.uniform(0.3, 1 / 0.3)
    h, w = min(int(math.sqrt(area * aspect)), height), min(int(math.sqrt(area / aspect)), width)
    top, left = random.randint(0, height - h), random.randint(0, width - w)
    return top, top + h, left, left + w


def plain(images: Tensor, teacher: Tensor, student: Tensor, boxes: list[Box]) -> Result:
    """Softmax and threshold, a mask by image, an assignment by map, a Dice by class."""
    confidence, labels = teacher.softmax(1).max(1)
    partners, their_labels, their_confidence = images.roll(1, 0), labels.roll(1, 0), confidence.roll(1, 0)
    box = torch.zeros(len(images), *images.shape[2:], device=images.device)
    for i, (top, bottom, left, right) in enumerate(boxes):
        box[i, top:bottom, left:right] = 1
    images, labels, confidence = images.clone(), labels.clone(), confidence.clone()
    inside = box[:, None].expand(images.shape) == 1
    images[inside] = partners[inside]
    labels[box == 1] = their_labels[box == 1]
    confidence[box == 1] = their_confidence[box == 1]
    gate = (confidence >= 0.95).float()
    probabilities, loss = student.softmax(1), student.new_zeros(())
    for k in range(student.shape[1]):
        p, target = probabilities[:, k] * gate, (labels == k).float() * gate
        overlap, total = (p * target).sum(), (p * p).sum() + (target * target).sum()
        loss = loss + 1 - (2 * overlap + 1e-5) / (total + 1e-5)
    return images, torch.where(gate == 1, labels, IGNORED).byte(), loss / student.shape[1]


def fused(images: Tensor, teacher: Tensor, student: Tensor, boxes: Tensor) -> Result:
    """boxes (N, 4) int64."""
    labels = entmask_ext.pseudo_labels(teacher, min_confidence=0.95).labels  # 255 where p < 0.95: in no loss
    inside = entmask_ext.box_mask(boxes, images.shape[2:])
    images = entmask_ext.patch_where(inside, images.roll(1, 0), images, 1)
    labels = entmask_ext.patch_where(inside, labels.roll(1, 0), labels, 1)  # the gate goes along
    return images, labels, entmask_ext.consistency_loss(student, labels, ce_weight=0.0, dice_weight=1.0).total


def batch() -> tuple[tuple[Tensor, Tensor, Tensor], list[Box]]:
    """12 images, a teacher's and a student's logits of 4 classes, a box for each."""
    torch.manual_seed(0)
    random.seed(0)
    teacher = 8 * F.interpolate(torch.randn(12, 4, 12, 12), (96, 96), mode="bilinear")
    student = torch.randn(12, 4, 96, 96, requires_grad=True)
    return (torch.rand(12, 1, 96, 96), teacher, student), [random_box(96, 96) for _ in range(12)]


def main() -> None:
    given, boxes = batch()
    by_hand, (images, labels, loss) = plain(*given, boxes), fused(*given, torch.tensor(boxes))
    assert torch.equal(images, by_hand[0]) and torch.equal(labels, by_hand[1])
    torch.testing.assert_close(loss, by_hand[2])
    gradients = [torch.autograd.grad(total, given[2])[0] for total in (loss, by_hand[2])]
    torch.testing.assert_close(*gradients)
    print(f"{100 * (labels != IGNORED).float().mean().item():.0f} % of the labels kept, loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
