"""The parser of ``mmln`` and its subcommands; nothing heavy is imported before a command runs."""

from __future__ import annotations

import argparse
from typing import Any

from mmln_pipeline import __version__
from mmln_pipeline.cli import commands
from mmln_pipeline.cli.option_arguments import add_options, reader
from mmln_pipeline.machine.options import Option
from mmln_pipeline.registration.settings import Settings
from mmln_pipeline.space.interpolation import INTERPOLATIONS


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; each subcommand sets ``run`` to the function that executes it.

    Returns
    -------
    argparse.ArgumentParser
    """
    parser = argparse.ArgumentParser(
        prog="mmln",
        description="Register brain MRI with the multi-strategy mutual learning network (MMLN).",
        epilog="Example:\n  mmln register --fixed A_T1w.nii.gz --moving B_T1w.nii.gz --output-dir out",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mmln {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_register(subparsers)
    _add_apply(subparsers)
    _add_evaluate(subparsers)
    _add_train(subparsers)
    _add_compare(subparsers)
    _add_models(subparsers)
    return parser


def _add_register(subparsers: Any) -> None:
    parser = _add_command(
        subparsers,
        "register",
        commands.run_register,
        "register one moving brain to one fixed brain",
        "mmln register --fixed A_T1w.nii.gz --moving B_T1w.nii.gz --output-dir out\n"
        "  mmln register --fixed A_T1w.nii.gz --moving B_T1w.nii.gz --output-dir out \\\n"
        "    --fixed-dseg A_dseg.nii.gz --moving-dseg B_dseg.nii.gz --labels structures28",
    )
    _add_pair(parser)
    parser.add_argument("--output-dir", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--moving-mask", metavar="MASK", help="brain mask on the moving image's grid")
    parser.add_argument(
        "--moving-lesion",
        metavar="MASK",
        help="lesion mask on the moving image's grid: it steers neither the linear start nor the refinement",
    )
    add_options(parser, Settings, "init", "model", "refine", "topology", "device", "threads", "random_seed")


def _add_apply(subparsers: Any) -> None:
    parser = _add_command(
        subparsers,
        "apply",
        commands.run_apply,
        "resample an image or labels through a transform",
        "mmln apply --transform out/forward_xfm.h5 --reference A_T1w.nii.gz --output B_in_A_dseg.nii.gz \\\n"
        "    --interpolation label B_dseg.nii.gz",
    )
    parser.add_argument("input", metavar="INPUT", help="image to resample")
    parser.add_argument(
        "--transform", required=True, metavar="X", help="ITK composite (.h5), affine or displacement field"
    )
    parser.add_argument("--reference", required=True, metavar="R", help="image whose grid the output takes")
    parser.add_argument("--output", required=True, metavar="O", help="NIfTI file to write")
    parser.add_argument(
        "--interpolation",
        choices=INTERPOLATIONS,
        default=INTERPOLATIONS[0],
        help="how to read between voxels; label keeps label numbers whole (default: %(default)s)",
    )


def _add_evaluate(subparsers: Any) -> None:
    parser = _add_command(
        subparsers,
        "evaluate",
        commands.run_evaluate,
        "score any tool's ITK transform with the definitions of 'mmln register'",
        "mmln evaluate --fixed A_T1w.nii.gz --moving B_T1w.nii.gz --transform ants1Warp.nii.gz \\\n"
        "    --fixed-dseg A_dseg.nii.gz --moving-dseg B_dseg.nii.gz --output metrics.json",
    )
    _add_pair(parser)
    parser.add_argument(
        "--transform",
        required=True,
        metavar="X",
        help="ITK composite (.h5), displacement field (.nii.gz) or affine that resamples moving onto fixed",
    )
    parser.add_argument("--output", required=True, metavar="JSON", help="file for the scores")


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


def _add_pair(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fixed", required=True, metavar="F", help="fixed brain image (NIfTI)")
    parser.add_argument("--moving", required=True, metavar="M", help="moving brain image (NIfTI)")
    parser.add_argument("--fixed-dseg", metavar="S", help="labels on the fixed image's grid")
    parser.add_argument("--moving-dseg", metavar="S", help="labels on the moving image's grid")
    parser.add_argument(
        "--labels",
        metavar="TSV",
        help="structures to score: a table with the columns name and index, or structures28, "
        "structures28:freesurfer, neuromorphometrics (default: all labels present)",
    )
    parser.add_argument("--fixed-mask", metavar="MASK", help="brain mask on the fixed image's grid")
