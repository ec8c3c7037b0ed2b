"""The patches where the teacher is least sure come from another image of the batch, instead of going black.

In plain torch, as research code has it, and by the fused calls, with the same answers. What each costs in operations,
and in waits for the device, is counted in docs/ops.md.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

import entmask_ext

PATCH, RATIO = 16, 0.2
Result = tuple[Tensor, Tensor, Tensor]  # mixed images, mixed labels, loss


def plain(images: Tensor, teacher: Tensor, student: Tensor) -> Result:
    """An image and a patch at a time."""
    p = teacher.softmax(1)
    entropy = -(p * p.clamp(min=1e-30).log()).sum(1)
    labels = p.argmax(1)
    columns = images.shape[3] // PATCH
    patches = entropy.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).mean((3, 4)).flatten(1)
    mixed, mixed_labels = images.clone(), labels.clone()
    inside = torch.zeros_like(entropy)
    for i in range(len(images)):
        for number in patches[i].topk(int(RATIO * patches.shape[1])).indices:
            row, column = divmod(int(number.cpu()), columns)
            where = slice(row * PATCH, (row + 1) * PATCH), slice(column * PATCH, (column + 1) * PATCH)
            mixed[i, :, where[0], where[1]] = images[i - 1, :, where[0], where[1]]
            mixed_labels[i, where[0], where[1]] = labels[i - 1, where[0], where[1]]
            inside[i, where[0], where[1]] = 1
    cross_entropy = F.cross_entropy(student, mixed_labels, reduction="none")
    exchanged = (cross_entropy * inside).sum() / inside.sum()
    own = (cross_entropy * (1 - inside)).sum() / (1 - inside).sum()
    q, dice = student.softmax(1), student.new_zeros(())
    for k in range(student.shape[1]):
        target = (mixed_labels == k).float()
        overlap, total = (q[:, k] * target).sum(), (q[:, k] * q[:, k]).sum() + target.sum()
        dice = dice + (1 - (2 * overlap + 1e-5) / (total + 1e-5)) / student.shape[1]
    return mixed, mixed_labels.byte(), (0.5 * exchanged + own + dice) / 2


def fused(images: Tensor, teacher: Tensor, student: Tensor) -> Result:
    """The labels go along by the same rule, so that every pixel keeps the label of the image that it comes from."""
    labels = entmask_ext.pseudo_labels(teacher).labels
    unsure = entmask_ext.select_patches(entmask_ext.patch_scores(teacher, PATCH), RATIO)
    mixed = entmask_ext.patch_where(unsure, images.roll(1, 0), images, PATCH)
    labels = entmask_ext.patch_where(unsure, labels.roll(1, 0), labels, PATCH)
    return mixed, labels, entmask_ext.consistency_loss(student, labels, unsure, PATCH, mask_weight=0.5).total


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """12 images, a teacher's and a student's logits of 4 classes."""
    torch.manual_seed(0)
    return torch.rand(12, 1, 96, 96), 3 * torch.randn(12, 4, 96, 96), torch.randn(12, 4, 96, 96, requires_grad=True)


def main() -> None:
    given = batch()
    by_hand, (images, labels, loss) = plain(*given), fused(*given)
    assert torch.equal(images, by_hand[0]) and torch.equal(labels, by_hand[1])
    torch.testing.assert_close(loss, by_hand[2])
    gradients = [torch.autograd.grad(total, given[2])[0] for total in (loss, by_hand[2])]
    torch.testing.assert_close(*gradients)
    changed = (images != given[0]).float().mean().item()
    print(f"{100 * changed:.0f} % of the pixels are a partner's, loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
