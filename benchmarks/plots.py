"""Pictures of the results: speed-up bars, and cost over size with the floor drawn in."""

import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from benchmarks.plan import HEADLINE
from benchmarks.report import PEERS, groups, replace
from benchmarks.run import Results, Row

_COLOURS = {
    "entmask": "#0b6e4f",
    "eager": "#c05746",
    "compile": "#e09f3e",
    "library": "#7b6d8d",
    "loop": "#8a8a8a",
    "clone": "#222222",
    "softmax": "#4a7fb5",
}
_NAMES = {"entmask": "entmask_ext", "eager": "best eager", "compile": "torch.compile", "loop": "patch loop"}


def draw(results: Results, folder: Path) -> list[Path]:
    """speedup.png and, where an op was timed on three sizes or more, cost_<op>.png."""
    base = [
        group
        for group in groups(results.rows)
        if group["entmask"].cell.dtype == "float32" and group["entmask"].cell.layout == "contiguous"
    ]
    threads = max((group["entmask"].cell.threads for group in base), default=0)
    base = [group for group in base if group["entmask"].cell.threads == threads]
    if not base:
        return []
    paths = [_speedups(base, folder)] if any(name in base[0] for name in PEERS) else []
    by_pass: dict[tuple[str, bool], dict[object, dict[str, Row]]] = {}
    for group in base:
        cell = group["entmask"].cell
        if "graph" not in group["entmask"].state:
            # Both states of a size: the cold one, which is the one that large sizes have too, comes last and stays.
            by_pass.setdefault((cell.op, cell.backward), {})[cell.size] = group
    for (op, backward), by_size in by_pass.items():
        if len(by_size) >= 3:
            paths.append(_cost(f"{op}{' forward + backward' if backward else ''}", list(by_size.values()), folder))
    return paths


def _speedups(base: list[dict[str, Row]], folder: Path) -> Path:
    """How many times entmask_ext's time each peer takes, on the headline size where that was run."""
    sizes = {group["entmask"].cell.size for group in base}
    size = HEADLINE if HEADLINE in sizes else max(sizes, key=lambda one: one.pixels)
    chosen: dict[str, dict[str, Row]] = {}
    for group in base:
        cell = group["entmask"].cell
        if cell.size == size and "graph" not in group["entmask"].state:
            chosen.setdefault(f"{cell.op}{' f+b' if cell.backward else ''}", group)
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.62 * len(chosen)), layout="constrained")
    for row, group in enumerate(chosen.values()):
        ours = group["entmask"].sample.median
        peers = [name for name in PEERS if name in group]
        for place, name in enumerate(peers):
            ratio = group[name].sample.median / ours
            y = row + 0.8 * ((place + 0.5) / len(peers) - 0.5)
            axes.barh(y, ratio, 0.7 / len(peers), color=_COLOURS[name])
            axes.text(ratio * 1.04, y, f"{ratio:.1f}x", va="center", fontsize=8)
    for name in PEERS:
        if any(name in group for group in chosen.values()):
            axes.barh(0, 0, color=_COLOURS[name], label=_NAMES.get(name, "torch's or MONAI's own"))
    axes.axvline(1, color=_COLOURS["entmask"], linewidth=1.5, label="entmask_ext")
    axes.set_yticks(range(len(chosen)), list(chosen))
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.set_xlabel(f"time over entmask_ext's, {size}, float32 (longer: slower)")
    figure.legend(fontsize=8, loc="outside lower center", ncols=5, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return _save(figure, folder / "speedup.png")


def _cost(title: str, by_size: list[dict[str, Row]], folder: Path) -> Path:
    """Time over the bytes of the logits (without logits: of the image)."""
    by_size = sorted(by_size, key=lambda group: group["entmask"].least_bytes)
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name in ("entmask", *PEERS, "clone", "softmax"):
        points = [(group["entmask"].least_bytes / 1e6, group[name].sample) for group in by_size if name in group]
        if not points:
            continue
        x = [megabytes for megabytes, _ in points]
        axes.plot(
            x,
            [sample.median * 1e3 for _, sample in points],
            "--" if name in ("clone", "softmax") else "o-",
            color=_COLOURS[name],
            label=f"floor: {name}" if name in ("clone", "softmax") else _NAMES.get(name, "torch's or MONAI's own"),
            markersize=4,
        )
        low, high = ([getattr(sample, edge) * 1e3 for _, sample in points] for edge in ("quartile_1", "quartile_3"))
        axes.fill_between(x, low, high, color=_COLOURS[name], alpha=0.15, linewidth=0)
    axes.set(xscale="log", yscale="log", xlabel="least traffic of the op, MB", ylabel="ms a call", title=title)
    axes.grid(alpha=0.25, which="both")
    axes.legend(fontsize=8, frameon=False)
    return _save(figure, folder / f"cost_{title.replace(' + ', '_').replace(' ', '_')}.png")


def _save(figure: Figure, path: Path) -> Path:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    plt.close(figure)
    replace(path, content.getvalue())
    return path
