"""Participant level: check everything, run one workflow for all scans, write reports, name who failed."""

import shutil
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, MutableMapping, MutableSet, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nipype.pipeline import engine as pe

from mmln_pipeline import __version__
from mmln_pipeline.bids_app.arguments import UsageError
from mmln_pipeline.bids_app.checks import check_paths
from mmln_pipeline.bids_app.chunks import chunk_size, group_alike, split
from mmln_pipeline.bids_app.dataset import check_output_dataset, list_reports, write_dataset_files, write_report
from mmln_pipeline.bids_app.execution import Failure, run_workflow
from mmln_pipeline.bids_app.finished import find_doubts
from mmln_pipeline.bids_app.invocation import Config
from mmln_pipeline.bids_app.layout import Found, find_scans
from mmln_pipeline.bids_app.method import Method, prepare_method
from mmln_pipeline.bids_app.naming import name_apart, note_templates
from mmln_pipeline.bids_app.plugin_option import Plugin, check_cluster, read_plugin
from mmln_pipeline.bids_app.run_log import LOGGER, keep_log, warn
from mmln_pipeline.bids_app.slurm_jobs import mark_folder
from mmln_pipeline.bids_app.step_teller import SECONDS, count_steps
from mmln_pipeline.bids_app.template_option import drop_templates
from mmln_pipeline.bids_app.work_folder import sole_use, temporary_files
from mmln_pipeline.derivatives import filenames
from mmln_pipeline.machine.forecast import Forecast
from mmln_pipeline.machine.progress import show_forecast
from mmln_pipeline.reporting.group_table import group_tables
from mmln_pipeline.reporting.record import read_records
from mmln_pipeline.space.placement import find_placements
from mmln_pipeline.weights import restriction
from mmln_pipeline.workflows import Scan, fused_targets, init_mmln_wf, targets_of, write_boilerplate

NETWORK_GB = 3.0
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
        The settings or the input are wrong, or another run uses the work directory; no result was written.
    """
    plugin, method, found = prepare_run(config)
    method = name_apart(config.output_dir, method)
    scans, templates = drop_templates(config, found.scans, method.targets)
    found = found._replace(scans=scans, skipped=found.skipped | templates)
    if config.list_unfinished:
        print("".join(f"{subject}\n" for subject in list_unfinished(config, method, found)), end="")
        return 0
    if config.dry_run or config.reports_only:
        warn_of_headers(scans, method)
    if config.dry_run:
        print(describe_plan(config, method, found))
        return 1 if found.failed else 0
    print("\n".join(describe_rest(found)), end="\n" if found.skipped or found.unused else "")
    if config.reports_only:
        return finish(config, method, scans, {})
    with sole_use(config.work_dir), temporary_files(config.work_dir), keep_log(config):
        tell_restriction(method)
        return register_scans(config, method, found, plugin)


def tell_restriction(method: Method) -> None:
    """Say what the weights may not be used for, if anything."""
    if text := restriction(method.provenance.model, method.provenance.model_license):
        warn(f"mmln-bids: {text}")


def prepare_run(config: Config) -> tuple[Plugin | None, Method, Found]:
    """Check the settings of a run that registers images, and find these.

    Parameters
    ----------
    config : Config
        Settings of the run.

    Returns
    -------
    plugin : Plugin or None
        Nipype's, in place of our choice.
    method : Method
        What the settings mean on this machine.
    found : Found
        The scans, and what cannot be registered.

    Raises
    ------
    UsageError
        The settings or the input are wrong; nothing was written.
    """
    check_paths(config)
    check_output_dataset(config.output_dir)
    plugin = read_plugin(config.use_plugin) if config.use_plugin else None
    # First, since the memory that templates take on loading is free again for the names of a large dataset.
    method = prepare_method(config, elsewhere=bool(plugin and plugin.is_batch))
    found = find_scans(config)
    if plugin is not None:
        check_batch(config, plugin, method)
    return plugin, method, found


def check_batch(config: Config, plugin: Plugin, method: Method) -> None:
    """Refuse what cannot be done by a scheduler's jobs, and jobs that it would not take.

    Parameters
    ----------
    config : Config
        Settings of the run.
    plugin : Plugin
        Nipype's; where it runs nodes on this machine, nothing is checked.
    method : Method
        What the settings mean.

    Raises
    ------
    UsageError
        An option or an argument of the plugin has to be another.
    """
    if not plugin.is_batch:
        return
    if config.resource_monitor:
        raise UsageError("--resource-monitor: watches this machine only: leave it to the scheduler")
    if method.device.startswith("cuda:"):
        raise UsageError(f"--device {method.device}: each job has devices of its own: give cuda, or auto")
    if not (config.dry_run or config.list_unfinished or config.reports_only or config.boilerplate_only):
        mark = mark_folder(config.work_dir)
        check_cluster(plugin, config.omp_nthreads, NETWORK_GB, method.device.startswith("cuda"), mark)


def register_scans(config: Config, method: Method, found: Found, plugin: Plugin | None) -> int:
    """Register all scans and write everything.

    Parameters
    ----------
    config : Config
        Settings of the run.
    method : Method
        What they mean on this machine.
    found : Found
        The scans of the run, and what cannot be registered.
    plugin : Plugin or None
        Nipype's, in place of our choice.

    Returns
    -------
    int
        0: all done; 1: some failed.
    """
    failures = {name: Failure(reason) for name, reason in found.failed.items()}
    sound = [scan for scan in found.scans if scan.stem not in failures]
    is_elsewhere = bool(plugin and plugin.is_batch)
    # A job has memory of its own, whatever this machine has.
    own = replace(config, low_mem=False, mem_gb=NETWORK_GB) if is_elsewhere else config
    chunks = split(sound, chunk_size(config.nprocs, is_elsewhere))
    examples, counts = build_examples(own, method, chunks)
    if config.clean_workdir:
        shutil.rmtree(Path(examples.base_dir) / examples.name, ignore_errors=True)
    write_dataset_files(config, method, write_boilerplate(examples))
    if config.boilerplate_only:
        print(config.output_dir / method.apart(filenames.CITATION))
        return 0
    told: set[str] = set()
    forecast = Forecast(counts, SECONDS)
    with show_forecast("mmln-bids", forecast) as say:
        for number, chunk in enumerate(chunks):
            warn_of_headers(chunk, method, told)
            unbuilt: dict[str, Exception] = {}
            workflow = build_workflow(own, method, chunk, unbuilt)
            failures |= {name: Failure(f"{type(error).__name__}: {error}") for name, error in unbuilt.items()}
            if config.write_graph and number == 0:
                drawn = "svg" if shutil.which("dot") else "dot"  # without Graphviz, its input is all there is
                print(workflow.write_graph(graph2use="colored", simple_form=True, format=drawn))
            if failures and config.stop_on_first_crash:
                break
            built = [scan for scan in chunk if scan.stem not in unbuilt]
            failures |= run_workflow(workflow, config, built, plugin, (forecast, say)) if built else {}
    return finish(config, method, found.scans, failures)


def build_examples(
    config: Config, method: Method, chunks: Sequence[Sequence[Scan]]
) -> tuple[pe.Workflow, Counter[str]]:
    """Build the workflow of one scan of each kind, which stands for those of all scans.

    Parameters
    ----------
    config : Config
        Settings of the run.
    method : Method
        What they mean on this machine.
    chunks : sequence of sequence of Scan
        The scans, as they are to run.

    Returns
    -------
    workflow : Workflow
        Its methods text is that of the run. Of a kind whose scans cannot be built there is none.
    counts : Counter of str
        Steps of all chunks, by their kind.
    """
    groups = group_alike([scan for chunk in chunks for scan in chunk], method.targets)
    failed: dict[str, Exception] = {}
    n_failed = -1
    while len(failed) > n_failed:  # for an example that cannot be built, the next one of its kind
        n_failed = len(failed)
        firsts = [next((scan for scan in group if scan.stem not in failed), None) for group in groups]
        workflow = build_workflow(config, method, [scan for scan in firsts if scan], failed)
    own = [count_steps(workflow.get_node(scan.workflow_name)) if scan else Counter() for scan in firsts]
    counts = count_steps(workflow)
    for steps in own:
        counts -= steps  # what is left belongs to no scan: once a chunk
    counts = Counter({kind: count * len(chunks) for kind, count in counts.items()})
    for steps, group in zip(own, groups, strict=True):
        counts += Counter({kind: count * len(group) for kind, count in steps.items()})
    return workflow, counts


def list_unfinished(config: Config, method: Method, found: Found) -> list[str]:
    """List the subjects of whose images at least one has not all its results.

    Parameters
    ----------
    config : Config
        Settings of the run.
    method : Method
        What they mean on this machine.
    found : Found
        The scans of the run.

    Returns
    -------
    list of str
        Labels without `sub-`.
    """
    missing = (scan.subject for scan in found.scans if find_missing(config.output_dir, method, scan))
    return list(dict.fromkeys(missing))


def warn_of_headers(scans: Sequence[Scan], method: Method, told: MutableSet[str] | None = None) -> None:
    """Say on stderr and in the log of which inputs NiBabel and ITK read the header differently; not what is `told`."""
    told = set() if told is None else told
    for line in describe_headers(scans, method):
        if line not in told:
            warn(f"mmln-bids: warning: {line}")
        told.add(line)


def describe_headers(scans: Sequence[Scan], method: Method) -> Iterator[str]:
    """Say of which inputs NiBabel and ITK read the header differently, and by how much.

    Parameters
    ----------
    scans : sequence of Scan
        The scans of the run.
    method : Method
        Its templates.

    Yields
    ------
    str
        One line a file.
    """
    templates = (find_placements(target.files) for target in method.targets)
    for found in (*(scan.placements for scan in scans), *templates):
        for name, placement in found.items():
            yield f"{name}: {placement.path}: {placement.describe()}"


def build_workflow(
    config: Config, method: Method, scans: Sequence[Scan], failed: MutableMapping[str, Exception] | None = None
) -> pe.Workflow:
    """Build the workflow of a run.

    Parameters
    ----------
    config : Config
        Settings of the run.
    method : Method
        What they mean on this machine.
    scans : sequence of Scan
        The scans to register.
    failed : mutable mapping or None, default None
        Takes the error of each scan whose part cannot be built, by its stem; None: the error is raised.

    Returns
    -------
    Workflow
        With the work directory as its base.
    """
    workflow = init_mmln_wf(
        scans=scans,
        provenance=method.provenance,
        targets=method.targets,
        failed=failed,
        **workflow_settings(config, method),
        name=f"mmln_{__version__.replace('.', '_')}_wf",
    )
    workflow.base_dir = str(config.work_dir)
    return workflow


def workflow_settings(config: Config, method: Method) -> dict[str, Any]:
    """Return what builders of workflows that register images take of the settings, whatever they build."""
    return {
        "output_dir": config.output_dir,
        "skull_strip": config.skull_strip,
        "bias_correction": config.bias_correction,
        "omp_nthreads": config.omp_nthreads,
        "mem_gb": config.mem_gb if config.low_mem else min(NETWORK_GB, config.mem_gb),
        **config.registration(),
        "device": method.device,
    }


def tell_failures(failures: Mapping[str, Failure]) -> None:
    """Say what failed, and why."""
    for name, failure in failures.items():
        record = f" ({failure.crash_file})" if failure.crash_file else ""
        warn(f"{name}: FAILED: {failure.cause}{record}")


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
        What went wrong, by the stem of the scan, or the subject where no image of it can be seen.

    Returns
    -------
    int
        0: all done; 1: some failed.
    """
    failed = dict(failures)
    for scan in scans:
        failure = failures.get(scan.stem) or find_missing(config.output_dir, method, scan)
        if failure:
            failed[scan.stem] = failure
    done = sum(scan.stem not in failed for scan in scans)
    # Of other subjects' records none is read: a job of an array costs the same, however many are finished.
    subjects = list(dict.fromkeys(scan.subject for scan in scans))
    records = {name: own for subject in subjects for name, own in read_records(config.output_dir, subject).items()}
    if done:
        note_templates(config.output_dir, method)
    tables = group_tables(records)
    pages = sorted({*subjects, *list_reports(config.output_dir)})
    for subject in subjects:
        own = [failed[scan.stem] for scan in scans if scan.subject == subject and scan.stem in failed]
        try:
            write_report(
                config, method, subject, [failure.crash_file or failure.cause for failure in own], tables, pages
            )
        except Exception as error:  # one report must not cost the others theirs
            if config.verbose:
                traceback.print_exc()
            failed[filenames.report_name(subject)] = Failure(f"{type(error).__name__}: {error}")
    print(f"{done} of {len(scans)} images done: {config.output_dir}")
    LOGGER.info("end: %d of %d images done", done, len(scans))
    names = {target.name for target in method.targets}
    judged = {name: record for name, record in records.items() if record.get("template") in names}
    for name, doubt in find_doubts(judged, [scan for scan in scans if scan.stem not in failed]):
        warn(f"{name}: {doubt}")
    tell_failures(failed)
    return 1 if failed else 0


def find_missing(output_dir: Path, method: Method, scan: Scan) -> Failure | None:
    """Return a failure that names the first derivative that is not there, or None.

    Parameters
    ----------
    output_dir : Path
        Root of the derivative dataset.
    method : Method
        Templates and atlases.
    scan : Scan
        The scan.

    Returns
    -------
    Failure or None
    """
    for path in _list_results(method, scan):
        if not (output_dir / path).is_file():
            return Failure(f"not finished: {path} is missing")
    return None


def _list_results(method: Method, scan: Scan) -> list[str]:
    """List the files that a scan is to have in the end."""
    targets = targets_of(scan, method.targets)
    paths = [
        filenames.derivative_paths(scan, target.name, target.atlas, spaced=target.spaced, formats=target.formats)
        for target in targets
    ]
    if fused_targets(targets):
        paths.append(filenames.fused_paths(scan, scan.has("dseg")))
    return list(dict.fromkeys(path for own in paths for path in own.values()))


def describe_plan(config: Config, method: Method, found: Found) -> str:
    """Say what would run, with the files and the reasons.

    Parameters
    ----------
    config : Config
        Settings of the run.
    method : Method
        What they mean on this machine.
    found : Found
        The scans of the run, what is left out, and what cannot be registered.

    Returns
    -------
    str
        Lines for the terminal.
    """
    scans = [scan for scan in found.scans if scan.stem not in found.failed]
    atlases = ", ".join(target.atlas for target in method.targets if target.atlas)
    labels = f"labels {atlases}" if atlases else "no labels"
    lines = [
        f"Would register {len(scans)} images to {method.template} ({labels}) with model"
        f" {method.provenance.model} on {method.device}, {config.nprocs} processors, {config.mem_gb:g} GB:"
    ]
    for scan in scans:
        missing = find_missing(config.output_dir, method, scan)
        state = missing.cause if missing else "finished before"
        lines += [
            f"{scan.stem}: {_list_files(scan, 't1w')}",
            f"  mask: {_list_files(scan, 'mask') or _describe_stripping(config, method)}",
            f"  labels: {_list_files(scan, 'dseg') or 'none given'}",
            *([f"  lesion mask: {_list_files(scan, 'lesion')}"] if scan.has("lesion") else []),
            *(f"  brought along: {path}" for path in scan.along),
            *([f"  reference: average of {len(scan.images)} images, {scan.reference}"] if scan.others else []),
            f"  results: {config.output_dir / scan.folder} ({state})",
        ]
    lines += [f"{name}: would FAIL: {reason}" for name, reason in found.failed.items()]
    return "\n".join(lines + describe_rest(found))


def describe_rest(found: Found) -> list[str]:
    """Name what is left out of a run, and what was given but is not used."""
    return [f"{name}: skipped, {reason}" for name, reason in found.skipped.items()] + found.unused


def _describe_stripping(config: Config, method: Method) -> str:
    """Say what finds the brain of an image without a mask."""
    found = {
        "auto": f"the image's own where it is stripped, else {method.stripper}",
        "skip": "the image's own",
    }
    return f"none given: {found.get(config.skull_strip, method.stripper)} (--skull-strip {config.skull_strip})"


def _list_files(scan: Scan, kind: str) -> str:
    """List what the images of a scan have of one kind."""
    return ", ".join(str(getattr(image, kind)) for image in scan.images if getattr(image, kind))
