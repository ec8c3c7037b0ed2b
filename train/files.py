"""Files that are written beside and renamed, so that whatever happens there is a whole one under the name."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path
from typing import TextIO

UMASK = os.umask(0)
os.umask(UMASK)


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces path by content, or leaves it as it was and raises OSError (a full disk, a write-protected folder)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, 0o666 & ~UMASK)  # mkstemp's own mode shuts everybody else out
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk names no file by itself
        raise


def reason(error: BaseException) -> str:
    """What a library's exception says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def remove_parts(folder: Path) -> None:
    """Removes what a killed process left half-written."""
    for part in folder.glob("**/.*.part"):
        part.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Raises OSError, naming the folder, unless files can be written in it; makes nothing."""
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise NotADirectoryError(f"output {folder}: {existing} is not a folder")
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise PermissionError(f"output {folder} cannot be written: {error.strerror}") from None


def lock(folder: Path) -> TextIO:
    """Makes the folder this process's own until it ends, however it ends; keep what is returned.

    Raises:
        ValueError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = (folder / ".lock").open("w")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        held.close()
        raise ValueError(f"output {folder}: another process is training there") from None
    return held
