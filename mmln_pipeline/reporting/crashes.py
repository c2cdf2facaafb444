"""Nipype's crash files: which node failed, of what."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mmln_pipeline.machine.files import why_unreadable

CAUSE = re.compile(r"^\s*(?:[\w.]+\.)?(\w*(?:Error|Exception|Interrupt|Exit|Pool))(?:: (.*))?$")
TRACEBACK = re.compile(r"^(?:Traceback \(most recent call last\):|concurrent\.futures\.)", re.MULTILINE)
"""Where the traceback begins; that of a worker process that was killed has no first line."""
REFUSED = re.compile(
    r"MemoryError|OutOfMemoryError|[Oo]ut of memory|bad_alloc|an't allocate memory|annot allocate memory"
    r"|could not create a (?:primitive|memory object)|failed to map segment|unable to mmap"
)
"""What Python, C++, the system, torch, oneDNN and the loader of libraries say where memory is refused."""
LOST = re.compile(r"object or string representing an existing file, but a value of '(.+)' <class")
"""What Nipype says of a file that went while it worked."""
FIX_MEMORY = "fewer --nprocs, or --low-mem"


@dataclass(frozen=True)
class Crash:
    """What a crash file tells.

    Attributes
    ----------
    node : str
        Full name of the node, empty where the file names none.
    folder : Path or None
        Where the node worked, None where the file does not say.
    cause : str
        Why it failed, one line.
    traceback : str
        The traceback; all of the file where there is none.
    """

    node: str
    folder: Path | None
    cause: str
    traceback: str


def read_crash(path: str | Path) -> Crash:
    """Read a crash file of Nipype's, in its format `txt`.

    Parameters
    ----------
    path : path
        The file; what is not UTF-8 in it is replaced.

    Returns
    -------
    Crash

    Raises
    ------
    OSError
        The file cannot be read.
    """
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    node = re.match(r"Node: (\S+)", text)
    place = re.search(r"^Working directory: (.+)$", text, re.MULTILINE)
    folder = Path(place[1]) if place else None
    start = TRACEBACK.search(text)
    return Crash(node[1] if node else "", folder, find_cause(text), text[start.start() if start else 0 :].strip())


def find_cause(text: str) -> str:
    """Find the message of the error that a traceback ends with.

    Parameters
    ----------
    text : str
        The traceback.

    Returns
    -------
    str
        One line.

    Examples
    --------
    >>> find_cause("Traceback:\\n\\tValueError: image.nii: not 3-D\\n\\n")
    'image.nii: not 3-D'
    """
    found = [match for line in text.splitlines() if (match := CAUSE.match(line))]
    if not found:
        return "unknown error: see the crash file"
    name, message = found[-1].groups()
    if name == "BrokenProcessPool":
        return f"a worker process was killed, most likely for lack of memory: {FIX_MEMORY}"
    if name == "ChildProcessError" and message:  # a scheduler's job, whose memory is its own
        return message
    lost = LOST.search(message or "")
    if lost:
        return f"{lost[1]}: {why_unreadable(lost[1]) or 'was not there for a while'}"
    if REFUSED.search(found[-1][0]):
        return f"memory ran short: {FIX_MEMORY} ({name}{f': {message}' if message else ''})"
    if name in ("ValueError", "FileNotFoundError", "TopologyError") and message:
        return message
    return f"{name}: {message}" if message else name
