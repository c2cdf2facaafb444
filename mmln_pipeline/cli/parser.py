"""The parser of ``mmln`` and its subcommands; nothing heavy is imported before a command runs."""

from __future__ import annotations

import argparse
from typing import Any

from mmln_pipeline import __version__
from mmln_pipeline.cli import applying, commands, converting, registering
from mmln_pipeline.cli.option_arguments import add_options, reader
from mmln_pipeline.cli.strict_parser import StrictParser
from mmln_pipeline.machine.options import Option
from mmln_pipeline.registration.result import OUTPUTS
from mmln_pipeline.registration.settings import Settings
from mmln_pipeline.space.formats import FORMATS
from mmln_pipeline.space.interpolation import INTERPOLATIONS, parse_interpolation


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; each subcommand sets ``run`` to the function that executes it.

    Returns
    -------
    argparse.ArgumentParser
    """
    parser = StrictParser(
        prog="mmln",
        description="Register brain MRI with the multi-strategy mutual learning network (MMLN).",
        epilog="Example:\n  mmln register --fixed A_T1w.nii.gz --moving B_T1w.nii.gz --output-dir out",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mmln {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_register(subparsers)
    _add_apply(subparsers)
    _add_convert(subparsers)
    _add_evaluate(subparsers)
    _add_train(subparsers)
    _add_compare(subparsers)
    _add_models(subparsers)
    return parser


def _add_register(subparsers: Any) -> None:
    parser = _add_command(
        subparsers,
        "register",
        registering.run_register,
        "register a moving brain to a fixed brain, or many pairs",
        "mmln register --fixed A_T1w.nii.gz --moving B_T1w.nii.gz --output-dir out\n"
        "  mmln register --fixed A_T1w.nii.gz --moving B_T1w.nii.gz --output-dir out \\\n"
        "    --fixed-dseg A_dseg.nii.gz --moving-dseg B_dseg.nii.gz --labels structures28\n"
        "  mmln register -f MNI152NLin2009aSym -m B_T1w.nii.gz -o out/B_ --outputs moved,transform\n"
        "  mmln register -f A_T1w.nii.gz -m B_T1w.nii.gz --output-dir out --apply-to B_T2w.nii.gz B_pial.surf.gii \\\n"
        "    --apply-to-labels B_dseg.nii.gz\n"
        "  mmln register --pairs pairs.tsv --output-dir out --jobs 2",
    )
    masks = _add_pair(parser, required=False)
    masks.add_argument("--moving-mask", metavar="MASK", help="brain mask on the moving image's grid")
    masks.add_argument(
        "--moving-lesion",
        metavar="MASK",
        help="lesion mask on the moving image's grid: it steers neither the linear start nor the refinement",
    )
    along = parser.add_argument_group("what else comes along")
    along.add_argument(
        "--apply-to",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="images, series, points, surfaces or tractograms in the moving image's space, as its own header says: "
        "brought along by the same transform (linear), and written beside moved.nii.gz under their names",
    )
    along.add_argument(
        "--apply-to-labels",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="the same for labels and masks (interpolation label)",
    )
    many = parser.add_argument_group("many pairs")
    many.add_argument(
        "--pairs",
        metavar="TSV",
        help="many pairs, one a row: columns fixed and moving (or one of them by its option), name, and where wanted "
        "fixed_dseg, moving_dseg, fixed_mask, moving_mask, moving_lesion; each gets a folder of its name in "
        "--output-dir, and what is done is not done again",
    )
    many.add_argument(
        "--jobs",
        type=reader(Option(help="", lowest=1).parse),
        default=1,
        metavar="N",
        help="pairs at once (default: 1)",
    )
    results = parser.add_argument_group("results")
    where = results.add_mutually_exclusive_group(required=True)
    where.add_argument("--output-dir", metavar="DIR", help="folder for the results")
    where.add_argument(
        "-o", "--output-prefix", metavar="PREFIX", help="in place of --output-dir: what all paths of results begin with"
    )
    results.add_argument(
        "--outputs", metavar="NAME[,NAME...]", help=f"which to write: {', '.join(OUTPUTS)} (default: all)"
    )
    add_options(
        parser.add_argument_group("how to register"), Settings, "init", "model", "refine", "topology", "random_seed"
    )
    add_options(parser.add_argument_group("machine"), Settings, "device", "threads")


def _add_apply(subparsers: Any) -> None:
    parser = _add_command(
        subparsers,
        "apply",
        applying.run_apply,
        "bring images, labels, series, points, surfaces or tractograms along with a transform",
        "mmln apply --transform out/forward_xfm.h5 --reference A_T1w.nii.gz --output B_in_A_dseg.nii.gz \\\n"
        "    --interpolation label B_dseg.nii.gz\n"
        "  mmln apply -t out/forward_xfm.h5 -t inverse:bold_to_B.mat -r MNI152NLin2009aSym --spacing 2 \\\n"
        "    -o bold_in_A.nii.gz bold.nii.gz\n"
        "  mmln apply -t out/forward_xfm.h5 -r A_T1w.nii.gz -o in_A/ B.trk B_lh_pial.surf.gii landmarks.csv",
    )
    parser.add_argument(
        "input",
        nargs="+",
        metavar="INPUT",
        help="3-D or 4-D image (.nii, .nii.gz, .mgz), points (.csv, .tsv), surface (.gii) or tractogram (.trk, .tck); "
        "all come to where an image would come with the same transforms",
    )
    parser.add_argument(
        "-t",
        "--transform",
        required=True,
        action="append",
        metavar="X",
        help="ITK composite (.h5), affine (.mat, .txt, .tfm) or displacement field (.nii.gz), FreeSurfer's .lta or .x5 "
        "(of FSL's files 'mmln convert' makes one); inverse:X or [X,1] for its inverse; given again, in ANTs' order: "
        "the last one moves the image first",
    )
    parser.add_argument(
        "-r",
        "--reference",
        metavar="R",
        help="image, or name of a template, whose grid the output takes; points, surfaces and .tck need none",
    )
    parser.add_argument(
        "--spacing",
        type=reader(_parse_spacing),
        metavar="MM[,MM,MM]",
        help="voxel size of the output in the reference's field of view (default: the reference's)",
    )
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="O",
        help="file to write; for several inputs a folder, which keeps names",
    )
    parser.add_argument(
        "-n",
        "--interpolation",
        type=reader(parse_interpolation),
        default=INTERPOLATIONS[0],
        metavar="|".join(INTERPOLATIONS),
        help="how to read between voxels; label keeps label numbers whole (default: %(default)s)",
    )
    parser.add_argument(
        "--points",
        choices=("lps", "ras"),
        help="directions of a table's coordinates (default: by the columns l p s, r a s; x y z in .csv: lps, as ANTs)",
    )


def _add_convert(subparsers: Any) -> None:
    parser = _add_command(
        subparsers,
        "convert",
        converting.run_convert,
        "write a transform as another tool has it (FSL, FreeSurfer, X5, ITK)",
        "mmln convert -t out/forward_xfm.h5 -f A_T1w.nii.gz -m B_T1w.nii.gz --to fsl -o B_to_A_warp.nii.gz\n"
        "  mmln convert -t B_to_A.lta -f A_T1w.nii.gz -m B_T1w.nii.gz -o B_to_A.tfm",
    )
    parser.add_argument(
        "-t",
        "--transform",
        required=True,
        action="append",
        metavar="X",
        help="ITK (.h5, .mat, .txt, .tfm, .nii.gz), FSL (.mat, .nii.gz), FreeSurfer (.lta) or X5, told apart by "
        "content; inverse:X for its inverse; given again: a chain, as in 'mmln apply'",
    )
    parser.add_argument(
        "-f", "--fixed", "-r", "--reference", required=True, metavar="F", help="image whose grid it resamples onto"
    )
    parser.add_argument("-m", "--moving", required=True, metavar="M", help="image that it brings along")
    parser.add_argument(
        "--to",
        choices=FORMATS,
        help="whose file to write (default: by the suffix; .mat and .nii.gz are ITK's)",
    )
    parser.add_argument("-o", "--output", required=True, metavar="O", help="file to write")


def _parse_spacing(text: str) -> tuple[float, float, float]:
    """Read one voxel size, or three with commas."""
    sizes = [float(part) if part.replace(".", "", 1).isdecimal() else 0.0 for part in text.split(",")]
    if len(sizes) not in (1, 3) or min(sizes) <= 0:
        raise ValueError(f"expected a voxel size in mm, or three with commas, found {text!r}")
    i, j, k = sizes if len(sizes) == 3 else sizes * 3
    return i, j, k


def _add_evaluate(subparsers: Any) -> None:
    parser = _add_command(
        subparsers,
        "evaluate",
        commands.run_evaluate,
        "score any tool's transform with the definitions of 'mmln register'",
        "mmln evaluate --fixed A_T1w.nii.gz --moving B_T1w.nii.gz --transform ants1Warp.nii.gz \\\n"
        "    --fixed-dseg A_dseg.nii.gz --moving-dseg B_dseg.nii.gz --output metrics.json",
    )
    _add_pair(parser)
    parser.add_argument(
        "-t",
        "--transform",
        required=True,
        metavar="X",
        help="what resamples moving onto fixed: ITK composite (.h5), displacement field (.nii.gz) or affine (ANTs, "
        "greedy), FSL's warp or matrix, .lta or .x5",
    )
    parser.add_argument("-o", "--output", required=True, metavar="JSON", help="file for the scores")


def _add_train(subparsers: Any) -> None:
    parser = _add_command(
        subparsers,
        "train",
        commands.run_train,
        "train a model, or go on with a training that was interrupted",
        "mmln train configs/mmln.toml --minutes 60",
    )
    parser.add_argument("config", metavar="CONFIG.toml", help="data, network, losses and steps")
    parser.add_argument(
        "--minutes",
        type=reader(Option(help="", above=0.0).parse),
        metavar="N",
        help="stop after N minutes; the next call goes on",
    )
    add_options(parser, Settings, "device")


def _add_compare(subparsers: Any) -> None:
    parser = _add_command(
        subparsers,
        "compare",
        commands.run_compare,
        "register pairs by several methods, and write the paper's tables and figures",
        "mmln compare configs/study.toml --nprocs 2\n"
        "  mmln compare configs/study.toml --reports-only   # tables and figures again, without any data",
    )
    parser.add_argument("config", metavar="CONFIG.toml", help="methods, test scans, training data and budget")
    parser.add_argument("--output-dir", metavar="DIR", help="folder for the results (default: the configuration's)")
    parser.add_argument(
        "--nprocs",
        type=reader(Option(help="", lowest=1).parse),
        default=1,
        metavar="N",
        help="processors in all; a registration takes as many as the configuration's threads (default: %(default)s)",
    )
    parser.add_argument(
        "--use-plugin", metavar="FILE", help="Nipype's plugin and its arguments (TOML, JSON or YAML), for a cluster"
    )
    parser.add_argument(
        "--reports-only", action="store_true", help="write tables and figures again from results.tsv alone"
    )


def _add_models(subparsers: Any) -> None:
    parser = _add_command(
        subparsers,
        "models",
        commands.run_models,
        "list the bundled weights and their cards",
        "mmln models --json",
    )
    parser.add_argument("--json", action="store_true", help="print the whole cards as JSON")


def _add_command(subparsers: Any, name: str, run: Any, text: str, example: str) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=f"Example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show tracebacks of errors")
    parser.set_defaults(run=run)
    return parser


def _add_pair(parser: argparse.ArgumentParser, required: bool = True) -> Any:
    """Add what tells a pair, in groups of their own; return that of labels and masks."""
    images = parser.add_argument_group("images")
    images.add_argument(
        "-f", "--fixed", required=required, metavar="F", help="fixed brain image (NIfTI), or a template's name"
    )
    images.add_argument("-m", "--moving", required=required, metavar="M", help="moving brain image (NIfTI)")
    more = parser.add_argument_group("labels and masks")
    more.add_argument("--fixed-dseg", metavar="S", help="labels on the fixed image's grid")
    more.add_argument("--moving-dseg", metavar="S", help="labels on the moving image's grid")
    more.add_argument(
        "--labels",
        metavar="TSV",
        help="structures to score: a table with the columns name and index, or structures28, "
        "structures28:freesurfer, neuromorphometrics (default: all labels present)",
    )
    more.add_argument("--fixed-mask", metavar="MASK", help="brain mask on the fixed image's grid")
    return more
