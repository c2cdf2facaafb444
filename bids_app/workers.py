"""Worker processes: one a running node, so that a death costs that node alone, and none outlives the parent."""

import logging
import os
import signal
import threading
import warnings
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from multiprocessing import connection, get_context, parent_process
from traceback import format_exception

import nipype
import numpy as np
from nipype.pipeline.plugins.multiproc import MultiProcPlugin, run_node
from nipype.utils.misc import str2bool

from mmln_pipeline.bids_app.signals import stop_later
from mmln_pipeline.space.placement import HeaderWarning

LOGGERS = ("nipype.workflow", "nipype.interface", "nipype.utils")


class WorkerPool(MultiProcPlugin):
    """Nipype's MultiProc with a process pool of its own for each worker.

    In Nipype 1.11.0 (and before) all workers share one `ProcessPoolExecutor`. When the system kills one of them,
    Python ends the others and fails every node that was running; the next one cannot be submitted, and `run` ends
    with `BrokenProcessPool`. In pools of one process, a death concerns the node that ran in it; the others do not
    notice. Workers are fresh processes (none inherits threads or CUDA) and are used again.
    """

    def __init__(self, plugin_args: dict) -> None:
        super().__init__(plugin_args=plugin_args)
        self.pool.shutdown()
        self._idle: list[ProcessPoolExecutor] = []
        self._workers: set[ProcessPoolExecutor] = set()

    def stop(self) -> None:
        """End all workers at once, with whatever they started."""
        self._idle.clear()
        while self._workers:
            worker = self._workers.pop()
            for process in list((worker._processes or {}).values()):
                if process.is_alive() and process.pid is not None:
                    _kill_group(process.pid)
                    process.kill()
            worker.shutdown(cancel_futures=True)

    def _postrun_check(self):
        self.stop()

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
        worker, future = self._submit(run_node, node, updatehash, self._taskid)
        self._task_obj[self._taskid] = future
        future.add_done_callback(partial(self._collect, self._taskid, worker))
        return self._taskid

    def _submit(self, *task) -> tuple[ProcessPoolExecutor, Future]:
        """Give a task to an idle worker, or to a new one."""
        while self._idle:
            worker = self._idle.pop()
            with suppress(BrokenProcessPool):  # it was killed while it had nothing to do
                return worker, worker.submit(*task)
        worker = self._make_worker()
        self._workers.add(worker)
        with stop_later():
            return worker, worker.submit(*task)

    def _make_worker(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            max_workers=1,
            initializer=start_worker,
            initargs=(self._cwd, self.plugin_args.get("log_level"), nipype.config.resource_monitor),
            mp_context=get_context("spawn"),
        )

    def _collect(self, taskid, worker, future):
        """Take a node's result, or make one of the worker's death."""
        if future.cancelled():
            return
        error = future.exception()
        if not isinstance(error, BrokenProcessPool):
            self._idle.append(worker)
        self._taskresult[taskid] = (
            future.result()
            if error is None
            else {"result": None, "traceback": format_exception(error), "taskid": taskid}
        )


def set_log_level(level: int) -> None:
    """Set how much Nipype says in this process.

    Parameters
    ----------
    level : int
        As in `logging`.
    """
    for name in LOGGERS:
        logging.getLogger(name).setLevel(level)


def start_worker(folder: str, level: int | None, monitor: bool) -> None:
    """Prepare a worker process: it dies with its parent, works in a folder, is silent, and never calls home.

    Parameters
    ----------
    folder : str
        Where to work.
    level : int or None
        Level of Nipype's loggers; None leaves them.
    monitor : bool
        Whether Nipype records the use of resources.
    """
    if hasattr(os, "setpgrp"):  # a group of its own: what it starts can be ended with it
        os.setpgrp()
    threading.Thread(target=_die_with_parent, name="watch-parent", daemon=True).start()
    os.environ["NIPYPE_NO_ET"] = "1"
    os.chdir(folder)
    nipype.config.resource_monitor = monitor
    warnings.simplefilter("ignore", HeaderWarning)  # told before the work began
    if level is not None:
        set_log_level(level)


def _die_with_parent() -> None:
    """Wait until the parent is gone, however it went, and end this process with what it started."""
    parent = parent_process()
    if parent is None:  # nobody to wait for
        return
    connection.wait([parent.sentinel])
    _kill_group(os.getpid())
    os._exit(1)  # where there are no groups


def _kill_group(pid: int) -> None:
    """Kill the process group that a worker leads, if it does."""
    with suppress(OSError):
        if hasattr(os, "killpg") and os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
