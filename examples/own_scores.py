"""Masks from what is not logits: probabilities, a sigmoid's logit, or a score map of one's own."""

import torch
import torch.nn.functional as F

import entmask_ext


def main() -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 1, 96, 96)

    # Probabilities: their logarithm is as good as logits, softmax gives them back.
    probabilities = torch.randn(4, 4, 96, 96).softmax(1)
    new, mask = entmask_ext.patch_mask(images, probabilities.log(), patch_size=16, ratio=0.5)[:2]
    print(f"from probabilities: {mask.mean().item():.2f} of the pixels masked, {int((new == 0).sum())} zeros")

    # One output with a sigmoid: its logit against a constant 0 makes two classes.
    logit = 4 * torch.randn(4, 1, 96, 96)
    two = torch.cat([torch.zeros_like(logit), logit], 1)
    masked = entmask_ext.patch_mask(images, two, patch_size=16, score="count", threshold=0.9, min_score=0.15)
    print(f"from a sigmoid: {int(masked.patches.sum())} of {masked.patches.numel()} patches masked")

    # A map of one's own (attention, disagreement of two networks): pooled to the patch grid, then the same selection.
    attention = torch.rand(4, 1, 96, 96)
    scores = F.avg_pool2d(attention, 16)[:, 0]
    masked = entmask_ext.patch_mask_from_scores(images, scores, 16, 0.25, order="lowest")
    print(
        f"from a map: {int(masked.patches.sum())} of {masked.patches.numel()} patches masked, the least attended ones"
    )


if __name__ == "__main__":
    main()
