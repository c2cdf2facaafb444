"""The work directory: one run at a time, since Nipype empties a step's folder before it begins it; scratch files."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmln_pipeline.bids_app.arguments import UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TURNS = ".lock"
"""File of a folder whose users take turns."""
LOCK = ".mmln.lock"
"""File whose lock the system takes back when its holder ends, however that happens; it says who held it last."""


@contextmanager
def sole_use(folder: Path, name: str = "--work-dir") -> Iterator[None]:
    """Keep other runs out of a directory to work in.

    Two runs in one folder delete what the other one computes in, and torch (MKL) ends a process whose folder is gone.
    File systems that know no locks are used without.

    Parameters
    ----------
    folder : Path
        The directory, made if absent.
    name : str, default "--work-dir"
        Of the option that chooses it.

    Raises
    ------
    UsageError
        Another run is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "a+", encoding="utf-8") as file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = f" ({text})" if (text := " ".join(file.read().split())) else ""
            raise UsageError(
                f"{name} {folder}: another run is at work there{holder}: wait for its end, or choose another folder"
            ) from None
        except OSError:
            pass
        else:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield


@contextmanager
def temporary_files(folder: Path) -> Iterator[None]:
    """Let this process and those that it starts keep temporary files below a folder, until they are done.

    Where `TMPDIR` is set, it says where they go, and where the folder cannot be written to, the system does. A home
    that cannot be written to, as in containers, is no place for matplotlib's cache either.

    Parameters
    ----------
    folder : Path
        The folder.
    """
    if os.environ.get("TMPDIR") or not os.access(folder, os.W_OK):
        yield
        return
    # No "-" in the name: NiReports would take what stands before it for a BIDS entity.
    scratch = tempfile.mkdtemp(prefix=".tmp", dir=folder)
    changed = {"TMPDIR": scratch}
    if not os.access(Path.home(), os.W_OK) and "MPLCONFIGDIR" not in os.environ:
        changed["MPLCONFIGDIR"] = scratch
    before = tempfile.tempdir
    os.environ |= changed
    tempfile.tempdir = scratch
    try:
        yield
    finally:
        for name in changed:
            del os.environ[name]
        tempfile.tempdir = before
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Let processes, on whichever machine, do something in a folder one after the other.

    File systems that know no locks are used without; what is done there has to bear that.

    Parameters
    ----------
    folder : Path
        The folder.
    """
    with open(folder / TURNS, "a", encoding="utf-8") as file:
        if fcntl:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
