"""Nodes as SLURM jobs: what each needs is asked for, a dead job costs its own scan, and none outlives the run.

Nipype's `SLURMPlugin` does the rest. What it gets wrong was seen in 1.11.0, with SLURM 22.05: see `SlurmJobs`. The
code of 1.12.0 is the same.
"""

import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from traceback import format_exception
from typing import Any, NamedTuple

from nipype.pipeline.plugins import SLURMPlugin
from nipype.pipeline.plugins.tools import create_pyscript
from nipype.utils.filemanip import loadpkl

from mmln_pipeline.bids_app.signals import stop_later
from mmln_pipeline.interfaces import SaveDerivative

PROGRAMS = ("sbatch", "squeue", "scancel")
LEAST_GB = 2.0
"""Memory of any job, GB: Python with what it loads takes one, and SLURM ends what takes more than it asked for."""
MINUTES = 60
"""Time limit of each job, where `sbatch_args` sets no other one."""
POLL_S = 5.0
"""How often the controller is asked, s: once for all jobs."""
LATE_S = 60.0
"""How long a result may take from one machine to another, s, over a network file system."""
RETRY_S = 30.0
"""How long to wait after the controller would take no further job."""
ENDED = {
    "BOOT_FAIL": "its node did not start",
    "CANCELLED": "was cancelled",
    "COMPLETED": "ended without a result",
    "DEADLINE": "missed its deadline",
    "FAILED": "was killed or could not start",
    "NODE_FAIL": "its node failed",
    "OUT_OF_MEMORY": "ran out of memory: ask for more by --mem= in sbatch_args",
    "PREEMPTED": "was preempted",
    "REVOKED": "was revoked",
    "TIMEOUT": "ran out of time: ask for more by --time= in sbatch_args",
}
"""States in which a job is over, and what that means where it left no result."""
MEMORY_WORDS = ("exceeded memory limit", "exceeded job memory limit", "oom-kill", "oom_kill", "out-of-memory")
"""What SLURM writes into a job's log where the state says FAILED only."""
USUAL = ("None", "Priority", "Resources", "Dependency", "BeginTime", "Prolog", "Cleaning")
"""Reasons to wait that need nobody's hand."""
LIMITS = ("limit", "temporarily unable", "Socket timed out", "Unable to contact", "not available at the moment")
"""What sbatch says where it may take the job later."""
CHUNK = 500
"""Jobs that one command names."""


class Job(NamedTuple):
    """A submitted node.

    Attributes
    ----------
    folder : Path
        Where the node works.
    script : Path
        What the job runs.
    log : Path
        What it says.
    since : float
        When it was submitted, by the monotonic clock.
    """

    folder: Path
    script: Path
    log: Path
    since: float


class State(NamedTuple):
    """What squeue tells of a job: its state, why it waits, and where it runs or ran."""

    name: str
    reason: str = ""
    node: str = ""


@dataclass
class SlurmError(Exception):
    """A command of SLURM's that failed, with what it said."""

    said: str

    def __str__(self) -> str:
        return self.said


class ListedTracebacks:
    """Mend the crash reports of Nipype's plugins for schedulers.

    In Nipype 1.12.0 (and before) `SGELikeBatchManagerBase._get_result` and `DistributedPluginBase._clean_queue` pass
    the traceback on as one text, while `report_crash` adds a list to it. The first job that dies so ends the whole run
    with `TypeError: can only concatenate str (not "list") to str`, and no crash file says which node it was.
    """

    def _report_crash(self, node, result=None):
        if result is not None and isinstance(result["traceback"], str):
            result = {**result, "traceback": result["traceback"].splitlines(keepends=True)}
        return super()._report_crash(node, result=result)  # type: ignore[misc]


class SlurmJobs(ListedTracebacks, SLURMPlugin):
    """Nipype's plugin for SLURM, mended where it fails users (as of Nipype 1.12.0).

    - A node's processors, memory and GPU go to `sbatch`, which got none of them, and a time limit.
    - A job that was killed, or ran out of memory or time, is told by its number, its state and its log; it was found
      missing after five seconds in which all others waited.
    - A result that an earlier run left in the node's folder is no longer taken for that of a job that died.
    - Jobs are cancelled when the run stops, and those of a run that was killed when the next one begins.
    - A refused job fails its own scan, or waits where the user's limit of jobs is reached; it ended the run.
    - One `squeue` asks for all jobs every few seconds, in place of five a second for each.
    - Neither LOGNAME nor any other variable of a login shell is needed.
    - Files are copied by the run itself, since a job takes longer to start than to copy.

    Parameters
    ----------
    plugin_args : mapping
        `sbatch_args`, `template`, `max_jobs`, `max_tries` and `retry_timeout` as Nipype has them; `poll_seconds`.
    """

    def __init__(self, plugin_args: Mapping[str, Any]) -> None:
        super().__init__(plugin_args=dict(plugin_args))
        self._poll_s = float(plugin_args.get("poll_seconds", POLL_S))
        self._most_jobs: float = plugin_args.get("max_jobs", math.inf)
        self._jobs: dict[int, Job] = {}
        self._states: dict[int, State] = {}
        self._asked = self._answered = self._refused = -math.inf
        self._ends: dict[int, float] = {}
        self._results: dict[int, dict] = {}
        self._told: set[str] = set()

    def stop(self) -> None:
        """Cancel the jobs that have not ended."""
        with stop_later():
            cancel_jobs(self._jobs)
            self._jobs.clear()

    def _prerun_check(self, graph):
        for node in graph.nodes():
            if isinstance(node.interface, SaveDerivative):
                node.run_without_submitting = True
        if mark := next((mark_of(node) for node in graph.nodes()), None):
            cancel_jobs(find_jobs(mark))

    def _send_procs_to_workers(self, updatehash=False, graph=None):
        if time.monotonic() >= self._refused + RETRY_S:
            self.max_jobs = self._most_jobs
            super()._send_procs_to_workers(updatehash=updatehash, graph=graph)

    def _submit_job(self, node, updatehash=False):
        """Submit a node; None where it has to wait. A number below zero stands for a job that never was."""
        if time.monotonic() < self._refused + RETRY_S:
            return None
        try:
            return self._submit(node, updatehash)
        except SlurmError as error:
            if may_pass(error):
                self._say(f"SLURM takes no further job for now: {error}")
                self._refused, self.max_jobs = time.monotonic(), 0
                return None
            return self._fail(ChildProcessError(f"sbatch refused the job: {error}"))
        except OSError as error:
            return self._fail(error)

    def _submit(self, node, updatehash) -> int:
        script = Path(create_pyscript(node, updatehash=updatehash))
        folder = Path(node.output_dir())
        for stale in folder.glob("result_*.pklz"):
            stale.unlink()
        batch = script.with_name(f"batchscript_{script.stem}.sh")
        batch.write_text(f"{self._template.rstrip()}\n{shlex.join([sys.executable, str(script)])}\n")
        own = getattr(node, "plugin_args", None) or {}
        given = own.get("sbatch_args", "") if own.get("overwrite") else f"{self._sbatch_args or ''} "
        given += "" if own.get("overwrite") else own.get("sbatch_args", "")
        log = script.with_name("slurm-%j.out")
        arguments = [f"--output={log}", f"--job-name={node.fullname}", f"--comment={mark_of(node)}"]
        needs = list_needs(node.n_procs, node.mem_gb, node.is_gpu_node(), given)
        with stop_later():  # a job whose number we do not know could not be cancelled
            number = self._call_sbatch([*arguments, *needs, *shlex.split(given), str(batch)])
            self._jobs[number] = Job(folder, script, log.with_name(f"slurm-{number}.out"), time.monotonic())
        return number

    def _call_sbatch(self, arguments: Sequence[str]) -> int:
        for _ in range(self._max_tries):
            with suppress(SlurmError):
                return int(call("sbatch", "--parsable", *arguments).split(";")[0])
            time.sleep(self._retry_timeout)
        return int(call("sbatch", "--parsable", *arguments).split(";")[0])

    def _fail(self, error: Exception) -> int:
        number = -1 - len(self._results)
        self._results[number] = {"result": None, "traceback": format_exception(error)}
        return number

    def _get_result(self, taskid):
        """Return what a job left, or of what it died; None while it is not over."""
        if taskid in self._results:
            return self._results[taskid]
        self._look()
        job, state = self._jobs[taskid], self._states.get(taskid)
        if self._answered < job.since or (state is not None and state.name not in ENDED):
            return None
        if (found := read_result(job)) is not None:
            return found
        # A file that another machine wrote may be seen late; a job that did not end well writes none.
        is_late = time.monotonic() < self._ends.setdefault(taskid, time.monotonic()) + LATE_S
        if is_late and (state is None or state.name == "COMPLETED"):
            return None
        return {"result": None, "traceback": [*quote(job.log), describe_death(taskid, state, job)]}

    def _clear_task(self, taskid):
        for table in (self._jobs, self._ends, self._results, self._states):
            table.pop(taskid, None)

    def _look(self) -> None:
        """Ask for the states of all jobs, unless that was done just now."""
        if time.monotonic() < self._asked + self._poll_s:
            return
        self._asked = time.monotonic()
        try:
            self._states = dict(list_states())
        except SlurmError as error:
            self._say(f"squeue does not answer, waiting: {error}")
            return
        self._answered = self._asked
        waiting = {self._states[number].reason for number in self._jobs.keys() & self._states.keys()}
        for reason in sorted(waiting):
            if reason.split(",")[0] not in USUAL:
                self._say(f"jobs wait: {reason}")

    def _say(self, line: str) -> None:
        """Tell something once."""
        if line not in self._told:
            self._told.add(line)
            print(f"mmln-bids: {line}", file=sys.stderr, flush=True)


def call(program: str, *arguments: str) -> str:
    """Run a command of SLURM's, and return what it prints.

    Raises
    ------
    SlurmError
        It failed.
    """
    done = subprocess.run([program, *arguments], capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise SlurmError(" ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}")
    return done.stdout.strip()


def may_pass(error: SlurmError) -> bool:
    """Tell whether a job was refused for something that passes: the number of jobs, or a controller that is busy."""
    return any(words.lower() in error.said.lower() for words in LIMITS)


def list_needs(n_procs: int, mem_gb: float, on_gpu: bool, given: str = "") -> list[str]:
    """Return what sbatch is to be asked for a node.

    Parameters
    ----------
    n_procs : int
        Processors.
    mem_gb : float
        Memory, GB; at least `LEAST_GB` are asked for.
    on_gpu : bool
        Whether it needs a GPU.
    given : str, default ""
        The user's own arguments, which come later and win; a GPU that they ask for is not asked for twice.

    Returns
    -------
    list of str

    Examples
    --------
    >>> list_needs(4, 3.0, True)
    ['--cpus-per-task=4', '--mem=3072M', '--time=60', '--gres=gpu:1']
    """
    needs = [f"--cpus-per-task={n_procs}", f"--mem={math.ceil(max(mem_gb, LEAST_GB) * 1024)}M", f"--time={MINUTES}"]
    if "--mem-per-" in given:  # sbatch takes one of them only
        needs.pop(1)
    return needs + ["--gres=gpu:1"] * (on_gpu and "gpu" not in given)


def mark_of(node) -> str:
    """Return what marks a node's job as one of its work directory's."""
    return mark_folder(node.base_dir)


def mark_folder(work_dir: str | os.PathLike[str]) -> str:
    """Return what marks the jobs of a work directory."""
    return f"mmln:{os.path.abspath(work_dir)}"


def list_states() -> Iterator[tuple[int, State]]:
    """Yield this user's jobs, those that ended a while ago included, and their states."""
    answer = call("squeue", "--noheader", "--states=all", f"--user={os.getuid()}", "--format=%A|%T|%r|%N")
    for line in answer.splitlines():
        number, name, reason, node = line.split("|", 3)
        yield int(number), State(name, reason if name == "PENDING" else "None", node)


def find_jobs(mark: str) -> list[int]:
    """Find the jobs that wait or run and bear a mark."""
    answer = call("squeue", "--noheader", f"--user={os.getuid()}", "--format=%A|%k")
    pairs = (line.split("|", 1) for line in answer.splitlines())
    return [int(number) for number, comment in pairs if comment.strip() == mark]


def cancel_jobs(numbers: Sequence[int] | Mapping[int, Job]) -> None:
    """Cancel jobs; what ended meanwhile is passed over."""
    listed = [str(number) for number in numbers]
    for start in range(0, len(listed), CHUNK):
        subprocess.run(["scancel", *listed[start : start + CHUNK]], capture_output=True)


def read_result(job: Job) -> dict | None:
    """Read the result of a node, or its error, that a job left; None where it left nothing."""
    crash = job.script.with_name(f"crashdump_{job.script.stem.removeprefix('pyscript_')}.pklz")
    for path in (*job.folder.glob("result_*.pklz"), *([crash] if crash.is_file() else [])):
        content = loadpkl(path)
        if not isinstance(content, dict):
            return {"result": content, "traceback": None}
        path.unlink()  # else the next run would take it for a result
        return content
    return None


def quote(log: Path, lines: int = 20) -> list[str]:
    """Return the end of a job's log."""
    try:
        said = log.read_text(errors="replace").splitlines(keepends=True)
    except OSError:
        return []
    return ["The job's log ends in:\n", *said[-lines:], "\n"]


def describe_death(number: int, state: State | None, job: Job) -> str:
    """Say of what a job died, and where its log is, as the last line of a traceback."""
    said = "".join(quote(job.log)).lower()
    name = "OUT_OF_MEMORY" if any(words in said for words in MEMORY_WORDS) else state.name if state else "COMPLETED"
    where = f" on {state.node}" if state and state.node else ""
    log = f"its log: {job.log}" if job.log.exists() else "it left no log: is the work directory on a disk of all nodes?"
    return f"ChildProcessError: SLURM job {number}{where} {ENDED[name]}; {log}\n"
