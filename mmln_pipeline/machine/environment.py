"""What a process of ours needs in its environment before libraries are loaded that read it once."""

import os
import tempfile
from pathlib import Path


def prepare_environment() -> None:
    """Set what is not set yet.

    - ``HOME``, where no home can be found (containers that run under any user id), to the folder of temporary files:
      some libraries ask on import.
    - ``OMP_WAIT_POLICY`` to ``PASSIVE``: torch's idle threads (GNU's OpenMP) sleep. As they come they wait in a busy
      loop, and on a machine that has other work, or other threads, everything takes twice as long.
    """
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = tempfile.gettempdir()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
