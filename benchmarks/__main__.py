"""python -m benchmarks: each op beside the patch loop, the best eager code, torch.compile and the libraries."""

import argparse
import sys
from pathlib import Path

import torch

from benchmarks import environment, overhead, plan, plots, report, run
from benchmarks.ops import OPS
from benchmarks.workload import DTYPES, LAYOUTS, Size

_WHAT = "ops beside their peers; scaling: with pixels, 1 MB to 1 GB of logits, and threads; overhead: of a call alone"

_FILTERS = ("op", "sizes", "dtypes", "layouts", "threads")


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("ops", "scaling", "overhead"), default="ops", help=_WHAT)
    parser.add_argument("--quick", action="store_true", help="the main ops on two sizes, warm: about a minute")
    parser.add_argument("--op", nargs="+", choices=sorted(OPS), metavar="OP", help=f"of {', '.join(OPS)}")
    parser.add_argument("--sizes", nargs="+", type=_size, metavar="NxKxHxW", help="of the logits; also NxKxDxHxW")
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES))
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS)
    parser.add_argument("--threads", nargs="+", type=int, metavar="N")
    parser.add_argument("--minutes", type=float, default=10.0, help="cells not begun by then are left out, by name")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of the results")
    arguments = parser.parse_args(argv)
    if arguments.what != "ops" and (arguments.quick or any(getattr(arguments, name) for name in _FILTERS)):
        parser.error(f"{arguments.what} takes no --quick and none of {', '.join('--' + name for name in _FILTERS)}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    if arguments.device == "cuda" and arguments.threads:
        parser.error("--threads are the CPU's: for work on a GPU they change nothing")
    if any(count < 1 for count in arguments.threads or []):
        parser.error(f"--threads: at least 1, got {arguments.threads}")
    return arguments


def _size(text: str) -> Size:
    try:
        return Size.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _cells(arguments: argparse.Namespace) -> list[plan.Cell]:
    """The plan, narrowed by --op and --sizes; the product of what is named once it leaves the plan."""
    threads = plan.thread_counts(arguments.device)
    sizes, ops = arguments.sizes or plan.SIZES, arguments.op or list(OPS)
    named = arguments.dtypes or arguments.layouts or arguments.threads
    if not arguments.quick and (named or any(size not in plan.SIZES for size in sizes)):
        return plan.product(
            ops,
            sizes,
            arguments.dtypes or ["float32"],
            arguments.layouts or ["contiguous"],
            arguments.threads or threads[-1:],
        )
    cells = plan.quick(threads) if arguments.quick else plan.full(threads)
    return [cell for cell in cells if cell.op in ops and cell.size in sizes]


def main(argv: list[str] | None = None) -> int:
    arguments = _arguments(argv)
    facts = environment.describe(arguments.device)
    for name in ("cpu", "cores", "torch", "torch_threads", "build", "gpu", "load_average_at_start"):
        if name in facts:
            print(f"{name}: {facts[name]}")
    if arguments.what == "overhead":
        print(overhead.table(overhead.run(arguments.device, seconds=10.0)))
        return 0
    if arguments.what == "ops":
        for package, version in facts["packages"].items():
            print(f"{package}: {version or 'not installed, left out'}")
    cells = plan.scaling(plan.thread_counts(arguments.device)) if arguments.what == "scaling" else _cells(arguments)
    if not cells:
        print("--quick, --op and --sizes leave nothing to measure", file=sys.stderr)
        return 2
    alone = arguments.what == "scaling"
    results = run.run(cells, arguments.device, 60 * arguments.minutes, cold=not arguments.quick, alone=alone)
    print(report.scaling_table(results) if alone else report.table(results))
    for path in [*report.write(results, facts, arguments.out), *plots.draw(results, arguments.out)]:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
