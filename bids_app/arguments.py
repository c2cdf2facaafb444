"""Command line of the BIDS App: every option, and the checks that come before any work."""

import argparse
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from mmln_pipeline import __version__
from mmln_pipeline.bids_app.invocation import SECTIONS, Config, parse_path, read_toml
from mmln_pipeline.cli.option_arguments import add_options, reader
from mmln_pipeline.cli.strict_parser import StrictParser
from mmln_pipeline.machine.options import suggest

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
SPELLINGS = {
    "--skip-bids-validator": "--skip-bids-validation",
    "--n-cpus": "--nprocs",
    "--nthreads": "--nprocs",
    "--n-procs": "--nprocs",
    "--mem-gb": "--mem",
}
"""How other BIDS Apps call our options; all of them may be typed with _ in place of -, too."""
ONCE = ("clean_workdir", "dry_run", "list_unfinished", "reports_only", "boilerplate_only")
"""Settings of one run only, which no file keeps."""


class UsageError(ValueError):
    """Wrong usage or input, found before any work: one line, exit code 2."""


class _Parser(StrictParser):
    """Parser whose errors are one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}{self._guess(message)} (see {self.prog} --help)\n")

    def _guess(self, message: str) -> str:
        """Return the word that may be meant by one that is no choice."""
        wrong = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        return suggest(wrong[1], re.findall(r"[\w-]+", wrong[2])) if wrong else ""


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
        "  mmln-bids /data/raw /data/derivatives/mmln group\n"
        "  mmln-bids /data/raw /data/derivatives/mmln template --template-name mystudy\n\n"
        "exit codes: 0 all subjects done, 1 some failed, 2 wrong usage or input",
    )
    parser.add_argument("bids_dir", type=reader(parse_path), metavar="BIDS_DIR", help="root of the raw BIDS dataset")
    parser.add_argument(
        "output_dir", type=reader(parse_path), metavar="OUTPUT_DIR", help="root of the derivative dataset"
    )
    add_options(parser, Config, "analysis_level")
    for title, names in {
        "what to register": SECTIONS["what"],
        "how to register": SECTIONS["how"],
        "study template (level template)": SECTIONS["study"],
        "machine": SECTIONS["machine"],
        "run": (*SECTIONS["run"], *ONCE, "verbose"),
    }.items():
        group = parser.add_argument_group(title)
        add_options(group, Config, *names)
    group.add_argument(
        "--config-file", type=reader(parse_path), metavar="TOML", help="settings, as written to logs/mmln-bids.toml"
    )
    group.add_argument("--version", action="version", version=f"mmln-bids {__version__}")
    return parser


def respell(argv: Sequence[str]) -> Iterator[str]:
    """Yield a command line with our own names for options that other BIDS Apps spell otherwise.

    Parameters
    ----------
    argv : sequence of str
        Arguments.

    Yields
    ------
    str
        Arguments; an amount of memory given as `--mem-mb` has its unit.

    Examples
    --------
    >>> list(respell(["--participant_label", "01", "--mem_mb", "8000", "--n_cpus=4"]))
    ['--participant-label', '01', '--mem', '8000MB', '--nprocs=4']
    """
    in_mb = False
    for word in argv:
        if in_mb:
            word, in_mb = f"{word}MB" if word.isdigit() else word, False
        elif word.startswith("--"):
            name, separator, value = word.partition("=")
            name = name.replace("_", "-")
            if name == "--mem-mb":
                in_mb = not separator
                name, value = "--mem", f"{value}MB" if value.isdigit() else value
            word = f"{SPELLINGS.get(name, name)}{separator}{value}"
        yield word


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
    typed = vars(build_parser().parse_args(list(respell(sys.argv[1:] if argv is None else argv))))
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
    derivatives = _by_name("derivatives", settings)
    settings["derivatives"] = {name: _absolute(f"derivatives {name}", path) for name, path in derivatives.items()}
    settings["dataset_uri"] = _by_name("dataset_uri", settings)
    settings.setdefault("nprocs", _available_processors())
    settings.setdefault("omp_nthreads", min(settings["nprocs"], 8))
    settings.setdefault("mem_gb", round(0.9 * _total_memory_gb(), 1))
    settings.setdefault("work_dir", Path("work"))
    for name in PATHS:
        if settings.get(name):
            settings[name] = _absolute(name, settings[name])
    for name in ("template", "model", "lesion_mask"):  # names, or files that nodes in other folders must find
        if name in settings and os.path.isfile(settings[name]):
            settings[name] = str(Path(settings[name]).resolve())
    return settings


def _absolute(name: str, path: str | Path) -> Path:
    try:
        return Path(path).expanduser().resolve()
    except (OSError, RuntimeError) as error:  # links in a circle, ~ without a home
        called = name.upper() if name in ("bids_dir", "output_dir") else f"--{name.replace('_', '-')}"
        raise UsageError(f"{called} {path}: {error}") from error


def _read_config_file(path: Path) -> dict[str, object]:
    if not path.is_file():
        raise UsageError(f"--config-file {path}: no such file")
    try:
        return read_toml(path)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _by_name(option: str, settings: Mapping) -> dict:
    """Return an option's values by the names of their datasets; two of one name are an error."""
    given = settings.get(option, {})
    pairs = list(given.items()) if isinstance(given, Mapping) else list(given)
    names = [name for name, _ in pairs]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        found = " and ".join(str(value) for name, value in pairs if name == twice[0])
        flag = f"--{option.replace('_', '-')}"
        raise UsageError(f"{flag} {twice[0]}: given twice, as {found}: give each dataset its own name")
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
