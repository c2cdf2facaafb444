"""Ends that come from outside: a worker or the whole run is killed, terminated or interrupted."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from nipype.interfaces.utility import Function
from nipype.pipeline import engine as pe

from mmln_pipeline.bids_app import execution, signals
from mmln_pipeline.bids_app.arguments import UsageError
from mmln_pipeline.bids_app.execution import run_workflow
from mmln_pipeline.bids_app.invocation import Config
from mmln_pipeline.bids_app.work_folder import sole_use
from mmln_pipeline.reporting.page import write_subject_report
from mmln_pipeline.workflows import Scan

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="POSIX signals")

PROGRAM = """
import signal
import sys
from pathlib import Path
from mmln_pipeline.bids_app import run

def busy(folder, number):
    import ctypes, os, subprocess, time
    from pathlib import Path
    child = subprocess.Popen(["sleep", "600"])
    Path(folder, f"new-{number}").write_text(f"{os.getpid()} {child.pid}")
    os.replace(Path(folder, f"new-{number}"), Path(folder, f"pids-{number}"))
    if number == 0:
        ctypes.PyDLL(None).sleep(600)  # native code that no thread of Python gets past, as some of ANTs'
    time.sleep(600)

def work(argv):
    from nipype.interfaces.utility import Function
    from nipype.pipeline import engine as pe
    from mmln_pipeline.bids_app.invocation import Config
    from mmln_pipeline.bids_app.execution import run_workflow
    folder = Path(argv[0])
    workflow = pe.Workflow(name="busy_wf", base_dir=str(folder / "work"))
    for number in range(2):
        node = pe.Node(Function(function=busy, output_names=["out"]), name=f"busy{number}")
        node.inputs.folder, node.inputs.number = str(folder), number
        workflow.add_nodes([node])
    run_workflow(workflow, Config(folder, folder / "out", nprocs=2, work_dir=folder / "work"), [])

run._run = work
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal, however the tests were started
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    sys.exit(run.main(sys.argv[1:]))
"""


def wait_until(is_true, seconds=60):
    end = time.monotonic() + seconds
    while not is_true() and time.monotonic() < end:
        time.sleep(0.05)
    assert is_true()


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def start_program(folder):
    """Start the program in a session of its own, as a terminal does."""
    (folder / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(folder / "program.py"), str(folder)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


@pytest.fixture
def busy_run(tmp_path):
    """A run whose two workers are busy, each with a program that it started: the process, and the four others' ids."""
    process = start_program(tmp_path)
    files = [tmp_path / f"pids-{number}" for number in range(2)]
    try:
        wait_until(lambda: all(file.exists() for file in files))
        yield process, [int(pid) for file in files for pid in file.read_text().split()]
    finally:
        process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (signal.SIGTERM, 143, "mmln-bids: terminated; the same command goes on from here\n"),
        (signal.SIGHUP, 129, "mmln-bids: its terminal was closed; the same command goes on from here\n"),
        (signal.SIGKILL, -9, None),
    ],
)
def test_nothing_outlives_a_run(busy_run, number, code, words):
    process, others = busy_run
    assert all(map(is_running, others))
    process.send_signal(number)
    said, _ = process.communicate(timeout=30)  # which ends when nobody holds the pipe any more
    assert process.returncode == code and "Traceback" not in said
    assert words is None or said == words  # killed, Python's tracker of resources may say what was left
    wait_until(lambda: not any(map(is_running, others)), 10)


def test_interrupt_shows_no_traceback(busy_run):
    """Ctrl-C reaches every process of the terminal's group."""
    process, others = busy_run
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, "mmln-bids: interrupted; the same command goes on from here\n")
    wait_until(lambda: not any(map(is_running, others)), 10)


def test_interrupt_while_workers_start(tmp_path):
    process = start_program(tmp_path)
    children = f"/proc/{process.pid}/task/{process.pid}/children"
    wait_until(lambda: len(Path(children).read_text().split()) > 1)  # the tracker of resources is the first
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, "mmln-bids: interrupted; the same command goes on from here\n")


@pytest.mark.skipif(sys.platform != "linux", reason="file locks of POSIX")
def test_one_run_in_a_work_directory(tmp_path):
    """A second run is refused before any work; the folder is free again once the first is gone, killed even."""
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom mmln_pipeline.bids_app.work_folder import sole_use\n"
        "with sole_use(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    expected = f"another run is at work there .process {process.pid} on .*wait for its end"
    with pytest.raises(UsageError, match=expected), sole_use(tmp_path):
        pass
    process.kill()
    process.wait()
    with sole_use(tmp_path), pytest.raises(UsageError, match=f"process {os.getpid()} "), sole_use(tmp_path):
        pass


def test_busy_main_thread_is_ended():
    """Native code that holds the main thread does not hold up the end."""
    code = (
        "import ctypes\nfrom mmln_pipeline.bids_app import run, signals\nsignals.GRACE_S = 0.2\n"
        "def work(argv):\n    print('ready', flush=True)\n    mutex = ctypes.create_string_buffer(128)\n"
        "    while True:\n        ctypes.CDLL(None).pthread_mutex_lock(mutex)\n"  # the second call never comes back
        "run._run = work\nrun.main([])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=30)
    assert (process.returncode, said) == (143, "mmln-bids: terminated; the same command goes on from here\n")


def test_ignored_signal_stays_ignored():
    code = (
        "import os, signal\nfrom mmln_pipeline.bids_app import run\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "run._run = lambda argv: os.kill(os.getpid(), signal.SIGHUP) or 0\n"
        "raise SystemExit(run.main([]))\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ------------------------------------------------------------------------------------- one worker dies


def die(path):
    """End this process as the system does when memory runs out, once another one is at work."""
    import os
    import signal
    import time
    from pathlib import Path

    while not Path(path).exists():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)


def live(path):
    """Be at work while another process dies; count the attempts."""
    import time
    from pathlib import Path

    with open(path, "a") as file:
        file.write("x")
    time.sleep(2)
    return len(Path(path).read_text())


def test_killed_worker_costs_its_own_scan(tmp_path):
    """The other scan in flight is done, in one go; the next ones find workers; the page tells the cause."""
    scans = [Scan(name, None, tmp_path / f"sub-{name}_T1w.nii.gz") for name in ("a", "b")]
    workflow = pe.Workflow(name="two_wf", base_dir=str(tmp_path / "work"))
    for scan, function in zip(scans, (die, live), strict=True):
        inner = pe.Workflow(name=scan.workflow_name)
        first = pe.Node(Function(function=function, output_names=["out"]), name="first")
        first.inputs.path = str(tmp_path / "at_work")
        second = pe.Node(Function(function=keep, output_names=["out"]), name="second")
        inner.connect(first, "out", second, "value")
        workflow.add_nodes([inner])
    config = Config(tmp_path, tmp_path / "out", nprocs=2, work_dir=tmp_path / "work")
    failures = run_workflow(workflow, config, scans)
    assert list(failures) == ["sub-a"] and "killed" in failures["sub-a"].cause
    assert (tmp_path / "at_work").read_text() == "x"
    assert list((tmp_path / "work").rglob("sub_b_wf/second/result_second.pklz"))
    page = write_subject_report(tmp_path / "out", "a", errors=[failures["sub-a"].crash_file])
    assert "a worker process was killed" in page.read_text() and "BrokenProcessPool" in page.read_text()


def keep(value):
    """Pass a value on."""
    return value


# ------------------------------------------------------------------------------------------- a stop is not lost


def swallow(path):
    """Be stopped, and make another error of it, as native code does."""
    import os
    import signal
    import time

    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    except KeyboardInterrupt as stop:
        raise SystemError("a library's") from stop


def test_a_stop_that_a_step_swallows_ends_the_run(tmp_path):
    workflow = pe.Workflow(name="swallowing_wf", base_dir=str(tmp_path / "work"))
    for number in range(2):
        node = pe.Node(Function(function=swallow, output_names=["out"]), name=f"step{number}")
        node.inputs.path = str(number)
        workflow.add_nodes([node])
    config = Config(tmp_path, tmp_path / "out", nprocs=1, omp_nthreads=1, work_dir=tmp_path / "work")
    with pytest.raises(KeyboardInterrupt) as stop, signals.stop_on_signals():
        run_workflow(workflow, config, [])
    assert stop.value.args == (signal.SIGTERM,)
    assert len(list((tmp_path / "out").rglob("crash-*.txt"))) == 1  # the second step was not begun


def test_torch_is_loaded_where_a_stop_waits(tmp_path, monkeypatch):
    """Torch ends the process (SIGABRT) where the first import of it is interrupted."""
    order = []

    @contextmanager
    def waiting():
        order.append("wait")
        yield
        order.append("torch" in sys.modules)

    monkeypatch.setattr(execution, "stop_later", waiting)
    execution._make_runner(Config(tmp_path, tmp_path / "out", nprocs=1, omp_nthreads=1), {})
    assert order == ["wait", True]
