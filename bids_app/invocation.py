"""Settings of a run: one frozen dataclass, read from the command line and TOML, written back as TOML."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import tomli_w

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

SECTIONS = {
    "what": (
        "participant_label",
        "session_label",
        "bids_filter_file",
        "derivatives",
        "subject_anatomical_reference",
        "bids_database_dir",
        "skip_bids_validation",
    ),
    "how": (
        "template",
        "template_mask",
        "template_dseg",
        "skull_strip",
        "bias_correction",
        "init",
        "model",
        "refine",
        "topology",
        "lesion_mask",
        "random_seed",
        "sloppy",
    ),
    "machine": ("nprocs", "omp_nthreads", "mem_gb", "device", "use_plugin", "low_mem"),
    "run": ("work_dir", "stop_on_first_crash", "resource_monitor", "write_graph"),
}
"""Settings that a TOML file holds, by section; flags of one run only (such as `--dry-run`) are left out."""

CHOICES = {
    "analysis_level": ("participant", "group"),
    "subject_anatomical_reference": ("sessionwise", "first-lex", "unbiased"),
    "skull_strip": ("auto", "skip", "synthstrip", "atlas"),
    "init": ("affine", "rigid", "identity"),
    "topology": ("strict", "off"),
}
LOWEST = {"nprocs": 1, "omp_nthreads": 1, "random_seed": 0}


@dataclass(frozen=True)
class Config:
    """Settings of one run of the BIDS App.

    Attributes
    ----------
    bids_dir, output_dir : Path
        Raw dataset and derivative dataset.
    analysis_level : {"participant", "group"}
        Register scans, or sum up the results of all scans.
    participant_label, session_label : tuple of str
        Labels without `sub-` and `ses-`; empty: all.
    bids_filter_file : Path or None
        JSON file of further query filters.
    derivatives : mapping of str to Path
        Other derivative datasets with masks and labels, by name.
    subject_anatomical_reference : {"sessionwise", "first-lex", "unbiased"}
        One result for each session, or one for each subject: of the average of all images in the space of the first
        one, or in the middle of all. The runs of a session are averaged in any case.
    bids_database_dir : Path or None
        Where PyBIDS keeps its index between runs.
    skip_bids_validation : bool
        Do not check the dataset's description and file names.
    template : str
        Name or path of the template, `sub-X` for one of the dataset, or the path of a table of several.
    template_mask : Path or None
        Brain mask on the template's grid.
    template_dseg : Path or None
        Labels on the template's grid.
    skull_strip : {"auto", "skip", "synthstrip", "atlas"}
        Strip the images that are not stripped already, trust that they are, or strip all with SynthStrip or with the
        template; given masks go before.
    bias_correction : bool
        Run N4.
    init : {"affine", "rigid", "identity"}
        Initial alignment.
    model : str
        Name or path of the network's weights.
    refine : "auto" or int
        Iterations of instance optimisation.
    topology : {"strict", "off"}
        Repair each warp until nothing folds, or leave it as it comes.
    lesion_mask : str
        `auto`: files named `*_label-lesion_roi` (or `_mask`) where there are any; `skip`: none; else how the files'
        names end, or the path of one.
    random_seed : int
        Seed of NumPy, torch and ITK.
    sloppy : bool
        Low quality for tests: rigid instead of affine, no bias correction, no refinement.
    nprocs, omp_nthreads : int
        Processes at once, and threads of one step.
    mem_gb : float
        Memory that all steps together may use, GB.
    device : str
        `auto`, `cpu`, `cuda` or `cuda:N`.
    use_plugin : Path or None
        File with Nipype's `plugin` and `plugin_args` (TOML, JSON or YAML).
    low_mem : bool
        Only one network in memory at a time.
    work_dir : Path
        Intermediate results; a repeated run resumes from them.
    clean_workdir, dry_run, reports_only, boilerplate_only, write_graph : bool
        See the command line's help.
    stop_on_first_crash, resource_monitor : bool
        See the command line's help.
    verbose : int
        0: plain lines; 1: Nipype's log and tracebacks; 2: debugging.
    """

    bids_dir: Path
    output_dir: Path
    analysis_level: str = "participant"
    participant_label: tuple[str, ...] = ()
    session_label: tuple[str, ...] = ()
    bids_filter_file: Path | None = None
    derivatives: Mapping[str, Path] = field(default_factory=dict)
    subject_anatomical_reference: str = "sessionwise"
    bids_database_dir: Path | None = None
    skip_bids_validation: bool = False
    template: str = "MNI152NLin2009aSym"
    template_mask: Path | None = None
    template_dseg: Path | None = None
    skull_strip: str = "auto"
    bias_correction: bool = True
    init: str = "affine"
    model: str = "mmln"
    refine: str | int = "auto"
    topology: str = "strict"
    lesion_mask: str = "auto"
    random_seed: int = 0
    sloppy: bool = False
    nprocs: int = 1
    omp_nthreads: int = 1
    mem_gb: float = 16.0
    device: str = "auto"
    use_plugin: Path | None = None
    low_mem: bool = False
    work_dir: Path = Path("work")
    clean_workdir: bool = False
    dry_run: bool = False
    reports_only: bool = False
    boilerplate_only: bool = False
    write_graph: bool = False
    stop_on_first_crash: bool = False
    resource_monitor: bool = False
    verbose: int = 0

    def __post_init__(self) -> None:
        """Check the values, wherever they came from.

        Raises
        ------
        ValueError
            A value is none of those allowed.
        """
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, found {getattr(self, name)!r}")
        for name, lowest in LOWEST.items():
            if getattr(self, name) < lowest:
                raise ValueError(f"{name}: expected at least {lowest}, found {getattr(self, name)}")
        if self.mem_gb <= 0:
            raise ValueError(f"mem_gb: expected more than 0, found {self.mem_gb}")
        if self.refine != "auto" and (isinstance(self.refine, str) or self.refine < 0):
            raise ValueError(f"refine: expected auto or a whole number >= 0, found {self.refine!r}")
        if self.omp_nthreads > self.nprocs:
            raise ValueError(f"omp_nthreads: expected at most nprocs ({self.nprocs}), found {self.omp_nthreads}")

    def to_toml(self) -> str:
        """Return the settings as TOML that `read_toml` takes back; unset ones are left out.

        Examples
        --------
        >>> "nprocs = 2" in Config(Path("raw"), Path("out"), nprocs=2).to_toml()
        True
        """
        settings = {
            section: {name: _plain(value) for name in names if (value := getattr(self, name)) is not None}
            for section, names in SECTIONS.items()
        }
        return "# Settings of the last run of mmln-bids; use them again by --config-file.\n\n" + tomli_w.dumps(settings)


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
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"--config-file {path}: not valid TOML: {error}") from error
    types = {item.name: item.type for item in fields(Config)}
    settings: dict[str, object] = {}
    for section, values in content.items():
        if section not in SECTIONS or not isinstance(values, dict):
            raise ValueError(f"--config-file {path}: unknown section [{section}]; known: {', '.join(SECTIONS)}")
        for name, value in values.items():
            if name not in SECTIONS[section]:
                raise ValueError(
                    f"--config-file {path}: unknown setting {name!r} in [{section}]; known: "
                    + ", ".join(SECTIONS[section])
                )
            settings[name] = _from_toml_value(name, value, types[name], path)
    return settings


def _plain(value: object) -> object:
    """Return a setting as what TOML knows."""
    if isinstance(value, Mapping):
        return {key: str(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value


def _from_toml_value(name: str, value: object, kind: object, path: Path) -> object:
    """Bring a TOML value to the type of its setting, or say what was expected."""
    expected = {
        bool: (bool, "true or false"),
        int: (int, "a whole number"),
        float: ((int, float), "a number"),
        str: (str, "a string"),
        Path: (str, "a path"),
        Path | None: (str, "a path"),
        tuple[str, ...]: (list, "a list of strings"),
        str | int: ((str, int), '"auto" or a whole number'),
        Mapping[str, Path]: (dict, "a table of NAME = PATH"),
    }
    accepted, words = expected[kind]
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"--config-file {path}: {name}: expected {words}, found {value!r}")
    if kind in (Path, Path | None):
        return Path(value)
    if kind == tuple[str, ...]:
        return tuple(str(item) for item in value)
    if kind == Mapping[str, Path]:
        return {key: Path(item) for key, item in value.items()}
    return value
