"""SLURM's jobs by a stand-in for its commands: what is asked for, what a death costs, and what is cancelled.

The real thing is run by `make test-slurm`.
"""

import os
import stat
from pathlib import Path

import nipype
import pytest
from nipype.interfaces.utility import Function
from nipype.pipeline import engine as pe

from mmln_pipeline.bids_app import slurm_jobs
from mmln_pipeline.bids_app.arguments import UsageError
from mmln_pipeline.bids_app.execution import run_workflow
from mmln_pipeline.bids_app.invocation import Config
from mmln_pipeline.bids_app.method import prepare_method
from mmln_pipeline.bids_app.participant_level import check_batch
from mmln_pipeline.bids_app.plugin_option import Plugin, read_plugin
from mmln_pipeline.bids_app.slurm_jobs import Job, SlurmJobs, State, describe_death
from mmln_pipeline.reporting.crashes import read_crash

COMMANDS = {
    "sbatch": """
        echo "$*" >> $FAKE/sbatch.txt
        if [ -f $FAKE/refusal ]; then cat $FAKE/refusal >&2; exit 1; fi
        case "$*" in *--hold*) echo 99; exit 0;; esac
        n=$(($(cat $FAKE/count 2> /dev/null || echo 0) + 1)); echo $n > $FAKE/count; echo $n
        for word in "$@"; do case $word in
            --output=*) log=${word#--output=};;
            --comment=*) echo "${word#--comment=}" > $FAKE/comment-$n;;
        esac; done
        if [ -f $FAKE/hold ]; then echo PENDING > $FAKE/job-$n; exit; fi
        echo RUNNING > $FAKE/job-$n
        (bash "${@: -1}" > ${log/\\%j/$n} 2>&1 < /dev/null && state=COMPLETED || state=FAILED
            echo $state > $FAKE/job-$n) > /dev/null 2>&1 &
        """,
    "squeue": """
        for file in $FAKE/job-*; do [ -f $file ] || continue; n=${file##*-}
            case "$*" in *%k*) grep -q "PENDING\\|RUNNING" $file && echo "$n|$(cat $FAKE/comment-$n)";;
                *) echo "$n|$(cat $file)|None|node1";; esac
        done; true
        """,
    "scancel": 'echo "$*" >> $FAKE/scancel.txt; for n in "$@"; do echo CANCELLED > $FAKE/job-$n; done',
}


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A folder in which stand-ins for sbatch, squeue and scancel keep their jobs."""
    folder = tmp_path / "fake"
    folder.mkdir()
    for name, script in COMMANDS.items():
        path = folder / name
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("FAKE", str(folder))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv("LOGNAME", raising=False)
    return folder


def identify():
    """Return this process's id."""
    import os

    return os.getpid()


def die():
    """End this process as the system does when memory runs out."""
    import os
    import signal

    print("about to die", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def make_node(function, name, folder, **needs):
    node = pe.Node(Function(function=function, output_names=["out"]), name=name, base_dir=str(folder), **needs)
    node.config = nipype.config._sections
    return node


def make_runner(folder, **arguments):
    runner = SlurmJobs({"poll_seconds": 0.01, "max_tries": 0, **arguments})
    runner._config = {"execution": {"stop_on_first_crash": "false"}}
    return runner


def test_a_dead_job_costs_itself(fake, tmp_path):
    """Nipype 1.11 ends the run here, with a TypeError that names no node."""
    work = tmp_path / "work"
    workflow = pe.Workflow(name="jobs_wf", base_dir=str(work))
    workflow.add_nodes([
        make_node(die, "dying", work, n_procs=2, mem_gb=3), make_node(identify, "sound", work),
    ])  # fmt: skip
    config = Config(tmp_path / "raw", tmp_path / "out", work_dir=work)
    run_workflow(workflow, config, [], Plugin("SLURM", {"poll_seconds": 0.1, "sbatch_args": "--time=5"}))
    (path,) = (tmp_path / "out/logs/crash").glob("*.txt")
    crash = read_crash(path)
    assert crash.node == "jobs_wf.dying" and "about to die" in path.read_text()
    assert crash.cause.startswith("SLURM job ") and "on node1 was killed" in crash.cause
    assert Path(crash.cause.split("its log: ")[1]).is_file()
    assert (work / "jobs_wf/sound/result_sound.pklz").is_file()
    asked = {line.split("--job-name=")[1].split()[0]: line for line in (fake / "sbatch.txt").read_text().splitlines()}
    assert "--cpus-per-task=2 --mem=3072M --time=60 --time=5" in asked["jobs_wf.dying"]
    assert "--cpus-per-task=1 --mem=2048M" in asked["jobs_wf.sound"]
    assert not (fake / "scancel.txt").exists()


def test_stop_cancels(fake, tmp_path):
    (fake / "hold").touch()
    runner = make_runner(tmp_path)
    numbers = [runner._submit_job(make_node(identify, name, tmp_path)) for name in ("one", "two")]
    assert numbers == [1, 2] and runner._get_result(1) is None
    runner.stop()
    assert (fake / "scancel.txt").read_text() == "1 2\n"


def test_jobs_of_a_killed_run_are_cancelled(fake, tmp_path):
    """They would work in the folders that the new run empties."""
    (fake / "hold").touch()
    node = make_node(identify, "one", tmp_path / "work")
    make_runner(tmp_path)._submit_job(node)
    make_runner(tmp_path)._submit_job(make_node(identify, "other", tmp_path / "elsewhere"))
    workflow = pe.Workflow(name="jobs_wf", base_dir=str(tmp_path / "work"))
    workflow.add_nodes([node])
    make_runner(tmp_path)._prerun_check(workflow._create_flat_graph())
    assert (fake / "scancel.txt").read_text() == "1\n"


def test_an_old_result_is_not_the_dead_jobs(fake, tmp_path):
    (fake / "hold").touch()
    node = make_node(identify, "one", tmp_path)
    stale = Path(node.output_dir()) / "result_one.pklz"
    stale.parent.mkdir(parents=True)
    stale.touch()
    runner = make_runner(tmp_path)
    number = runner._submit_job(node)
    (fake / "job-1").write_text("TIMEOUT\n")
    result = runner._get_result(number)
    assert result["result"] is None and "ran out of time" in result["traceback"][-1]


def test_a_limit_of_jobs_is_waited_for(fake, tmp_path, capsys, monkeypatch):
    (fake / "refusal").write_text("sbatch: error: QOSMaxSubmitJobPerUserLimit\n")
    runner, node = make_runner(tmp_path), make_node(identify, "one", tmp_path)
    assert runner._submit_job(node) is None and runner.max_jobs == 0
    assert runner._submit_job(node) is None  # and sbatch is not asked again at once
    assert len((fake / "sbatch.txt").read_text().splitlines()) == 1
    assert "takes no further job for now: sbatch: error: QOSMax" in capsys.readouterr().err
    (fake / "refusal").unlink()
    monkeypatch.setattr(slurm_jobs, "RETRY_S", 0)
    (fake / "hold").touch()
    assert runner._submit_job(node) == 1


def test_a_refused_job_costs_itself(fake, tmp_path):
    (fake / "refusal").write_text("sbatch: error: invalid account\n")
    runner = make_runner(tmp_path)
    number = runner._submit_job(make_node(identify, "one", tmp_path))
    assert "sbatch refused the job: sbatch: error: invalid account" in runner._get_result(number)["traceback"][-1]


def test_a_silent_controller_is_waited_for(fake, tmp_path, capsys):
    (fake / "hold").touch()
    runner = make_runner(tmp_path)
    number = runner._submit_job(make_node(identify, "one", tmp_path))
    (fake / "squeue").write_text("#!/bin/bash\necho Unable to contact controller >&2; exit 1\n")
    assert runner._get_result(number) is None
    assert "squeue does not answer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("state", "log", "words"),
    [
        (State("FAILED", node="n1"), "slurmstepd: error: Exceeded job memory limit", "job 7 on n1 ran out of memory"),
        (State("OUT_OF_MEMORY"), "", "job 7 ran out of memory: ask for more by --mem="),
        (State("NODE_FAIL", node="n2"), "", "on n2 its node failed"),
        (None, "", "ended without a result"),
        (State("FAILED"), None, "it left no log"),
    ],
)
def test_deaths(tmp_path, state, log, words):
    job = Job(tmp_path, tmp_path / "pyscript_x.py", tmp_path / "slurm-7.out", 0)
    if log is not None:
        job.log.write_text(log)
    assert words in describe_death(7, state, job)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('plugin = "SLURMGraph"', "SLURMGraph submits all jobs and leaves.*: use SLURM"),
        ('plugin = "Slurm"', r"found 'Slurm' \(did you mean SLURM\?\)"),
        ('plugin = "SLURM"\n[plugin_args]\nsbatch_arg = ""', "unknown key 'sbatch_arg'"),
        ('plugin = "SLURM"\n[plugin_args]\nsbatch_args = "-o x"', "-o is set for each job"),
        ('plugin = "SLURM"\n[plugin_args]\nsbatch_args = "\'"', "sbatch_args: No closing quotation"),
    ],
)
def test_plugin_is_checked(tmp_path, text, words):
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(UsageError, match=words):
        read_plugin(tmp_path / "p.toml")


def test_slurm_is_asked_before_any_work(fake, place, tmp_path, monkeypatch):
    plugin = Plugin("SLURM", {"sbatch_args": "-p nix"})
    template, model = place / "tpl-tiny_T1w.nii.gz", place / "tiny.safetensors"
    config = Config(place / "raw", tmp_path / "out", template=str(template), model=str(model), nprocs=4, omp_nthreads=4)
    method = prepare_method(config, elsewhere=True)
    assert method.device == "auto"  # which the job's machine resolves
    check_batch(config, plugin, method)
    assert "--hold" in (fake / "sbatch.txt").read_text()
    assert "--cpus-per-task=4 --mem=3072M --time=60 -p nix" in (fake / "sbatch.txt").read_text()
    assert (fake / "scancel.txt").read_text() == "99\n"  # the job that was held
    (fake / "refusal").write_text("sbatch: error: QOSMaxSubmitJobPerUserLimit\n")
    check_batch(config, plugin, method)  # which will pass
    (fake / "refusal").write_text("sbatch: error: invalid partition specified: nix\n")
    with pytest.raises(UsageError, match=r"SLURM refuses sbatch .* -p nix: sbatch: error: invalid partition"):
        check_batch(config, plugin, method)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match="needs sbatch, squeue, scancel, not found"):
        check_batch(config, plugin, method)
