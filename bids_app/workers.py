"""Worker processes: one a running node, so that a death costs that node alone, and none outlives the parent."""

import logging
import os
import signal
import threading
import warnings
from collections import defaultdict
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
from mmln_pipeline.registration.result import QualityWarning
from mmln_pipeline.space.placement import HeaderWarning

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOGGERS = ("nipype.workflow", "nipype.interface", "nipype.utils")


class WorkerPool(MultiProcPlugin):
    """Nipype's MultiProc with a process pool of its own for each worker.

    In Nipype 1.12.0 (and before) all workers share one `ProcessPoolExecutor`. When the system kills one of them,
    Python ends the others and fails every node that was running; the next one cannot be submitted, and `run` ends
    with `BrokenProcessPool`. In pools of one process, a death concerns the node that ran in it; the others do not
    notice. Workers are fresh processes (none inherits threads or CUDA) and are used again.

    Nipype tells nobody which GPU is free, so all nodes would compute on the first one. Here each node on a GPU goes to
    a worker that sees one device alone, and waits where all of them are taken.

    Parameters
    ----------
    plugin_args : mapping
        MultiProc's arguments; `devices` are names of GPUs as `CUDA_VISIBLE_DEVICES` takes them. Without them, nodes on
        a GPU are treated as all others.
    """

    def __init__(self, plugin_args: dict) -> None:
        super().__init__(plugin_args=plugin_args)
        self.pool.shutdown()
        self._idle: dict[str | None, list[ProcessPoolExecutor]] = defaultdict(list)
        self._free_devices = list(plugin_args.get("devices", ()))
        self._has_devices = bool(self._free_devices)
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
        needs_device = self._has_devices and node.is_gpu_node()
        if needs_device and not self._free_devices:
            return None  # Nipype comes back to it
        device = self._free_devices.pop(0) if needs_device else None
        self._taskid += 1
        worker, future = self._submit(device, run_node, node, updatehash, self._taskid)
        self._task_obj[self._taskid] = future
        future.add_done_callback(partial(self._collect, self._taskid, worker, device))
        return self._taskid

    def _submit(self, device: str | None, *task) -> tuple[ProcessPoolExecutor, Future]:
        """Give a task to an idle worker of a device, or to a new one."""
        idle = self._idle[device]
        while idle:
            worker = idle.pop()
            with suppress(BrokenProcessPool):  # it was killed while it had nothing to do
                return worker, worker.submit(*task)
        worker = self._make_worker(device)
        self._workers.add(worker)
        with stop_later():
            return worker, worker.submit(*task)

    def _make_worker(self, device: str | None = None) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            max_workers=1,
            initializer=start_worker,
            initargs=(self._cwd, self.plugin_args.get("log_level"), nipype.config.resource_monitor, device),
            mp_context=get_context("spawn"),
        )

    def _collect(self, taskid, worker, device, future):
        """Take a node's result, or make one of the worker's death; its device is free again."""
        if device is not None:
            self._free_devices.append(device)
        if future.cancelled():
            return
        error = future.exception()
        if not isinstance(error, BrokenProcessPool):
            self._idle[device].append(worker)
        self._taskresult[taskid] = (
            future.result()
            if error is None
            else {"result": None, "traceback": format_exception(error), "taskid": taskid}
        )


def set_loudness(level: int | None) -> None:
    """Set how much is said in this process, by Nipype, of headers and of quality.

    Parameters
    ----------
    level : int or None
        Level of Nipype's loggers, as in `logging`; None leaves them.
    """
    warnings.simplefilter("ignore", HeaderWarning)  # told before the work began
    warnings.simplefilter("ignore", QualityWarning)  # told with the results
    if level is not None:
        for name in LOGGERS:
            logging.getLogger(name).setLevel(level)


def start_worker(folder: str, level: int | None, monitor: bool, device: str | None = None) -> None:
    """Prepare a worker process: it dies with its parent, works in a folder, is silent, and never calls home.

    Parameters
    ----------
    folder : str
        Where to work.
    level : int or None
        Level of Nipype's loggers; None leaves them.
    monitor : bool
        Whether Nipype records the use of resources.
    device : str or None, default None
        The one GPU to be seen, as `CUDA_VISIBLE_DEVICES` names it; None: those of the parent.
    """
    if device is not None:  # before anything of CUDA's is loaded
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    if hasattr(os, "setpgrp"):  # a group of its own: what it starts can be ended with it
        os.setpgrp()
    _be_killed_with_parent()
    threading.Thread(target=_die_with_parent, name="watch-parent", daemon=True).start()
    os.environ["NIPYPE_NO_ET"] = "1"
    os.chdir(folder)
    nipype.config.resource_monitor = monitor
    set_loudness(level)


def _be_killed_with_parent() -> None:
    """Have Linux kill this process and what it starts when the parent is gone, though native code lets no thread run.

    The closing of the pipe that tells of the parent's end becomes a signal.
    """
    parent = parent_process()
    if parent is None or fcntl is None or not hasattr(fcntl, "F_SETSIG"):
        return
    pipe = parent.sentinel
    fcntl.fcntl(pipe, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)


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
