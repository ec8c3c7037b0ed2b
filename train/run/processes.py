"""The processes of a run: one, or those that torchrun started."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Processes:
    rank: int = 0
    size: int = 1

    @property
    def writes(self) -> bool:
        """This process writes the run's files."""
        return self.rank == 0

    def parallel(self, network: nn.Module) -> nn.Module:
        """The network whose backward pass averages the gradients over all processes."""
        if self.size == 1:
            return network
        # Buckets that are built anew after the first step would add in another order, and a resumed run would end in
        # other bits; find_unused_parameters keeps them as they are.
        known = inspect.signature(DistributedDataParallel).parameters
        buffers = (
            "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        )  # before torch 2.14
        settings: dict[str, Any] = {buffers: False, "find_unused_parameters": True}
        return DistributedDataParallel(network, **settings)

    def average_(self, tensors: Iterable[Tensor]) -> None:
        """Replaces the tensors by their mean over all processes, in one reduction."""
        tensors = list(tensors)
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([t.reshape(-1) for t in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        for t, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            t.copy_(part.view_as(t))

    def gather(self, tensor: Tensor) -> Tensor:
        """(n,) of every process -> (size, n), on all of them."""
        if self.size == 1:
            return tensor[None]
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor)
        return torch.stack(parts)

    def most(self, number: int) -> int:
        """The largest of all processes' numbers, on all of them."""
        if self.size == 1:
            return number
        numbers: list[int] = [0] * self.size
        dist.all_gather_object(numbers, number)
        return max(numbers)

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()

    def leave(self) -> None:
        if self.size > 1:
            dist.destroy_process_group()


def end_if_one_of_several() -> None:
    """Ends a process that torchrun started, with success, and without Python's shutdown.

    Where DistributedDataParallel was used, gloo's threads outlive the process group (torch 2.14), and a shutdown under
    them aborts now and then.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def join(device: torch.device) -> Processes:
    """The processes that torchrun's environment describes."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Processes()
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    return Processes(dist.get_rank(), size)
