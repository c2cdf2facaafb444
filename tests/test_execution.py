"""How the BIDS App runs nodes: worker processes, who failed of what, and no call home."""

import json
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from nipype.interfaces.base import traits
from nipype.interfaces.utility import Function, Rename
from nipype.pipeline import engine as pe
from nipype.pipeline.engine.utils import load_resultfile
from nipype.pipeline.plugins import LinearPlugin

from mmln_pipeline.bids_app import execution
from mmln_pipeline.bids_app.execution import run_workflow
from mmln_pipeline.bids_app.invocation import Config
from mmln_pipeline.bids_app.plugin_option import Plugin
from mmln_pipeline.reporting.crashes import find_cause
from mmln_pipeline.workflows import init_registration_wf


def identify():
    """Return this process's id."""
    import os

    return os.getpid()


def repeat(value):
    """Return what comes in."""
    return value


def die():
    """End this process as the system does when memory runs out."""
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def make_function(function, name):
    return pe.Node(Function(function=function, output_names=["out"]), name=name)


def run_functions(tmp_path, nodes, nprocs=2, **settings):
    workflow = pe.Workflow(name="functions_wf", base_dir=str(tmp_path / "work"))
    workflow.add_nodes(nodes)
    config = Config(tmp_path / "raw", tmp_path / "out", nprocs=nprocs, work_dir=tmp_path / "work", **settings)
    return workflow, run_workflow(workflow, config, [])


def test_several_processes(tmp_path, monkeypatch):
    made = []

    class Recorded(execution.WorkerPool):
        def _collect(self, taskid, *others):
            super()._collect(taskid, *others)
            made.append(self._taskresult[taskid]["result"].outputs.out)

    monkeypatch.setattr(execution, "WorkerPool", Recorded)
    _, failures = run_functions(tmp_path, [make_function(identify, name) for name in ("one", "two", "three")])
    assert failures == {} and len(made) == 3 and os.getpid() not in made


@pytest.mark.parametrize("nprocs", [1, 2])
def test_resource_monitor(tmp_path, monkeypatch, nprocs):
    """What "--resource-monitor" leaves, whether nodes run in this process or in workers."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run_functions(tmp_path, [make_function(identify, "one")], nprocs, resource_monitor=True)[1] == {}
    (path,) = (tmp_path / "out/logs/runs").glob("*_resource_monitor.json")
    record = json.loads(path.read_text())
    assert not list((tmp_path / "here").iterdir())
    assert set(record["name"]) == {"functions_wf.one"} and min(record["rss_GiB"]) > 0
    run_functions(tmp_path / "again", [make_function(identify, "one")], 1)
    assert not (tmp_path / "again/out/logs").exists()


def test_one_processor_stays_in_this_process(tmp_path):
    config = Config(tmp_path, tmp_path / "out", nprocs=1)
    assert isinstance(execution._make_runner(config, {}), LinearPlugin)


def test_workers_by_name_are_ours(tmp_path):
    config = Config(tmp_path, tmp_path / "out", nprocs=1, mem_gb=3)
    runner = execution._make_runner(config, {}, Plugin("MultiProc", {"n_procs": 4}))
    assert isinstance(runner, execution.WorkerPool) and (runner.processors, runner.memory_gb) == (4, 3)


def test_killed_worker_is_a_failure(tmp_path):
    node = make_function(die, "dying")
    other = make_function(identify, "other")
    _, failures = run_functions(tmp_path, [node, other])
    crash = "\n".join(path.read_text() for path in (tmp_path / "out/logs/crash").glob("*.txt"))
    assert "dying" in crash and "BrokenProcessPool" in crash
    assert failures == {}  # no scan was part of it


class Threads(ThreadPoolExecutor):
    """A worker in this process, which is quicker."""

    _processes = None


def test_a_node_whose_input_is_gone_fails_alone(tmp_path, monkeypatch):
    """Nipype looks at the inputs of a node with an earlier result before it sends it to a worker."""
    monkeypatch.setattr(execution.WorkerPool, "_make_worker", lambda self, device=None: Threads(1))
    path = tmp_path / "volume.txt"
    path.write_text("here")
    name_file = make_function(repeat, "name_file")
    name_file.inputs.value = str(path)
    reader = pe.Node(Rename(format_string="x"), name="reader")
    first, later = make_function(identify, "first"), make_function(repeat, "later")
    workflow = pe.Workflow(name="functions_wf", base_dir=str(tmp_path / "work"))
    workflow.connect([(name_file, reader, [("out", "in_file")])])
    config = Config(tmp_path / "raw", tmp_path / "out", nprocs=2, work_dir=tmp_path / "work")
    assert run_workflow(workflow, config, []) == {}
    path.unlink()
    workflow.connect([(first, later, [("out", "value")])])
    run_workflow(workflow, config, [])
    (crash,) = (tmp_path / "out/logs/crash").glob("*.txt")
    assert "functions_wf.reader" in crash.read_text() and "volume.txt" in crash.read_text()
    assert (tmp_path / "work/functions_wf/later/result_later.pklz").is_file()


def see():
    """Return the GPUs that this process is shown, and when it began and ended."""
    import os
    import time

    began = time.time()
    time.sleep(0.2)
    return os.environ.get("CUDA_VISIBLE_DEVICES"), began, time.time()


class OnGpu(Function):
    """A function that Nipype counts as a node on a GPU."""

    def __init__(self, **inputs):
        super().__init__(**inputs)
        self.inputs.add_trait("use_gpu", traits.Bool(True))
        self.inputs.use_gpu = True

    def _run_interface(self, runtime):
        self.inputs.remove_trait("use_gpu")
        return super()._run_interface(runtime)


def test_each_worker_has_a_gpu_of_its_own(tmp_path, monkeypatch):
    """Two of three nodes run at once, each on a device that no other one uses; the one without waits."""
    monkeypatch.setattr(execution, "list_cuda_devices", lambda: ["MIG-a", "3"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nodes = [pe.Node(OnGpu(function=see, output_names=["out", "began", "ended"]), name=name) for name in "abc"]
    plain = pe.Node(Function(function=see, output_names=["out", "began", "ended"]), name="plain")
    workflow, _ = run_functions(tmp_path, [*nodes, plain], nprocs=4)
    results = {name: load_result(workflow, name) for name in ("a", "b", "c", "plain")}
    assert {results[name].out for name in "abc"} == {"MIG-a", "3"} and results["plain"].out is None
    for device in ("MIG-a", "3"):
        own = sorted((found.began, found.ended) for found in results.values() if found.out == device)
        assert all(first[1] <= second[0] for first, second in pairwise(own))


def load_result(workflow, name):
    path = f"{workflow.base_dir}/{workflow.name}/{name}/result_{name}.pklz"
    return load_resultfile(path).outputs


def test_failures_are_told_by_scan(tmp_path):
    text = "Node: mmln_wf.sub_02_wf.preproc_wf.bias\n\nTraceback\n\tValueError: T1w x.nii: empty\n"
    first, second = tmp_path / "crash-1.txt", tmp_path / "crash-2.txt"
    first.write_text(text)
    second.write_text("Node: mmln_wf.load_template\n\nBrokenProcessPool: a process died\n")
    found = execution._read_failures([first], ["sub_01_wf", "sub_02_wf"], tmp_path)
    assert {name: failure.cause for name, failure in found.items()} == {"sub_02_wf": "T1w x.nii: empty"}
    found = execution._read_failures([second], ["sub_01_wf", "sub_02_wf"], tmp_path)
    assert set(found) == {"sub_01_wf", "sub_02_wf"} and "killed" in found["sub_01_wf"].cause


def test_failures_of_another_run_are_not_ours(tmp_path):
    """Jobs may share the output directory, and with it the folder of crash files."""
    crash = tmp_path / "crash-1.txt"
    node = "mmln_wf.sub_05_wf.preproc_wf.bias"
    crash.write_text(f"Node: {node}\nWorking directory: {tmp_path}/theirs/mmln_wf/bias\n\nValueError: x.nii: empty\n")
    assert execution._read_failures([crash], ["sub_01_wf"], tmp_path / "ours") == {}
    assert set(execution._read_failures([crash], ["sub_05_wf"], tmp_path / "theirs")) == {"sub_05_wf"}


def test_nipype_never_calls_home(tmp_path):
    code = "import mmln_pipeline.bids_app.participant_level, os; assert os.environ['NIPYPE_NO_ET']"
    subprocess.run([sys.executable, "-c", code], check=True)
    execution.configure_nipype(Config(tmp_path, tmp_path / "out"))
    assert logging.getLogger("nipype.workflow").level == logging.CRITICAL


@pytest.mark.parametrize(
    "error",
    [
        "MemoryError",
        "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 26.2 MiB for an array",
        "RuntimeError: could not create a primitive",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "ImportError: libscipy.so: failed to map segment from shared object",
        "OSError: [Errno 12] Cannot allocate memory",
    ],
)
def test_short_memory_is_told_in_the_same_words(error):
    cause = find_cause(f"Traceback (most recent call last):\n  File 'x', line 1\n{error}\n")
    assert cause.startswith("memory ran short: fewer --nprocs, or --low-mem (")
    assert error.split(": ")[-1][:20] in cause


def test_a_file_that_went_is_told_as_one_that_is_not_there(tmp_path):
    path = tmp_path / "sub-01_T1w.nii.gz"
    path.symlink_to("gone")
    said = (
        f"must be a pathlike object or string representing an existing file, but a value of '{path}' <class 'str'> was"
    )
    trait = "traits.trait_errors.TraitError: The 'out_file' trait of a Spec instance"
    cause = find_cause(f"Traceback (most recent call last):\n{trait} {said} specified.\n")
    assert cause.startswith(f"{path}: is a dangling link") and "datalad get" in cause


def test_a_job_out_of_memory_is_told_in_the_words_of_its_scheduler():
    told = "SLURM job 7 on n1 ran out of memory: ask for more by --mem= in sbatch_args; its log: slurm-7.out"
    assert find_cause(f"Traceback (most recent call last):\n  File 'x', line 1\nChildProcessError: {told}\n") == told


def test_a_registration_on_a_gpu_leaves_processors_to_others():
    (gpu, cpu) = (
        init_registration_wf(device=device, omp_nthreads=8).get_node("registration") for device in ("cuda", "cpu")
    )
    assert (gpu.n_procs, gpu.inputs.num_threads, gpu.is_gpu_node()) == (2, 2, True)
    assert (cpu.n_procs, cpu.inputs.num_threads, cpu.is_gpu_node()) == (8, 8, False)
