"""--output-spaces: fMRIPrep's names of templates, several in one run, and what is refused by name."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_bids import SHAPE, make_brain, one_error, write_image

from mmln_pipeline.bids_app.arguments import UsageError, parse_args
from mmln_pipeline.bids_app.output_spaces import parse_space
from mmln_pipeline.bids_app.run import main
from mmln_pipeline.bids_app.template_option import find_targets
from mmln_pipeline.space.grids import new_image
from mmln_pipeline.workflows import fused_targets


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("MNI152NLin2009cAsym", "MNI152NLin2009cAsym"),
        ("MNI152NLin2009cAsym:res-02", "MNI152NLin2009cAsym:res-2"),
        ("MNIPediatricAsym:resolution-1:cohort-5", "MNIPediatricAsym:cohort-5:res-1"),
        ("MNI152NLin6Asym:res-native", "MNI152NLin6Asym"),
    ],
)
def test_spaces_are_templates(text, name):
    assert parse_space(text) == name


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["fsaverage:den-10k"], "expected a template volume, found a surface"),
        (["anat"], "expected a template, found a space of the images"),
        (["MNI152NLin2009cAsym:den-2"], "expected the modifiers cohort-X and res-N, found 'den-2'"),
        (["MNI152NLin2009cAsym:res-1mm"], "expected res-N, a whole number, or res-native, found 'res-1mm'"),
        (["A:res-1:res-2"], "expected res once"),
        (["tpl-x/T1w.nii"], "files are given by --template"),
        (["A:res-1", "A:res-2"], "expected each template once, found A 2 times"),
    ],
)
def test_what_is_no_template_is_refused_by_name(place, texts, words, capsys):
    assert main([str(place / "raw"), "/nowhere/out", "participant", "--output-spaces", *texts]) == 2
    assert words in one_error(capsys)


@pytest.fixture
def config(place, monkeypatch, tmp_path):
    """Settings that ask for two templates of a cache, each with tissue labels."""
    brain = make_brain()
    labels = new_image((brain.get_fdata() > 300).astype(np.uint8), brain)
    for name in ("A", "B"):
        write_image(brain, tmp_path / f"cache/tpl-{name}/tpl-{name}_res-01_desc-brain_T1w.nii.gz")
        write_image(labels, tmp_path / f"cache/tpl-{name}/tpl-{name}_res-01_dseg.nii.gz")
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "cache"))
    return parse_args([str(place / "raw"), str(tmp_path / "out"), "participant", "--output-spaces", "A:res-1", "B"])


def test_several_spaces_keep_labels_of_their_own(config, place):
    targets, _ = find_targets(config, SHAPE)
    assert [target.name for target in targets] == ["A", "B"]
    assert [target.atlas for target in targets] == ["tissue", "tissueB"]
    assert all(target.spaced and not target.compare_labels for target in targets)
    assert not fused_targets(targets)  # tissues of two templates are no atlases that vote
    beside, _ = find_targets(replace(config, template=str(place / "tpl-tiny_T1w.nii.gz")), SHAPE)
    assert [target.name for target in beside] == ["tiny", "A", "B"]


def test_companions_belong_to_the_template(config, place):
    labels = place / "tpl-tiny_seg-core_dseg.nii.gz"
    with pytest.raises(ValueError, match="template_mask and template_dseg belong to --template"):
        replace(config, template_dseg=labels)
    targets, _ = find_targets(replace(config, template=str(place / "tpl-tiny_T1w.nii.gz"), template_dseg=labels), SHAPE)
    assert [target.compare_labels for target in targets] == [True, False, False]
    with pytest.raises(UsageError, match="--output-spaces A: --template is called so too"):
        find_targets(replace(config, template="A"), SHAPE)
