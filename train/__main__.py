"""python -m train fit | evaluate | predict | convert | phantom | methods | report"""

from __future__ import annotations

import io
import os
import sys
from importlib import import_module

import tyro

COMMANDS = {
    "fit": ("train.run.fit", "train a network; the same command continues a broken run"),
    "evaluate": ("train.evaluate.evaluate", "judge the best and the last checkpoint of a run"),
    "predict": ("train.evaluate.predict", "label a NIfTI volume with a checkpoint"),
    "convert": ("train.data.convert", "turn a data set as published into the h5 layout"),
    "phantom": ("train.data.phantom", "write the embedded phantom data set"),
    "methods": ("train.run.methods", "list the methods with their formulas"),
    "report": ("train.evaluate.report", "compare runs: table and figure"),
}
USAGE = "usage: python -m train COMMAND [--help]\n\n" + "\n".join(
    f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items()
)


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"unknown command {name!r}\n{USAGE}", file=sys.stderr)
        return 2
    module = import_module(COMMANDS[name][0])
    try:
        check_not_empty(rest)
        options = {"default": module.default(rest)} if hasattr(module, "default") else {}
        settings = (tyro.conf.OmitArgPrefixes,)
        module.main(tyro.cli(module.Config, prog=f"python -m train {name}", args=rest, config=settings, **options))
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def check_not_empty(arguments: list[str]) -> None:
    """Raises ValueError, naming the flag, where a value is empty, which a path reads as '.'."""
    flag = "an argument"
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            flag = name
        if argument == "" or (name.startswith("--") and equals and not value):
            raise ValueError(f"{flag} must have a value, got an empty one (to name the current folder, write .)")


def speak_utf8() -> None:
    """Runs on in UTF-8 mode where the locale is ASCII (LC_ALL=C): libraries fail on paths that are not.

    Characters that a terminal cannot show are printed as escapes.
    """
    if sys.getfilesystemencoding() == "ascii" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    speak_utf8()
    sys.exit(main())
