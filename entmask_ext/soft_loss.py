"""The loss between a student's logits and a teacher's, without labels."""

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from entmask_ext import _C, _ops


def soft_consistency_loss(
    logits: Tensor, target_logits: Tensor, where: Tensor | None = None, *, kind: str = "mse"
) -> Tensor:
    """The mean distance between a student's and a teacher's softmax, over the pixels of a mask.

    With p = softmax(logits), q = softmax(target_logits), of each pixel:

        kind="mse":    sum_k (p_k - q_k)^2,    a K-th of which is the mean squared error of mean teacher methods
        kind="kl":     sum_k q_k (ln q_k - ln p_k),    where a class with q_k = 0 adds 0, and p_k = 0 < q_k gives inf

    Args:
        logits: (N, K, *S), K >= 2, float64, float32, float16 or bfloat16, any strides.
        target_logits: of the same shape; its dtype may be another. A constant: one that requires a gradient is an
            error, pass target_logits.detach().
        where: (N, *S) bool, the pixels that count, as UA-MT's certain ones (Yu et al., MICCAI 2019); None: all. What
            stands elsewhere, NaN included, reaches neither the loss nor the gradient.
        kind: "mse" or "kl".

    Returns:
        0-d, >= 0, float32, float64 if either input is: the mean over the pixels that count, 0 with zero gradient where
        there are none. Differentiable with respect to logits, once.

    Raises:
        ValueError, TypeError, NotImplementedError: as :func:`entmask_ext.patch_mask`.

    Example:
        >>> import torch, entmask_ext
        >>> student, teacher = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)
        >>> teacher[:, 0] = 1.0
        >>> round(entmask_ext.soft_consistency_loss(student, teacher).item(), 4)
        0.1068
        >>> round(entmask_ext.soft_consistency_loss(student, teacher, kind="kl").item(), 4)
        0.1109
    """
    traced = torch.compiler.is_compiling() or has_torch_function_variadic(logits, target_logits, where)
    op = _soft_consistency_loss if traced else _C.soft_consistency_loss
    mean: Tensor = op(logits, target_logits, where, kind)[0]
    return mean


_soft_consistency_loss = _ops.traced("soft_consistency_loss")


def _result_dtype(logits: Tensor, target_logits: Tensor) -> torch.dtype:
    return torch.promote_types(_ops.compute_dtype(logits), _ops.compute_dtype(target_logits))


@torch.library.register_fake("entmask::soft_consistency_loss")
def _(logits: Tensor, target_logits: Tensor, where: Tensor | None, kind: str) -> tuple[Tensor, Tensor]:
    _ops.check_logits(logits)
    _ops.check_floating(target_logits, "target_logits")
    _ops.check_device(logits, "logits", target_logits, "target_logits")
    _ops.check_shape(target_logits, "target_logits", logits.shape, ", that of logits")
    if kind not in ("mse", "kl"):
        raise ValueError(f"kind must be 'mse' or 'kl', got {kind!r}")
    if where is not None:
        _ops.check_device(logits, "logits", where, "where")
        if where.dtype != torch.bool:
            raise TypeError(f"where must be bool, got {where.dtype}")
        images, _, *sizes = logits.shape
        _ops.check_shape(where, "where", [images, *sizes], f" for logits {list(logits.shape)}")
    mean = logits.new_empty([], dtype=_result_dtype(logits, target_logits))
    return mean, logits.new_empty([2], dtype=torch.float64)


@torch.library.register_fake("entmask::soft_consistency_loss_backward")
def _(grad: Tensor, logits: Tensor, target_logits: Tensor, where: Tensor | None, kind: str, sums: Tensor) -> Tensor:
    for name, x in (("grad", grad), ("target_logits", target_logits), ("where", where), ("sums", sums)):
        _ops.check_device(logits, "logits", x, name)
    return _ops.empty_like_format(logits)


for _name in ("soft_consistency_loss", "soft_consistency_loss_backward"):
    _ops.vmap_by_example(_name)
