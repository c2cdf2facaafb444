"""Every command of every page is run, in the order of the page, or stands here with the reason why it cannot be."""

import shutil

import nibabel as nb
import numpy as np
import pytest
from doc_pages import PAGES, ROOT, find_blocks, list_commands, run_block, walnut
from nibabel.affines import from_matvec
from nibabel.gifti import GiftiDataArray, GiftiImage
from nibabel.streamlines import Tractogram, save
from tiny_bids import SHAPE, describe, make_brain, write_image

from mmln_pipeline import weights
from mmln_pipeline.registration.result import OUTPUTS
from mmln_pipeline.space.itk import save_affine
from mmln_pipeline.space.transforms import Transform

ELSEWHERE = {
    "tutorial": "test_docs.py runs the whole page, in its order, and looks at what came of it",
    "conventions": "test_docs.py runs the whole page, ANTs' command included",
}
"""Pages that another test runs."""

CANNOT = {
    "make install": "fills an environment from a package index; continuous integration begins with it",
    "make demo": "takes minutes; test_demo.py runs what it calls, on a small brain",
    "make test": "is what runs this",
    "make docs": "test_docs.py builds the pages",
    "make lint docs test": "is what continuous integration runs",
    "make train-pack CONFIG=configs/mmln.toml": "needs the training scans",
    ". .venv/bin/activate": "a shell's own command",
    ".venv/bin/pre-commit install": "changes the working copy's hooks",
    ".venv/bin/python -m pytest tests/test_metrics.py -k dice": "the tests run anyway",
    "python -m pip install": "needs a package index",
    "pip install": "needs a package index",
    "python3 -m venv /project/venv": "needs a package index",
    "/project/venv/bin/python -m pip": "needs a package index",
    "docker": "needs Docker",
    "apptainer": "needs Apptainer",
    "sbatch": "needs SLURM",
    "#!/bin/bash\n#SBATCH": "needs SLURM; test_slurm.py and `make test-slurm` run it",
    "bash mmln-array.sh": "needs SLURM; test_slurm.py and `make test-slurm` run it",
    "mmln-bids /project/raw": "needs SLURM; `make test-slurm` runs it",
    "export TEMPLATEFLOW_HOME": "a shell's own command",
    "python -c 'from templateflow": "needs a network",
    "mmln train configs/": "needs the training scans; test_training.py trains on small ones",
    "torchrun": "needs the training scans",
    "mmln-bids BIDS_DIR OUTPUT_DIR template": "registers all images several times; test_study_template.py makes one",
    "mmln-bids RAW OUT": "needs derivatives of other programs; test_brought_along.py brings such along",
    "mmln train three.toml": "test_docs.py runs it, in fewer steps",
    "mmln register --fixed brains/": "test_docs.py runs it, after the training before it",
    "mmln compare configs/": "needs labelled scans, and hours; test_study.py compares on small ones",
}
"""Commands that are not run here, by how they begin, with the reason."""

PYTHON = ("README", "workflows")
"""Pages whose Python is run here too; that of the others has tests of its own."""


def find_commands(page):
    """Return the code blocks of a page as far as they are run here, in its order."""
    blocks = []
    for language, text in find_blocks(page, "bash", "python"):
        if language == "python":
            blocks += [(language, text)] if page in PYTHON else []
            continue
        kept = [command for command in list_commands(text) if not command.startswith(tuple(CANNOT))]
        blocks += [(language, "\n".join(kept))] if kept else []
    return blocks


RUN = [page for page in sorted(PAGES) if page not in ELSEWHERE and find_commands(page)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with all that the pages name, of the size of a walnut."""
    folder = tmp_path_factory.mktemp("pages")
    describe(folder / "BIDS_DIR")
    for number in (1, 2):
        write_image(make_brain(number), folder / f"BIDS_DIR/sub-0{number}/anat/sub-0{number}_T1w.nii.gz")
    for name, shift in (("template", 0), ("A", 0), ("fixed", 0), ("t1w", 1), ("B", 1), ("moving", 1)):
        write_image(make_brain(shift), folder / f"{name}.nii.gz")
    t1w = make_brain(1)
    write_image(nb.Nifti1Image(np.stack([t1w.get_fdata(dtype=np.float32)] * 2, -1), t1w.affine), folder / "bold.nii.gz")
    points = np.array([[0, 0, 0], [1, 2, 3], [-2, 1, 0]], dtype=np.float32)
    save(Tractogram([points], affine_to_rasmm=np.eye(4)), str(folder / "tracts.trk"))
    surface = GiftiImage(
        darrays=[GiftiDataArray(points, "pointset"), GiftiDataArray(np.int32([[0, 1, 2]]), "triangle")]
    )
    nb.save(surface, folder / "lh_pial.surf.gii")
    for name in ("points", "landmarks"):
        (folder / f"{name}.csv").write_text("x,y,z\n1,2,3\n")
    labels = nb.Nifti1Image((t1w.get_fdata() > 300).astype(np.uint8), t1w.affine)
    write_image(labels, folder / "dseg.nii.gz")
    Transform((from_matvec(np.eye(3), (1, 0, 0)),)).save(folder / "forward_xfm.h5")
    save_affine(np.eye(4), folder / "bold_to_moving.txt")
    np.savetxt(folder / "flirt.mat", np.eye(4))
    (folder / "WORK_DIR").mkdir()
    (folder / "work").symlink_to("WORK_DIR")  # what one page has run is not run again for the next
    with walnut(folder):
        (folder / "runs/mmln").mkdir(parents=True)
        for path in weights.FOLDER.glob("mmln.*"):
            shutil.copy(path, folder / "runs/mmln")
        yield folder


@pytest.mark.parametrize("page", RUN)
def test_commands_of_a_page_run(page, folder):
    names = {}
    for language, text in find_commands(page):
        run_block(language, text, names)
    if page == "README":
        assert {path.name for path in (folder / "out").iterdir()} == set(OUTPUTS.values()) - {"moved_dseg.nii.gz"}
        assert len(list((folder / "in_template").iterdir())) == 4
        assert names["result"].metrics["folding_percent_brain"] == 0
    if page == "transforms":
        assert nb.load(folder / "bold_mni.nii.gz").shape == (*(n // 2 for n in SHAPE), 2)
        assert (folder / "warp_fsl.nii.gz").is_file() and (folder / "flirt.tfm").is_file()
    if page in ("README", "usage"):
        assert (folder / "OUTPUT_DIR/sub-02.html").is_file() and (
            folder / "OUTPUT_DIR/group_registration.html"
        ).is_file()


def test_no_reason_is_left_over():
    """What is excused stands on a page, and begins as one command does."""
    commands = [command for page in PAGES for _, text in find_blocks(page, "bash") for command in list_commands(text)]
    assert [start for start in CANNOT if not any(command.startswith(start) for command in commands)] == []
    assert set(ELSEWHERE) <= set(PAGES) and (ROOT / "tests/test_docs.py").is_file()
