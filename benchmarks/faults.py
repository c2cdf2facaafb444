"""Disturb the BIDS App as machines do: what it says, what it leaves behind, and what the same command does next.

One, two and twelve tiny subjects are registered undisturbed, while memory, descriptors and processes are watched:
twelve need no more than two. Then each fault strikes a run of one or two of them, in folders of its own. It passes
when the exit code and the last line are the documented ones, no process lives on, every file that was left is that of
the undisturbed run, and the same command, run again, ends with 0 and makes all the files equal, byte for byte but for
`TIMINGS`.

Run by `make test-faults`. Linux only; disks are filled and made read-only for root alone, others have stand-ins.
"""

from __future__ import annotations

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import nibabel as nb
import numpy as np
import psutil
import torch
from tiny_bids import SHAPE, describe, make_brain, write_image

from mmln_pipeline.network.architecture import NetworkConfig
from mmln_pipeline.network.model import MMLN
from mmln_pipeline.weights import save_model

Result = tuple[list[str], list[str]]
"""A row of the table, and what went wrong."""
SUBJECTS = [f"{number:02d}" for number in range(1, 13)]
MOMENTS = 20
PATIENCE_S = 600
TOLERANCE = {"MB": 1.1, "descriptors": 1.1, "processes": 1.25}
"""How much higher the peaks of twelve subjects may be than those of two.

Not one half of a run against the other: each step is done for all subjects before most of the next ones, so modules
that the last steps need are loaded late.
"""
TIMINGS = {
    "_qc.json": r'"peak_memory_mb": [^,]*|"seconds": \{[^}]*\}',
    ".html": (
        r"<caption>Time of each stage.*?</table>"
        r"|Peak memory \(MB\).*?</tr>"
        r'|<td class="number">[^<]*</td>\n</tr>'  # the last column of the main scores: seconds
    ),
}
"""What may differ between two runs, by the end of the file's name; in `_qc.tsv`, the columns of the same names."""
IGNORED = r"logs/(mmln-bids\.toml|runs/.*|crash/.*)|(.*/)?\.[0-9a-f]{8}-[^/]*"
"""Files that are not compared: the run's own options, the records of what failed, what a killed run was writing."""


@dataclass(frozen=True)
class Room:
    """Folders of one fault's runs.

    Attributes
    ----------
    folder : Path
        Holds the outputs, the work directory and the log.
    data : Path
        The dataset, template and weights, for all.
    """

    folder: Path
    data: Path

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def start(self, subjects: Sequence[str], nprocs: int = 2) -> Run:
        """Start the App on some subjects."""
        options = ["--template", self.data / "tpl-tiny_T1w.nii.gz", "--model", self.data / "tiny.safetensors"]
        options += ["--template-dseg", self.data / "tpl-tiny_seg-core_dseg.nii.gz", "--refine", "0", "--device", "cpu"]
        options += ["--init", "identity"]  # seconds less; the steps are the same
        options += ["--nprocs", nprocs, "--omp-nthreads", "1", "--participant-label", *subjects]
        options += self.more_options()
        folders = [self.data / "raw", self.output, "participant", "-w", self.folder / "work"]
        return Run(self, [sys.executable, "-m", "mmln_pipeline.bids_app", *folders, *options])

    def more_options(self) -> list:
        """Return what else the App is told."""
        return []

    def count_files(self) -> int:
        """Count what is in the output and work directories: how far a run has come."""
        return sum(len(names) for part in ("out", "work") for _, _, names in os.walk(self.folder / part))

    def read(self) -> dict[str, bytes]:
        """Read all outputs but `IGNORED`, without `TIMINGS` and this room's path."""
        paths = {path.relative_to(self.output).as_posix(): path for path in self.output.rglob("*") if path.is_file()}
        return {name: self._settle(path) for name, path in paths.items() if not re.fullmatch(IGNORED, name)}

    def _settle(self, path: Path) -> bytes:
        content = path.read_bytes().replace(str(self.folder).encode(), b"ROOM")
        if path.name.endswith("_qc.tsv"):
            columns = zip(*(line.split(b"\t") for line in content.splitlines()), strict=True)
            return repr([column for column in columns if not re.match(b"seconds_|peak_memory", column[0])]).encode()
        for ending, pattern in TIMINGS.items():
            if path.name.endswith(ending):
                content = re.sub(pattern.encode(), b"", content, flags=re.DOTALL)
        return content


class Run:
    """One process of the App, in a session of its own; what it says goes to a file."""

    def __init__(self, room: Room, command: Sequence) -> None:
        self.room, self.command = room, [str(part) for part in command]
        room.folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(".log", dir=room.folder)
        self.log = Path(name)
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with open(handle, "w") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )

    def wait(self) -> int:
        """Wait for the end, and return the exit code."""
        return self.process.wait(PATIENCE_S)

    def wait_for(self, is_there: Callable[[], object]) -> None:
        """Wait until something is there, or the run has ended."""
        while not is_there() and self.process.poll() is None:
            time.sleep(0.02)

    def members(self) -> list[psutil.Process]:
        """List the processes of the run that are alive, whoever their parent is now."""
        return [process for process in psutil.process_iter() if self._owns(process)]

    def workers(self) -> list[psutil.Process]:
        """List the worker processes."""
        return [process for process in self.members() if "spawn_main" in " ".join(process.cmdline())]

    def _owns(self, process: psutil.Process) -> bool:
        try:
            return os.getsid(process.pid) == self.process.pid and process.status() != psutil.STATUS_ZOMBIE
        except (ProcessLookupError, psutil.NoSuchProcess):
            return False

    def is_gone(self) -> bool:
        """Tell whether all processes of the run have ended within ten seconds of its end."""
        end = time.monotonic() + 10
        while self.members() and time.monotonic() < end:
            time.sleep(0.1)
        return not self.members()

    def said(self) -> str:
        """Return what was said in the end: the last line."""
        return (self.log.read_text(errors="replace").splitlines() or [""])[-1]


@dataclass(frozen=True)
class Fault:
    """One way to disturb a run.

    Attributes
    ----------
    name : str
        What happens.
    strike : callable
        Starts runs in a room, disturbs them, and returns them.
    codes : tuple of int
        Exit codes that are documented, of each run.
    line : str
        Pattern of the last line.
    subjects, nprocs
        Of the run.
    """

    name: str
    strike: Callable[[Room, Fault], list[Run]]
    codes: tuple[int, ...]
    line: str
    subjects: tuple[str, ...] = ("01", "02")
    nprocs: int = 2

    def start(self, room: Room) -> Run:
        """Start a run, to be disturbed."""
        return room.start(self.subjects, self.nprocs)


def signal_at(files: int, number: signal.Signals, room: Room, fault: Fault) -> list[Run]:
    """Send a signal to the main process once so many files are there."""
    run = fault.start(room)
    run.wait_for(lambda: room.count_files() >= files)
    run.process.send_signal(number)
    return [run]


def kill_worker(files: int, room: Room, fault: Fault) -> list[Run]:
    """Kill a worker that computes."""
    run = fault.start(room)
    run.wait_for(lambda: room.count_files() >= files and any(p.cpu_percent(0.1) > 20 for p in run.workers()))
    max(run.workers(), key=lambda process: process.cpu_percent(0.1)).kill()
    return [run]


def limit_memory(files: int, room: Room, fault: Fault) -> list[Run]:
    """Let no process of the run have more address space than the main process took so far."""
    run = fault.start(room)
    run.wait_for(lambda: room.count_files() >= files)
    for process in run.members():
        limit = process.memory_info().vms + 2**25
        resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    return [run]


def fill_disk(megabytes: float, room: Room, fault: Fault) -> list[Run]:
    """Run on a disk that is too small; where none can be mounted, with a limit to the size of files."""
    room.folder.mkdir()
    if mount(room.folder, f"size={int(megabytes * 1024)}k"):
        return [fault.start(room)]
    run = fault.start(room)
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (30_000, 30_000))
    return [run]


def lock_output(room: Room, fault: Fault) -> list[Run]:
    """Run into a folder that is read-only."""
    room.output.mkdir(parents=True, mode=0o555)
    mount(room.output, "ro")
    return [fault.start(room)]


def run_twice(room: Room, fault: Fault) -> list[Run]:
    """Start the same command again while it runs."""
    first = fault.start(room)
    first.wait_for(room.count_files)
    return [first, fault.start(room)]


def mount(folder: Path, options: str) -> bool:
    """Mount a memory disk there, if we may."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0


def mend(folder: Path) -> None:
    """Give the memory disks below a folder room, and let them be written to."""
    for path in (folder, folder / "out"):
        if path.is_mount():
            subprocess.run(["mount", "-o", "remount,rw,size=1g", str(path)], check=True)
    (folder / "out").mkdir(exist_ok=True)
    (folder / "out").chmod(0o755)


def remove(folder: Path) -> None:
    """Remove a room, with its disks."""
    for path in (folder / "out", folder):
        if path.is_mount():
            subprocess.run(["umount", str(path)], check=True)
    shutil.rmtree(folder)


def list_faults(files: int) -> Iterator[Fault]:
    """List the faults; `files` is how many one subject's run leaves in the output and work directories."""
    draw = random.Random(0)
    for number in range(MOMENTS):
        moment = round((number + draw.random()) * files / MOMENTS)
        strike = partial(signal_at, moment, signal.SIGKILL)
        yield Fault(f"kill -9 at file {moment} of {files}", strike, (-9,), "", ("01",), 1 + number % 2)
    terminate = partial(signal_at, files // 2, signal.SIGTERM)
    again = "the same command goes on from here"
    failed = "sub-.*: FAILED: "
    busy = "mmln-bids: error: --work-dir .*: another run is at work there"
    yield Fault("kill -9 of a worker", partial(kill_worker, files // 3), (1,), f"{failed}.*killed")
    yield Fault("SIGTERM", terminate, (143,), f"mmln-bids: terminated; {again}")
    yield Fault("disk full", partial(fill_disk, 2), (1,), f"{failed}.*(No space|too large)")
    yield Fault("output read-only", lock_output, (2,), "mmln-bids: error: OUTPUT_DIR .* cannot be written to")
    yield Fault("two runs at once", run_twice, (0, 2), f"2 of 2 images done|{busy}")
    yield Fault("memory limit", partial(limit_memory, files // 3), (1,), f"{failed}.*(memory ran short|killed)")


def undergo(fault: Fault, root: Path, references: Mapping[tuple[str, ...], dict[str, bytes]]) -> Result:
    """Let a fault strike, and run the same command again."""
    room = Room(root / re.sub(r"\W+", "-", fault.name), root / "data")
    wanted = references[fault.subjects]
    runs = fault.strike(room, fault)
    codes = tuple(run.wait() for run in runs)
    lines = [clean(run.said()) for run in runs]
    troubles = [f"exit codes {codes}"] * (codes != fault.codes)
    troubles += [f"said: {line}" for line in lines if not re.match(fault.line, line)]
    troubles += ["traceback" for run in runs if "Traceback" in run.log.read_text(errors="replace")]
    troubles += [f"lives on: {run.members()}" for run in runs if not run.is_gone()]
    mend(room.folder)
    left = {name: content for name, content in room.read().items() if not name.endswith(".html")}
    troubles += [f"damaged: {name}" for name, content in left.items() if content != wanted.get(name)]
    dates = {name: (room.output / name).stat().st_mtime_ns for name in left}
    again = fault.start(room)
    code = again.wait()
    troubles += [f"run again: exit code {code}, {again.said()}"] * (code != 0)
    found = room.read()
    unequal = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    troubles += [f"unequal: {name}" for name in unequal]
    kept = sum((room.output / name).stat().st_mtime_ns == date for name, date in dates.items())
    said = lines[-1] if fault.line else "-"
    did = f"exit {code}: {kept} of {len(wanted)} files kept, the others made"
    if not troubles:
        remove(room.folder)
    equal = "no" if unequal else "yes"
    return [fault.name, ", ".join(map(str, codes)), said, str(len(left)), did, equal], troubles


def watch(run: Run) -> dict[str, list[float]]:
    """Sample memory, descriptors and processes of a run, twice a second, until it ends."""
    samples: dict[str, list[float]] = {name: [] for name in TOLERANCE}
    while run.process.poll() is None:
        taken = []
        for process in run.members():
            with suppress(psutil.Error):
                taken.append((process.memory_info().rss / 2**20, process.num_fds()))
        for name, value in zip(TOLERANCE, (*np.sum(taken, axis=0), len(taken)), strict=True):
            samples[name].append(value)
        time.sleep(0.5)
    return samples


def run_undisturbed(room: Room, subjects: Sequence[str], most: Mapping[str, float]) -> tuple[Result, dict[str, float]]:
    """Run some subjects while watching; return the result, and the peaks, which are to stay below others' `most`."""
    run = room.start(subjects)
    peaks = {name: max(values) for name, values in watch(run).items()}
    code = run.wait()
    troubles = [f"exit code {code}"] * (code != 0) + ["lives on"] * (not run.is_gone())
    troubles += [f"{name} grow" for name in most if peaks[name] > TOLERANCE[name] * most[name]]
    told = ", ".join(f"{value:.0f} {name}" for name, value in peaks.items())
    name = f"none, {len(subjects)} in the run: at most {told}"
    return ([name, str(code), clean(run.said()), str(len(room.read())), "-", "-"], troubles), peaks


def clean(line: str) -> str:
    """Return a line of the App's without folders and the record of a crash."""
    return re.sub(r"/\S*/", "", re.sub(r" \(\S*/crash-\S*\)", "", line))


def make_data(folder: Path) -> None:
    """Make the dataset, a template with labels, and weights."""
    describe(folder / "raw")
    (folder / "raw" / "README").write_text("Synthetic ellipsoids.\n")
    for number, subject in enumerate(SUBJECTS):
        write_image(make_brain(0.05 * number), folder / f"raw/sub-{subject}/anat/sub-{subject}_T1w.nii.gz")
    template = make_brain()
    labels = nb.Nifti1Image((template.get_fdata() > 300).astype(np.uint8), template.affine)
    write_image(template, folder / "tpl-tiny_T1w.nii.gz")
    write_image(labels, folder / "tpl-tiny_seg-core_dseg.nii.gz")
    (folder / "tpl-tiny_seg-core_dseg.tsv").write_text("index\tname\n1\tCore\n")
    torch.manual_seed(0)
    save_model(MMLN(NetworkConfig(channels=2, slices=(), grid=SHAPE)), folder / "tiny.safetensors", {"name": "tiny"})


def report(result: Result) -> bool:
    """Print a row of the table, and return whether anything went wrong."""
    row, troubles = result
    print(f"| {' | '.join(row)} | {'; '.join(troubles)} |", flush=True)
    return bool(troubles)


def main() -> int:
    """Print the table; return 1 if anything went otherwise than documented."""
    began = time.monotonic()
    root = Path(tempfile.mkdtemp(prefix="faults-"))
    make_data(root / "data")
    print("| Fault | Exit code | Last line | Files left | The same command again | Equal | Troubles |")
    print("|---|---|---|---|---|---|---|")
    one, two = (Room(root / f"undisturbed-{number}", root / "data") for number in (1, 2))
    alone, _ = run_undisturbed(one, SUBJECTS[:1], {})
    pair, peaks = run_undisturbed(two, SUBJECTS[:2], {})
    many, _ = run_undisturbed(Room(root / "undisturbed-12", root / "data"), SUBJECTS, peaks)
    references = {("01",): one.read(), ("01", "02"): two.read()}
    with ThreadPoolExecutor(2) as pool:
        struck = pool.map(partial(undergo, root=root, references=references), list_faults(one.count_files()))
        failed = sum(map(report, chain([alone, pair, many], struck)))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    minutes = (time.monotonic() - began) / 60
    print(f"\n{minutes:.1f} minutes, {(used.ru_utime + used.ru_stime) / 60:.1f} of computing")
    if failed:
        print(f"{failed} went wrong; their folders are in {root}", file=sys.stderr)
        return 1
    shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
