"""Running the workflow: Nipype's settings, the worker processes, progress, and who failed of what."""

import gc
import logging
import multiprocessing
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from traceback import format_exception

import nipype
import numpy as np
from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline import engine as pe
from nipype.pipeline.plugins.linear import LinearPlugin
from nipype.pipeline.plugins.multiproc import MultiProcPlugin, run_node
from nipype.utils.filemanip import indirectory
from nipype.utils.misc import str2bool

from mmln_pipeline.bids_app.invocation import Config
from mmln_pipeline.derivatives import filenames
from mmln_pipeline.machine.progress import progress_bar
from mmln_pipeline.space.placement import HeaderWarning
from mmln_pipeline.workflows import Scan

LOGGERS = ("nipype.workflow", "nipype.interface", "nipype.utils")
LEVELS = (logging.CRITICAL, logging.INFO, logging.DEBUG)
CAUSE = re.compile(r"^\s*(?:[\w.]+\.)?(\w*(?:Error|Exception|Interrupt|Exit|Pool))(?:: (.*))?$")


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
    workflow: pe.Workflow, config: Config, scans: Sequence[Scan], plugin: Mapping | None = None
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
    plugin : mapping or None, default None
        Nipype's `plugin` and `plugin_args` in place of this module's choice.

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
    with indirectory(config.work_dir), progress_bar("mmln-bids", _count_steps(workflow)) as advance:
        arguments = {"status_callback": partial(_tell, advance, names, set())}
        runner = _make_runner(config, arguments) if plugin is None else None
        try:
            if plugin is not None:
                workflow.run(plugin=plugin["plugin"], plugin_args=plugin["plugin_args"] | arguments)
            else:
                workflow.run(plugin=runner)
        except Exception as caught:  # Nipype raises any node's error again once the others are done
            error = caught
        finally:
            gc.unfreeze()
            if isinstance(runner, WorkerPool):
                runner.pool.shutdown(cancel_futures=True)
    failures = _read_failures(sorted(set(crashes.glob("crash-*.txt")) - known), list(names))
    if error is not None and not failures:
        failures = dict.fromkeys(names, Failure(_find_cause("".join(format_exception(error)))))
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
                "poll_sleep_duration": "0.2",
                "check_version": "false",
                "get_linked_libs": "false",
            }
        }
    )
    if config.resource_monitor:
        record = config.output_dir / filenames.RESOURCES
        record.parent.mkdir(parents=True, exist_ok=True)
        nipype.config.set("monitoring", "summary_file", str(record))  # update_config passes this section over
    nipype.config.resource_monitor = config.resource_monitor
    _set_log_level(LEVELS[min(config.verbose, 2)])


def _set_log_level(level: int) -> None:
    for name in LOGGERS:
        logging.getLogger(name).setLevel(level)


def _start_worker(folder: str, level: int, monitor: bool) -> None:
    """Prepare a worker process: folder, silence, its resources on record, and no call home."""
    os.environ["NIPYPE_NO_ET"] = "1"
    os.chdir(folder)
    nipype.config.resource_monitor = monitor
    warnings.simplefilter("ignore", HeaderWarning)  # told before the work began
    _set_log_level(level)


class WorkerPool(MultiProcPlugin):
    """Nipype's MultiProc with fresh processes (none inherits threads or CUDA); survives a killed worker."""

    pool: ProcessPoolExecutor

    def __init__(self, plugin_args: dict) -> None:
        super().__init__(plugin_args=plugin_args)
        self.pool.shutdown()
        self.pool = self._make_pool()

    def _make_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            max_workers=self.processors,
            initializer=_start_worker,
            initargs=(self._cwd, self.plugin_args["log_level"], nipype.config.resource_monitor),
            mp_context=multiprocessing.get_context("spawn"),
        )

    def _send_procs_to_workers(self, updatehash=False, graph=None):
        """Send nodes to workers; where that fails (Nipype reads a node's inputs here too), the node fails alone."""
        try:
            super()._send_procs_to_workers(updatehash=updatehash, graph=graph)
        except Exception as error:
            running = {jobid for _, jobid in self.pending_tasks}
            stuck = [int(jobid) for jobid in np.flatnonzero(self.proc_pending) if jobid not in running]
            if not stuck or str2bool(self._config["execution"]["stop_on_first_crash"]):
                raise
            lines = format_exception(error)
            self._run_errors.append("".join(lines))
            for jobid in stuck:
                self._clean_queue(jobid, graph, result={"result": None, "traceback": lines})

    def _submit_job(self, node, updatehash=False):
        self._taskid += 1
        try:
            future = self.pool.submit(run_node, node, updatehash, self._taskid)
        except BrokenProcessPool:  # a worker was killed: the other scans go on in new ones
            self.pool = self._make_pool()
            future = self.pool.submit(run_node, node, updatehash, self._taskid)
        self._task_obj[self._taskid] = future
        future.add_done_callback(partial(self._collect, self._taskid))
        return self._taskid

    def _collect(self, taskid, future):
        """Take a node's result, or make one of the worker's death."""
        if future.cancelled():
            return
        error = future.exception()
        self._taskresult[taskid] = (
            future.result()
            if error is None
            else {"result": None, "traceback": format_exception(error), "taskid": taskid}
        )


def _make_runner(config: Config, arguments: dict) -> LinearPlugin | WorkerPool:
    """Choose the plugin: in this process for one processor, else worker processes."""
    if config.nprocs == 1:
        return LinearPlugin(plugin_args=arguments)
    return WorkerPool(
        arguments
        | {
            "n_procs": config.nprocs,
            "memory_gb": config.mem_gb,
            "n_gpu_procs": config.omp_nthreads,  # a GPU node counts its threads: one of them at a time
            "raise_insufficient": False,
            "log_level": LEVELS[min(config.verbose, 2)],
        }
    )


def _count_steps(workflow: pe.Workflow) -> int:
    """Count the nodes that do something."""
    nodes = (workflow.get_node(name) for name in workflow.list_node_names())
    return sum(not isinstance(node.interface, IdentityInterface) for node in nodes)


def _tell(advance, names: Mapping[str, str], started: set[str], node, status: str) -> None:
    """Pass a node that ended on to the progress bar; one that never started was done before, or left out."""
    if status == "start":
        started.add(node.fullname)
        return
    parts = node.fullname.split(".")
    scan = names.get(parts[1], "") if len(parts) > 1 else ""
    step = node.name if node.fullname in started else ""
    advance(f"{scan} {step}{' FAILED' if status == 'exception' else ''}".strip())


def _read_failures(crash_files: Sequence[Path], names: Sequence[str]) -> dict[str, Failure]:
    """Turn crash files into failures; the failure of a common node is that of every scan."""
    failures: dict[str, Failure] = {}
    for path in crash_files:
        text = path.read_text(encoding="utf-8", errors="replace")
        match = re.match(r"Node: (\S+)", text)
        parts = match[1].split(".") if match else []
        failure = Failure(_find_cause(text), path)
        hit = [name for name in names if name in parts] or list(names)
        failures = {name: failure for name in hit} | failures
    return failures


def _find_cause(text: str) -> str:
    """Find the message of the error that a traceback ends with.

    Examples
    --------
    >>> _find_cause("Traceback:\\n\\tValueError: image.nii: not 3-D\\n\\n")
    'image.nii: not 3-D'
    """
    found = [match for line in text.splitlines() if (match := CAUSE.match(line))]
    if not found:
        return "unknown error: see the crash file"
    name, message = found[-1].groups()
    if name == "BrokenProcessPool":
        return "a worker process was killed, most likely for lack of memory: fewer --nprocs, or --low-mem"
    if name in ("ValueError", "FileNotFoundError", "TopologyError") and message:
        return message
    return f"{name}: {message}" if message else name
