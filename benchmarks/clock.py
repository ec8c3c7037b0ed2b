"""Time and memory of a call, on the CPU and on CUDA."""

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch.profiler import ProfilerActivity, profile

Call = Callable[[], object]


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """The profiler's library writes two lines there each time, past sys.stderr and whatever its log level."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def last_level_cache() -> int:
    """Bytes of the largest cache that core 0 sees; 32 MiB where the system does not tell."""
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size.removesuffix("K")) * 1024 for size in sizes if size.endswith("K")), default=32 * 2**20)


class Clock(Protocol):
    cache: int

    def flush(self) -> None:
        """Leaves nothing of the caller's data in the caches, and nothing there that must yet be written back."""

    def time(self, call: Call, calls: int) -> float:
        """Seconds a call, of so many one after the other."""

    def settle(self) -> None:
        """Waits for what is under way."""

    def peak(self, call: Call) -> int:
        """Most bytes that a call holds at one time beyond what was there before, its results included."""


class CpuClock:
    def __init__(self) -> None:
        self.cache = last_level_cache()
        self.buffer = torch.zeros(4 * self.cache // 4, dtype=torch.float32)

    def flush(self) -> None:
        self.buffer.sum()

    def time(self, call: Call, calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - start) / calls

    def settle(self) -> None:
        pass

    def peak(self, call: Call) -> int:
        """From the exported trace, where the profiler noted each allocation and release of torch's CPU allocator."""
        with (
            _quiet_stderr(),
            profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record,
        ):
            result = call()
        del result
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            record.export_chrome_trace(str(path))
            events = json.loads(path.read_text())["traceEvents"]
        changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
        held = peak = 0
        for _, change in changes:
            held += change
            peak = max(peak, held)
        return peak


_CYCLES_A_SECOND = 2e9  # of the device, about
_LONGEST_HOLD = 20e-3  # seconds; only a call that waits for the device takes the host so long


class CudaClock:
    """Times by events on the current stream, of what the device does, not of how fast the host asks for it.

    The device is held by a kernel that spins until the host has queued all calls behind it. A call that waits for the
    device itself cannot be queued so: its time is the host's and the device's together, as it is for its user.
    """

    def __init__(self, cache: int = 0, device: str = "cuda") -> None:
        """cache: bytes of the level-2 cache; 0: what the device says."""
        self.cache = cache or torch.cuda.get_device_properties(0).L2_cache_size
        self.buffer = torch.zeros(4 * self.cache // 4, dtype=torch.float32, device=device)
        self._host_seconds: WeakKeyDictionary[Call, float] = WeakKeyDictionary()

    def flush(self) -> None:
        self.buffer.sum()

    def time(self, call: Call, calls: int) -> float:
        hold = min(_LONGEST_HOLD, 20e-6 + 2 * calls * self._host_seconds_of(call))
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(int(hold * _CYCLES_A_SECOND))
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / calls

    def _host_seconds_of(self, call: Call) -> float:
        """What one call takes the host; measured when a call is first timed, before anything that must stay cold."""
        if call not in self._host_seconds:
            torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            self._host_seconds[call] = time.perf_counter() - start
            torch.cuda.synchronize()
        return self._host_seconds[call]

    def settle(self) -> None:
        torch.cuda.synchronize()

    def peak(self, call: Call) -> int:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        del result
        return torch.cuda.max_memory_allocated() - before


def make_clock(device: str) -> Clock:
    return CudaClock() if device == "cuda" else CpuClock()


def as_graph(call: Call) -> Call:
    """The call captured in a CUDA graph: replaying it leaves the host out of the time."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what a first call sets up must not be captured
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()

    def replay() -> object:
        graph.replay()
        return results

    return replay


def copy_bandwidth(device: str, clock: Clock) -> float:
    """Bytes a second of a long copy, reads and writes both counted as in STREAM (McCalpin 1995); the best of ten."""
    source = torch.ones(8 * clock.cache // 4, dtype=torch.float32, device=device)
    target = torch.zeros_like(source)
    best = min(clock.time(lambda: target.copy_(source), 1) for _ in range(10))
    return 2 * source.numel() * source.itemsize / best
