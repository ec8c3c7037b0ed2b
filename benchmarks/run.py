"""Runs the cells of a plan: peers checked against the op, timed in turns, and their memory counted."""

import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch

from benchmarks.clock import Call, Clock, as_graph, copy_bandwidth, make_clock
from benchmarks.measure import Sample, fastest, measure
from benchmarks.ops import OPS
from benchmarks.peers import Op, Peer, compare, make_peers
from benchmarks.plan import Cell
from benchmarks.workload import DTYPES, Workload

# The loop adds 1e-6 inside its logarithm; of what a selection decides, one part in fifty may differ by near ties.
_TOLERANCE = 1e-4  # avg_pool3d adds the 4,096 pixels of a patch one after the other in float32: up to 3e-5 off float64
_MOVED = 0.02
_CELL_SECONDS = 1.0  # of sampling, for each state of the caches


@dataclass(frozen=True)
class Row:
    """One peer in one cell and one state of the caches."""

    cell: Cell
    state: str
    peer: str
    form: str
    sample: Sample
    peak_bytes: int | None
    least_bytes: int

    def flat(self) -> dict[str, object]:
        """Seconds, bytes, bytes a second."""
        cell = {**asdict(self.cell), "size": str(self.cell.size)}
        cell["pass"] = "forward+backward" if cell.pop("backward") else "forward"
        return {
            **cell,
            "state": self.state,
            "peer": self.peer,
            "form": self.form,
            **asdict(self.sample),
            "peak_bytes": self.peak_bytes,
            "least_bytes": self.least_bytes,
            "least_bytes_per_second": self.least_bytes / self.sample.median,
        }


@dataclass
class Results:
    rows: list[Row]
    bandwidth: dict[int, float]
    """Of a long copy, bytes a second, by threads."""
    not_run: list[Cell]


def run(cells: list[Cell], device: str, seconds: float, cold: bool, alone: bool = False) -> Results:
    """Cells in order until the time is up; progress on stderr. alone: the op and the floors, no peers."""
    deadline = time.monotonic() + seconds
    clock = make_clock(device)
    threads = torch.get_num_threads()
    results = Results([], {}, [])
    try:
        for number, cell in enumerate(cells, 1):
            if time.monotonic() > deadline:
                results.not_run = cells[number - 1 :]
                break
            print(f"[{number}/{len(cells)}] {cell}", file=sys.stderr, flush=True)
            torch.set_num_threads(cell.threads)
            if cell.threads not in results.bandwidth:
                results.bandwidth[cell.threads] = copy_bandwidth(device, clock)
            results.rows += run_cell(cell, device, clock, cold, alone)
    finally:
        torch.set_num_threads(threads)
    return results


def run_cell(cell: Cell, device: str, clock: Clock, cold: bool, alone: bool) -> list[Row]:
    op = OPS[cell.op]
    workload = Workload(cell.size, DTYPES[cell.dtype], cell.layout, device)
    least = sum(op.traffic(workload)) if cell.backward else op.traffic(workload)[0]
    torch.compiler.reset()  # each cell compiles for its own sizes, not for all that came before
    with torch.set_grad_enabled(cell.backward):
        peers = make_peers(op, cell.backward, workload)
        if alone:
            peers = [peer for peer in peers if peer.kind in ("entmask", "floor")]
        if cell.dtype in ("float32", "float64"):
            check(op, peers)
        forms: dict[str, Call] = {peer.form: peer.run for peer in peers if peer.kind == "eager"}
        eager = fastest(forms, clock) if len(forms) > 1 else next(iter(forms), "")
        kept = {_key(peer): peer for peer in peers if peer.kind != "eager" or peer.form == eager}
        peaks = {key: clock.peak(peer.run) for key, peer in kept.items()}
        rows = []
        for state, calls in _states(kept, device, cold, workload.logits_bytes <= clock.cache):
            samples = measure(calls, clock, state.endswith("cold"), _CELL_SECONDS)
            for key, sample in samples.items():
                peer = kept[key]
                peak = peaks[key] if "graph" not in state else None
                rows.append(Row(cell, state, peer.kind, peer.form, sample, peak, least))
    return rows


def check(op: Op, peers: list[Peer]) -> None:
    """Raises where a peer does not compute what the op does: a comparison with it would mean nothing."""
    ours = peers[0].run()
    for peer in peers[1:]:
        if peer.kind == "floor":
            continue
        theirs = peer.run()
        if op.random:
            differences = {"mask": abs((ours[1].double().mean() - theirs[1].double().mean()).item())}
        else:
            differences = compare(op, ours, theirs)
        for name, difference in differences.items():
            allowed = _MOVED if name in op.decided else _TOLERANCE
            if not difference <= allowed:
                raise RuntimeError(
                    f"{op.name}: {name} of {_key(peer)} differs by {difference:.2g}, allowed {allowed:.2g}"
                )


def _key(peer: Peer) -> str:
    return f"{peer.kind} {peer.form}".strip()


def _states(kept: dict[str, Peer], device: str, cold: bool, fits: bool) -> Iterable[tuple[str, dict[str, Call]]]:
    """Data beyond the caches is cold whatever ran before."""
    states = ([] if not fits else ["warm"]) + (["cold"] if cold or not fits else [])
    calls: dict[str, Call] = {key: peer.run for key, peer in kept.items()}
    for state in states:
        yield state, calls
    if device == "cuda":
        replays = _captured(kept)
        for state in states:
            yield f"graph {state}", replays


def _captured(kept: dict[str, Peer]) -> dict[str, Call]:
    replays: dict[str, Call] = {}
    for key, peer in kept.items():
        if peer.syncs:
            continue
        try:
            replays[key] = as_graph(peer.run)
        except RuntimeError as error:
            if peer.kind == "entmask":  # the ops promise that a graph can hold them
                raise
            print(f"  a CUDA graph cannot hold {key}: {error}", file=sys.stderr)
    return replays
