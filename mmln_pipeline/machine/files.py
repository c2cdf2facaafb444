"""Files: written whole or not at all, known by their content, and why one cannot be read."""

from __future__ import annotations

import hashlib
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from filecmp import cmp
from pathlib import Path

POINTERS = (b"/annex/objects/", b"version https://git-lfs")
"""How the files begin that git-annex (unlocked) and Git LFS leave in place of content that was not fetched."""


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, keep_same: bool = False) -> Iterator[Path]:
    """Yield a temporary path that replaces the target when the block ends well.

    The temporary file lies in the target's folder (made if absent) and keeps its name's ending, so that
    writers which choose a format by suffix work and the final rename never crosses a file system.

    Parameters
    ----------
    path : path-like
        The file to be made or replaced.
    keep_same : bool, default=False
        Leave a target untouched that holds the same bytes already.

    Yields
    ------
    Path
        Where to write. It does not exist yet; it is removed when the block raises.

    Raises
    ------
    FileNotFoundError
        If the block ends without having written the file.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{uuid.uuid4().hex[:8]}-{target.name}")
    try:
        yield temporary
        if not (keep_same and target.is_file() and cmp(temporary, target, shallow=False)):
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write a text file atomically, in UTF-8.

    Parameters
    ----------
    path : path-like
        The file to be made or replaced.
    text : str
        Its whole content.

    Returns
    -------
    Path
        The file written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def why_unreadable(path: str | os.PathLike[str]) -> str | None:
    """Say why a file's content is not there to be read, and what to do.

    Parameters
    ----------
    path : path-like
        The file; only its first bytes are read.

    Returns
    -------
    str or None
        What follows the file's name in a message; None where the content is there.
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        return "is no regular file"  # a pipe would be waited for
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        if path.is_symlink():
            return f"is a dangling link, its content is not here: in a DataLad dataset, `datalad get {path}` brings it"
        return "no such file"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if head.startswith(POINTERS):
        return f"only points to its content: `datalad get {path}` (git-annex) or `git lfs pull` brings it"
    return None if head else "is empty"


def is_same_file(path: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Tell whether two paths lead to one file, by whatever names; what is not there is no file."""
    return os.path.exists(path) and os.path.exists(other) and os.path.samefile(path, other)


def existing_part(path: Path) -> Path:
    """Return a path, or the nearest folder above it that is there: what decides whether the rest can be made."""
    return next(part for part in (path, *path.absolute().parents) if os.path.lexists(part))


def why_no_folder(path: str | os.PathLike[str], *, attempt: bool = True) -> str | None:
    """Say why a folder cannot be made, or written to where it is there.

    Parameters
    ----------
    path : path-like
        The folder; it is not made.
    attempt : bool, default=True
        Whether to try if a folder can be made there, and remove it: below /proc, or on a disk without room, that is not
        known from permissions; else only what is there is looked at.

    Returns
    -------
    str or None
        What follows the folder's name in a message; None where nothing speaks against it.
    """
    path = Path(path)
    there = existing_part(path)
    for one in (path, *(there / part for part in path.parts)):  # a part that is not there is looked at where it may be
        try:
            one.stat()
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            pass
        except OSError as error:  # a name that is too long, or links in a circle
            return f"cannot be used ({error.strerror})"
    if not there.is_dir():
        found = "a dangling link" if there.is_symlink() and not there.exists() else "a file"
        return f"expected a folder, found {found}" if there == path else f"cannot be made: {there} is {found}"
    if not attempt:
        return None
    try:
        os.rmdir(tempfile.mkdtemp(dir=there))
    except OSError as error:
        return f"{there} cannot be written to ({error.strerror})"
    return None


def checksum(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
