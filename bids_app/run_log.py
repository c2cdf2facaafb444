"""The log of a run: what was run, when each step ended and how long it took, warnings, and how it ended."""

import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mmln_pipeline import __version__
from mmln_pipeline.bids_app.invocation import Config
from mmln_pipeline.derivatives import filenames

LOGGER = logging.getLogger("mmln_bids")
"""What is told here stands in the log while a run keeps one, and nowhere else."""
LOGGER.propagate = False
LOGGER.setLevel(logging.INFO)
LOGGER.addHandler(logging.NullHandler())


@contextmanager
def keep_log(config: Config, command: Sequence[str] = ()) -> Iterator[None]:
    """Keep the log of a run beside its settings, `logs/runs/<run>.log`; a later run of these settings goes on in it.

    Parameters
    ----------
    config : Config
        Settings of the run.
    command : sequence of str, default: that of the process
        What was typed.
    """
    path = (config.output_dir / filenames.RUNS / config.run_name).with_suffix(".log")
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    LOGGER.addHandler(handler)
    LOGGER.info("begin: mmln-pipeline %s: %s", __version__, shlex.join(command or sys.argv))
    try:
        yield
    except BaseException as error:
        LOGGER.error("end: %s %s", type(error).__name__, " ".join(str(error).split()))
        raise
    finally:
        LOGGER.removeHandler(handler)
        handler.close()


def warn(text: str) -> None:
    """Say something on standard error, and in the log."""
    print(text, file=sys.stderr)
    LOGGER.warning(text)
