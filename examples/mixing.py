"""Unlabelled images mixed with each other: a CutMix box, and the least sure patches exchanged with a partner.

The pseudo-labels go along by the same call, so that every pixel keeps the label of the image that it comes from.
"""

import torch

import entmask_ext


def main() -> None:
    torch.manual_seed(0)
    images, logits = torch.rand(4, 1, 96, 96), 3 * torch.randn(4, 4, 96, 96)
    labels = entmask_ext.largest_components(logits.argmax(1), 4)  # cleaned, as copy-paste methods do before they paste
    partners, their_labels = images.roll(1, 0), labels.roll(1, 0)

    # CutMix: one box per image, a quarter of the area, anywhere.
    first = torch.randint(0, 49, (4, 2))
    boxes = torch.stack([first, first + 48], -1).flatten(1)  # h0, h1, w0, w1
    inside = entmask_ext.box_mask(boxes, (96, 96))
    mixed = entmask_ext.patch_where(inside, partners, images, 1)
    mixed_labels = entmask_ext.patch_where(inside, their_labels, labels, 1)
    print(f"CutMix: {inside.float().mean().item():.2f} of the pixels are the partner's")

    # The fifth of the patches where the teacher is least sure come from the partner, instead of going black.
    unsure = entmask_ext.select_patches(entmask_ext.patch_scores(logits, 16), 0.2)
    mixed = entmask_ext.patch_where(unsure, partners, images, 16)
    mixed_labels = entmask_ext.patch_where(unsure, their_labels, labels, 16)
    print(f"exchanged: {int(unsure.sum())} of {unsure.numel()} patches")

    # The student must agree, on the partner's patches with a weight of their own.
    student = torch.randn(4, 4, 96, 96, requires_grad=True)  # student(mixed) in a training loop
    loss = entmask_ext.consistency_loss(student, mixed_labels, unsure, 16, mask_weight=0.5)
    loss.total.backward()
    print(f"{tuple(mixed.shape)} images, loss {loss.total.item():.2f}")


if __name__ == "__main__":
    main()
