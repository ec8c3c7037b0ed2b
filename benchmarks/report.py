"""The results as a table on the console, CSV and JSON."""

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import replace as replace_fields
from pathlib import Path

from benchmarks.run import Results, Row

PEERS = ("eager", "compile", "library", "loop")


def groups(rows: Sequence[Row]) -> list[dict[str, Row]]:
    """Rows that were timed in turns with each other, by peer; a floor by its name."""
    found: dict[tuple[object, str], dict[str, Row]] = {}
    for row in rows:
        key = row.form if row.peer == "floor" else row.peer
        found.setdefault((row.cell, row.state), {})[key] = row
    return list(found.values())


def best_peer(group: dict[str, Row]) -> Row:
    """The fastest of what one would use instead."""
    return min((group[name] for name in PEERS if name in group), key=lambda row: row.sample.median)


def scaling_table(results: Results) -> str:
    """What doubling the pixels and doubling the threads costs, beside what they cost logits.clone()."""
    found = groups(results.rows)
    by_cell = {(group["entmask"].cell, group["entmask"].state): group for group in found}
    lines = [["op", "size", "thr", "state", "ms (quartiles)", "ns/pixel", "/clone", "x 1 thread", "clone's"]]
    for group in found:
        row = group["entmask"]
        cell, sample = row.cell, row.sample
        line = [cell.op + (" f+b" if cell.backward else ""), str(cell.size), str(cell.threads), row.state]
        line.append(_spread(row))
        line.append(f"{sample.median * 1e9 / cell.size.pixels:.3f}")
        line.append(f"{sample.median / group['clone'].sample.median:.2f}")
        single = by_cell.get((replace_fields(cell, threads=1), row.state))
        if single is not None and cell.threads > 1:
            line += [f"{single[name].sample.median / group[name].sample.median:.2f}" for name in ("entmask", "clone")]
        lines.append(line + [""] * (len(lines[0]) - len(line)))
    return "\n".join(_aligned(lines, left=4))


def table(results: Results) -> str:
    header = ["op", "size", "dtype", "layout", "thr", "state", "entmask (quartiles)", *PEERS, "clone", "softmax"]
    header += ["x best", "x loop", "/clone", "of copy", "peak MB", "best's"]
    lines = [header]
    for group in groups(results.rows):
        ours, best = group["entmask"], best_peer(group)
        cell, sample = ours.cell, ours.sample
        line = [cell.op + (" f+b" if cell.backward else ""), str(cell.size), cell.dtype, cell.layout]
        line += [str(cell.threads), ours.state, _spread(ours)]
        line += [_ms(group[key].sample.median) if key in group else "" for key in (*PEERS, "clone", "softmax")]
        line.append(f"{best.sample.median / sample.median:.2f}")
        line.append(f"{group['loop'].sample.median / sample.median:.1f}" if "loop" in group else "")
        line.append(f"{sample.median / group['clone'].sample.median:.2f}")
        line.append(f"{ours.least_bytes / sample.median / results.bandwidth[cell.threads]:.2f}")
        line += [_megabytes(ours.peak_bytes), _megabytes(best.peak_bytes)]
        lines.append(line)
    text = _aligned(lines, left=6)
    text.append(
        "Medians in ms. x best: the fastest peer's time over entmask's. /clone: entmask's over logits.clone()'s. "
        "of copy: the least bytes at the copy bandwidth below, over entmask's time; caches go beyond 1."
    )
    text += [
        f"Copy bandwidth, {threads} thread{'s' if threads > 1 else ''}: {value / 1e9:.1f} GB/s"
        for threads, value in results.bandwidth.items()
    ]
    text += [f"Not run, out of time: {cell}" for cell in results.not_run]
    return "\n".join(text)


def write(results: Results, environment: dict[str, object], folder: Path) -> list[Path]:
    """results.csv, a line a peer and state, and results.json with the environment."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row.flat() for row in results.rows]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    record = {
        "environment": environment,
        "copy_bytes_per_second": results.bandwidth,
        "not_run": [str(cell) for cell in results.not_run],
        "rows": rows,
    }
    paths = [folder / "results.csv", folder / "results.json"]
    replace(paths[0], text.getvalue().encode())
    replace(paths[1], json.dumps(record, indent=1).encode())
    return paths


def replace(path: Path, content: bytes) -> None:
    """Written beside and renamed: an interrupted run leaves no half file."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(content)
    beside.replace(path)


def _aligned(lines: list[list[str]], left: int) -> list[str]:
    """Columns, the first ones to the left, with a rule below the header."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = []
    for line in lines:
        cells = zip(line, widths, strict=True)
        text.append("  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(cells)).rstrip())
    return [text[0], "-" * len(text[0]), *text[1:]]


def _spread(row: Row) -> str:
    sample = row.sample
    return f"{_ms(sample.median)} ({_ms(sample.quartile_1)}-{_ms(sample.quartile_3)})"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 0.1 else f"{seconds * 1e3:.0f}"


def _megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.3g}" if count < 1e8 else f"{count / 1e6:.0f}"
