"""3-D: the same calls on volumes, with patches of their own size along each axis."""

import torch

import entmask_ext


def main() -> None:
    torch.manual_seed(0)
    volumes = torch.rand(2, 1, 12, 64, 64)  # (N, C, D, H, W): few thick slices
    teacher_logits = 2 * torch.randn(2, 4, 12, 64, 64)
    masked = entmask_ext.patch_mask(volumes, teacher_logits, (2, 16, 16), 0.5, label_dtype=torch.uint8)
    print(f"patch grid {tuple(masked.patches.shape[1:])}, {masked.patches.float().mean().item():.2f} of it masked")

    student_logits = torch.randn(2, 4, 12, 64, 64, requires_grad=True)
    loss = entmask_ext.consistency_loss(student_logits, masked.labels, masked.patches, (2, 16, 16))
    loss.total.backward()
    print(f"loss {loss.total.item():.3f}: masked {loss.ce_masked.item():.3f}, visible {loss.ce_visible.item():.3f}")


if __name__ == "__main__":
    main()
