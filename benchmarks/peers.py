"""An op that is timed, and its peers: implementations that do the same work on the same tensors.

An implementation is a function of the op's inputs that returns a tuple of tensors, the differentiable ones first.
Forward only it runs without autograd; with the backward pass, the gradients of the leaves come after its results.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.workload import Workload

Function = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Op:
    name: str
    inputs: Callable[[Workload], tuple[Any, ...]]
    """Tensors, and after them what else the implementations take."""
    ours: Function
    eager: dict[str, Function]
    """The forms worth trying: the fastest on a workload is the peer."""
    compiled: Function | None
    """The form that torch.compile makes most of; None: no form can be traced."""
    results: tuple[str, ...]
    """Names of what the implementations return."""
    traffic: Callable[[Workload], tuple[int, int]]
    """The fewest bytes that the forward and the backward pass can move: inputs read once, outputs written once."""
    loop: Function | None = None
    loop_backward: bool = False
    """The loop's result has a gradient too."""
    library: dict[str, Function] = field(default_factory=dict)
    """Functions of torch and of other packages where they do the same."""
    syncs: tuple[str, ...] = ("loop",)
    """Kinds of peers that wait for the device within the call."""
    leaves: tuple[int, ...] = ()
    """Which inputs get a gradient; none: only the forward pass is timed."""
    differentiable: int = 1
    """So many of the results, the first ones, get an incoming gradient."""
    decided: tuple[str, ...] = ()
    """Results that follow from which patches were selected."""
    random: bool = False
    """Implementations draw their own numbers and differ in their results."""


@dataclass(frozen=True)
class Peer:
    kind: str
    """entmask, eager, compile, library, loop or floor."""
    form: str
    run: Callable[[], tuple[Tensor, ...]]
    syncs: bool = False
    """Waits for the device within the call: a CUDA graph cannot hold it."""


def make_peers(op: Op, backward: bool, workload: Workload) -> list[Peer]:
    """The op's implementations and the floors, bound to the tensors of a workload."""
    inputs = op.inputs(workload)
    bind = partial(_bind, inputs=inputs)
    if backward:
        inputs = tuple(x.detach().requires_grad_(i in op.leaves) for i, x in enumerate(inputs))
        leaves = [inputs[i] for i in op.leaves]
        with torch.no_grad():
            outputs = op.ours(*inputs)
        incoming = [workload.gradient(x) for x in outputs[: op.differentiable]]
        # Half-precision peers return their results in half precision, the ops in float32.
        gradients = [{dtype: g.to(dtype) for dtype in (g.dtype, workload.dtype)} for g in incoming]
        bind = partial(_bind_backward, inputs=inputs, leaves=leaves, gradients=gradients)

    def peer(kind: str, form: str, function: Function) -> Peer:
        return Peer(kind, form, bind(function), kind in op.syncs)

    peers = [peer("entmask", "", op.ours)]
    peers += [peer("eager", form, function) for form, function in op.eager.items()]
    if op.compiled is not None:
        peers.append(peer("compile", "", torch.compile(op.compiled, fullgraph=True, dynamic=False)))
    peers += [peer("library", form, function) for form, function in op.library.items()]
    if op.loop is not None and (op.loop_backward or not backward):
        peers.append(peer("loop", "", op.loop))
    # The floors: what torch takes to copy the logits (without logits: the image, the labels, the mask), and for the
    # logits' softmax.
    tensors = [x.detach() for x in inputs if isinstance(x, Tensor)]
    floating = [x for x in tensors if x.is_floating_point()]
    largest = max(floating or [*tensors, *op.ours(*inputs)], key=Tensor.numel)
    peers.append(Peer("floor", "clone", lambda: (largest.clone(),)))
    if floating and largest.shape[1] > 1:
        peers.append(Peer("floor", "softmax", lambda: (torch.softmax(largest, 1),)))
    return peers


def _bind(function: Function, *, inputs: tuple[Any, ...]) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: function(*inputs)


def _bind_backward(
    function: Function, *, inputs: tuple[Any, ...], leaves: list[Tensor], gradients: list[dict[torch.dtype, Tensor]]
) -> Callable[[], tuple[Tensor, ...]]:
    def run() -> tuple[Tensor, ...]:
        outputs = function(*inputs)
        used = outputs[: len(gradients)]
        incoming = [gradient[x.dtype] for x, gradient in zip(used, gradients, strict=True)]
        return (*outputs, *torch.autograd.grad(used, leaves, incoming))

    return run


def compare(op: Op, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> dict[str, float]:
    """By result: the largest difference over the largest value; of what a selection decides, the fraction that differs.

    Two implementations may order scores that are closer than their rounding differently, which moves whole patches.
    """
    names = (*op.results, *(f"gradient {i}" for i in range(len(ours) - len(op.results))))
    differences = {}
    for name, a, b in zip(names, ours, theirs, strict=True):
        a, b = a.double(), b.double()
        if name in op.decided:
            differences[name] = (a != b).double().mean().item()
        else:
            differences[name] = (a - b).abs().max().item() / max(a.abs().max().item(), 1e-30)
    return differences
