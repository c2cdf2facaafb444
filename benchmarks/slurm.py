"""Run the BIDS App on a SLURM cluster of one node, and disturb jobs, node and run: what it says, what it leaves.

Each row is a run on two tiny subjects whose steps are SLURM jobs. It passes when the exit code and the last line are
the documented ones, no job is left in the queue, and the same command, run again, ends with 0 and makes all the files
that an undisturbed run without SLURM makes. Then the job array of docs/clusters.md runs as it stands there.

Run by `make test-slurm`, as root, where `slurm-wlm` and `munge` are installed.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from faults import Room, Run, clean, make_data
from one_node import ask, one_node_cluster, wait_until, why_none

SUBJECTS = ("01", "02")
STRUCK = "sub_02_wf"
"""Whose job is struck."""
SLURM = 'plugin = "SLURM"\n\n[plugin_args]\npoll_seconds = 0.5\nmax_jobs = 3\n'
DOCS = Path(__file__).parents[1] / "docs" / "clusters.md"


@dataclass(frozen=True)
class ClusterRoom(Room):
    """Folders of runs whose nodes are SLURM's jobs."""

    def more_options(self) -> list:
        plugin = self.folder / "slurm.toml"
        self.folder.mkdir(parents=True, exist_ok=True)
        plugin.write_text(SLURM)
        return ["--use-plugin", plugin]

    def jobs(self, state: str = "", part: str = "") -> list[str]:
        """List the numbers of the run's jobs in the queue: those in a state, whose names hold a part."""
        lines = [line.split("|") for line in ask("squeue", "-h", "-o", "%A|%T|%k|%j").splitlines()]
        mark = f"mmln:{self.folder / 'work'}"
        found = ((number, now) for number, now, comment, name in lines if comment == mark and part in name)
        return [number for number, now in found if state in ("", now)]

    def await_job(self, run: Run, state: str = "RUNNING", part: str = STRUCK) -> str:
        """Wait for such a job, and return its number."""
        found: list[str] = []
        run.wait_for(lambda: found or found.extend(self.jobs(state, part)) or found)
        if not found:
            raise RuntimeError(f"no job of {part} was seen: {run.said()}")
        return found[0]


@contextmanager
def drained() -> Iterator[None]:
    """Take the node out of service for a while."""
    node = ask("sinfo", "-h", "-o", "%n")
    ask("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
    try:
        yield
    finally:
        ask("scontrol", "update", f"NodeName={node}", "State=RESUME")


def leave_alone(room: ClusterRoom) -> Run:
    """Let a run be, without the variables of a login shell; its jobs must ask for what they need."""
    before = {name: os.environ.pop(name) for name in ("LOGNAME", "USER") if name in os.environ}
    try:
        run = room.start(SUBJECTS)
    finally:
        os.environ.update(before)
    job = room.await_job(run, part="registration_wf.registration")
    asked = ask("squeue", "-h", "-j", job, "-o", "%c %m %l")
    if asked != "1 3G 1:00:00":
        print(f"asked for {asked}", file=run.log.open("a"))
    return run


def cancel_one(room: ClusterRoom) -> Run:
    """Cancel a job that runs."""
    run = room.start(SUBJECTS)
    ask("scancel", room.await_job(run))
    return run


def kill_one(room: ClusterRoom) -> Run:
    """Kill the process of a job."""
    run = room.start(SUBJECTS)
    job = room.await_job(run)
    found: list[psutil.Process] = []
    run.wait_for(lambda: found or found.extend(processes_of(job)) or found)
    found[-1].kill()
    return run


def starve_one(room: ClusterRoom) -> Run:
    """Let a job have less memory than it takes."""
    with drained():
        run = room.start(SUBJECTS)
        job = room.await_job(run, "PENDING")
        ask("scontrol", "update", f"JobId={job}", "MinMemoryNode=60")
    return run


def delay_one(room: ClusterRoom) -> Run:
    """Hold up a job until its time is over: a minute, the shortest limit there is."""
    with drained():
        run = room.start(SUBJECTS)
        job = room.await_job(run, "PENDING")
        ask("scontrol", "update", f"JobId={job}", "TimeLimit=1")
    run.wait_for(lambda: processes_of(job))
    for process in processes_of(job):
        process.suspend()
    return run


def drain_node(room: ClusterRoom) -> Run:
    """Take the node out of service until the run says that its jobs wait."""
    with drained():
        run = room.start(SUBJECTS)
        run.wait_for(lambda: "jobs wait" in run.log.read_text())
    return run


def terminate(room: ClusterRoom) -> Run:
    """Cancel the whole run."""
    run = room.start(SUBJECTS)
    room.await_job(run)
    run.process.send_signal(signal.SIGTERM)
    return run


def kill_run(room: ClusterRoom) -> Run:
    """Kill the run, whose jobs stay: the next one cancels them. They are made to wait, so that some are left."""
    with drained():
        run = room.start(SUBJECTS)
        room.await_job(run, "PENDING")
        run.process.kill()
        run.wait()
        left = room.jobs()
        again = room.start(SUBJECTS)
        again.wait_for(lambda: not set(left) & set(room.jobs()))
    return again


def processes_of(job: str) -> list[psutil.Process]:
    """List the processes of a job, the youngest last."""
    found = []
    for process in psutil.process_iter():
        try:
            own = process.environ()
            is_of_job = own.get("SLURM_JOB_ID") == job and own.get("SLURM_CONF") == os.environ["SLURM_CONF"]
            if is_of_job and "python" in process.name():
                found.append(process)
        except psutil.Error:
            continue
    return sorted(found, key=lambda process: process.create_time())


LOG = r" its log: slurm-\d+\.out"
FAILED = r"sub-02: FAILED: SLURM job \d+( on \S+)?"
FAULTS: tuple[tuple[str, Callable[[ClusterRoom], Run], int, str], ...] = (
    ("none", leave_alone, 0, r"2 of 2 images done"),
    ("scancel of a job", cancel_one, 1, f"{FAILED} was cancelled;{LOG}"),
    ("kill -9 of a job", kill_one, 1, f"{FAILED} was killed or could not start;{LOG}"),
    ("a job out of memory", starve_one, 1, f"{FAILED} ran out of memory: .*;{LOG}"),
    ("a job out of time", delay_one, 1, f"{FAILED} ran out of time: .*;{LOG}"),
    ("the node drained, then resumed", drain_node, 0, "2 of 2 images done"),
    ("SIGTERM to the run", terminate, 143, "mmln-bids: terminated; the same command goes on from here"),
    ("kill -9 of the run, the same command", kill_run, 0, "2 of 2 images done"),
)


def undergo(name: str, strike: Callable, code: int, line: str, root: Path, wanted: dict[str, bytes]) -> bool:
    """Disturb a run, print a row, and return whether anything went wrong."""
    room = ClusterRoom(root / re.sub(r"\W+", "-", name), root / "data")
    run = strike(room)
    found = run.wait()
    said = clean(run.said())
    troubles = [f"exit code {found}"] * (found != code) + ["traceback"] * ("Traceback" in run.log.read_text())
    troubles += [f"expected {line}"] * (not re.match(line, said))
    troubles += [f"in the queue: {', '.join(room.jobs())}"] * bool(room.jobs())
    done = sum((room.output / f"sub-{subject}.html").exists() for subject in SUBJECTS)
    again = room.start(SUBJECTS)
    troubles += [f"run again: {again.said()}"] * (again.wait() != 0)
    left = room.read()
    troubles += [f"unequal: {name}" for name in wanted.keys() | left.keys() if wanted.get(name) != left.get(name)]
    print(
        f"| {name} | {found} | {said} | {done} of 2 | {'no' if troubles else 'yes'} | {'; '.join(troubles)} |",
        flush=True,
    )
    return bool(troubles)


def run_array(root: Path) -> Iterator[str]:
    """Run the script of the docs on three subjects at once, cancel one job, and resubmit; yield what goes wrong."""
    room = Room(root / "array", root / "data")
    script = room.folder / "mmln-array.sh"
    room.folder.mkdir()
    script.write_text(next(text for text in re.findall(r"```bash\n(.*?)```", DOCS.read_text(), re.S) if "#!" in text))
    options = (
        f"--template {room.data}/tpl-tiny_T1w.nii.gz --model {room.data}/tiny.safetensors --refine 0 --init identity"
    )
    options += f" --device cpu --bids-database-dir {room.folder}/index"
    environment = os.environ | {
        "RAW": str(make_three(room)),
        "OUT": str(room.output),
        "WORK": str(room.folder / "work"),
        "RUN": f"{sys.executable} -m mmln_pipeline.bids_app",
        "OPTIONS": options,
    }

    def submit() -> str:
        return subprocess.run(
            ["bash", script], env=environment, cwd=room.folder, capture_output=True, text=True
        ).stdout.strip()

    def running() -> list[str]:
        return ask("squeue", "-h", "-r", "-t", "RUNNING", "-o", "%i").splitlines()

    first = submit()
    wait_until(lambda: len(running()) == 3, f"no three jobs at once: {first}")
    print(f"{first}: three jobs at once on a new --bids-database-dir; {running()[1]} is cancelled")
    ask("scancel", running()[1])
    wait_until(lambda: not ask("squeue", "-h"), "the array does not end", 1800)
    states = sorted(ask("squeue", "-h", "-r", "-t", "all", "-j", first.split()[-1], "-o", "%T").splitlines())
    if states != ["CANCELLED", "COMPLETED", "COMPLETED"]:
        yield f"expected two jobs done, found {states}"
    second = submit()
    jobs = ask("squeue", "-h", "-r", "-t", "all", "-j", second.split()[-1], "-o", "%i").splitlines()
    print(f"{second}: {len(jobs)} job")
    if len(jobs) != 1:
        yield f"expected one job resubmitted, found {jobs}"
    wait_until(lambda: not ask("squeue", "-h"), "the array does not end", 1800)
    third = submit()
    print(third)
    if third != "all subjects are finished":
        yield f"said: {third}"
    runs = list((room.output / "logs/runs").glob("*.toml"))
    if len(runs) != 3:
        yield f"expected the settings of three jobs, found {len(runs)}"


def make_three(room: Room) -> Path:
    """Make a dataset of three subjects by links to those that are there."""
    raw = room.folder / "raw"
    raw.mkdir()
    for name in ("sub-01", "sub-02", "sub-03", "dataset_description.json", "README"):
        (raw / name).symlink_to(room.data / "raw" / name)
    return raw


def main() -> int:
    """Print the table; return 1 if anything went otherwise than documented, 2 where there is no SLURM."""
    reason = why_none()
    if reason:
        print(f"make test-slurm: {reason}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # the daemons end with us
    began = time.monotonic()
    root = Path(tempfile.mkdtemp(prefix="slurm-"))
    root.chmod(0o755)
    make_data(root / "data")
    local = Room(root / "local", root / "data")
    assert local.start(SUBJECTS).wait() == 0
    chosen = [row for row in FAULTS if not sys.argv[1:] or any(word in row[0] for word in sys.argv[1:])]
    with one_node_cluster(root / "cluster", cpus=12, memory_mb=20_000):
        print(f"{ask('sinfo', '--version')}\n")
        print("| Fault | Exit code | Last line | Pages | The same command again: all files | Troubles |")
        print("|---|---|---|---|---|---|")
        failed = sum(undergo(*row, root, local.read()) for row in chosen)
        if not sys.argv[1:] or "array" in sys.argv[1:]:
            troubles = list(run_array(root))
            print("\n".join(["", *troubles]) if troubles else "")
            failed += bool(troubles)
    print(f"\n{(time.monotonic() - began) / 60:.1f} minutes")
    if failed:
        print(f"{failed} went wrong; their folders are in {root}", file=sys.stderr)
        return 1
    shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
