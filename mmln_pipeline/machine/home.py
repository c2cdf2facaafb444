"""A home directory for accounts that have none, as in containers that run under any user id."""

import os
import tempfile
from pathlib import Path


def ensure_home() -> None:
    """Let ``HOME`` lead to the folder of temporary files where no home can be found: some libraries ask on import."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = tempfile.gettempdir()
