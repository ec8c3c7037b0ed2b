"""torch.vmap over the ops: one call an example, the results stacked.

Each example keeps the meaning it has alone: its own rows of patches with scope="batch", its own sums in the loss.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from entmask_ext import _C  # noqa: F401 (defines the ops)

_OPS = (
    "patch_mask",
    "patch_mask_from_scores",
    "apply_mask",
    "patch_scores",
    "patch_scores_backward",
    "entropy_map",
    "entropy_map_backward",
    "consistency_loss",
    "consistency_loss_backward",
    "shuffle_patches",
)


def _rule(op: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        def example(i: int) -> Any:
            # The in_dims of an int[] argument is a list of None.
            return op(*(a.select(dim, i) if isinstance(dim, int) else a for a, dim in zip(args, in_dims, strict=True)))

        results = [example(i) for i in range(info.batch_size)]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = tuple(map(torch.stack, zip(*results, strict=True)))
        return stacked, (0,) * len(stacked)

    return rule


for _name in _OPS:
    torch.library.register_vmap(f"entmask::{_name}", _rule(getattr(torch.ops.entmask, _name).default))
