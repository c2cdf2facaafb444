"""`--apply-to`: which images and surfaces of derivative datasets are brought to the template with a T1w image."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib

from mmln_pipeline.bids_app.arguments import UsageError
from mmln_pipeline.bids_app.filters import IMAGES, Filters
from mmln_pipeline.bids_app.invocation import Config
from mmln_pipeline.derivatives.filenames import brought_path, derivative_paths
from mmln_pipeline.derivatives.scans import Scan
from mmln_pipeline.images.same_space import why_apart
from mmln_pipeline.machine.reading import UNREADABLE
from mmln_pipeline.space.grids import in_mm

SUFFIXES = (".nii.gz", ".nii", ".surf.gii")
_SPACE = re.compile("_space-([0-9A-Za-z]+)")


def add_files(config: Config, scans: Sequence[Scan], filters: Filters) -> list[Scan]:
    """Find what each T1w image brings along.

    Images count whose names say `space-T1w`, as fMRIPrep writes them, and surfaces that say so or name no space.

    Parameters
    ----------
    config : Config
        Settings of the run.
    scans : sequence of Scan
        The T1w images.
    filters : Filters
        Those of the run, whose `apply_to` chooses among the files.

    Returns
    -------
    list of Scan
        The same, with their files.

    Raises
    ------
    UsageError
        There is no such file, one lies in another space by its name or elsewhere by its header, its name is taken, or
        it is in doubt whose it is.
    """
    if not config.apply_to:
        return list(scans)
    shown = f"--apply-to {' '.join(config.apply_to)}"
    if not config.derivatives:
        raise UsageError(f"{shown}: expected a dataset that holds such files in T1w space (-d NAME=PATH), found none")
    owners: dict[Path, str] = {}
    found = []
    for scan in scans:
        files, elsewhere = _find_files(config, scan, filters)
        if elsewhere and not files:
            raise UsageError(
                f"{shown}: {elsewhere[0]}: expected space-T1w in its name, found {_space_of(elsewhere[0]) or 'none'}"
                ": only what lies in the T1w image's space is brought along; 'mmln apply' takes a chain of transforms"
            )
        if files and scan.reference == "unbiased" and scan.others:
            raise UsageError(
                f"{shown}: {files[0]}: lies in the space of a T1w image, not in that of an unbiased average: use "
                "--subject-anatomical-reference first-lex or sessionwise"
            )
        _check_names(shown, scan, files)
        _check_places(shown, scan, files)
        for path in files:
            if owners.setdefault(path, scan.stem) != scan.stem:
                raise UsageError(
                    f"{shown}: {path}: may belong to {owners[path]} or to {scan.stem}: choose one by --bids-filter-file"
                )
        found.append(replace(scan, along=tuple(files)))
    if not owners:
        places = " ".join(f"{name}={path}" for name, path in config.derivatives.items())
        narrowed = " that --bids-filter-file chooses" if filters.queries["apply_to"] else ""
        raise UsageError(f"{shown}: no such file of these subjects{narrowed} in {places}")
    return found


def _check_names(shown: str, scan: Scan, files: Sequence[Path]) -> None:
    """Refuse files that would be called like a result of the T1w image, or like each other."""
    taken = {name: f"a result of {scan.stem}" for name in derivative_paths(scan, "TPL", "ATLAS").values()}
    for path in files:
        name = brought_path(path, "TPL")
        if name in taken:
            raise UsageError(f"{shown}: {path}: in template space it would be called like {taken[name]}: leave it out")
        taken[name] = str(path)


def _check_places(shown: str, scan: Scan, files: Sequence[Path]) -> None:
    """Refuse images that lie elsewhere by their headers, whatever their names say; what cannot be read fails later."""
    try:
        t1w: Any = in_mm(nib.load(scan.t1w))
    except UNREADABLE:
        return
    for path in files:
        try:
            image: Any = in_mm(nib.load(path)) if path.name.endswith(tuple(IMAGES)) else t1w
        except UNREADABLE:
            continue
        reason = why_apart(image, t1w)
        if reason is not None:
            raise UsageError(
                f"{shown}: {path}: expected the space of {scan.t1w.name}, as its name says, but by the headers {reason}"
            )


def _find_files(config: Config, scan: Scan, filters: Filters) -> tuple[list[Path], list[Path]]:
    """Return the files of a scan that are in its space, and those that are not."""
    inside: list[Path] = []
    elsewhere: list[Path] = []
    for path in _list_files(config, scan, filters):
        space = _space_of(path)
        is_native = space == "T1w" or (space is None and path.name.endswith(".surf.gii"))
        (inside if is_native else elsewhere).append(path)
    return inside, elsewhere


def _list_files(config: Config, scan: Scan, filters: Filters) -> Iterator[Path]:
    """Yield the files of a scan's subject and session that are asked for, sorted by dataset and name."""
    endings = tuple(f"_{word.lstrip('*_')}{suffix}" for word in config.apply_to for suffix in SUFFIXES)
    for root in config.derivatives.values():
        for path in sorted((root / f"sub-{scan.subject}").glob("**/*")):
            session = re.search("_ses-([0-9A-Za-z]+)", path.name)
            is_of_session = scan.session is None or session is None or session[1] == scan.session
            if not (path.name.endswith(endings) and is_of_session):
                continue
            if filters.allows("apply_to", path.relative_to(root).as_posix()):
                yield path


def _space_of(path: Path) -> str | None:
    found = _SPACE.search(path.name)
    return found[1] if found else None
