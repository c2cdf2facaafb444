"""Settings of a run: one frozen dataclass, read from the command line and TOML, written back as TOML."""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any

import tomli_w

from mmln_pipeline.bids_app.output_spaces import parse_space, parse_spaces
from mmln_pipeline.linear.choices import REFERENCES, SKULL_STRIP
from mmln_pipeline.machine import toml
from mmln_pipeline.machine.options import (
    Option,
    check_option,
    check_options,
    find_field,
    find_option,
    option,
    same_option,
)
from mmln_pipeline.registration.settings import Settings
from mmln_pipeline.space.formats import OTHER_FORMATS

SECTIONS = {
    "what": (
        "participant_label",
        "session_label",
        "bids_filter_file",
        "derivatives",
        "dataset_uri",
        "apply_to",
        "subject_anatomical_reference",
        "bids_database_dir",
        "skip_bids_validation",
    ),
    "how": (
        "template",
        "output_spaces",
        "template_mask",
        "template_dseg",
        "skull_strip",
        "bias_correction",
        "init",
        "model",
        "refine",
        "topology",
        "write_formats",
        "lesion_mask",
        "random_seed",
        "sloppy",
    ),
    "study": ("template_name", "template_iterations", "template_resolution"),
    "machine": ("nprocs", "omp_nthreads", "mem_gb", "device", "use_plugin", "low_mem"),
    "run": ("work_dir", "stop_on_first_crash", "resource_monitor", "write_graph"),
}
"""Settings that a TOML file holds, by section; flags of one run only (such as `--dry-run`) are left out."""

URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:\S+")
"""A scheme and what it leads to (RFC 3986)."""
LEVELS = (
    "participant: register images; group: sum up finished results (scores, outliers, mean images); template: make a"
    " template of the images"
)
UNITS_GB = {"": 1.0, "k": 1e-6, "m": 1e-3, "g": 1.0, "t": 1e3}


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

    Raises
    ------
    ValueError
        The text is no such amount.

    Examples
    --------
    >>> parse_memory("500MB")
    0.5
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", text, flags=re.IGNORECASE)
    if not match or float(match[1]) == 0:
        raise ValueError(f"expected an amount such as 16GB, found {text!r}")
    return float(match[1]) * UNITS_GB[match[2].lower()]


def parse_path(text: str) -> Path:
    """Read a path; empty text, such as an unset variable of a shell, would be the current folder."""
    if not text:
        raise ValueError("expected a path, found ''")
    return Path(text)


def parse_dataset(text: str) -> tuple[str, Path]:
    """Read NAME=PATH; the name defaults to the folder's."""
    name, separator, path = text.partition("=")
    if not separator:
        name, path = Path(text).resolve().name, text
    name = re.sub(r"[^0-9A-Za-z_-]", "", name)
    if not name or name == "raw":
        raise ValueError(f"expected NAME=PATH (NAME not 'raw'), found {text!r}")
    if not path or not os.path.isdir(path):
        raise ValueError(f"expected a folder, found {path!r}")
    return name, Path(path).resolve()


def parse_uri(text: str) -> tuple[str, str]:
    """Read NAME=URI.

    Examples
    --------
    >>> parse_uri("raw=https://doi.org/10.18112/openneuro.ds000030.v1.0.0")
    ('raw', 'https://doi.org/10.18112/openneuro.ds000030.v1.0.0')
    """
    name, _, uri = text.partition("=")
    if not name or not URI.fullmatch(uri):
        raise ValueError(f"expected NAME=URI, such as raw=https://doi.org/..., found {text!r}")
    return name, uri


@dataclass(frozen=True)
class Config:
    """Settings of one run of the BIDS App.

    Each field's option says what it takes: the command line, the TOML file and the documentation have it from there.

    Parameters
    ----------
    bids_dir, output_dir : Path
        Raw dataset and derivative dataset.

    Raises
    ------
    ValueError
        A value is none of those allowed.
    """

    bids_dir: Path
    output_dir: Path
    analysis_level: str = option(
        "participant", words=("participant", "group", "template"), flags=("analysis_level",), help=LEVELS
    )
    participant_label: tuple[str, ...] = option(
        (), metavar="LABEL", command={"nargs": "+"}, help="subjects, with or without sub- (default: all)"
    )
    session_label: tuple[str, ...] = option(
        (), metavar="LABEL", command={"nargs": "+"}, help="sessions, with or without ses- (default: all)"
    )
    bids_filter_file: Path | None = option(
        None,
        metavar="FILE",
        read=parse_path,
        help='JSON of PyBIDS filters for "t1w", "mask" and "dseg", and for "apply_to" among its files; null: entity'
        ' absent, "*": present',
    )
    derivatives: Mapping[str, Path] = field(
        default_factory=dict,
        metadata={
            "option": Option(
                flags=("-d", "--derivatives"),
                metavar="NAME=PATH",
                read=parse_dataset,
                command={"nargs": "+", "action": "extend"},
                help="derivative datasets with brain masks (_desc-brain_mask) and labels (_dseg) in T1w space",
            )
        },
    )
    dataset_uri: Mapping[str, str] = field(
        default_factory=dict,
        metadata={
            "option": Option(
                flags=("--dataset-uri",),
                metavar="NAME=URI",
                read=parse_uri,
                command={"nargs": "+", "action": "extend"},
                help="where BIDS_DIR (NAME raw) and --derivatives really are, for dataset_description.json (default:"
                " the folders as this run sees them, which in a container are none of the host's)",
            )
        },
    )
    apply_to: tuple[str, ...] = option(
        (),
        metavar="ENDING",
        command={"nargs": "+"},
        help="images, series and surfaces of --derivatives to bring to the template, by how their names end: bold,"
        " desc-preproc_bold, T2w, pial; images say space-T1w in their names, surfaces that or no space",
    )
    subject_anatomical_reference: str = option(
        "sessionwise",
        words=("sessionwise", *REFERENCES),
        help="sessionwise: one result for each session; first-lex, unbiased: one for each subject, of the average of"
        " all its T1w images, in the space of the first one or in the middle of all; runs of a session are averaged"
        " in any case",
    )
    bids_database_dir: Path | None = option(
        None, metavar="DIR", read=parse_path, help="folder of PyBIDS's index, made if absent"
    )
    skip_bids_validation: bool = option(False, help="do not check the description and the file names")
    template: str = option(
        "MNI152NLin2009aSym",
        free=True,
        metavar="NAME|PATH",
        help="template: a name (the embedded MNI152NLin2009aSym, or one from TemplateFlow's cache, as NAME[:cohort-N]"
        "[:res-N]), a NIfTI file, sub-LABEL[_ses-LABEL] (that image of the dataset, with its mask and labels from -d),"
        " or a table (.tsv) of several atlases with the columns name, image, mask, dseg, dseg_tsv: all images are"
        " registered to each, and the labels fused",
    )
    output_spaces: tuple[str, ...] = option(
        (),
        metavar="SPACE",
        read=parse_space,
        command={"nargs": "+"},
        help="templates as fMRIPrep names them, NAME[:cohort-X][:res-N], one or several, in the place of the default of"
        " --template or beside another",
    )
    template_mask: Path | None = option(
        None,
        metavar="PATH",
        read=parse_path,
        help="brain mask on the template's grid (default: the tpl-X_desc-brain_mask beside a tpl-X_T1w)",
    )
    template_dseg: Path | None = option(
        None,
        metavar="PATH",
        read=parse_path,
        help="labels on the template's grid, brought to each subject; named by the dseg.tsv beside them",
    )
    skull_strip: str = option(
        SKULL_STRIP[0],
        words=SKULL_STRIP,
        help="where the brain comes from when -d has no mask of it. auto: stripped images are taken as they are, raw"
        " heads go through synthstrip where FreeSurfer's mri_synthstrip is on the PATH, else through atlas; skip: all"
        " images are stripped; synthstrip; atlas: with the embedded template, offline",
    )
    bias_correction: bool = option(True, help="leave the bias field as it is", flags=("--no-bias-correction",))
    init: str = option(
        find_field(Settings, "init").default,
        words=find_option(Settings, "init").words,
        help="linear start: estimate one, or take the images as aligned (identity)",
    )
    model: str = same_option(Settings, "model")
    refine: str | int = same_option(Settings, "refine")
    topology: str = same_option(Settings, "topology")
    write_formats: tuple[str, ...] = option(
        (),
        metavar="FORMAT",
        command={"nargs": "+", "choices": tuple(OTHER_FORMATS)},
        help="write the transforms as other tools have them, too: fsl (a warp for applywarp), x5 (nitransforms)",
    )
    lesion_mask: str = option(
        "auto",
        free=True,
        metavar="auto|skip|ENDING|FILE",
        command={"nargs": "?", "const": "auto"},
        help="masks of lesions, which steer neither the affine nor the refinement. auto: files whose names end in"
        " label-lesion_roi (or _mask) beside the T1w images or in --derivatives, where there are any; skip: none;"
        " ENDING: how the names of such files end; FILE: that of the one image",
    )
    random_seed: int = same_option(Settings, "random_seed")
    sloppy: bool = option(False, help="low quality, for tests: rigid, no bias correction, no refinement")
    template_name: str = option(
        "study", free=True, metavar="NAME", help="what the template of the group is called; letters and digits"
    )
    template_iterations: int = option(
        4, lowest=1, metavar="N", help="how many times the images are registered to their mean"
    )
    template_resolution: float = option(1.0, above=0.0, metavar="MM", help="its voxel size, mm")
    nprocs: int = option(1, lowest=1, metavar="N", help="processors in all (default: those available)")
    omp_nthreads: int = option(1, lowest=1, metavar="N", help="threads of one step (default: nprocs, at most 8)")
    mem_gb: float = option(
        16.0, flags=("--mem",), above=0.0, metavar="16GB", read=parse_memory, help="memory (default: 90%% of it)"
    )
    device: str = same_option(Settings, "device")
    use_plugin: Path | None = option(
        None, metavar="FILE", read=parse_path, help="Nipype's plugin and plugin_args as TOML, JSON or YAML"
    )
    low_mem: bool = option(False, help="hold one network in memory at a time")
    work_dir: Path = option(
        Path("work"),
        metavar="DIR",
        read=parse_path,
        help="intermediate results; resumed from (default: ./work)",
        flags=("-w", "--work-dir"),
    )
    clean_workdir: bool = option(False, help="begin anew: remove this program's work first")
    dry_run: bool = option(False, help="say what would run, and write nothing")
    reports_only: bool = option(False, help="write the reports of finished subjects anew")
    list_unfinished: bool = option(False, help="print the subjects without all their results, one a line, no more")
    boilerplate_only: bool = option(False, help="write the methods text and its references (logs/CITATION) only")
    write_graph: bool = option(False, help="draw the workflow in the work directory")
    stop_on_first_crash: bool = option(False, help="stop all subjects when one fails")
    resource_monitor: bool = option(False, help="record memory and processors")
    verbose: int = option(
        0,
        lowest=0,
        flags=("-v", "--verbose"),
        command={"action": "count"},
        help="Nipype's log and tracebacks; -vv: debugging (default: plain lines)",
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.omp_nthreads > self.nprocs:
            raise ValueError(f"omp_nthreads: expected at most nprocs ({self.nprocs}), found {self.omp_nthreads}")
        object.__setattr__(self, "output_spaces", parse_spaces(self.output_spaces))
        object.__setattr__(self, "apply_to", tuple(self.apply_to))
        if self.is_spaces_only and (self.template_mask or self.template_dseg):
            raise ValueError("output_spaces: template_mask and template_dseg belong to --template: give that too")
        for name in self.write_formats:
            if name not in OTHER_FORMATS:
                raise ValueError(f"write_formats: expected {' or '.join(OTHER_FORMATS)}, found {name!r}")
        for name in self.derivatives:  # part of the sources' BIDS URIs, where "raw" is the raw dataset
            if name == "raw" or not re.fullmatch("[0-9A-Za-z_-]+", name):
                raise ValueError(f"derivatives: expected names of letters, digits, _ and -, not raw; found {name!r}")
        known = ("raw", *self.derivatives)
        for name, uri in self.dataset_uri.items():
            if name not in known:
                raise ValueError(f"dataset_uri: expected the name of a dataset ({', '.join(known)}), found {name!r}")
            parse_uri(f"{name}={uri}")  # a TOML file's are only text so far

    @property
    def is_spaces_only(self) -> bool:
        """Whether the templates are those of `output_spaces` alone: `template` was left as it is."""
        return bool(self.output_spaces) and self.template == find_field(Config, "template").default

    def registration(self) -> dict[str, Any]:
        """Return the settings of each registration, by their names in `Settings`; threads are the scheduler's."""
        return {item.name: getattr(self, item.name) for item in fields(Settings) if item.name != "threads"}

    def to_toml(self) -> str:
        """Return the settings as TOML that `read_toml` takes back; unset ones are left out.

        Examples
        --------
        >>> "nprocs = 2" in Config(Path("raw"), Path("out"), nprocs=2).to_toml()
        True
        """
        return "# Settings of one run of mmln-bids; use them again by --config-file.\n\n" + tomli_w.dumps(
            self._sections()
        )

    @property
    def run_name(self) -> str:
        """Return a name that tells this run's files from those of other settings, and of other jobs of an array."""
        return hashlib.sha256(self.to_toml().encode()).hexdigest()[:12]

    def _sections(self) -> dict[str, dict[str, Any]]:
        return {
            section: {name: _plain(value) for name in names if (value := getattr(self, name)) is not None}
            for section, names in SECTIONS.items()
        }


def read_toml(path: Path) -> dict[str, object]:
    """Read settings from a TOML file.

    Parameters
    ----------
    path : Path
        File with the sections of `SECTIONS`; each setting may be left out.

    Returns
    -------
    dict
        Settings as the command line would give them.

    Raises
    ------
    ValueError
        The file is no TOML, or has an unknown section, setting or type.
    """
    types = {item.name: item.type for item in fields(Config)}
    settings: dict[str, Any] = {}
    try:
        for section, values in toml.read_toml(path).items():
            if section not in SECTIONS:
                raise ValueError(f"unknown section [{section}]; known: {', '.join(SECTIONS)}")
            if not isinstance(values, dict):
                raise ValueError(f"{section}: expected a section, [{section}], found {values!r}")
            holder = make_dataclass("Section", [(name, types[name], field(default=None)) for name in SECTIONS[section]])
            table = toml.to_dataclass(holder, values, f"[{section}]")
            for name in values:
                settings[name] = getattr(table, name)
                check_option(Config, name, settings[name], f"[{section}].{name}")
    except ValueError as error:
        raise ValueError(f"--config-file {path}: {error}") from error
    return settings


def _plain(value: object) -> object:
    """Return a setting as what TOML knows."""
    if isinstance(value, Mapping):
        return {key: str(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value
