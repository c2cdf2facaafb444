"""The BIDS App's main function: from the command line to an exit code."""

import os
import sys
import traceback
from collections.abc import Sequence

from mmln_pipeline.bids_app.arguments import UsageError, parse_args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the BIDS App.

    Parameters
    ----------
    argv : sequence of str or None, default None
        Command line (default: that of the process).

    Returns
    -------
    int
        0: all subjects done; 1: some failed; 2: wrong usage or input; 130: interrupted.
    """
    verbose = 0
    try:
        config = parse_args(argv)
        verbose = config.verbose
        # ITK (ANTs, SimpleITK) reads this once, when it is loaded; worker processes inherit it.
        os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(config.omp_nthreads)
        # Nipype, PyBIDS and torch are loaded only now, so that --help and wrong options answer at once.
        if config.analysis_level == "group":
            from mmln_pipeline.bids_app.group_level import run_group

            return run_group(config)
        from mmln_pipeline.bids_app.participant_level import run_participants

        return run_participants(config)
    except UsageError as error:
        if verbose:
            traceback.print_exc()
        print(f"mmln-bids: error: {error}", file=sys.stderr)
        return 2
    except SystemExit as done:  # argparse: --help, --version, or a wrong option
        return done.code if isinstance(done.code, int) else 0
    except KeyboardInterrupt:
        print("mmln-bids: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
