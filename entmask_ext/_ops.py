"""The ops inside torch, as far as they share it: arguments where torch traces, checks on fake tensors, vmap.

In eager mode the public functions call ``_C``, which costs least. Where torch traces (torch.compile, torch.export) or
something overrides torch functions (a subclass of Tensor, a TorchFunctionMode, a proxy of torch.fx), they call
``torch.ops.entmask``, which torch knows how to trace and to override. Both read arguments by the op's schema and say
the same of a wrong one.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import SymBool, SymFloat, SymInt, Tensor
from torch._prims_common import suggest_memory_format

from entmask_ext import _C  # noqa: F401 (defines the ops)

# ---------------------------------------------------------------- arguments


# Tuples: torch.compile does not know the union of two types.
_ARRAYS = (np.ndarray, np.generic)
_NUMBERS = (int, float, SymBool, SymInt, SymFloat)
_INTS = (int, SymInt)
_BOOLS = (bool, SymBool)
_TEXTS = (str, bytes, bytearray)


class _Argument(NamedTuple):
    """An argument of an op, by its schema."""

    name: str
    kind: str
    optional: bool
    pair: bool
    """The schema's next argument, X_tensor, is the tensor that may be given instead of the number X."""
    expected: str


def traced(name: str) -> Callable[..., Any]:
    """The op of that name in torch.ops, called with the arguments that ``_C``'s function of the name takes."""
    op = getattr(torch.ops.entmask, name)
    schema = op.default._schema.arguments
    tensors = {argument.name for argument in schema if argument.name.endswith("_tensor")}
    arguments = []
    for argument in schema:
        if argument.name in tensors:
            continue
        kind = str(argument.real_type)
        optional = kind.startswith("Optional[")
        if optional:
            kind = kind.removeprefix("Optional[").removesuffix("]")
        pair = f"{argument.name}_tensor" in tensors
        expected = _EXPECTED[kind]
        if pair:
            expected += " or a tensor"
        elif optional and kind not in ("float", "List[int]"):
            expected += " or None"
        arguments.append(_Argument(argument.name, kind, optional, pair, expected))

    def call(*values: Any) -> Any:
        read: list[Any] = []
        for argument, value in zip(arguments, values, strict=True):
            read.extend(_read(argument, value))
        return op(*read)

    return call


def _read(argument: _Argument, value: Any) -> tuple[Any, ...]:
    """What the op takes for one argument: a value, or of a pair the number and the tensor, of which one is None."""
    if argument.pair and argument.kind == "float" and isinstance(value, _ARRAYS):
        number = torch.as_tensor(value)  # torch.compile may not know its value
        if number.dim() != 0 or number.dtype == torch.bool:
            raise _wrong_type(argument, value)
        value = number.double()
    if argument.pair and _is_tensor(value):
        return None if argument.optional else 0.0, value
    plain = None if argument.optional and value is None else _READERS[argument.kind](argument, value)
    return (plain, None) if argument.pair else (plain,)


def _is_tensor(value: Any) -> bool:
    """Or stands for one, as a proxy of torch.fx does."""
    if isinstance(value, Tensor):
        return True
    # torch.compile makes tensors of arrays, and cannot tell the attributes of a symbol.
    return not isinstance(value, _NUMBERS) and not isinstance(value, _ARRAYS) and hasattr(value, "__torch_function__")


def _wrong_type(argument: _Argument, value: Any) -> TypeError:
    what = type(value).__name__
    if isinstance(value, Tensor) and value.device.type != "cpu":
        what = f"a tensor on {value.device}: to read it the host would wait; pass {argument.name}.item() to do so"
    return TypeError(f"{argument.name} must be {argument.expected}, got {what}")


def _item(argument: _Argument, value: Any) -> Any:
    """The Python number in a numpy number, a 0-d array or a 0-d tensor on the CPU; any other value as it is."""
    if isinstance(value, _ARRAYS):  # torch.compile makes arrays of numpy's numbers
        if value.ndim != 0:
            raise _wrong_type(argument, value)
        return value.item()
    if isinstance(value, Tensor):
        if value.dim() != 0 or value.device.type != "cpu" or value.dtype == torch.bool or value.is_complex():
            raise _wrong_type(argument, value)
        if value.requires_grad and torch.is_grad_enabled():
            raise NotImplementedError(f"{argument.name} has no derivative; pass {argument.name}.detach()")
        return value.item()
    return value


def _known(argument: _Argument, number: Any) -> Any:
    """A number that torch.compile holds as a symbol, as its value: a constant of the graph.

    Left a symbol, 0.5 * s would be guarded, but would not be part of the key by which torch caches what it has
    compiled: for a third s it would run the code of the second (pytorch issue 197889).
    """
    from torch.fx.experimental.symbolic_shapes import guard_or_false, guard_or_true, guard_scalar

    if guard_or_true(number == 0) != guard_or_false(number == 0):
        raise ValueError(
            f"{argument.name} must be {argument.expected} that is known when torch compiles, got a number that is "
            "computed from the values of a tensor or an array"
        )
    return guard_scalar(number)


def _number(argument: _Argument, value: Any) -> bool | int | float:
    number = _item(argument, value)
    if not isinstance(number, _NUMBERS):
        raise _wrong_type(argument, value)
    number = _known(argument, number)
    return _fitting(argument, number) if isinstance(number, int) else number


def _float(argument: _Argument, value: Any) -> float:
    number = _item(argument, value)
    if not isinstance(number, _NUMBERS) or isinstance(number, _BOOLS):
        raise _wrong_type(argument, value)
    number = _known(argument, number)
    if isinstance(number, int) and abs(number) > sys.float_info.max:
        raise ValueError(f"{argument.name} must be a number that a float can hold, got a larger int")
    return float(number)


def _int(argument: _Argument, value: Any) -> int:
    number = None if isinstance(value, Tensor) else _item(argument, value)
    if not isinstance(number, _INTS) or isinstance(number, _BOOLS):
        raise _wrong_type(argument, value)
    return _fitting(argument, _known(argument, number))


def _fitting(argument: _Argument, number: int) -> int:
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{argument.name} must be an int between -2^63 and 2^63, got one that is not")
    return number


def _ints(argument: _Argument, value: Any) -> list[int]:
    """One for all axes, or one per axis: an int, or a sequence or a 1-d array of ints."""
    if isinstance(value, np.ndarray) and value.ndim == 1:
        sizes = [value[i] for i in range(len(value))]
    elif isinstance(value, Sequence) and not isinstance(value, _TEXTS):
        sizes = list(value)
    else:
        sizes = [value]
    return [_int(argument, size) for size in sizes]


def _tensor(argument: _Argument, value: Any) -> Any:
    if not _is_tensor(value):
        raise _wrong_type(argument, value)
    return value


def _of_type(kind: type) -> Callable[[_Argument, Any], Any]:
    def read(argument: _Argument, value: Any) -> Any:
        if not isinstance(value, kind):
            raise _wrong_type(argument, value)
        return value

    return read


_READERS: dict[str, Callable[[_Argument, Any], Any]] = {
    "Tensor": _tensor,
    "number": _number,
    "float": _float,
    "int": _int,
    "List[int]": _ints,
    "bool": _of_type(bool),
    "str": _of_type(str),
    "ScalarType": _of_type(torch.dtype),
    "Generator": _of_type(torch.Generator),
}
_EXPECTED = {
    "Tensor": "a torch.Tensor",
    "number": "a number",
    "float": "a number",
    "int": "an int",
    "List[int]": "an int or a sequence of ints",
    "bool": "a bool",
    "str": "a str",
    "ScalarType": "a torch.dtype",
    "Generator": "a torch.Generator",
}

# ---------------------------------------------------------------- checks on fake and meta tensors
#
# Sizes may be symbols here. The kernels check the same, and what needs values.

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_floating(x: Tensor, name: str) -> None:
    if x.dtype not in FLOATING:
        raise TypeError(f"{name} must be float64, float32, float16 or bfloat16, got {x.dtype}")


def check_axes(x: Tensor, name: str) -> None:
    """Fewer than 2^31 along each axis. Sizes that are symbols pass."""
    if any(isinstance(size, int) and size >= 2**31 for size in x.shape):
        raise ValueError(f"{name} must have axes shorter than 2^31, got shape {list(x.shape)}")


def check_image_like(x: Tensor, name: str, channels: str) -> None:
    """(N, C, H, W) or (N, C, D, H, W), floating."""
    check_floating(x, name)
    if x.dim() not in (4, 5):
        raise ValueError(
            f"{name} must have shape (N, {channels}, H, W) or (N, {channels}, D, H, W), got {list(x.shape)}"
        )
    check_axes(x, name)


def check_logits(logits: Tensor) -> None:
    check_image_like(logits, "logits", "K")
    classes = logits.shape[1]
    torch._check_value(
        classes >= 2, lambda: f"logits must have at least 2 classes in dimension 1, got shape {list(logits.shape)}"
    )
    torch._check_value(
        classes <= 2048, lambda: f"logits must have at most 2048 classes in dimension 1, got shape {list(logits.shape)}"
    )


def check_device(a: Tensor, a_name: str, b: Tensor | None, b_name: str) -> None:
    if b is not None and a.device != b.device:
        raise ValueError(f"{a_name} and {b_name} must be on the same device, got {a.device} and {b.device}")


def check_shape(x: Tensor, name: str, shape: Sequence[int], why: str = "") -> None:
    def message() -> str:
        return f"{name} must have shape {list(shape)}{why}, got {list(x.shape)}"

    if x.dim() != len(shape):
        raise ValueError(message())
    for actual, expected in zip(x.shape, shape, strict=True):
        torch._check_value(actual == expected, message)


def check_number(x: Tensor | None, name: str, images: int, device: torch.device, *, counts: bool = False) -> None:
    """A number's tensor: 0-d on the CPU or the device, or one per image there. `counts`: integers are legal too."""
    if x is None:
        return
    if x.dtype not in FLOATING and not (counts and x.dtype in INTEGERS):
        raise TypeError(
            f"{name} must be a floating{', uint8 or int8 to int64' if counts else ''} tensor, got {x.dtype}"
        )
    if x.dim() > 0:
        check_shape(x, name, [images], ", one value per image, or be a number or a 0-d tensor")
    if x.device != device and (x.dim() > 0 or x.device.type != "cpu"):
        raise ValueError(f"{name} must be on {'' if x.dim() else 'the CPU or on '}{device}, got {x.device}")


def grid_of(sizes: Sequence[int], patch_size: Sequence[int]) -> list[int]:
    """G = ceil(S / patch_size)"""
    if len(patch_size) not in (1, len(sizes)):
        raise ValueError(
            f"patch_size must be an int or {len(sizes)} ints for an input with {len(sizes)} spatial dimensions, got "
            f"{list(patch_size)}"
        )
    if min(patch_size) <= 0:
        raise ValueError(f"patch_size must be positive, got {list(patch_size)}")
    patch = list(patch_size) * len(sizes) if len(patch_size) == 1 else patch_size
    return [(size + width - 1) // width for size, width in zip(sizes, patch, strict=True)]


def compute_dtype(x: Tensor) -> torch.dtype:
    """What scores, entropies and losses are computed and returned in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def empty_like_format(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=suggest_memory_format(x))


# ---------------------------------------------------------------- vmap


def vmap_by_example(name: str) -> None:
    """Registers the rule of torch.vmap for an op: one call per example, the results stacked.

    Each example keeps the meaning it has alone: its own rows of patches with scope="batch", its own sums in the loss.
    """
    op = getattr(torch.ops.entmask, name).default

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        def results_of(example: Callable[[Tensor, int | None], Tensor]) -> tuple[Tensor, ...]:
            # The dim of an int[] argument is a list of None.
            results = op(*(example(a, d) if isinstance(a, Tensor) else a for a, d in zip(args, in_dims, strict=True)))
            return (results,) if isinstance(results, Tensor) else results

        def select(i: int) -> Callable[[Tensor, int | None], Tensor]:
            return lambda a, dim: a if dim is None else a.select(dim, i)

        if info.batch_size > 0:
            examples = [results_of(select(i)) for i in range(info.batch_size)]
            stacked = tuple(map(torch.stack, zip(*examples, strict=True)))
        else:  # only shapes and dtypes: those of an example on meta
            example = results_of(lambda a, dim: a.new_empty(_without(a.shape, dim), device="meta"))
            device = next(a.device for a in args if isinstance(a, Tensor))
            stacked = tuple(result.new_empty([0, *result.shape], device=device) for result in example)
        return (stacked[0], 0) if len(stacked) == 1 else (stacked, (0,) * len(stacked))

    torch.library.register_vmap(f"entmask::{name}", rule)


def _without(sizes: Sequence[int], dim: int | None) -> list[int]:
    return [size for axis, size in enumerate(sizes) if axis != dim]
