"""The benchmarks: every peer computes what the op computes, and a run writes what it says. No speed is asserted."""

import csv
import itertools
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as benchmarks
from benchmarks import overhead, plan, plots, report
from benchmarks.clock import CpuClock, CudaClock
from benchmarks.measure import Sample, measure
from benchmarks.ops import OPS
from benchmarks.peers import compare, make_peers
from benchmarks.run import Results, Row, check
from benchmarks.workload import Size, Workload

SMALL = [Size.parse("2x3x32x48"), Size.parse("1x4x32x16x32")]


@pytest.mark.parametrize("size", SMALL, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("name", "backward"), plan.PASSES)
def test_peers_compute_what_the_op_computes(name: str, backward: bool, layout: str, size: Size) -> None:
    op, workload = OPS[name], Workload(size, torch.float64, layout, "cpu")
    with torch.set_grad_enabled(backward):
        # torch.compile's peer takes seconds a case: it is seen in a run below.
        peers = [peer for peer in make_peers(op, backward, workload) if peer.kind not in ("compile", "floor")]
        ours = peers[0].run()
        assert len(ours) == len(op.results) + (len(op.leaves) if backward else 0)
        assert len(peers) > 1
        check(op, peers)
        for peer in peers[1:]:
            theirs = peer.run()
            if op.random:
                assert [x.shape for x in theirs] == [x.shape for x in ours]
                assert theirs[1].sum() == ours[1].sum()
                continue
            for result, difference in compare(op, ours, theirs).items():
                allowed = {"loop": 1e-4, "library": 1e-7}.get(peer.kind, 1e-9)  # MONAI's one-hot target is float32
                assert difference <= allowed, (peer.kind, peer.form, result)


def test_a_peer_that_computes_something_else_stops_the_run() -> None:
    op, workload = OPS["entropy_map"], Workload(SMALL[0], torch.float32, "contiguous", "cpu")
    with torch.no_grad():
        ours, *others = [peer for peer in make_peers(op, False, workload) if peer.kind in ("entmask", "eager")]
        wrong = type(ours)("eager", "wrong", lambda: tuple(2 * x for x in others[0].run()))
        check(op, [ours, others[0]])
        with pytest.raises(RuntimeError, match=r"entropy of eager wrong differs"):
            check(op, [ours, wrong])


def test_every_op_has_a_pass_and_traffic() -> None:
    assert {name for name, _ in plan.PASSES} == set(OPS)
    workload = Workload(SMALL[0], torch.bfloat16, "contiguous", "cpu")
    logits = 2 * 3 * 32 * 48 * 2
    assert OPS["patch_mask"].traffic(workload)[0] == logits + int(2.25 * logits / 3)
    for name, backward in plan.PASSES:
        assert all(count > 0 for count in OPS[name].traffic(workload)[: 1 + backward])


def test_peak_memory_is_that_of_results_and_temporaries() -> None:
    clock, x = CpuClock(), torch.randn(1 << 20)
    assert clock.peak(lambda: x.clone()) == x.nbytes
    assert clock.peak(lambda: x.exp().exp().exp()) == 2 * x.nbytes
    assert clock.peak(lambda: x.add_(0)) < 100  # the number becomes a tensor


class _Fake:
    """A clock that is told what a call costs, and notes the order of what it was asked."""

    cache = 0

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = {"flush": 1e-4, **seconds}
        self.last = ""
        self.log: list[str] = []

    def call(self, name: str) -> None:
        self.last = name

    def flush(self) -> None:
        self.last = "flush"

    def time(self, call: object, calls: int) -> float:
        call()  # type: ignore[operator]
        self.log.append(self.last)
        return self.seconds[self.last]

    def settle(self) -> None: ...

    def peak(self, call: object) -> int:
        return 0


@pytest.mark.parametrize("cold", [False, True])
def test_peers_take_turns(cold: bool) -> None:
    seconds = {"a": 0.001, "b": 0.001, "slow": 0.5}
    clock = _Fake(seconds)
    calls = {name: partial(clock.call, name) for name in seconds}
    samples = measure(calls, clock, cold, seconds=0.1)
    assert {name: sample.median for name, sample in samples.items()} == seconds
    assert samples["slow"].samples == 5
    assert samples["a"].samples == samples["b"].samples > 10
    timed = [name for name in clock.log if name in "ab"][4:]  # two of each were to estimate
    assert all(timed.count(name) == samples[name].samples for name in "ab")
    # Each comes once a round, so never more than two of one in a row.
    assert not any(len(set(timed[i : i + 3])) == 1 for i in range(len(timed) - 2))


class _Events:
    """torch.cuda's events and spinning kernel, noted in the order in which they are queued."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.held: list[float] = []
        monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: self)
        monkeypatch.setattr(torch.cuda, "_sleep", self._sleep)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: self.log.append("synchronize"))

    def _sleep(self, cycles: int) -> None:
        self.log.append("hold")
        self.held.append(cycles / 2e9)

    def record(self) -> None:
        self.log.append("event")

    def synchronize(self) -> None: ...

    def elapsed_time(self, other: object) -> float:
        return 6.0


def test_calls_are_queued_while_the_device_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than the host takes to queue them, so that events time the device; a call is tried once before that."""
    events = _Events(monkeypatch)
    clock = CudaClock(cache=1 << 20, device="cpu")

    def call() -> None:
        events.log.append("call")
        time.sleep(1e-3)

    assert clock.time(call, 3) == pytest.approx(2e-3)
    assert events.log == ["synchronize", "call", "synchronize", "hold", "event", "call", "call", "call", "event"]
    assert 6e-3 < events.held[0] <= 20e-3
    del events.log[:]
    clock.time(call, 1)
    assert events.log == ["hold", "event", "call", "event"]
    clock.time(lambda: time.sleep(0.05), 9)  # as one that waits for the device: not held for longer and longer
    assert events.held[-1] == pytest.approx(20e-3)


@pytest.mark.parametrize("make", [CpuClock, partial(CudaClock, cache=1 << 20, device="cpu")])
def test_flushing_writes_nothing_back(make: Callable[[], CpuClock | CudaClock]) -> None:
    clock = make()
    before = clock.buffer._version
    clock.flush()
    assert clock.buffer._version == before
    assert clock.buffer.nbytes == 4 * clock.cache


@pytest.mark.gpu
def test_a_slow_host_is_not_timed() -> None:
    clock, x = CudaClock(), torch.zeros(1000, device="cuda")

    def call() -> None:
        time.sleep(1e-3)
        x.add_(1)

    clock.time(call, 4)
    assert clock.time(call, 4) < 0.5e-3


def test_threads_of_the_cpu_are_compared_on_the_cpu_alone() -> None:
    for threads in (plan.thread_counts("cuda"), [3]):
        for cells in (plan.full(threads), plan.scaling(threads), plan.quick(threads)):
            assert len(set(cells)) == len(cells)
            assert {cell.threads for cell in cells} == set(threads)
    assert {cell.threads for cell in plan.full([1, 2])} == {1, 2}


def _results() -> Results:
    rows = []
    for size in ("1x2x64x64", "1x2x128x128", "2x2x128x128"):
        cell = plan.Cell("patch_mask", False, Size.parse(size), "float32", "contiguous", 2)
        for peer, form, milliseconds in (
            ("entmask", "", 1.0),
            ("eager", "entr", 8.0),
            ("compile", "", 4.0),
            ("loop", "", 90.0),
            ("floor", "clone", 1.25),
        ):
            seconds = milliseconds / 1e3 * cell.size.pixels / 4096
            sample = Sample(seconds, 0.9 * seconds, 1.1 * seconds, 9, 1)
            rows.append(Row(cell, "warm", peer, form, sample, 1_000_000, 4_096_000))
    left = plan.Cell("step", True, plan.HEADLINE, "float32", "contiguous", 2)
    return Results(rows, {1: 5e9, 2: 9e9}, [left])


def test_table_csv_json_and_plots(tmp_path: Path) -> None:
    results = _results()
    text = report.table(results)
    line = next(line for line in text.splitlines() if line.startswith("patch_mask  1x2x64x64"))
    assert line.split()[-6:] == ["4.00", "90.0", "0.80", "0.46", "1", "1"]
    assert "Copy bandwidth, 2 threads: 9.0 GB/s" in text
    assert "Not run, out of time: step, forward + backward, 18x4x256x256, float32, contiguous, 2 threads" in text

    written = report.write(results, {"cpu": "some"}, tmp_path)
    with open(tmp_path / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(results.rows)
    assert float(rows[0]["median"]) == 0.001
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["environment"] == {"cpu": "some"}
    assert record["rows"][0]["pass"] == "forward"

    lines = report.scaling_table(results).splitlines()
    assert lines[-1].split()[:4] == ["patch_mask", "2x2x128x128", "2", "warm"]
    assert lines[-1].split()[-2:] == [f"{1e6 / 4096:.3f}", "0.80"]

    drawn = plots.draw(results, tmp_path)
    assert [path.name for path in drawn] == ["speedup.png", "cost_patch_mask.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    assert sorted(tmp_path.iterdir()) == sorted([*written, *drawn])


def test_a_run_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = "1x2x32x32"
    threads = torch.get_num_threads()
    arguments = ["--op", "entropy_map", "--sizes", size, "--threads", "1", "--device", "cpu", "--out", str(tmp_path)]
    assert benchmarks.main(arguments) == 0
    assert torch.get_num_threads() == threads
    assert "entropy_map f+b" in capsys.readouterr().out
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {row["peer"] for row in rows} == {"entmask", "eager", "compile", "library", "floor"}
    assert {row["state"] for row in rows} == {"warm", "cold"}
    assert {row["pass"] for row in rows} == {"forward", "forward+backward"}
    assert all(row["size"] == size and row["threads"] == 1 and row["median"] > 0 for row in rows)
    forward = {row["peer"]: row["peak_bytes"] for row in rows if row["pass"] == "forward"}
    assert forward["entmask"] == 32 * 32 * 4
    assert (tmp_path / "speedup.png").exists()


def test_overhead_calls_every_public_function() -> None:
    with torch.no_grad():
        calls = overhead.calls("cpu")
        for call in calls.values():
            call()
    samples = {name: Sample(2e-6 if name == "torch.add" else 5e-6, 1e-6, 9e-6, 5, 10) for name in calls}
    assert "3.00" in overhead.table(samples).splitlines()[2]
    for op in set(OPS) - {"step", "cross_entropy", "dice_cross_entropy", "region_loss", "soft_kl"}:
        assert f"{op} function" in calls


@pytest.mark.parametrize("text", ["4x256x256", "1x1x64x64", "1x2x60x64", "0x2x64x64", "axbxcxd", "1x2x3x4x5x6"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="size must be"):
        Size.parse(text)
    with pytest.raises(SystemExit):
        benchmarks.main(["--sizes", text])


def test_scaling_doubles_to_a_gigabyte_on_one_thread_and_all() -> None:
    cells = plan.scaling([1, 2])
    assert {cell.threads for cell in cells} == {1, 2}
    sizes = sorted({cell.size.pixels * cell.size.classes * 4 for cell in cells})
    assert [large / small for small, large in itertools.pairwise(sizes)] == [2] * 10
    assert (sizes[0], sizes[-1]) == (1 << 20, 1 << 30)


@pytest.mark.parametrize("what", ["scaling", "overhead"])
def test_filters_are_for_ops(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmarks.main([what, "--op", "entropy_map"])
    assert f"{what} takes no --quick" in capsys.readouterr().err


def test_nothing_left_to_measure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert benchmarks.main(["--quick", "--op", "entropy_map", "--device", "cpu", "--out", str(out)]) == 2
    assert "nothing to measure" in capsys.readouterr().err
    assert not out.exists()
