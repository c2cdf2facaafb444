"""The ``mmln`` command line: parse, run one command, turn errors into one clear line and an exit code."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``mmln``.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process by default.

    Returns
    -------
    int
        Exit code: 0 done, 1 a warp that folds beyond repair, pairs that failed (of a table or a study) or an unexpected
        failure, 2 wrong usage or input, 130 interrupted.
    """
    from mmln_pipeline.cli.parser import build_parser
    from mmln_pipeline.cli.registering import PairsError
    from mmln_pipeline.machine.environment import prepare_environment
    from mmln_pipeline.registration.result import TopologyError

    prepare_environment()
    options = build_parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            code = options.run(options)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED, verbose=False)
    except (ValueError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        return _fail(_one_line(error), EXIT_USAGE, options.verbose)
    except (TopologyError, PairsError) as error:
        return _fail(_one_line(error), EXIT_FAILED, options.verbose)
    except Exception as error:
        hint = "" if options.verbose else " (run again with -v for the traceback)"
        return _fail(f"unexpected {type(error).__name__}: {_one_line(error)}{hint}", EXIT_FAILED, options.verbose)
    return EXIT_OK if code is None else code


def _show_warning(message: Warning | str, *_: Any) -> None:
    """Show a warning as one plain line."""
    print(f"mmln: warning: {message}", file=sys.stderr)


def _fail(message: str, code: int, verbose: bool) -> int:
    if verbose:
        traceback.print_exc()
    print(f"mmln: error: {message}", file=sys.stderr)
    return code


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
