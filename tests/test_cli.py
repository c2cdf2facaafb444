"""The command line: help, exit codes, one-line errors, and each command on a tiny pair."""

import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch

from mmln_pipeline import __version__, weights
from mmln_pipeline.cli import commands, main, registering
from mmln_pipeline.cli.parser import build_parser
from mmln_pipeline.network.architecture import NetworkConfig
from mmln_pipeline.space.displacements import DisplacementField
from mmln_pipeline.space.itk import save_affine, save_displacement

COMMANDS = ("register", "apply", "convert", "evaluate", "train", "models")
SHAPE = (16, 18, 20)


class Still(torch.nn.Module):
    """Answer every pair with a zero velocity."""

    config = NetworkConfig(grid=SHAPE)

    def forward(self, fixed, moving, finest=True):
        return (torch.zeros(1, 3, *fixed.shape[2:]),)


@pytest.fixture
def network(monkeypatch):
    card = {"name": "still", "sha256": "0" * 64}
    monkeypatch.setattr(weights, "load_model", lambda name, device: (Still(), card))


@pytest.fixture
def files(tmp_path):
    """A small brain, its labels and an identity affine on disk."""
    x = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"))
    radius = np.sqrt((((x - np.reshape((8, 9, 10), (3, 1, 1, 1))) / 6.0) ** 2).sum(0))
    image = np.where(radius < 1, 50 + 40 * np.cos(x[0]) * np.sin(x[1]), 0).astype(np.float32)
    nib.save(nib.Nifti1Image(image, np.eye(4)), tmp_path / "brain.nii.gz")
    nib.save(nib.Nifti1Image((radius < 0.7).astype(np.uint8) * 4, np.eye(4)), tmp_path / "dseg.nii.gz")
    save_affine(np.eye(4), tmp_path / "identity.mat")
    return tmp_path


def pair_options(files):
    brain, dseg = str(files / "brain.nii.gz"), str(files / "dseg.nii.gz")
    return ["--fixed", brain, "--moving", brain, "--fixed-dseg", dseg, "--moving-dseg", dseg]


def test_help_starts_fast_and_light():
    code = (
        "import sys\nfrom mmln_pipeline.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'SimpleITK', 'ants', 'nipype', 'numpy', 'nibabel', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: mmln" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_ends_with_an_example_that_parses(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    example = capsys.readouterr().out.split("Example:")[1].replace("\\\n", " ")
    for line in example.strip().splitlines():
        words = line.split()
        assert words[:2] == ["mmln", command]
        build_parser().parse_args(words[1:])


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.strip() == f"mmln {__version__}"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["compare-with"],
        ["register"],
        ["register", "--fixed", "a", "--moving", "b", "--output-dir", "c", "--refine", "some"],
        ["register", "--fixed", "a", "--moving", "b", "--output-dir", "c", "--threads", "0"],
        ["apply", "--interpolation", "cubic", "--transform", "x", "--reference", "r", "--output", "o", "i"],
        ["train", "config.toml", "--minutes", "-3"],
    ],
)
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "error" in capsys.readouterr().err


def test_register_writes_files_and_a_summary(files, network, capsys):
    out = files / "out"
    code = main(["register", *pair_options(files), "--output-dir", str(out), "--init", "identity", "--refine", "0"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert "Dice       1.000 (mean of 1 structures" in captured.out
    assert "Folds      0.0000% of the brain" in captured.out
    assert str(out) in captured.out and "forward_xfm.h5" in captured.out
    assert "mmln: network ..." in captured.err, "plain lines where there is no terminal"
    assert json.loads((out / "metrics.json").read_text())["dice"] == 1.0


def test_register_without_labels_prints_no_dice(files, network, capsys):
    brain = str(files / "brain.nii.gz")
    arguments = ["--fixed", brain, "--moving", brain, "--output-dir", str(files / "out")]
    assert main(["register", *arguments, "--init", str(files / "identity.mat"), "--refine", "0"]) == 0
    captured = capsys.readouterr().out
    assert "Dice" not in captured and "Folds" in captured


def error_line(capsys):
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    lines = [line for line in captured.err.splitlines() if line.startswith("mmln: error:")]
    assert len(lines) == 1
    return lines[0]


def test_bad_input_is_one_line_and_exit_2(files, capsys):
    brain, out = str(files / "brain.nii.gz"), str(files / "out")
    assert main(["register", "--fixed", "gone.nii.gz", "--moving", brain, "--output-dir", out]) == 2
    assert "gone.nii.gz" in error_line(capsys)
    assert main(["register", "--fixed", brain, "--moving", brain, "--output-dir", brain]) == 2
    assert "brain.nii.gz" in error_line(capsys)
    nib.save(nib.Nifti1Image(np.ones((4, 5, 6, 2), np.float32), np.eye(4)), files / "series.nii.gz")
    series = str(files / "series.nii.gz")
    assert main(["register", "--fixed", brain, "--moving", series, "--output-dir", out]) == 2
    assert "series.nii.gz" in error_line(capsys)
    arguments = ["--fixed", brain, "--moving", brain, "--output-dir", out]
    assert main(["register", *arguments, "--model", "no-such-model"]) == 2
    assert "no-such-model" in error_line(capsys)
    assert main(["register", *arguments, "--labels", "no-such.tsv"]) == 2
    assert "no-such.tsv" in error_line(capsys)


def test_register_names_and_chooses_its_outputs(files, network, capsys):
    chosen = ["-o", str(files / "new/a_"), "--outputs", "warp,moved"]
    assert main(["register", *pair_options(files), *chosen, "--init", "identity", "--refine", "0"]) == 0
    assert sorted(path.name for path in (files / "new").iterdir()) == ["a_moved.nii.gz", "a_warp.nii.gz"]
    assert main(["register", *pair_options(files), "-o", str(files / "b_"), "--outputs", "wrap"]) == 2
    assert "did you mean warp?" in error_line(capsys)
    assert main(["register", "-m", str(files / "brain.nii.gz"), "-o", str(files / "b_")]) == 2
    assert "--fixed: expected an image" in error_line(capsys)
    assert main(["register", "-f", "MNI2009", "-m", str(files / "brain.nii.gz"), "-o", str(files / "b_")]) == 2
    assert "template 'MNI2009'" in error_line(capsys)


def test_what_rides_along_goes_where_apply_takes_it(files, network, capsys):
    """Another contrast, a series on a coarser grid, labels and points: as `mmln apply` has them, beside the result."""
    brain = nib.load(files / "brain.nii.gz")
    save_affine(np.array([[1, 0.05, 0, 0.5], [0, 1, 0, -0.6], [0, 0, 1, 0.4], [0, 0, 0, 1]]), files / "turn.mat")
    nib.save(brain, files / "T2w.nii.gz")
    coarse = np.stack([brain.get_fdata(dtype=np.float32)[::2, ::2, ::2]] * 3, -1)
    nib.save(nib.Nifti1Image(coarse, np.diag([2.0, 2, 2, 1])), files / "bold.nii.gz")
    (files / "p.csv").write_text("x,y,z\n-8,-9,10\n")
    call = ["register", "-f", str(files / "brain.nii.gz"), "-m", str(files / "brain.nii.gz"), "--refine", "0"]
    call += ["--init", str(files / "turn.mat"), "-o", str(files / "out/a_")]
    images = [str(files / name) for name in ("T2w.nii.gz", "bold.nii.gz", "p.csv")]
    labels = ["--apply-to-labels", str(files / "dseg.nii.gz")]
    assert main([*call, "--apply-to", *images[:2], "--apply-to", images[2], *labels]) == 0
    assert "whole numbers" not in capsys.readouterr().err
    back = ["-t", str(files / "out/a_forward_xfm.h5"), "-r", str(files / "brain.nii.gz"), "-o", f"{files}/by_apply/"]
    assert main(["apply", *back, *images]) == 0
    assert main(["apply", *back, "-n", "label", str(files / "dseg.nii.gz")]) == 0
    for name in ("bold.nii.gz", "dseg.nii.gz"):
        ours, theirs = (nib.load(files / f"{where}{name}").get_fdata() for where in ("out/a_", "by_apply/"))
        np.testing.assert_allclose(ours, theirs, atol=0.01)
    ours, moved = (nib.load(files / f"out/a_{name}.nii.gz").get_fdata() for name in ("T2w", "moved"))
    np.testing.assert_array_equal(ours, moved)
    points = [np.loadtxt(files / f"{where}p.csv", delimiter=",", skiprows=1) for where in ("out/a_", "by_apply/")]
    np.testing.assert_allclose(*points, atol=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--apply-to", "gone.nii.gz"], "gone.nii.gz: no such file"),
        (["--apply-to", "brain.nii.gz", "--apply-to-labels", "brain.nii.gz"], "would be called like"),
        (["--apply-to", "moved.nii.gz"], "would be called like a part of the result"),
        (["--apply-to", "identity.mat"], "--apply-to: expected a name that ends in .nii"),
        (["--apply-to-labels", "brain.nii.gz"], "--apply-to-labels brain.nii.gz: expected whole numbers"),
        (["--output-dir", ".", "--apply-to-labels", "dseg.nii.gz"], "lies where its result goes"),
        (["--pairs", "pairs.tsv", "--apply-to", "dseg.nii.gz"], "--apply-to: belongs to one pair"),
    ],
)
def test_what_cannot_ride_along_is_named_before_any_work(files, monkeypatch, capsys, options, message):
    monkeypatch.chdir(files)
    where = [] if "--output-dir" in options else ["--output-dir", "out"]
    assert main(["register", "-f", "brain.nii.gz", "-m", "brain.nii.gz", *where, *options]) == 2
    assert message in error_line(capsys) and not (files / "out").exists()


def test_many_pairs_load_one_model_and_are_done_once(files, monkeypatch, capsys):
    loads = []
    card = {"name": "mmln", "sha256": "0" * 64}
    monkeypatch.setattr(weights, "load_model", lambda name, device: loads.append(name) or (Still(), card))
    registering._load_model.cache_clear()
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), np.eye(4)), files / "empty.nii.gz")
    rows = [
        "name\tmoving\tmoving_mask",
        "one\tbrain.nii.gz\t",
        "two\tbrain.nii.gz\tempty.nii.gz",
        "three\tbrain.nii.gz\t",
    ]
    (files / "pairs.tsv").write_text("\n".join(rows) + "\n")
    call = ["register", "--pairs", str(files / "pairs.tsv"), "-f", str(files / "brain.nii.gz"), "--outputs", "moved"]
    call += ["--output-dir", str(files / "out"), "--init", "identity", "--refine", "0"]
    assert main(call) == 1
    captured = capsys.readouterr()
    assert "0 of 3 pairs are done already" in captured.out and len(loads) == 1
    assert "mmln: error: two: moving mask" in captured.err and "1 of 3 pairs failed (two)" in captured.err
    assert sorted(path.name for path in (files / "out/three").iterdir()) == ["metrics.json", "moved.nii.gz"]
    made = (files / "out/one/metrics.json").stat().st_mtime_ns
    assert main(call) == 1
    assert "2 of 3 pairs are done already" in capsys.readouterr().out
    assert (files / "out/one/metrics.json").stat().st_mtime_ns == made
    registering._load_model.cache_clear()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("moving\nbrain.nii.gz\nbrain.nii.gz\n", "two rows are called 'brain_to_brain'"),
        ("moving\tmask\nbrain.nii.gz\tbrain.nii.gz\n", "found moving, mask"),
        ("moving\nno.nii.gz\n", "row 1: moving: no such file: 'no.nii.gz'"),
    ],
)
def test_wrong_tables_of_pairs_are_named(files, capsys, table, message):
    (files / "pairs.tsv").write_text(table)
    call = ["register", "--pairs", str(files / "pairs.tsv"), "-f", str(files / "brain.nii.gz"), "-o", str(files / "o/")]
    assert main(call) == 2
    assert message in error_line(capsys) and not (files / "o").exists()


def test_unexpected_failure_is_one_line_and_exit_1(files, monkeypatch, capsys):
    def explode(name, device):
        raise RuntimeError("cache\nlost")

    monkeypatch.setattr(weights, "load_model", explode)
    arguments = ["register", *pair_options(files), "--output-dir", str(files / "out")]
    assert main(arguments) == 1
    assert error_line(capsys).endswith("unexpected RuntimeError: cache lost (run again with -v for the traceback)")
    assert main([*arguments, "-v"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_apply(files, capsys):
    base = ["--transform", str(files / "identity.mat"), "--reference", str(files / "brain.nii.gz")]
    output = files / "new" / "labels.nii.gz"
    source = str(files / "dseg.nii.gz")
    assert main(["apply", *base, "--output", str(output), "--interpolation", "label", source]) == 0
    np.testing.assert_array_equal(nib.load(output).get_fdata(), nib.load(source).get_fdata())
    assert str(output) in capsys.readouterr().out
    assert main(["apply", *base, "--output", str(files / "labels.png"), source]) == 2
    assert "labels.png" in error_line(capsys)
    assert main(["apply", *base, "--output", str(output), "--interpolation", "label", str(files / "brain.nii.gz")]) == 2
    assert "brain.nii.gz" in error_line(capsys)


def test_evaluate(files, capsys):
    output = files / "scores.json"
    arguments = ["evaluate", *pair_options(files), "--transform", str(files / "identity.mat")]
    assert main([*arguments, "--labels", "structures28", "--output", str(output)]) == 0
    scores = json.loads(output.read_text())
    assert scores["dice_per_label"] == {"3rd-Ventricle": 1.0}
    assert scores["folding_percent"] == 0.0 and scores["tc"] == 1.0
    assert "Dice       1.000" in capsys.readouterr().out
    assert main([*arguments, "--output", str(files / "scores.txt")]) == 2
    assert "scores.txt" in error_line(capsys)


def test_models(monkeypatch, capsys, tmp_path):
    card = {
        "name": "tiny",
        "license": "CC-BY-NC-3.0",
        "sha256": "a" * 64,
        "training": {
            "volumes": ["one", "two"],
            "steps": {"1": 1000, "2": 5},
            "hours": {"1": 0.5, "2": 0.25},
            "before": [{"steps": {"1": 200}, "hours": {"1": 1.0}}, {"note": "not counted"}],
        },
        "scores": {"dice": 0.75},
        "path": str(tmp_path / "tiny.safetensors"),
    }
    monkeypatch.setattr(weights, "list_models", lambda: [card])
    assert main(["models"]) == 0
    text = capsys.readouterr().out
    summary = "2 volumes, 1,205 steps, 1.8 h"
    for part in ("tiny", "CC-BY-NC-3.0", "a" * 64, summary, "dice 0.75", str(tmp_path / "tiny.json")):
        assert part in text
    del card["training"]
    assert main(["models"]) == 0
    assert "0 volumes" in capsys.readouterr().out
    assert main(["models", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [card]
    monkeypatch.setattr(weights, "list_models", lambda: [])
    assert main(["models"]) == 0
    assert "No model is bundled" in capsys.readouterr().out


def test_train_names_the_extra_that_it_needs(monkeypatch, capsys):
    monkeypatch.setattr(commands, "find_spec", lambda name: None)
    assert main(["train", "config.toml"]) == 2
    assert "pip install 'mmln-pipeline[train]'" in error_line(capsys)


def test_train_hands_its_options_on(monkeypatch, capsys, tmp_path):
    from mmln_pipeline import training

    calls = []
    monkeypatch.setattr(training, "train", lambda *args, **options: calls.append((args, options)))
    assert main(["train", str(tmp_path / "none.toml")]) == 2
    assert "none.toml" in error_line(capsys)
    config = tmp_path / "config.toml"
    config.write_text("")
    assert main(["train", str(config), "--minutes", "1.5", "--device", "cpu"]) == 0
    assert calls == [((str(config),), {"minutes": 1.5, "device": "cpu", "resume": True})]


def test_apply_keeps_its_own_input(tmp_path, capsys):
    brain = nib.Nifti1Image(np.ones((5, 6, 7), np.float32), np.eye(4))
    nib.save(brain, tmp_path / "a.nii")
    save_affine(np.eye(4), tmp_path / "x.mat")
    before = (tmp_path / "a.nii").read_bytes()
    options = ["--transform", str(tmp_path / "x.mat"), "--reference", str(tmp_path / "a.nii")]
    assert main(["apply", *options, "--output", str(tmp_path / "." / "a.nii"), str(tmp_path / "a.nii")]) == 2
    assert "is the input itself" in error_line(capsys) and (tmp_path / "a.nii").read_bytes() == before


@pytest.mark.parametrize("name", ["{}", "inverse:{}", "[{},1]", "[ {} , 0 ]"])
@pytest.mark.parametrize("command", ["apply", "convert"])
def test_a_transform_is_not_written_over_by_any_name(files, capsys, command, name):
    save_displacement(DisplacementField(np.zeros((*SHAPE, 3), np.float32), np.eye(4)), files / "warp.nii.gz")
    (files / "link.nii.gz").symlink_to("warp.nii.gz")
    before, brain = (files / "warp.nii.gz").read_bytes(), str(files / "brain.nii.gz")
    options = {"apply": ["-r", brain, brain], "convert": ["-f", brain, "-m", brain, "--to", "fsl"]}[command]
    transform = ["-t", name.format(files / "warp.nii.gz")]
    assert main([command, *transform, "-o", str(files / "link.nii.gz"), *options]) == 2
    assert "is the transform itself" in error_line(capsys) and (files / "warp.nii.gz").read_bytes() == before


def test_register_keeps_its_own_inputs(files, network, capsys):
    moved = (files / "brain.nii.gz").rename(files / "moved.nii.gz")
    before = moved.read_bytes()
    pair = ["--fixed", str(moved), "--moving", str(moved), "--init", "identity", "--refine", "0"]
    assert main(["register", *pair, "--output-dir", str(files)]) == 2
    assert f"--fixed: '{moved}' lies where a result goes" in error_line(capsys)
    (files / "pairs.tsv").write_text(f"name\tfixed\tmoving\na\t{moved}\t{moved}\n")
    (files / "a").symlink_to(files)
    assert main(["register", "--pairs", str(files / "pairs.tsv"), *pair[4:], "--output-dir", str(files)]) == 1
    assert "lies where a result goes" in capsys.readouterr().err and moved.read_bytes() == before
    assert main(["register", *pair, "--output-dir", str(files), "--outputs", "warp"]) == 0


@pytest.mark.parametrize("folder", ["brain.nii.gz/out", "/proc/out", "a" * 300, "circle", "new/" + "a" * 300])
def test_register_says_before_work_that_its_folder_cannot_be_made(files, network, capsys, folder):
    (files / "circle").symlink_to("circle")
    pair = ["--fixed", str(files / "brain.nii.gz"), "--moving", str(files / "brain.nii.gz"), "--init", "identity"]
    assert main(["register", *pair, "--output-dir", str(files / folder)]) == 2
    said = error_line(capsys)
    assert f"output directory {files / folder}: " in said and not (files / "new").exists()


@pytest.mark.parametrize(("interpolation", "warned"), [("linear", True), ("label", False)])
def test_apply_warns_of_labels_that_it_would_mix(tmp_path, capsys, interpolation, warned):
    labels = np.zeros((8, 9, 10), np.int16)
    labels[2:6, 2:6, 2:6] = 17
    nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / "a.nii")
    save_affine(np.eye(4), tmp_path / "x.mat")
    options = ["--transform", str(tmp_path / "x.mat"), "--reference", str(tmp_path / "a.nii")]
    options += ["--output", str(tmp_path / "o.nii"), "--interpolation", interpolation, str(tmp_path / "a.nii")]
    assert main(["apply", *options]) == 0
    assert ("--interpolation label keeps them" in capsys.readouterr().err) == warned


def test_a_refused_register_leaves_no_folder(tmp_path, capsys):
    options = ["--fixed", str(tmp_path / "no.nii"), "--moving", str(tmp_path / "no.nii")]
    assert main(["register", *options, "--output-dir", str(tmp_path / "a/b")]) == 2
    assert "no.nii" in error_line(capsys) and not (tmp_path / "a").exists()
