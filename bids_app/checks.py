"""Checks of a run's folders and options before any work."""

import os
from collections.abc import Collection

from mmln_pipeline.bids_app.arguments import UsageError
from mmln_pipeline.bids_app.invocation import Config
from mmln_pipeline.machine.files import why_no_folder


def check_paths(config: Config) -> None:
    """Check the folders and files that the options name.

    Raises
    ------
    UsageError
        A folder or file is missing, or an output would land in the raw dataset.
    """
    if not os.path.isdir(config.bids_dir):  # which bears names that are too long
        raise UsageError(f"BIDS_DIR {config.bids_dir}: no such folder")
    derivatives = config.bids_dir / "derivatives"
    reads_only = config.dry_run or config.list_unfinished
    # What registers nothing has no work directory: ./work, the default, may lie where nothing can be written.
    is_idle = config.analysis_level == "group" or config.reports_only or config.list_unfinished
    for name, path in (("OUTPUT_DIR", config.output_dir), ("--work-dir", config.work_dir)):
        if path.is_relative_to(config.bids_dir) and derivatives not in path.parents:
            raise UsageError(
                f"{name} {path}: lies in the raw dataset {config.bids_dir}: choose a folder outside it"
                f" or below {derivatives}"
            )
        reason = None if is_idle and path == config.work_dir else why_no_folder(path, attempt=not reads_only)
        if reason is not None:
            raise UsageError(f"{name} {path}: {reason}: choose another folder")
    if config.work_dir == config.output_dir:
        raise UsageError(f"--work-dir {config.work_dir}: is OUTPUT_DIR: choose another folder")
    for name in ("bids_filter_file", "template_mask", "template_dseg", "use_plugin"):
        path = getattr(config, name)
        if path is not None and not os.path.isfile(path):
            raise UsageError(f"--{name.replace('_', '-')} {path}: no such file")
    for name, path in config.derivatives.items():
        if not os.path.isdir(path):
            raise UsageError(f"--derivatives {name}={path}: no such folder")


def refuse_options(config: Config, names: Collection[str]) -> None:
    """Refuse settings that another level knows; raise UsageError by the first one that is given."""
    for name in names:
        if getattr(config, name):
            raise UsageError(f"--{name.replace('_', '-')}: belongs to the participant level")
