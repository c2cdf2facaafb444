"""Template level: check everything, then make a template of the images by one workflow."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mmln_pipeline import __version__
from mmln_pipeline.atlas.labels import find_dseg_table
from mmln_pipeline.bids_app.arguments import UsageError
from mmln_pipeline.bids_app.checks import refuse_options
from mmln_pipeline.bids_app.dataset import write_dataset_files
from mmln_pipeline.bids_app.description import BIDS_VERSION
from mmln_pipeline.bids_app.execution import Failure, run_workflow
from mmln_pipeline.bids_app.invocation import Config
from mmln_pipeline.bids_app.layout import Found
from mmln_pipeline.bids_app.method import Method
from mmln_pipeline.bids_app.participant_level import (
    describe_rest,
    prepare_run,
    tell_failures,
    tell_restriction,
    warn_of_headers,
    workflow_settings,
)
from mmln_pipeline.bids_app.plugin_option import Plugin
from mmln_pipeline.bids_app.run_log import LOGGER, keep_log, warn
from mmln_pipeline.bids_app.work_folder import sole_use, temporary_files
from mmln_pipeline.derivatives import filenames
from mmln_pipeline.interfaces.saving import put_file, put_text, to_json
from mmln_pipeline.workflows import Scan, init_study_template_wf, write_boilerplate

PARTICIPANT_ONLY = ("list_unfinished", "reports_only", "write_formats", "apply_to", "output_spaces", "template_dseg")
FEWEST = 2


def run_template(config: Config) -> int:
    """Check the settings, then make the template; a run that was stopped goes on where it was.

    Parameters
    ----------
    config : Config
        Settings of the run.

    Returns
    -------
    int
        0: the template is there; 1: an image failed, and there is none.

    Raises
    ------
    UsageError
        The settings or the input are wrong; nothing was written.
    """
    refuse_options(config, PARTICIPANT_ONLY)
    if not re.fullmatch("[0-9A-Za-z]+", config.template_name):
        raise UsageError(f"--template-name: expected letters and digits, found {config.template_name!r}")
    plugin, method, found = prepare_run(config)
    _check_inputs(config, found, method)
    paths = filenames.study_template_paths(config.template_name, any(scan.has("dseg") for scan in found.scans))
    if config.dry_run:
        warn_of_headers(found.scans, method)
        print(_describe_plan(config, found.scans, paths.values()))
        return 0
    print("\n".join(describe_rest(found)), end="\n" if found.skipped or found.unused else "")
    with sole_use(config.work_dir), temporary_files(config.work_dir), keep_log(config):
        tell_restriction(method)
        return _make_template(config, method, found.scans, list(paths.values()), plugin)


def _check_inputs(config: Config, found: Found, method: Method) -> None:
    """Refuse what no template can be made of: every image counts, so that one that is missing is told beforehand."""
    if found.failed:
        name, reason = next(iter(found.failed.items()))
        raise UsageError(f"template: {len(found.failed)} images cannot be read, the first {name}: {reason}")
    if len(found.scans) < FEWEST:
        raise UsageError(f"template: expected at least {FEWEST} images, found {len(found.scans)}")
    if len(method.targets) > 1:
        raise UsageError(f"--template {config.template}: expected one template, whose pose is taken, found a table")
    if method.targets[0].name == config.template_name:
        raise UsageError(f"--template-name {config.template_name}: is the name of --template: choose another")


def _describe_plan(config: Config, scans: Sequence[Scan], paths) -> str:
    """Say what would be made of what."""
    made = f"the template {config.template_name} of {len(scans)} images"
    return "\n".join(
        [
            f"Would make {made} in {config.template_iterations} iterations:",
            *(scan.stem for scan in scans),
            f"and write {', '.join(paths)}",
        ]
    )


def _make_template(
    config: Config, method: Method, scans: Sequence[Scan], paths: Sequence[str], plugin: Plugin | None
) -> int:
    """Run the workflow, and write what describes the template; return the exit code."""
    (target,) = method.targets
    workflow = init_study_template_wf(
        scans=scans,
        provenance=target.describe(method.provenance),
        target=target,
        template_name=config.template_name,
        iterations=config.template_iterations,
        resolution=config.template_resolution,
        **workflow_settings(config, method),
        name=f"mmln_{__version__.replace('.', '_')}_template_{config.template_name}_wf",
    )
    workflow.base_dir = str(config.work_dir)
    if config.clean_workdir:
        shutil.rmtree(config.work_dir / workflow.name, ignore_errors=True)
    named = replace(method, targets=(replace(target, name=config.template_name, spaced=True),), tables={})
    write_dataset_files(config, named, write_boilerplate(workflow))
    if config.boilerplate_only:
        print(config.output_dir / named.apart(filenames.CITATION))
        return 0
    warn_of_headers(scans, method)
    failures = run_workflow(workflow, config, scans, plugin)
    missing = [path for path in paths if not (config.output_dir / path).is_file()]
    if missing and not failures:
        failures = {config.template_name: Failure(f"not finished: {missing[0]} is missing")}
    tell_failures(failures)
    if failures:
        left_out = "leave out what cannot be mended (--participant-label)"
        warn(f"no template: every image counts; {left_out} and run again")
        LOGGER.info("end: no template")
        return 1
    _describe_template(config, scans)
    LOGGER.info("end: template %s of %d images done", config.template_name, len(scans))
    print(config.output_dir / filenames.study_template_paths(config.template_name)["page"])
    return 0


def _describe_template(config: Config, scans: Sequence[Scan]) -> None:
    """Write the description of the template, and the table of its labels where they have one."""
    content = {
        "Identifier": config.template_name,
        "Name": f"Unbiased template of {len(scans)} T1-weighted brains",
        "BIDSVersion": BIDS_VERSION,
        "GeneratedBy": [{"Name": "mmln-pipeline", "Version": __version__}],
    }
    put_text(to_json(content), config.output_dir / filenames.template_description(config.template_name))
    labels: list[Path] = [image.dseg for scan in scans for image in scan.images if image.dseg]
    table = find_dseg_table(labels[0]) if labels else None
    if table is not None:
        put_file(table, config.output_dir / filenames.template_label_table(config.template_name))
