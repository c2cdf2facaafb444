"""A SLURM cluster of one node, this machine, for as long as a test needs it: three daemons and a folder.

It needs Debian's `slurm-wlm` and `munge` (or their like) and root, for a node starts jobs in their owners' names. No
cgroups and no accounting: memory is watched by `jobacct_gather/linux`, which ends what takes more than it asked for.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo")
PATIENCE_S = 60
SETTINGS = """\
ClusterName=mmln
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
DefMemPerCPU=500
KillWait=2
OverTimeLimit=0
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=work Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def why_none() -> str | None:
    """Say why no cluster can be started here; None where one can."""
    missing = [name for name in NEEDED if find_program(name) is None]
    if missing:
        return f"{', '.join(missing)} not found: apt install slurm-wlm munge"
    return None if os.geteuid() == 0 else "only root can start the daemons"


def find_program(name: str) -> str | None:
    """Find a program, a daemon's included."""
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


@contextmanager
def one_node_cluster(folder: Path, cpus: int = 2, memory_mb: int = 12_000) -> Iterator[None]:
    """Run a cluster; the commands of SLURM find it by `SLURM_CONF`, which is set meanwhile.

    Parameters
    ----------
    folder : Path
        Where its state, logs and sockets go.
    cpus : int, default 2
        Processors that the node claims to have.
    memory_mb : int, default 12000
        Memory that it claims to have, MiB.

    Raises
    ------
    RuntimeError
        The node is not ready in time.
    """
    write_settings(folder, cpus, memory_mb)
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    try:
        with ExitStack() as daemons:
            munge = [f"--socket={folder}/munge.socket", f"--key-file={folder}/munge.key", "--foreground", "--force"]
            munge += [f"--{name}-file={folder}/munged.{name}" for name in ("pid", "log", "seed")]
            daemons.enter_context(daemon("munged", munge))
            wait_until((folder / "munge.socket").exists, "munged does not answer")
            daemons.enter_context(daemon("slurmctld", ["-D", "-c"], folder))
            daemons.enter_context(daemon("slurmd", ["-D", "-c"], folder))
            wait_until(lambda: ask("sinfo", "-h", "-o", "%T") == "idle", f"the node is not idle: see {folder}")
            try:
                yield
            finally:
                ask("scancel", "--user=root")
    finally:
        del os.environ["SLURM_CONF"]
        if before is not None:
            os.environ["SLURM_CONF"] = before


def write_settings(folder: Path, cpus: int, memory_mb: int) -> None:
    """Write the configuration and the key of a cluster."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    host = socket.gethostname().split(".")[0]
    text = SETTINGS.format(host=host, folder=folder, cpus=cpus, memory=memory_mb, ports=free_ports(2))
    (folder / "slurm.conf").write_text(text)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody uses."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for own in sockets:
            own.bind(("127.0.0.1", 0))
        return [own.getsockname()[1] for own in sockets]


@contextmanager
def daemon(name: str, arguments: Sequence[str], folder: Path | None = None) -> Iterator[None]:
    """Run a daemon in the foreground of a process of ours, and end it."""
    program = find_program(name)
    assert program is not None
    with open(os.devnull if folder is None else folder / f"{name}.out", "w") as said:
        process = subprocess.Popen([program, *arguments], stdout=said, stderr=said, start_new_session=True)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until(is_there, complaint: str, seconds: float = PATIENCE_S) -> None:
    """Wait until something holds; complain where it does not in time."""
    end = time.monotonic() + seconds
    while not is_there():
        if time.monotonic() > end:
            raise RuntimeError(complaint)
        time.sleep(0.2)


def ask(*command: str) -> str:
    """Run a command of SLURM's, and return what it prints; what it complains of is passed over."""
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()
