"""Command line of the BIDS App: every option, and the checks that come before any work."""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from mmln_pipeline import __version__
from mmln_pipeline.bids_app.invocation import Config, read_toml

LEVELS = "participant: register images; group: sum up finished results (scores, outliers, mean images)"
PATHS = (
    "bids_dir",
    "output_dir",
    "work_dir",
    "bids_database_dir",
    "bids_filter_file",
    "template_mask",
    "template_dseg",
    "use_plugin",
)
UNITS_GB = {"": 1.0, "k": 1e-6, "m": 1e-3, "g": 1.0, "t": 1e3}


class UsageError(ValueError):
    """Wrong usage or input, found before any work: one line, exit code 2."""


def parse_memory(text: str) -> float:
    """Read an amount of memory with its unit (gigabytes without one).

    Parameters
    ----------
    text : str
        E.g. `16GB`, `16`, `500 MB`, `64G`.

    Returns
    -------
    float
        GB.

    Examples
    --------
    >>> parse_memory("500MB")
    0.5
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", text, flags=re.IGNORECASE)
    if not match or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"expected an amount such as 16GB, found {text!r}")
    return float(match[1]) * UNITS_GB[match[2].lower()]


def parse_refine(text: str) -> str | int:
    """Read `auto` or a number of iterations."""
    if text == "auto":
        return text
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected auto or a whole number >= 0, found {text!r}")
    return int(text)


def parse_count(text: str) -> int:
    """Read a whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, found {text!r}")
    return int(text)


def parse_seed(text: str) -> int:
    """Read a seed that NumPy, torch and ITK all take (as `mmln_pipeline.registration.pair.MAX_SEED`)."""
    if not text.isdigit() or int(text) > 2**31 - 2:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to {2**31 - 2}, found {text!r}")
    return int(text)


def parse_dataset(text: str) -> tuple[str, Path]:
    """Read NAME=PATH; the name defaults to the folder's."""
    name, separator, path = text.partition("=")
    if not separator:
        name, path = Path(text).resolve().name, text
    name = re.sub(r"[^0-9A-Za-z_-]", "", name)
    if not name or name == "raw":
        raise argparse.ArgumentTypeError(f"expected NAME=PATH (NAME not 'raw'), found {text!r}")
    if not Path(path).is_dir():
        raise argparse.ArgumentTypeError(f"expected a folder, found {path!r}")
    return name, Path(path).resolve()


class _Parser(argparse.ArgumentParser):
    """Parser whose errors are one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `mmln-bids`.

    Returns
    -------
    ArgumentParser
        Options default to `argparse.SUPPRESS`, so that what was typed can be told from what was not.
    """
    parser = _Parser(
        prog="mmln-bids",
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Register the T1-weighted images of a BIDS dataset to a template with the MMLN network.",
        epilog="example:\n"
        "  mmln-bids /data/raw /data/derivatives/mmln participant --participant-label 01 -w /scratch/work\n"
        "  mmln-bids /data/raw /data/derivatives/mmln group\n\n"
        "exit codes: 0 all subjects done, 1 some failed, 2 wrong usage or input",
    )
    parser.add_argument("bids_dir", type=Path, metavar="BIDS_DIR", help="root of the raw BIDS dataset")
    parser.add_argument("output_dir", type=Path, metavar="OUTPUT_DIR", help="root of the derivative dataset")
    parser.add_argument("analysis_level", choices=("participant", "group"), help=LEVELS)
    _add_what(parser.add_argument_group("what to register"))
    _add_how(parser.add_argument_group("how to register"))
    _add_machine(parser.add_argument_group("machine"))
    _add_run(parser.add_argument_group("run"))
    return parser


def _add_what(group):
    group.add_argument(
        "--participant-label",
        nargs="+",
        metavar="LABEL",
        help="subjects, with or without sub- (default: all)",
    )
    group.add_argument(
        "--session-label", nargs="+", metavar="LABEL", help="sessions, with or without ses- (default: all)"
    )
    group.add_argument(
        "--bids-filter-file",
        type=Path,
        metavar="FILE",
        help='JSON of PyBIDS filters for "t1w", "mask" and "dseg"; null: entity absent, "*": present',
    )
    group.add_argument(
        "-d",
        "--derivatives",
        nargs="+",
        action="extend",
        type=parse_dataset,
        metavar="NAME=PATH",
        help="derivative datasets with brain masks (_desc-brain_mask) and labels (_dseg) in T1w space",
    )
    group.add_argument(
        "--subject-anatomical-reference",
        choices=("sessionwise", "first-lex", "unbiased"),
        help="sessionwise: one result for each session; first-lex, unbiased: one for each subject, of the average of"
        " all its T1w images, in the space of the first one or in the middle of all; runs of a session are averaged"
        " in any case (default: sessionwise)",
    )
    group.add_argument("--bids-database-dir", type=Path, metavar="DIR", help="folder of PyBIDS's index, made if absent")
    group.add_argument(
        "--skip-bids-validation", action="store_true", help="do not check the description and the file names"
    )


def _add_how(group):
    group.add_argument(
        "--template",
        metavar="NAME|PATH",
        help="template: a name (the embedded MNI152NLin2009aSym, or one from TemplateFlow's cache, as NAME[:cohort-N]"
        "[:res-N]), a NIfTI file, sub-LABEL[_ses-LABEL] (that image of the dataset, with its mask and labels from -d),"
        " or a table (.tsv) of several atlases with the columns name, image, mask, dseg, dseg_tsv: all images are"
        " registered to each, and the labels fused (default: MNI152NLin2009aSym)",
    )
    group.add_argument(
        "--template-mask",
        type=Path,
        metavar="PATH",
        help="brain mask on the template's grid (default: the tpl-X_desc-brain_mask beside a tpl-X_T1w)",
    )
    group.add_argument(
        "--template-dseg",
        type=Path,
        metavar="PATH",
        help="labels on the template's grid, brought to each subject; named by the dseg.tsv beside them",
    )
    group.add_argument(
        "--skull-strip",
        choices=("auto", "skip", "synthstrip", "atlas"),
        help="where the brain comes from when -d has no mask of it. auto: stripped images are taken as they are, raw"
        " heads go through synthstrip where FreeSurfer's mri_synthstrip is on the PATH, else through atlas; skip: all"
        " images are stripped; synthstrip; atlas: with the embedded template, offline (default: auto)",
    )
    group.add_argument(
        "--no-bias-correction",
        dest="bias_correction",
        action="store_false",
        help="leave the bias field as it is",
    )
    group.add_argument("--init", choices=("affine", "rigid", "identity"), help="initial alignment (default: affine)")
    group.add_argument("--model", metavar="NAME|PATH", help="weights of the network (default: mmln)")
    group.add_argument(
        "--refine",
        type=parse_refine,
        metavar="auto|N",
        help="iterations of instance optimisation (default: auto)",
    )
    group.add_argument(
        "--topology",
        choices=("strict", "off"),
        help="strict: repair each warp until nothing folds (NDV 0), or fail that subject; off: leave it as it comes"
        " (default: strict)",
    )
    group.add_argument(
        "--lesion-mask",
        nargs="?",
        const="auto",
        metavar="auto|skip|ENDING|FILE",
        help="masks of lesions, which steer neither the affine nor the refinement. auto: files whose names end in"
        " label-lesion_roi (or _mask) beside the T1w images or in --derivatives, where there are any; ENDING: how the"
        " names of such files end; FILE: that of the one image (default: auto)",
    )
    group.add_argument("--random-seed", type=parse_seed, metavar="N", help="seed of NumPy, torch and ITK (default: 0)")
    group.add_argument(
        "--sloppy",
        action="store_true",
        help="low quality, for tests: rigid, no bias correction, no refinement",
    )


def _add_machine(group):
    group.add_argument("--nprocs", type=parse_count, metavar="N", help="processors in all (default: those available)")
    group.add_argument(
        "--omp-nthreads",
        type=parse_count,
        metavar="N",
        help="threads of one step (default: nprocs, at most 8)",
    )
    group.add_argument("--mem", dest="mem_gb", type=parse_memory, metavar="16GB", help="memory (default: 90%% of it)")
    group.add_argument("--device", metavar="auto|cpu|cuda[:N]", help="where the network runs (default: auto)")
    group.add_argument(
        "--use-plugin",
        type=Path,
        metavar="FILE",
        help="Nipype's plugin and plugin_args as TOML, JSON or YAML",
    )
    group.add_argument("--low-mem", action="store_true", help="hold one network in memory at a time")


def _add_run(group):
    group.add_argument(
        "-w",
        "--work-dir",
        type=Path,
        metavar="DIR",
        help="intermediate results; resumed from (default: ./work)",
    )
    group.add_argument("--clean-workdir", action="store_true", help="begin anew: remove this program's work first")
    group.add_argument("--config-file", type=Path, metavar="TOML", help="settings, as written to logs/mmln-bids.toml")
    group.add_argument("--dry-run", action="store_true", help="say what would run, and write nothing")
    group.add_argument("--reports-only", action="store_true", help="write the reports of finished subjects anew")
    group.add_argument(
        "--boilerplate-only", action="store_true", help="write the methods text and its references (logs/CITATION) only"
    )
    group.add_argument("--write-graph", action="store_true", help="draw the workflow in the work directory")
    group.add_argument("--stop-on-first-crash", action="store_true", help="stop all subjects when one fails")
    group.add_argument("--resource-monitor", action="store_true", help="record memory and processors")
    group.add_argument("--version", action="version", version=f"mmln-bids {__version__}")
    group.add_argument("-v", "--verbose", action="count", help="Nipype's log and tracebacks; -vv: debugging")


def parse_args(argv: Sequence[str] | None = None) -> Config:
    """Read the command line, and the TOML file where one is given; what is typed wins.

    Parameters
    ----------
    argv : sequence of str or None, default None
        Arguments (default: those of the process).

    Returns
    -------
    Config
        Settings whose form is right and whose paths are absolute; `checks` does the rest.

    Raises
    ------
    UsageError
        A value is out of range, or the TOML file is wrong.
    SystemExit
        Argparse's own: `--help`, `--version`, or (code 2) a wrong option.
    """
    typed = vars(build_parser().parse_args(argv))
    config_file = typed.pop("config_file", None)
    settings = {} if config_file is None else _read_config_file(config_file)
    try:
        config = Config(**_complete(settings | typed))
    except ValueError as error:
        raise UsageError(str(error)) from error
    if config.sloppy:
        init = "rigid" if config.init == "affine" else config.init
        config = replace(config, init=init, bias_correction=False, refine=0)
    return config


def _complete(settings: dict) -> dict:
    """Clean labels, make paths absolute, and fill in what depends on this machine."""
    settings["participant_label"] = _strip(settings.get("participant_label", ()), "sub-")
    settings["session_label"] = _strip(settings.get("session_label", ()), "ses-")
    derivatives = _by_name(settings.get("derivatives", {}))
    settings["derivatives"] = {name: path.expanduser().resolve() for name, path in derivatives.items()}
    settings.setdefault("nprocs", _available_processors())
    settings.setdefault("omp_nthreads", min(settings["nprocs"], 8))
    settings.setdefault("mem_gb", round(0.9 * _total_memory_gb(), 1))
    settings.setdefault("work_dir", Path("work"))
    for name in PATHS:
        if settings.get(name):
            settings[name] = Path(settings[name]).expanduser().resolve()
    for name in ("template", "model", "lesion_mask"):  # names, or files that nodes in other folders must find
        if name in settings and Path(settings[name]).is_file():
            settings[name] = str(Path(settings[name]).resolve())
    return settings


def _read_config_file(path: Path) -> dict[str, object]:
    if not path.is_file():
        raise UsageError(f"--config-file {path}: no such file")
    try:
        return read_toml(path)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _by_name(datasets: Mapping[str, Path] | Sequence[tuple[str, Path]]) -> dict[str, Path]:
    """Return datasets by their names; two of one name are an error."""
    pairs = list(datasets.items()) if isinstance(datasets, Mapping) else list(datasets)
    names = [name for name, _ in pairs]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        paths = " and ".join(str(path) for name, path in pairs if name == twice[0])
        raise UsageError(f"--derivatives {twice[0]}: names two datasets, {paths}: give each its own name, NAME=PATH")
    return dict(pairs)


def _strip(labels: Sequence[str], prefix: str) -> tuple[str, ...]:
    """Remove a prefix and repeated labels, keeping the order."""
    return tuple(dict.fromkeys(label.removeprefix(prefix) for label in labels))


def _available_processors() -> int:
    """Return the number of processors this process may use."""
    if hasattr(psutil.Process, "cpu_affinity"):  # not on macOS
        return len(psutil.Process().cpu_affinity())
    return psutil.cpu_count() or 1


def _total_memory_gb() -> float:
    """Return the machine's memory, GB."""
    return psutil.virtual_memory().total / 1e9
