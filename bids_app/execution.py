"""Running the workflow: Nipype's settings, the worker processes, progress, and who failed of what."""

import gc
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from traceback import format_exception

import nipype
from nipype.pipeline import engine as pe
from nipype.pipeline.plugins.base import PluginBase
from nipype.utils.filemanip import indirectory

from mmln_pipeline.bids_app.invocation import Config
from mmln_pipeline.bids_app.plugin_option import CLUSTER, POOL, Plugin, plugin_class
from mmln_pipeline.bids_app.signals import stop_later
from mmln_pipeline.bids_app.slurm_jobs import ListedTracebacks, SlurmJobs
from mmln_pipeline.bids_app.step_teller import SECONDS, StepTeller, count_steps
from mmln_pipeline.bids_app.workers import WorkerPool, set_loudness
from mmln_pipeline.derivatives import filenames
from mmln_pipeline.machine.devices import list_cuda_devices
from mmln_pipeline.machine.forecast import Forecast
from mmln_pipeline.machine.progress import show_forecast
from mmln_pipeline.reporting.crashes import find_cause, read_crash
from mmln_pipeline.workflows import Scan

LEVELS = (logging.CRITICAL, logging.INFO, logging.DEBUG)


@dataclass(frozen=True)
class Failure:
    """Why one scan has no result.

    Attributes
    ----------
    cause : str
        One line.
    crash_file : Path or None
        Nipype's record, with the traceback.
    """

    cause: str
    crash_file: Path | None = None


def run_workflow(
    workflow: pe.Workflow,
    config: Config,
    scans: Sequence[Scan],
    plugin: Plugin | None = None,
    progress: tuple[Forecast, Callable[[str], None]] | None = None,
) -> dict[str, Failure]:
    """Run a workflow to its end, whatever fails on the way.

    Parameters
    ----------
    workflow : Workflow
        Workflow of all scans.
    config : Config
        Settings of the run.
    scans : sequence of Scan
        The scans in it.
    plugin : Plugin or None, default None
        Nipype's, in place of this module's choice.
    progress : (Forecast, callable) or None, default None
        The forecast of a run of which this workflow is a part, and what is called with a line on each step (see
        `show_forecast`); None: those of this workflow alone.

    Returns
    -------
    dict
        Failures, by the stem of the scan.
    """
    configure_nipype(config)
    workflow.config = deepcopy(nipype.config._sections)  # a workflow keeps the options of when it was built
    crashes = config.output_dir / filenames.CRASHES
    known = set(crashes.glob("crash-*.txt"))
    names = {scan.workflow_name: scan.stem for scan in scans}
    error = None
    gc.freeze()  # Nipype collects garbage before it submits a node: loaded modules need no look each time
    config.work_dir.mkdir(parents=True, exist_ok=True)
    # Nipype's monitor leaves its samples in the folder where the process stands.
    forecast, say = progress or (Forecast(count_steps(workflow), SECONDS), None)
    shown = nullcontext(say) if say else show_forecast("mmln-bids", forecast)
    with indirectory(config.work_dir), shown as tell:
        arguments = {"status_callback": StepTeller(forecast, tell, names, workflow)}
        runner = _make_runner(config, arguments, plugin)
        try:
            workflow.run(plugin=runner)
        except Exception as caught:  # Nipype raises any node's error again once the others are done
            error = caught
        finally:
            gc.unfreeze()
            if isinstance(runner, WorkerPool | SlurmJobs):
                runner.stop()
    new = sorted(set(crashes.glob("crash-*.txt")) - known)
    failures = _read_failures(new, list(names), config.work_dir)
    if error is not None and not failures:
        failures = dict.fromkeys(names, Failure(find_cause("".join(format_exception(error)))))
    return {names[name]: failure for name, failure in failures.items()}


def configure_nipype(config: Config) -> None:
    """Set Nipype's options for this process: where it writes, how much it says, and that it never calls home.

    Parameters
    ----------
    config : Config
        Settings of the run.
    """
    nipype.config.update_config(
        {
            "execution": {
                "crashdump_dir": str(config.output_dir / filenames.CRASHES),
                "crashfile_format": "txt",
                "stop_on_first_crash": str(config.stop_on_first_crash).lower(),
                "remove_unnecessary_outputs": "false",
                "hash_method": "content",  # a file of equal size and date may hold another image
                "poll_sleep_duration": "0.2",
                "check_version": "false",
                "get_linked_libs": "false",
            }
        }
    )
    if config.resource_monitor:
        record = config.output_dir / filenames.RUNS / f"{config.run_name}_{filenames.RESOURCES}"
        record.parent.mkdir(parents=True, exist_ok=True)
        nipype.config.set("monitoring", "summary_file", str(record))  # update_config passes this section over
    nipype.config.resource_monitor = config.resource_monitor
    set_loudness(LEVELS[min(config.verbose, 2)])


def _make_runner(config: Config, arguments: dict, plugin: Plugin | None = None) -> PluginBase:
    """Choose the plugin: the one asked for, else this process for one processor, and worker processes for more."""
    if plugin is None and config.nprocs == 1:
        with stop_later():  # torch ends the process where an import of it is interrupted
            import torch  # noqa: F401
    name, given = plugin or Plugin("Linear" if config.nprocs == 1 else POOL, {})
    if name == CLUSTER:
        return SlurmJobs(plugin_args={**given, **arguments})
    if name != POOL:
        return type(name, (ListedTracebacks, plugin_class(name)), {})(plugin_args={**given, **arguments})
    devices = list_cuda_devices() if config.device in ("auto", "cuda") else []
    own = {
        "n_procs": config.nprocs,
        "memory_gb": config.mem_gb,
        "n_gpu_procs": config.omp_nthreads * max(1, len(devices)),  # a GPU node counts its threads
        "devices": devices if len(devices) > 1 else [],
        "raise_insufficient": False,
        "log_level": LEVELS[min(config.verbose, 2)],
    }
    return WorkerPool(plugin_args={**own, **given, **arguments})


def _read_failures(crash_files: Sequence[Path], names: Sequence[str], work_dir: Path) -> dict[str, Failure]:
    """Turn crash files into failures: a common node's is that of every scan, another run's that of none."""
    failures: dict[str, Failure] = {}
    for path in crash_files:
        crash = read_crash(path)
        if crash.folder and not crash.folder.is_relative_to(os.path.abspath(work_dir)):
            continue
        parts = crash.node.split(".")
        hit = [name for name in names if name in parts] or list(names)
        failures = dict.fromkeys(hit, Failure(crash.cause, path)) | failures
    return failures
