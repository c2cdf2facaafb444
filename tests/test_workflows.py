"""The workflow builders: graphs without loose ends, names as documented, sidecars and methods text."""

import ast
import inspect
import itertools
import re
from dataclasses import replace
from pathlib import Path

import pytest
from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline import engine as pe

from mmln_pipeline import interfaces, workflows
from mmln_pipeline.atlas.sources import TemplateSource
from mmln_pipeline.derivatives import filenames, sidecars
from mmln_pipeline.workflows import (
    Provenance,
    Scan,
    Target,
    init_alignment_wf,
    init_derivatives_wf,
    init_evaluation_wf,
    init_fusion_wf,
    init_iteration_wf,
    init_member_wf,
    init_mmln_wf,
    init_preproc_wf,
    init_reference_wf,
    init_registration_wf,
    init_single_subject_wf,
    init_study_template_wf,
    init_template_wf,
    write_boilerplate,
)

RAW = Path("/data/raw")
PLAIN = Scan("01", None, RAW / "sub-01/anat/sub-01_T1w.nii.gz")
FULL = Scan(
    "01",
    "02",
    RAW / "sub-01/ses-02/anat/sub-01_ses-02_run-1_T1w.nii.gz",
    mask=Path("/data/masks/sub-01/mask.nii.gz"),
    dseg=Path("/data/labels/sub-01/dseg.nii.gz"),
    lesion=Path("/data/masks/sub-01/hemi-L_lesion.nii.gz"),
    lesion_other=Path("/data/masks/sub-01/hemi-R_lesion.nii.gz"),
    along=(Path("/data/labels/sub-01/func/sub-01_task-rest_space-T1w_bold.nii.gz"),),
)
RUNS = Scan("03", None, RAW / "sub-03/anat/sub-03_run-1_T1w.nii.gz", mask=FULL.mask)
RUNS = replace(RUNS, others=(replace(RUNS, t1w=RAW / "sub-03/anat/sub-03_run-2_T1w.nii.gz"),))
LABELLED, OTHER = (
    Target(name, name, TemplateSource(f"/atlases/{name}.nii.gz"), name, {1: "Core"}, compare_labels=True)
    for name in "AB"
)
BARE = Target("TPL", "TPL", TemplateSource("TPL"))
LINKS = {"raw": RAW, "masks": Path("/data/masks"), "labels": Path("/data/labels")}
PROVENANCE = Provenance("TPL", "TPL", LINKS, "mmln", "ab12" * 16, "0.1.0", {"init": "affine"})


@pytest.fixture(autouse=True)
def _files_need_not_exist(monkeypatch):
    """Let graphs be built on paths of files that are not there."""
    from nipype.interfaces.base.traits_extension import File

    monkeypatch.setattr(File, "validate", lambda self, objekt, name, value, return_pathlike=False: value)


def cases():
    """Every builder in each combination of its switches."""
    flags = (False, True)
    for scan in (PLAIN, FULL, RUNS):
        yield init_reference_wf, {"scan": scan}
    for bias, mask in itertools.product(flags, flags):
        yield init_preproc_wf, {"bias_correction": bias, "has_mask": mask}
    for method in ("skip", "atlas"):
        yield init_preproc_wf, {"skull_strip": method}
    for lesion in flags:
        yield init_alignment_wf, {"has_lesion": lesion}
    for dseg, lesion, atlas in itertools.product(flags, flags, flags):
        settings = {"has_dseg": dseg, "has_lesion": lesion, "has_atlas": atlas, "compare_labels": dseg and atlas}
        yield init_registration_wf, settings
    for bias, lesion, atlas in itertools.product(flags, flags, flags):
        yield init_evaluation_wf, {"bias_correction": bias, "has_lesion": lesion, "has_atlas": atlas}
    common = {"output_dir": "/out", "provenance": PROVENANCE}
    for scan, atlas in itertools.product((PLAIN, FULL, RUNS), (None, "tissue")):
        yield init_derivatives_wf, {"scan": scan, "atlas": atlas, **common}
    formats = {"formats": ("fsl", "x5")}
    yield init_derivatives_wf, {"scan": PLAIN, **formats, **common}
    yield init_template_wf, {"scan": PLAIN, "target": replace(BARE, **formats), **common}
    yield init_single_subject_wf, {"scan": PLAIN, "targets": [replace(BARE, **formats)], **common}
    for scan, target in itertools.product((PLAIN, FULL, RUNS), (BARE, LABELLED)):
        yield init_template_wf, {"scan": scan, "target": target, **common}
        for bias in flags:
            yield init_single_subject_wf, {"scan": scan, "targets": [target], "bias_correction": bias, **common}
    for scan in (PLAIN, FULL):
        several = {"targets": [LABELLED, BARE, OTHER]}
        yield init_single_subject_wf, {"scan": scan, **several, **common}
        yield init_fusion_wf, {"scan": scan, "targets": [LABELLED, OTHER], "has_dseg": scan is FULL, **common}
    for targets in ([BARE], [LABELLED, OTHER]):
        yield init_mmln_wf, {"scans": [PLAIN, FULL, RUNS], "targets": targets, **common}
    for scans in ([PLAIN, FULL, RUNS], [PLAIN, RUNS]):
        yield init_study_template_wf, {"scans": scans, "target": BARE, "iterations": 2, **common}
        yield init_iteration_wf, {"scans": scans}
    for scan in (PLAIN, FULL, RUNS):
        yield init_member_wf, {"scan": scan}


CASES = list(cases())


def list_workflows(workflow):
    """The workflow and all inside it."""
    inner = [node for node in workflow._graph.nodes() if isinstance(node, pe.Workflow)]
    return [workflow, *itertools.chain.from_iterable(list_workflows(node) for node in inner)]


def connected_inputs(workflow, node):
    """Names of a node's inputs that something in its own workflow feeds."""
    edges = workflow._graph.in_edges(node, data=True)
    return {target for _, _, data in edges for _, target in data["connect"]}


def used_outputs(workflow, node):
    """Names of a node's outputs that something in its own workflow uses."""
    edges = workflow._graph.out_edges(node, data=True)
    sources = (source for _, _, data in edges for source, _ in data["connect"])
    return {source if isinstance(source, str) else source[0] for source in sources}


def section(function, title):
    """One section of a numpydoc docstring."""
    text = inspect.getdoc(function)
    match = re.search(rf"^{title}\n-+\n(.*?)(?=^\w[^\n]*\n-+\n|\Z)", text, re.MULTILINE | re.DOTALL)
    assert match, f"{function.__name__} has no section {title}"
    return match[1]


@pytest.mark.parametrize(("builder", "settings"), CASES)
def test_every_field_is_connected(builder, settings):
    for workflow in list_workflows(builder(**settings)):
        output = workflow.get_node("outputnode")
        if output is not None:
            assert set(output.interface._fields) == connected_inputs(workflow, output), workflow.name
        given = workflow.get_node("inputnode")
        assert set(given.interface._fields) == used_outputs(workflow, given), workflow.name


@pytest.mark.parametrize(("builder", "settings"), CASES)
def test_inner_inputs_are_fed(builder, settings):
    """Whatever an inner workflow's inputnode has is connected from outside or set by the builder."""
    for workflow in list_workflows(builder(**settings)):
        for node in workflow._graph.nodes():
            if not isinstance(node, pe.Workflow):
                continue
            inputnode = node.get_node("inputnode")
            fed = {name.removeprefix("inputnode.") for name in connected_inputs(workflow, node)}
            values = inputnode.inputs.get_traitsfree()
            assert set(inputnode.interface._fields) <= fed | set(values), f"{workflow.name}.{node.name}"


@pytest.mark.parametrize(("builder", "settings"), CASES)
def test_mandatory_inputs_are_given(builder, settings):
    for workflow in list_workflows(builder(**settings)):
        for node in workflow._graph.nodes():
            if isinstance(node, pe.Workflow) or isinstance(node.interface, IdentityInterface):
                continue
            mandatory = set(node.inputs.traits(mandatory=True))
            given = connected_inputs(workflow, node) | set(node.inputs.get_traitsfree())
            assert mandatory <= given, f"{workflow.name}.{node.name}"


@pytest.mark.parametrize(("builder", "settings"), CASES)
def test_every_field_is_documented(builder, settings):
    workflow = builder(**settings)
    for title, name in (("Inputs", "inputnode"), ("Outputs", "outputnode")):
        node = workflow.get_node(name)
        if node is not None:
            documented = set(re.findall(r"\w+", section(builder, title)))
            # Numbers stand for N, and fields of several templates end in the template's name.
            fields = {re.sub(r"_(A|B|TPL)$", "", field) for field in node.interface._fields}
            numbered = {re.sub(r"(?<=_)\d+$", "N", field) for field in fields - documented}
            assert numbered <= documented


def test_every_builder_is_walked():
    assert {builder.__name__ for builder, _ in CASES} == {
        name for name in workflows.__all__ if name.startswith("init_")
    }


@pytest.mark.parametrize("builder", sorted({builder for builder, _ in CASES}, key=lambda builder: builder.__name__))
def test_every_documented_output_exists(builder):
    """No field stands in a docstring that no case has."""
    if builder is init_mmln_wf:
        return  # it has none of its own
    fields = set()
    for settings in (settings for own, settings in CASES if own is builder):
        fields |= set(builder(**settings).get_node("outputnode").interface._fields)
    fields |= {re.sub(r"(?<=_)\d+$", "N", field) for field in fields}
    lines = re.findall(r"^[a-z]\w+(?:, \w+)*$", section(builder, "Outputs"), re.MULTILINE)
    assert {name for line in lines for name in line.split(", ")} <= fields


@pytest.mark.parametrize("name", [name for name in workflows.__all__ if name.startswith("init_")])
def test_builders_are_keyword_only_and_described(name):
    builder = getattr(workflows, name)
    parameters = inspect.signature(builder).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    assert kinds <= {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}
    documented = section(builder, "Parameters")
    assert all(re.search(rf"^\**{key}\b", documented, re.MULTILINE) for key in parameters)


def test_node_variables_are_named_like_their_nodes():
    folder = Path(inspect.getfile(workflows)).parent
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)):
                continue
            if ast.unparse(node.value.func) != "pe.Node":
                continue
            name = next(keyword.value for keyword in node.value.keywords if keyword.arg == "name")
            if isinstance(name, ast.Constant):
                assert node.targets[0].id == name.value, f"{path.name}:{node.lineno}"


def test_gpu_node_is_counted():
    assert init_registration_wf(device="cuda:0").get_node("registration").is_gpu_node()
    assert not init_registration_wf(device="cpu").get_node("registration").is_gpu_node()


def test_derivative_names():
    paths = filenames.derivative_paths(FULL, "TPL", "tissue")
    head = "sub-01/ses-02/anat/sub-01_ses-02_run-1"
    assert paths["forward_xfm"] == f"{head}_from-T1w_to-TPL_mode-image_xfm.h5"
    assert paths["inverse_xfm"] == f"{head}_from-TPL_to-T1w_mode-image_xfm.h5"
    assert paths["t1w_std"] == f"{head}_space-TPL_desc-preproc_T1w.nii.gz"
    assert paths["mask_std"] == f"{head}_space-TPL_desc-brain_mask.nii.gz"
    assert paths["t1w_mask"] == f"{head}_desc-brain_mask.nii.gz"
    assert paths["log_jacobian"] == f"{head}_space-TPL_desc-jacobian_T1w.nii.gz"
    assert paths["atlas_dseg"] == f"{head}_space-T1w_seg-tissue_dseg.nii.gz"
    assert paths["dseg_std"] == f"{head}_space-TPL_dseg.nii.gz"
    assert paths["qc_json"] == f"{head}_desc-registration_qc.json"
    assert paths["qc_tsv"] == f"{head}_desc-registration_qc.tsv"
    assert paths["atlas_volumes"] == f"{head}_space-T1w_seg-tissue_volumes.tsv"
    assert paths["lesion_std"] == f"{head}_space-TPL_label-lesion_mask.nii.gz"
    assert paths["along_1"] == "sub-01/func/sub-01_task-rest_space-TPL_bold.nii.gz"
    assert len(paths) == 13
    own = {"atlas_dseg", "atlas_volumes", "dseg_std", "lesion_std", "along_1"}
    assert set(paths) - set(filenames.derivative_paths(PLAIN, "TPL")) == own
    several = filenames.derivative_paths(FULL, "TPL", "tissue", spaced=True)
    assert several["qc_json"] == f"{head}_space-TPL_desc-registration_qc.json"
    assert {key for key in paths if paths[key] != several[key]} == {"qc_json", "qc_tsv"}
    fused = filenames.fused_paths(FULL, has_dseg=True)
    assert fused["fused_dseg"] == f"{head}_space-T1w_seg-fused_dseg.nii.gz"
    assert fused["fused_volumes"] == f"{head}_space-T1w_seg-fused_volumes.tsv"
    assert fused["fused_qc"] == f"{head}_space-T1w_seg-fused_qc.json"


def test_sidecars():
    content = sidecars.sidecars(FULL, PROVENANCE, "tissue")
    paths = filenames.derivative_paths(FULL, "TPL", "tissue")
    t1w = "bids:raw:sub-01/ses-02/anat/sub-01_ses-02_run-1_T1w.nii.gz"
    assert content["t1w_std"]["Sources"] == [t1w, f"bids::{paths['forward_xfm']}"]
    assert content["t1w_std"]["SkullStripped"] is True
    assert content["t1w_mask"]["Sources"] == ["bids:masks:sub-01/mask.nii.gz"]
    assert content["dseg_std"]["Sources"][0] == "bids:labels:sub-01/dseg.nii.gz"
    assert content["log_jacobian"]["SpatialReference"] == "TPL"
    assert content["atlas_dseg"]["SpatialReference"] == t1w
    assert set(content) == set(paths) - {"qc_json", "qc_tsv"}
    assert all(entry["ModelSHA256"] == PROVENANCE.model_sha256 for entry in content.values())


def test_innermost_link_wins():
    links = {"raw": RAW, "labels": RAW / "derivatives/labels"}
    inside = RAW / "derivatives/labels/sub-01/dseg.nii.gz"
    assert Provenance("T", "T", links).uri(inside) == "bids:labels:sub-01/dseg.nii.gz"
    assert Provenance("T", "T", links).uri(Path("/elsewhere/x.nii")) == "file:///elsewhere/x.nii"


def test_boilerplate_cites_in_order():
    settings = {"output_dir": "/out", "provenance": PROVENANCE, "targets": [BARE]}
    text, bibtex = write_boilerplate(init_mmln_wf(scans=[PLAIN, FULL], **settings))
    assert "[@" not in text
    numbers = [int(number) for number in re.findall(r"\[(\d+)\]", text)]
    assert list(dict.fromkeys(numbers)) == list(range(1, max(numbers) + 1))
    assert "N4" in text and "template TPL" in text and "2022" in text
    assert "[doi:10.1109/TMI.2010.2046908](https://doi.org/10.1109/TMI.2010.2046908)" in text
    assert re.findall(r"^@\w+\{(\w+)", bibtex, re.MULTILINE)[0] == "nipype" and bibtex.count("@") == max(numbers)
    plain, bibtex = write_boilerplate(init_mmln_wf(scans=[PLAIN], bias_correction=False, **settings))
    assert "N4" not in plain and "fusion" not in plain and "n4" not in bibtex
    several, _ = write_boilerplate(init_mmln_wf(scans=[PLAIN, FULL], **settings | {"targets": [LABELLED, OTHER]}))
    assert "templates A and B" in several and "joint label fusion" in several and "Wang" in several
    assert several.count("twelve degrees of freedom") == 1


@pytest.mark.parametrize("name", interfaces.__all__)
def test_all_traits_are_described(name):
    interface = getattr(interfaces, name)
    for spec in (interface.input_spec, interface.output_spec):
        for trait_name, trait in spec().traits(transient=None).items():
            assert trait.desc, f"{name}.{trait_name}"
