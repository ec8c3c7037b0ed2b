"""Breaks the kernels one place a time and shows that the tests see it: ``python -m tests.simt.mutate [WORD ...]``.

Each mutant of mutants/ (with words: those whose description or file has one of them) is written into a copy of csrc,
and its tests run against that copy: first in the build that should catch it, then in the others. Before that they must
pass on the copy as it is, in the plain build (make simt runs the others). The table goes to stdout, with --write also
into docs/simt-mutants.md. The exit code is 0 when every mutant is caught, but for those that say why none can be, and
every text still matches.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence

from .build import HERE, ROOT
from .mutants import MUTANTS, Mutant

COPY = ROOT / "build" / "simt" / "mutant" / "csrc"
PAGE = ROOT / "docs" / "simt-mutants.md"
HEADER = "| mutant | file | caught by | how |\n|---|---|---|---|"
BUILDS = {"plain": "not asan", "asan": "asan", "tsan": ""}  # the tests of each, for pytest's -k


def broken(mutant: Mutant, text: str) -> str:
    """The file's text with the mutant in it. ValueError where it does not occur exactly once."""
    if text.count(mutant.old) != 1:
        raise ValueError(
            f"{mutant.file}: {mutant.old!r} occurs {text.count(mutant.old)} times, not once ({mutant.what})"
        )
    return text.replace(mutant.old, mutant.new)


def fault(tests: Sequence[str], build: str) -> str | None:
    """Runs the tests in one build; the first line of what failed, or None."""
    chosen = [t for t in tests if (t == "test_races.py") == (build == "tsan")]
    if not chosen:
        return None
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", "--tb=line"]
        + [f"--confcutdir={HERE}", "-m", "long or not long", "-k", BUILDS[build]]
        + [str(HERE / t) for t in chosen],
        cwd=ROOT,
        env={**os.environ, "ENTMASK_SIMT_SOURCE": str(COPY), "CXXFLAGS": "-O0"},  # compiling takes most of the time
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        return None
    # The mutant does not compile, or no test was run.
    if done.returncode != 1 or re.search(r"(?<!runtime )error: ", done.stdout):
        raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    for pattern in (
        r"simt: .*",
        r"WARNING: ThreadSanitizer: [\w ]+",
        r"ERROR: AddressSanitizer: [\w-]+",
        r"runtime error: .*",
        r"\w+: \d+ elements were never written",
        r"exit code -\d+",
    ):
        found = re.search(pattern, done.stdout)
        if found:
            return re.sub(r"^(simt: )?(\S*/)?", "", found.group())[:90]
    return "wrong answer"


def judge(mutant: Mutant) -> tuple[str, str]:
    """The build that caught it (or "") and how."""
    path = COPY / "kernels" / "cuda" / mutant.file
    original = path.read_text()
    path.write_text(broken(mutant, original))
    try:
        for build in sorted(BUILDS, key=lambda b: b != mutant.build):
            how = fault(mutant.tests.split(), build)
            if how is not None:
                return build, how
        return "", mutant.equivalent or "NOT CAUGHT"
    finally:
        path.write_text(original)


def write(rows: dict[str, str]) -> None:
    """Puts the rows into the page; those of mutants that were not chosen stay as they are."""
    old = PAGE.read_text().splitlines() if PAGE.exists() else []
    kept = {line.split(" | ")[0].removeprefix("| "): line for line in old if line.startswith("| ")}
    lines = [line for line in ({**kept, **rows}.get(m.what) for m in MUTANTS) if line]
    caught = sum(" | - | " not in line for line in lines)
    missed = sum(" | NOT CAUGHT |" in line for line in lines)
    head = f"""# Mutants of the CUDA kernels

Made by `python -m tests.simt.mutate --write`: each mutant is one change to the kernels' source, which has to make the
tests fail. `caught by`: the build of [simt.md](simt.md) in which they did.

{len(lines)} mutants: {caught} caught, {len(lines) - caught - missed} equivalent, {missed} missed.
Not run yet: {len(MUTANTS) - len(lines)}.

{HEADER}
"""
    partial = PAGE.with_suffix(".partial")
    partial.write_text(head + "\n".join(lines) + "\n")
    partial.replace(PAGE)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", help="only mutants whose description or file has one of them")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    options = parser.parse_args(arguments)
    chosen = [m for m in MUTANTS if not options.words or any(w in m.what or w in m.file for w in options.words)]
    chosen.sort(key=lambda m: (list(BUILDS).index(m.build), m.file))  # a file is compiled once a mutant, not twice
    shutil.rmtree(COPY, ignore_errors=True)
    shutil.copytree(ROOT / "csrc" / "kernels", COPY / "kernels")
    for mutant in chosen:
        broken(mutant, (COPY / "kernels" / "cuda" / mutant.file).read_text())
    how = fault(sorted({t for m in chosen for t in m.tests.split()}), "plain")
    if how is not None:
        raise SystemExit(f"the tests fail without a mutant: {how}")

    rows: dict[str, str] = {}
    print(HEADER, flush=True)
    missed = 0
    for mutant in chosen:
        build, how = judge(mutant)
        missed += not build and not mutant.equivalent
        how = how.replace("|", "\\|")
        rows[mutant.what] = f"| {mutant.what} | {mutant.file} | {build or '-'} | {how} |"
        print(rows[mutant.what], flush=True)
        if options.write:
            write(rows)
    print(f"\n{len(chosen)} mutants, {missed} missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
