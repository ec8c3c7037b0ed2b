"""The harness itself: what is right passes in every build, each class of fault is caught by the build that should."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from . import build, params
from .driver import FORWARD, Counts, Input, KernelFault, Output, Run, run


class SelfTestParams(ctypes.Structure):
    _fields_ = (
        ("in_", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("counter", ctypes.c_void_p),
        ("n", ctypes.c_int64),
    )


params.STRUCTS["SelfTestParams"] = SelfTestParams
VALUES = np.random.default_rng(0).normal(size=64 * 8).astype(np.float32)


def selftest_driver(mode: str) -> Path:
    return build.driver(mode, (build.HERE / "selftest.cu",), "selftest")


def launch(
    operation: str, outputs: int, mode: str = "plain", values: np.ndarray = VALUES, **options: Any
) -> tuple[np.ndarray, int, Counts]:
    out = Output("out", np.empty(outputs, np.float32))
    counter = Output("counter", np.empty(1, np.uint32))
    fields = {"in_": Input("in", values), "out": out, "counter": counter, "n": values.size}
    counts = run(operation, "SelfTestParams", fields, mode=mode, executable=selftest_driver(mode), **options)
    return out.array, int(counter.array[0]), counts


ALL_MODES = [
    "plain",
    "count",
    pytest.param("asan", marks=pytest.mark.long),
    pytest.param("tsan", marks=pytest.mark.long),
]


@pytest.mark.parametrize("mode", ALL_MODES)
def test_healthy_kernel(mode: str) -> None:
    values = VALUES[: 6 * 64 + 13]
    out, counter, _ = launch("sums", 7, mode, values)
    blocks = np.zeros((7, 64))
    blocks.reshape(-1)[: values.size] = values
    np.testing.assert_allclose(out, blocks.sum(1) + 1, rtol=1e-5)
    assert counter == 77


@pytest.mark.parametrize("mode", ALL_MODES)
def test_vectors(mode: str) -> None:
    out, _, _ = launch("vectors", 256, mode, VALUES[:256])
    expected = VALUES[:256].copy()
    expected[::4] += 1
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("mode", ALL_MODES)
def test_waiting_for_the_launch_before(mode: str) -> None:
    """Shared memory may be written before."""
    np.testing.assert_array_equal(launch("waits", 64, mode, VALUES[:64])[0], VALUES[:64])


@pytest.mark.long
def test_fences_may_follow_a_barrier() -> None:
    for seed in range(4):
        out, _, _ = launch("fence_after_barrier", 5, "tsan", VALUES[:64], runs=[("random", seed)])
        np.testing.assert_array_equal(out, 2)


def test_warp_operations() -> None:
    v = VALUES[:32]
    lane = np.arange(32)
    out = launch("warp", 272, values=v)[0]
    down, up, indexed, xor, ballot, votes, match, counts = out[:256].reshape(8, 32)
    np.testing.assert_array_equal(down, np.where(lane + 3 < 32, v[(lane + 3) % 32], v))
    np.testing.assert_array_equal(up, np.where(lane >= 3, v[lane - 3], v))
    np.testing.assert_array_equal(indexed, v[lane // 8 * 8 + 1])
    np.testing.assert_array_equal(xor, v[lane ^ 5])
    assert (ballot == (v > 0).sum()).all()
    assert (votes == 1).all()
    np.testing.assert_array_equal(match, np.bincount(lane // 5)[lane // 5])
    assert (counts == 7 + 100 + 1000).all()
    np.testing.assert_array_equal(out[256:], np.full(16, v[15]))


def test_opting_in_to_shared_memory() -> None:
    launch("opts_in", 256, values=VALUES[:256])
    with pytest.raises(KernelFault, match="65536 bytes of dynamic shared memory asked for, a block can have 50000"):
        launch("opts_in", 256, values=VALUES[:256], shared_limit=50000)


FAULTS = [
    ("no_barrier", "plain", 64, "gives other outputs"),
    ("no_barrier", "tsan", 64, "data race"),
    ("barrier_in_branch", "plain", 64, "different barriers"),
    ("barrier_after_exit", "plain", 64, "barrier after 1 of 64 threads have exited"),
    ("deadlock", "plain", 64, "deadlock"),
    ("outside_mask", "plain", 64, "lane 31 is not in its own mask 0000ffff"),
    ("dead_lane", "plain", 64, "reads lane 31, which has exited"),
    ("two_lines", "plain", 64, "meet here and at another line"),
    ("misaligned", "plain", 64, "misaligned access of 16 bytes at an address that is 4 modulo 16"),
    ("write_outside", "plain", 64, "a write outside out: at byte 256 of 256"),
    ("write_outside", "asan", 64, "heap-buffer-overflow"),
    ("write_input", "plain", 64, "a write to the input in$"),
    ("read_outside", "asan", 64, "heap-buffer-overflow"),
    ("shared_outside", "plain", 64, "bytes beyond its 256 bytes of dynamic shared memory"),
    ("shared_outside", "asan", 64, "heap-buffer-overflow"),
    ("static_shared_outside", "asan", 64, "out of bounds|global-buffer-overflow"),
    ("plain_add", "tsan", 320, "data race"),
    ("order_matters", "plain", 320, "gives other outputs"),
    ("no_fence", "tsan", 5, "data race"),
    ("no_second_fence", "tsan", 5, "data race"),
    ("fence_before_write", "tsan", 5, "data race"),
    ("no_syncwarp", "plain", 64, "gives other outputs"),
    ("no_syncwarp", "tsan", 64, "data race"),
    ("no_wait", "plain", 64, "thread 0 has not waited for the launch before"),
    ("wait_of_some", "plain", 64, "thread 9 has not waited for the launch before"),
    ("wait_after_barrier", "plain", 64, "thread 0 has not waited for the launch before"),
    ("wait_after_load", "count", 64, "thread 0 has not waited for the launch before"),
    ("too_many_threads", "plain", 64, "launch of 1025 x 1 x 1 threads"),
    ("too_many_rows", "plain", 64, "launch of a grid of 1 x 65536 x 1"),
    ("empty_grid", "plain", 64, "launch of a grid of 1 x 0 x 1"),
    ("too_much_shared", "plain", 64, "49156 bytes of dynamic shared memory, 49152 allowed"),
    ("other_stream", "plain", 256, "another stream"),
]


@pytest.mark.parametrize(
    ("fault", "mode", "outputs", "message"),
    [pytest.param(*f, marks=pytest.mark.long if f[1] in ("asan", "tsan") else ()) for f in FAULTS],
)
def test_fault_is_caught(fault: str, mode: str, outputs: int, message: str) -> None:
    values = VALUES[:64] if outputs in (64, 5, 320) else VALUES[:outputs]
    with pytest.raises(KernelFault, match=message):
        launch(fault, outputs, mode, values)


def test_reading_beyond_an_input_gives_nan() -> None:
    out = launch("no_barrier", 64, values=VALUES[:64], runs=FORWARD)[0]
    assert np.isnan(out).any(), "shared memory that nobody has written yet must be NaN"


def test_unwritten_outputs_keep_their_poison() -> None:
    out = launch("unwritten", 64)[0]
    assert np.flatnonzero(out.view(np.uint32) == 0xFFFFFFFF).tolist() == [9]
    out = launch("stale_shared", 64)[0]
    assert np.flatnonzero(np.isnan(out)).tolist() == [5]


def test_endless_loop_is_ended() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        launch("spin", 64, timeout=1)


@pytest.mark.parametrize("seed", [3, 4])
def test_a_seed_gives_one_schedule(seed: int) -> None:
    runs: list[Run] = [("random", seed)]
    first = launch("order_matters", 320, runs=runs)[0]
    again = launch("order_matters", 320, runs=runs)[0]
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, np.sort(first))
    assert np.array_equal(np.sort(first), np.sort(launch("order_matters", 320, runs=FORWARD)[0]))


def site(counts: Counts, access: str, shared: bool) -> dict[str, Any]:
    found = [s for s in counts.launches[0]["sites"] if s["access"] == access and s["shared"] == shared]
    return max(found, key=lambda s: s["requests"])


def test_counts_of_a_coalesced_kernel() -> None:
    counts = launch("vectors", 256, "count", VALUES[:256], runs=FORWARD)[2]
    assert len(counts.launches) == 1
    assert counts.launches[0]["buffers"] == {"in": {"read": 1024, "written": 0}, "out": {"read": 0, "written": 1024}}
    load = site(counts, "load", shared=False)
    assert (load["requests"], load["lanes"], load["bytes"], load["sectors"]) == (2, 64, 1024, 32)
    assert counts.kernel(counts.launches[0]).endswith("vectors")
    assert counts.where(load["site"]).startswith("selftest.cu:")


def test_counts_of_strided_reads() -> None:
    counts = launch("strided_reads", 64, "count", VALUES, runs=FORWARD)[2]
    load = site(counts, "load", shared=False)
    assert (load["sectors"], load["least_sectors"]) == (64, 8)
    assert counts.launches[0]["buffers"]["in"]["read"] == 2048


def test_counts_of_bank_conflicts_and_atomics() -> None:
    counts = launch("bank_conflicts", 64, "count", VALUES[:64], runs=FORWARD)[2]
    stores = [s for s in counts.launches[0]["sites"] if s["shared"] and s["access"] == "store"]
    assert sorted((s["wavefronts"], s["least_wavefronts"]) for s in stores) == [(2, 2), (64, 2)]
    counts = launch("order_matters", 320, "count", VALUES[:64], runs=FORWARD)[2]
    assert site(counts, "atomic", shared=False)["lanes"] == 320


def test_bad_params_struct_is_refused() -> None:
    fields = {"n": 0, "size": (1, 1, 1), "patch": (1, 1, 1), "count": (1, 1, 1)}
    del fields["n"]
    with pytest.raises(KernelFault, match="another size"):
        run("sums", "Grid", fields, executable=selftest_driver("plain"))
