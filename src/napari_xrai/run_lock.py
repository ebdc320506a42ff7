"""One writer per run folder: two at once would each replace the other's files."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from .io.atomic import unwritable
from .io.source import InputError

LOCK = ".writer"
"""Holds who writes, in words. The lock itself is the operating system's: it ends with its process, in whatever way."""


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Be the only one to write into `folder` for as long as the block lasts; it is made if need be.

    On a file system without locks nobody is kept out. A folder made here and left empty is taken away again.

    Raises
    ------
    InputError
        If another process writes there, or the folder cannot be written.
    """
    path, made = folder / LOCK, not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _locked(path)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        file.close()
        if made:
            with suppress(OSError):
                folder.rmdir()


def _locked(path: Path) -> FileIO:
    while True:
        file = FileIO(path, "a+")
        if not _lock(file):
            with file:
                file.seek(0)
                who = file.read(200).decode(errors="replace") or "another process"
            raise InputError(f"{path.parent} is being written by {who}: stop that run, or choose another folder")
        if _is_at(path, file):
            return file
        file.close()


def _is_at(path: Path, file: FileIO) -> bool:
    """Whether it is not the file of a writer who ended, and took it away, between opening and locking."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _lock(file: FileIO) -> bool:
    """Whether the lock is ours; it is, too, where the file system has none."""
    if sys.platform == "win32":
        import msvcrt

        try:
            file.seek(2**20)  # beyond the words, which others read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
