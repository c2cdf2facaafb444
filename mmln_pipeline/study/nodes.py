"""The study as nodes of Nipype's, so that its plugins run it: scans to prepare, rows to train, pairs to register."""

from collections.abc import Sequence
from pathlib import Path

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    Directory,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)
from nipype.pipeline import engine as pe

from mmln_pipeline.study.configuration import StudyConfig, load_study
from mmln_pipeline.study.people import Pair, find_scans
from mmln_pipeline.study.preparation import prepare_scan
from mmln_pipeline.study.protocol import Task, run_task, train_row
from mmln_pipeline.training.config import StageConfig, TrainConfig
from mmln_pipeline.training.pack import build_pack

GIGABYTES, FIXED_GIGABYTES = 4.0, 0.7
"""What a registration on the grid of 1 mm may take, and what any process takes."""


class _PrepareScanInputSpec(BaseInterfaceInputSpec):
    config = File(exists=True, mandatory=True, desc="configuration of the study")
    test_set = traits.Str(mandatory=True, desc="test set")
    scan = traits.Str(mandatory=True, desc="scan of it")


class _PrepareScanOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="the scan on the common grid")


class PrepareScan(SimpleInterface):
    """Strip, correct and align a test scan."""

    input_spec = _PrepareScanInputSpec
    output_spec = _PrepareScanOutputSpec

    def _run_interface(self, runtime):
        config = Path(self.inputs.config)
        study, root = load_study(config), config.resolve().parent
        scans = find_scans(study, root)[self.inputs.test_set]
        scan = next(scan for scan in scans if scan.name == self.inputs.scan)
        path = prepare_scan(scan, study.test_set(self.inputs.test_set), study, root)
        self._results["out_file"] = str(path.resolve())
        return runtime


class _PackTrainingInputSpec(BaseInterfaceInputSpec):
    config = File(exists=True, mandatory=True, desc="configuration of the study")


class _PackTrainingOutputSpec(TraitedSpec):
    pack = Directory(exists=True, desc="folder of the packed volumes")


class PackTraining(SimpleInterface):
    """Prepare the training scans, once for all rows that learn."""

    input_spec = _PackTrainingInputSpec
    output_spec = _PackTrainingOutputSpec

    def _run_interface(self, runtime):
        config = Path(self.inputs.config)
        plain = TrainConfig("study", data=load_study(config).data, stages=(StageConfig((1,), 1),))
        self._results["pack"] = str(build_pack(plain, config.resolve().parent))
        return runtime


class _RowInputSpec(BaseInterfaceInputSpec):
    config = File(exists=True, mandatory=True, desc="configuration of the study")
    output_dir = traits.Str(mandatory=True, desc="folder of the study")
    row = traits.Str(mandatory=True, desc="row of the tables")
    seed = traits.Int(mandatory=True, desc="seed of its training")


class _TrainRowInputSpec(_RowInputSpec):
    pack = Directory(exists=True, mandatory=True, desc="folder of the packed volumes")


class _TrainRowOutputSpec(TraitedSpec):
    model = File(exists=True, desc="weights")


class TrainRow(SimpleInterface):
    """Train a row from scratch, or go on with that."""

    input_spec = _TrainRowInputSpec
    output_spec = _TrainRowOutputSpec

    def _run_interface(self, runtime):
        inputs = self.inputs
        model = train_row(Path(inputs.config), Path(inputs.output_dir), inputs.row, inputs.seed)
        self._results["model"] = str(Path(model).resolve())
        return runtime


class _RegisterPairsInputSpec(_RowInputSpec):
    threads = traits.Int(mandatory=True, desc="processor threads")
    pairs = traits.List(traits.Tuple(traits.Str, traits.Str, traits.Str), mandatory=True, desc="set, fixed, moving")
    shown = traits.Tuple(traits.Str, traits.Str, traits.Str, mandatory=True, desc="pair whose slices are kept")
    model = File(exists=True, desc="weights that were trained for the row")


class _RegisterPairsOutputSpec(TraitedSpec):
    done = traits.Int(desc="pairs that were tried")


class RegisterPairs(SimpleInterface):
    """Register and score pairs by one method; what comes of each lies in the folder of the study."""

    input_spec = _RegisterPairsInputSpec
    output_spec = _RegisterPairsOutputSpec

    def _run_interface(self, runtime):
        inputs = self.inputs
        pairs = tuple(Pair(*names) for names in inputs.pairs)
        model = str(inputs.model) if isdefined(inputs.model) else ""
        task = Task(Path(inputs.config), Path(inputs.output_dir), inputs.row, inputs.seed, pairs, model)
        run_task(task, Pair(*inputs.shown), inputs.threads)
        self._results["done"] = len(pairs)
        return runtime


def init_preparation(config: Path, study: StudyConfig, scans: Sequence[tuple[str, str]], work_dir: Path) -> pe.Workflow:
    """Build the workflow that prepares scans.

    Parameters
    ----------
    config : Path
        Configuration file.
    study : StudyConfig
    scans : sequence of (test set, scan)
    work_dir : Path
    """
    workflow = pe.Workflow("study_preparation", str(work_dir))
    for number, (test_set, scan) in enumerate(scans):
        node = pe.Node(PrepareScan(), f"prepare_{number}", n_procs=study.threads, mem_gb=2.0)
        node.inputs.trait_set(config=str(config), test_set=test_set, scan=scan)
        workflow.add_nodes([node])
    return workflow


def init_registrations(study: StudyConfig, tasks: Sequence[Task], shown: Pair, work_dir: Path) -> pe.Workflow:
    """Build the workflow that trains rows and registers pairs; a row that learns here is trained first.

    Parameters
    ----------
    study : StudyConfig
    tasks : sequence of Task
        One a node.
    shown : Pair
        Whose slices are kept for the figures.
    work_dir : Path
    """
    workflow = pe.Workflow("study_registrations", str(work_dir))
    memory = GIGABYTES / 8**study.halvings + FIXED_GIGABYTES
    packing = pe.Node(PackTraining(), "pack", n_procs=study.threads, mem_gb=2.0)  # joins with the first that learns
    packing.inputs.config = str(tasks[0].config)
    trainings: dict[tuple[str, int], pe.Node] = {}
    for number, task in enumerate(tasks):
        common = dict(config=str(task.config), output_dir=str(task.output_dir), row=task.row, seed=task.seed)
        node = pe.Node(RegisterPairs(), f"register_{number}", n_procs=study.threads, mem_gb=memory)
        pairs = [(pair.test_set, pair.fixed, pair.moving) for pair in task.pairs]
        node.inputs.trait_set(
            **common, threads=study.threads, pairs=pairs, shown=(shown.test_set, shown.fixed, shown.moving)
        )
        workflow.add_nodes([node])
        if not task.is_trained_here:
            continue
        key = task.row, task.seed
        if key not in trainings:
            trainings[key] = pe.Node(TrainRow(), f"train_{len(trainings)}", n_procs=study.threads, mem_gb=2 * memory)
            trainings[key].inputs.trait_set(**common)
            workflow.connect(packing, "pack", trainings[key], "pack")
        workflow.connect(trainings[key], "model", node, "model")
    return workflow
