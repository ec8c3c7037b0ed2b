"""A plain mean-teacher loop, and the lines that mask what the teacher is unsure of.

Two classes of discs on noise stand in for data; everything marked NEW is what a loop of one's own needs.
"""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import entmask_ext  # NEW

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def discs(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 1, 64, 64) with a bright and a dark disc each, and their labels (N, 64, 64)."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    labels = torch.zeros(count, 64, 64, dtype=torch.int64)
    for k in (1, 2):
        cy, cx = torch.randint(10, 54, (2, count, 1, 1))
        labels[(y - cy) ** 2 + (x - cx) ** 2 < 81] = k
    images = torch.tensor([0.0, 1.0, -1.0])[labels] + 0.4 * torch.randn(count, 64, 64)
    return images[:, None].to(DEVICE), labels.to(DEVICE)


def network() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs in (1, 16, 16):
        layers += [nn.Conv2d(inputs, 16, 5, padding=2), nn.BatchNorm2d(16), nn.LeakyReLU()]
    return nn.Sequential(*layers, nn.Conv2d(16, 3, 1)).to(DEVICE)


def main(steps: int = 60) -> float:
    torch.manual_seed(0)
    student = network()
    teacher = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True).eval()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    for step in range(steps):
        images, labels = discs(2)
        unlabelled, _ = discs(6)
        with torch.no_grad():
            teacher_logits = teacher(unlabelled)
        # NEW: the quarter of the 8x8 patches that the teacher is least sure of is taken from the student's input
        masked = entmask_ext.patch_mask(unlabelled, teacher_logits, 8, 0.25, label_dtype=torch.uint8)
        logits, unlabelled_logits = student(torch.cat([images, masked.image])).split([2, 6])
        supervised = nn.functional.cross_entropy(logits, labels)
        # NEW: the student still has to say there what the teacher says, which it can only know from around the patch
        consistency = entmask_ext.consistency_loss(unlabelled_logits, masked.labels, masked.patches, 8)
        loss = supervised + min(step / steps, 0.3) * consistency.total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        teacher.update_parameters(student)
        if step % 10 == 9:
            print(f"step {step + 1}: supervised {supervised.item():.3f}, consistency {consistency.total.item():.3f}")
    images, labels = discs(16)
    with torch.no_grad():
        predicted = teacher(images).argmax(1)
    overlap = 2 * ((predicted == labels) & (labels > 0)).sum() / ((predicted > 0).sum() + (labels > 0).sum())
    print(f"Dice of the teacher on new images: {overlap.item():.3f}")
    return overlap.item()


if __name__ == "__main__":
    main()
