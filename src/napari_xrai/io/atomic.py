"""Finished files only: a file appears under its name complete, or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .source import InputError

REMEDIES = {
    errno.ENOENT: "make the folder {0} first",
    errno.ENOTDIR: "{0} is no folder, choose another",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; it takes the name `path` when the block ends well.

    Raises
    ------
    InputError
        If the operating system refuses to write: no such folder, no permission, disk full.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        part.unlink(missing_ok=True)


def unwritable(path: Path, error: OSError) -> InputError:
    """One sentence for a refused write; HDF5 hides the system's reason in its message."""
    reason = (os.strerror(error.errno) if error.errno else str(error)).splitlines()[0]
    remedy = REMEDIES.get(error.errno or 0, "free some space or choose another folder")
    return InputError(f"{path} cannot be written ({reason}): {remedy.format(path.parent)}")


def make_room(path: Path, size: int) -> None:
    """Let an existing file have `size` bytes, so that later writes within them cannot fail for lack of space.

    Raises
    ------
    OSError
        If the disk is too full.
    """
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    elif shutil.disk_usage(path.parent).free < size - path.stat().st_size:  # macOS, Windows: the best there is
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
