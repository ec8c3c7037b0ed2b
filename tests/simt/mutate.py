"""Breaks the kernels one place a time and shows that the tests see it: ``python -m tests.simt.mutate [WORD ...]``.

Each mutant of mutants.py (with words: those whose description has one of them) is written into a copy of csrc, and its
tests run against that copy: first in the build that should catch it, then in the others. The table goes to stdout. The
exit code is 0 when every mutant is caught, but for those that say why none can be, and every text still matches.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence

from .build import HERE, ROOT
from .mutants import MUTANTS, Mutant

COPY = ROOT / "build" / "simt" / "mutant" / "csrc"
BUILDS = ("plain", "asan", "tsan")


def broken(mutant: Mutant, text: str) -> str:
    """The file's text with the mutant in it. ValueError where it does not occur exactly once."""
    if text.count(mutant.old) != 1:
        raise ValueError(
            f"{mutant.file}: {mutant.old!r} occurs {text.count(mutant.old)} times, not once ({mutant.what})"
        )
    return text.replace(mutant.old, mutant.new)


def caught_by(tests: Sequence[str], build: str) -> str | None:
    """Runs the tests in one build; the first line of what failed, or None."""
    chosen = [t for t in tests if (t == "test_races.py") == (build == "tsan")]
    if not chosen:
        return None
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", "--tb=line"]
        + ["-m", "long or not long", *([] if build == "tsan" else ["-k", build])]
        + [str(HERE / t) for t in chosen],
        cwd=ROOT,
        env={**os.environ, "ENTMASK_SIMT_SOURCE": str(COPY)},
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        return None
    if done.returncode != 1:
        raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    if "RuntimeError: " in done.stdout and "-fsanitize" in done.stdout and "error:" in done.stdout:
        return "does not compile"
    for pattern in (
        r"simt: .*",
        r"WARNING: ThreadSanitizer: [\w ]+",
        r"ERROR: AddressSanitizer: [\w-]+",
        r"runtime error: .*",
    ):
        found = re.search(pattern, done.stdout)
        if found:
            return found.group().removeprefix("simt: ")[:90]
    return "wrong answer"


def judge(mutant: Mutant) -> tuple[str, str]:
    """The build that caught it (or "") and how."""
    path = COPY / "kernels" / "cuda" / mutant.file
    original = path.read_text()
    path.write_text(broken(mutant, original))
    try:
        for build in sorted(BUILDS, key=lambda b: b != mutant.build):
            how = caught_by(mutant.tests.split(), build)
            if how is not None:
                return build, how
        return "", mutant.equivalent or "NOT CAUGHT"
    finally:
        path.write_text(original)


def main(words: Sequence[str]) -> int:
    chosen = [m for m in MUTANTS if not words or any(w in m.what for w in words)]
    chosen.sort(key=lambda m: (BUILDS.index(m.build), m.file))  # a file that changes again is compiled once, not twice
    shutil.rmtree(COPY, ignore_errors=True)
    shutil.copytree(ROOT / "csrc" / "kernels", COPY / "kernels")
    for mutant in chosen:
        broken(mutant, (COPY / "kernels" / "cuda" / mutant.file).read_text())
    print("| mutant | file | caught by | how |\n|---|---|---|---|")
    missed = 0
    for mutant in chosen:
        build, how = judge(mutant)
        missed += not build and not mutant.equivalent
        print(f"| {mutant.what} | {mutant.file} | {build or '-'} | {how} |", flush=True)
    print(f"\n{len(chosen)} mutants, {missed} missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
