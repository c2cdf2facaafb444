"""Participant level: check everything, run one workflow for all scans, write reports, name who failed."""

import shutil
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from nipype.pipeline import engine as pe

from mmln_pipeline import __version__
from mmln_pipeline.bids_app.checks import Method, check_paths, prepare_method, read_plugin
from mmln_pipeline.bids_app.config import Config
from mmln_pipeline.bids_app.dataset import check_output_dataset, write_dataset_files, write_report
from mmln_pipeline.bids_app.execution import Failure, run_workflow
from mmln_pipeline.bids_app.layout import find_scans
from mmln_pipeline.bids_app.parser import UsageError
from mmln_pipeline.workflows import Scan, init_mmln_wf, outputs, write_boilerplate

NETWORK_GB = 8.0
"""Memory that the network is taken to need, GB."""


def run_participants(config: Config) -> int:
    """Check the settings, then do what they ask for.

    Parameters
    ----------
    config : Config
        Settings of the run.

    Returns
    -------
    int
        0: all subjects done; 1: some failed.

    Raises
    ------
    UsageError
        The settings or the input are wrong; nothing was written.
    """
    check_paths(config)
    check_output_dataset(config.output_dir)
    plugin = read_plugin(config.use_plugin) if config.use_plugin else None
    if config.resource_monitor and find_spec("psutil") is None:
        raise UsageError("--resource-monitor: needs the package psutil: pip install psutil")
    scans, skipped = find_scans(config)
    method = prepare_method(config)
    if config.dry_run:
        print(describe_plan(config, method, scans, skipped))
        return 0
    for subject in skipped:
        print(f"sub-{subject}: skipped, no T1w image")
    if config.reports_only:
        return finish(config, method, scans, {})

    workflow = build_workflow(config, method, scans)
    if config.clean_workdir:
        shutil.rmtree(Path(workflow.base_dir) / workflow.name, ignore_errors=True)
    write_dataset_files(config, method, write_boilerplate(workflow))
    if config.boilerplate_only:
        print(config.output_dir / outputs.CITATION)
        return 0
    if config.write_graph:
        drawn = "svg" if shutil.which("dot") else "dot"  # without Graphviz, its input is all there is
        print(workflow.write_graph(graph2use="colored", simple_form=True, format=drawn))
    return finish(config, method, scans, run_workflow(workflow, config, scans, plugin))


def build_workflow(config: Config, method: Method, scans: Sequence[Scan]) -> pe.Workflow:
    """Build the workflow of a run.

    Parameters
    ----------
    config : Config
        Settings of the run.
    method : Method
        What they mean on this machine.
    scans : sequence of Scan
        The scans to register.

    Returns
    -------
    Workflow
        With the work directory as its base.
    """
    workflow = init_mmln_wf(
        scans=scans,
        output_dir=config.output_dir,
        provenance=method.provenance,
        template=config.template,
        template_dseg=config.template_dseg,
        atlas=method.atlas,
        label_names=method.label_names,
        compare_labels=method.compare_labels,
        skull_strip=config.skull_strip,
        bias_correction=config.bias_correction,
        init=config.init,
        model=config.model,
        refine=config.refine,
        topology=config.topology,
        device=method.device,
        omp_nthreads=config.omp_nthreads,
        mem_gb=config.mem_gb if config.low_mem else min(NETWORK_GB, config.mem_gb),
        random_seed=config.random_seed,
        name=f"mmln_{__version__.replace('.', '_')}_wf",
    )
    workflow.base_dir = str(config.work_dir)
    return workflow


def finish(config: Config, method: Method, scans: Sequence[Scan], failures: Mapping[str, Failure]) -> int:
    """Write the reports, say what came of each scan, and return the exit code.

    Parameters
    ----------
    config : Config
        Settings of the run.
    method : Method
        What they mean on this machine.
    scans : sequence of Scan
        The scans of the run.
    failures : mapping of str to Failure
        What went wrong, by the name of the scan's workflow.

    Returns
    -------
    int
        0: all done; 1: some failed.
    """
    failed = {}
    for scan in scans:
        failure = failures.get(scan.workflow_name) or find_missing(config.output_dir, method, scan)
        if failure:
            failed[scan.stem] = failure
    done = len(scans) - len(failed)
    for subject in dict.fromkeys(scan.subject for scan in scans):
        own = [failed[scan.stem] for scan in scans if scan.subject == subject and scan.stem in failed]
        try:
            write_report(config, subject, [failure.crash_file or failure.cause for failure in own])
        except Exception as error:  # one report must not cost the others theirs
            if config.verbose:
                traceback.print_exc()
            failed[outputs.report_name(subject)] = Failure(f"{type(error).__name__}: {error}")
    print(f"{done} of {len(scans)} images done: {config.output_dir}")
    for name, failure in failed.items():
        record = f" ({failure.crash_file})" if failure.crash_file else ""
        print(f"{name}: FAILED: {failure.cause}{record}", file=sys.stderr)
    return 1 if failed else 0


def find_missing(output_dir: Path, method: Method, scan: Scan) -> Failure | None:
    """Return a failure that names the first derivative that is not there, or None.

    Parameters
    ----------
    output_dir : Path
        Root of the derivative dataset.
    method : Method
        Names of template and atlas.
    scan : Scan
        The scan.

    Returns
    -------
    Failure or None
    """
    for path in outputs.derivative_paths(scan, method.provenance.template, method.atlas).values():
        if not (output_dir / path).is_file():
            return Failure(f"not finished: {path} is missing")
    return None


def describe_plan(config: Config, method: Method, scans: Sequence[Scan], skipped: Sequence[str]) -> str:
    """Say what would run, with the files and the reasons.

    Parameters
    ----------
    config : Config
        Settings of the run.
    method : Method
        What they mean on this machine.
    scans : sequence of Scan
        The scans of the run.
    skipped : sequence of str
        Subjects without a T1w image.

    Returns
    -------
    str
        Lines for the terminal.
    """
    labels = f"labels {method.atlas}" if method.atlas else "no labels"
    lines = [
        f"Would register {len(scans)} images to {method.provenance.template} ({labels}) with model"
        f" {method.provenance.model} on {method.device}, {config.nprocs} processors, {config.mem_gb:g} GB:"
    ]
    for scan in scans:
        missing = find_missing(config.output_dir, method, scan)
        state = missing.cause if missing else "finished before"
        lines += [
            f"{scan.stem}: {scan.t1w}",
            f"  mask: {scan.mask or f'none given (--skull-strip {config.skull_strip})'}",
            f"  labels: {scan.dseg or 'none given'}",
            f"  results: {config.output_dir / scan.folder} ({state})",
        ]
    lines += [f"sub-{subject}: skipped, no T1w image" for subject in skipped]
    return "\n".join(lines)
