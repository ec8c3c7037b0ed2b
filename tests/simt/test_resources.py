"""The machine code of the built module: no kernel touches local memory, the hot ones load 16 bytes at a time.

docs/gpu-resources.md has the numbers. Needs a module with CUDA kernels, and cuobjdump (Triton's package has one).
"""

from __future__ import annotations

import pytest

from . import resources
from .modes import LONG

pytestmark = LONG

# Kernels that read logits, and the fewest 16-byte loads in each: one a class, or the classes of a pixel in one.
READERS = (
    "entropy_pool_kernel",
    "entropy_map_kernel",
    "entropy_backward_kernel",
    "top_two_pool_kernel",
    "top_two_map_kernel",
    "top_two_backward_kernel",
    "pseudo_labels_kernel",
    "loss_backward_kernel",
)
SHAPES = {
    "float, planes, 2": 2,
    "float, planes, 3": 3,
    "float, planes, 4": 4,
    "float, planes, 8": 8,
    "float, pixels, 4": 1,
    "float, pixels, 8": 2,
    "__half, planes, 4": 4,
    "__half, pixels, 8": 1,
    "__nv_bfloat16, planes, 2": 2,
    "__nv_bfloat16, planes, 3": 3,
    "__nv_bfloat16, planes, 4": 4,
    "__nv_bfloat16, pixels, 8": 1,
}
LOADS = {f"{kernel}<{shape}>": n for kernel in READERS for shape, n in SHAPES.items()}
LOADS |= {f"loss_registers_kernel<{shape}, {regions}>": n for shape, n in SHAPES.items() for regions in (1, 2)}
LOADS |= {f"where_kernel<unsigned {kind}>": 1 for kind in ("char, 16", "short, 8", "int, 4", "long, 2")}


@pytest.fixture(scope="module")
def kernels() -> list[resources.Kernel]:
    modules = sorted((resources.ROOT / "entmask_ext").glob("_C.*.so"))
    if not modules:
        pytest.skip("no built module")
    try:
        found = resources.read(modules)
    except resources.Missing as missing:
        pytest.skip(str(missing))
    if not found:
        pytest.skip("the built module has no CUDA kernels")
    return found


def test_no_local_memory(kernels: list[resources.Kernel]) -> None:
    """No spill, no array that is indexed at run time, in any kernel on any architecture."""
    assert [
        f"{k.name}, sm_{k.arch}: {k.local} bytes, {k.spills} accesses" for k in kernels if k.local or k.spills
    ] == []


def test_loads_of_16_bytes(kernels: list[resources.Kernel]) -> None:
    archs = {k.arch for k in kernels}
    loads = {(k.name, k.arch): k.loads for k in kernels}
    assert {(name, arch) for name in LOADS for arch in archs} <= loads.keys()
    few = [
        f"{name}, sm_{arch}: {loads[name, arch]}"
        for name, n in LOADS.items()
        for arch in archs
        if loads[name, arch] < n
    ]
    assert few == []
