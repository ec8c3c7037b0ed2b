"""Files that are written beside and renamed, so that whatever happens there is a whole one under the name; locks."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import filelock

UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces path by content, or leaves it as it was and raises OSError (a full disk, a write-protected folder)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            file.write(content)
            sync(file)
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk names no file by itself
        raise


def sync(file: IO[Any]) -> None:
    """Has what was written on the disk, where the file system can promise that."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def parse_json(text: str | bytes) -> Any:
    """Raises ValueError, also where values are nested too deep."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("values are nested too deep") from None


def reason(error: BaseException) -> str:
    """What a library's exception says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def remove_parts(folder: Path, patterns: Iterable[str]) -> None:
    """Removes what killed calls of write_atomically left of files of these patterns below the folder."""
    for pattern in patterns:
        files = folder / pattern
        for part in files.parent.glob(f".{files.name}.{'[0-9a-f]' * 8}.part"):
            part.unlink(missing_ok=True)


def there(path: Path) -> bool:
    """Something is under this name, be it a folder or a link to nothing."""
    return os.path.lexists(path)


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


@contextlib.contextmanager
def locked(path: Path, busy: str | None = None) -> Iterator[None]:
    """Within it no other process has the lock file, however this one ends.

    busy: what the error says where another one has it; None: waits for that one. Where the file system has no locks
    there is a warning and no lock.

    Raises:
        ValueError: another process has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path, timeout=-1 if busy is None else 0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise ValueError(busy) from None
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (*UNSUPPORTED, errno.ENOLCK):
            raise
        print(f"warning: {path}: no locks here ({error}); run one process at a time on this folder", file=sys.stderr)
    try:
        yield
    finally:
        lock.release()
