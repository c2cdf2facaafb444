"""The BIDS App's main function: from the command line to an exit code."""

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext

from mmln_pipeline.bids_app.arguments import UsageError, parse_args
from mmln_pipeline.bids_app.invocation import Config
from mmln_pipeline.bids_app.signals import say_stopped, stop_on_signals
from mmln_pipeline.bids_app.work_folder import temporary_files
from mmln_pipeline.machine.environment import prepare_environment


def main(argv: Sequence[str] | None = None) -> int:
    """Run the BIDS App.

    Parameters
    ----------
    argv : sequence of str or None, default None
        Command line (default: that of the process).

    Returns
    -------
    int
        0: all subjects done; 1: some failed; 2: wrong usage or input; 130, 143, 129: interrupted, terminated, or
        the terminal was closed.
    """
    prepare_environment()
    try:
        with stop_on_signals():
            return _run(argv)
    except KeyboardInterrupt as stop:
        return say_stopped(*stop.args)


def _only_sums_up(config: Config) -> bool:
    return config.analysis_level == "group" or config.reports_only


def _run_level(config: Config) -> int:
    # Nipype, PyBIDS and torch are loaded only now, so that --help and wrong options answer at once.
    if config.analysis_level == "group":
        from mmln_pipeline.bids_app.group_level import run_group

        return run_group(config)
    if config.analysis_level == "template":
        from mmln_pipeline.bids_app.template_level import run_template

        return run_template(config)
    from mmln_pipeline.bids_app.participant_level import run_participants

    return run_participants(config)


def _run(argv: Sequence[str] | None) -> int:
    """Run the BIDS App, and turn errors into one line and an exit code."""
    verbose = 0
    try:
        config = parse_args(argv)
        verbose = config.verbose
        # ITK (ANTs, SimpleITK) reads this once, when it is loaded; worker processes inherit it.
        os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(config.omp_nthreads)
        # Registering has a work directory for its temporary files, summing up has none.
        with temporary_files(config.output_dir) if _only_sums_up(config) else nullcontext():
            return _run_level(config)
    except UsageError as error:
        if verbose:
            traceback.print_exc()
        print(f"mmln-bids: error: {error}", file=sys.stderr)
        return 2
    except SystemExit as done:  # argparse: --help, --version, or a wrong option
        return done.code if isinstance(done.code, int) else 0
    except Exception as error:  # an error of a node's is told by its scan; this one has another cause
        if verbose:
            traceback.print_exc()
        hint = "" if verbose else " (run again with -v for the traceback)"
        cause = " ".join(str(error).split())
        print(f"mmln-bids: error: unexpected {type(error).__name__}: {cause}{hint}", file=sys.stderr)
        return 1
