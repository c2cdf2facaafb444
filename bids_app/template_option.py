"""The templates of a run, by `--template`, its companions and `--output-spaces`; loaded once, to check all."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from nibabel import Nifti1Image

from mmln_pipeline.atlas.sources import FUSED, TemplateSource, read_template_table
from mmln_pipeline.atlas.templates import Template, labels_name, template_name
from mmln_pipeline.bids_app.arguments import UsageError
from mmln_pipeline.bids_app.invocation import Config
from mmln_pipeline.bids_app.layout import find_scans
from mmln_pipeline.derivatives.targets import tell_apart
from mmln_pipeline.images.brain import Brain, check_image, check_size
from mmln_pipeline.space.other_tools import check_libraries
from mmln_pipeline.workflows import Scan, Target, fused_targets, targets_of

SUBJECT = re.compile(r"sub-([0-9a-zA-Z]+)(?:_ses-([0-9a-zA-Z]+))?")


def find_targets(config: Config, grid_shape: Sequence[int]) -> tuple[tuple[Target, ...], dict[str, str]]:
    """Find the templates of a run and load each of them, to check it.

    Parameters
    ----------
    config : Config
        Settings whose paths are checked.
    grid_shape : sequence of 3 int
        The network's grid, voxels of 1 mm.

    Returns
    -------
    targets : tuple of Target
        What scans are registered to.
    tables : dict of str to str
        Label table of each atlas that has one, as the text of a TSV.

    Raises
    ------
    UsageError
        A template is unknown, missing, no brain or too small for a human's, its mask or labels do not fit it, or
        atlases contradict each other.
    """
    try:
        sources = _list_sources(config)
        templates = [source.load() for source in sources]
        for template in templates:
            check_image(template.image, f"template {template.name}")
            check_size(Brain(template.image, template.mask, name=f"template {template.name}"), grid_shape)
        for kind in config.write_formats:
            check_libraries(kind)
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    is_own = config.template_dseg is not None or config.template.endswith(".tsv") or _is_subject(config)
    n_own = len(sources) - len(config.output_spaces)
    templates = _name_labels(templates, n_own)
    targets = tuple(
        replace(
            _to_target(source, template, is_own and number < n_own),
            formats=tuple(dict.fromkeys(config.write_formats)),
            votes=number < n_own,
        )
        for number, (source, template) in enumerate(zip(sources, templates, strict=True))
    )
    _check_names(targets)
    tables = {str(template.dseg_name): template.dseg_table for template in templates if template.dseg_table is not None}
    if fused_targets(targets):
        tables[FUSED] = _join_tables(tables)
    return tell_apart(targets), {name: _to_text(table) for name, table in tables.items() if table is not None}


def drop_templates(
    config: Config, scans: Sequence[Scan], targets: Sequence[Target]
) -> tuple[list[Scan], dict[str, str]]:
    """Leave out scans that are the only template themselves.

    Parameters
    ----------
    config : Config
        Settings of the run.
    scans : sequence of Scan
        What was found.
    targets : sequence of Target
        The templates.

    Returns
    -------
    scans : list of Scan
        Those with something to register to.
    skipped : dict of str to str
        The others, and why they are left out.

    Raises
    ------
    UsageError
        None is left.
    """
    kept = [scan for scan in scans if targets_of(scan, targets)]
    if not kept:
        raise UsageError(f"--template {config.template}: is the only image asked for: nothing is left to register")
    return kept, {scan.stem: "is the template" for scan in scans if not targets_of(scan, targets)}


def _is_subject(config: Config) -> bool:
    return config.template.startswith("sub-") and not Path(config.template).is_file()


def _name_labels(templates: Sequence[Template], n_own: int) -> list[Template]:
    """Let the labels of output spaces, such as the tissues of each, say whose they are where others have that name."""
    named: list[Template] = []
    for number, template in enumerate(templates):
        if number >= n_own and template.dseg_name in {other.dseg_name for other in named} - {None}:
            own = re.sub("[^0-9a-zA-Z]", "", template.name)
            template = replace(template, dseg_name=f"{template.dseg_name}{own}")
        named.append(template)
    return named


def _check_names(targets: Sequence[Target]) -> None:
    """Refuse two templates of one name, whose results would replace each other."""
    names = [target.name for target in targets]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UsageError(f"--output-spaces {twice}: --template is called so too: give it once")


def _list_sources(config: Config) -> list[TemplateSource]:
    """Read what the options say: `--template`, unless it was left as it is and there are others, and the others."""
    spaces = [TemplateSource(name) for name in config.output_spaces]
    return spaces if config.is_spaces_only else [*_list_own_sources(config), *spaces]


def _list_own_sources(config: Config) -> list[TemplateSource]:
    """Read what `--template` and its companions say."""
    if config.template.endswith(".tsv"):
        for name in ("template_mask", "template_dseg"):
            if getattr(config, name):
                option = name.replace("_", "-")
                column = name.removeprefix("template_")
                raise UsageError(f"--{option}: expected as the column {column} of {config.template}, found an option")
        return read_template_table(config.template)
    source = _subject_source(config) if _is_subject(config) else TemplateSource(config.template)
    given: dict[str, Any] = {"mask": config.template_mask, "dseg": config.template_dseg}
    given = {name: path for name, path in given.items() if path is not None}
    if "dseg" in given:
        given["dseg_name"] = None
    return [replace(source, **given)]


def _subject_source(config: Config) -> TemplateSource:
    """Find the image of the dataset that is the template, with its mask and labels."""
    found = SUBJECT.fullmatch(config.template)
    if found is None:
        raise UsageError(f"--template {config.template}: expected sub-LABEL or sub-LABEL_ses-LABEL, letters and digits")
    subject, session = found.groups()
    folder = config.bids_dir / f"sub-{subject}" / (f"ses-{session}" if session else "")
    if not folder.is_dir():
        raise UsageError(f"--template {config.template}: no such subject or session: no folder {folder}")
    asked = replace(
        config,
        participant_label=(subject,),
        session_label=(session,) if session else (),
        lesion_mask="skip",
        apply_to=(),
    )
    image = find_scans(asked)[0][0].images[0]
    name = template_name(config.template)
    dseg_name = labels_name(image.dseg, name) if image.dseg else None
    return TemplateSource(str(image.t1w), image.mask, image.dseg, name=name, dseg_name=dseg_name)


def _to_target(source: TemplateSource, template: Template, is_own: bool) -> Target:
    """Describe a loaded template; `is_own`: its labels were given for the scans' sake, and may be compared."""
    is_file = Path(source.image).is_file()
    return Target(
        name=template.name,
        spatial_reference=Path(source.image).as_uri() if is_file else template.name,
        source=source,
        atlas=template.dseg_name,
        label_names=_names(template.dseg_table),
        compare_labels=is_own,
        checksum=_checksum(template.image, template.mask, template.dseg),
        image_checksum=_checksum(template.image),
        dark_share=Brain(template.image, template.mask).measure_dark_share(),
    )


def _checksum(*images: Nifti1Image | None) -> str:
    """Return a checksum of a template's image, or of it with mask and labels, with their places in the world."""
    digest = hashlib.sha256()
    for image in images:
        if image is not None:
            digest.update(np.ascontiguousarray(image.dataobj).data)
            digest.update(image.affine.tobytes())
    return digest.hexdigest()


def _names(table: pd.DataFrame | None) -> dict[int, str]:
    """Return the names of labels by their numbers."""
    if table is None:
        return {}
    return {int(index): str(name) for index, name in zip(table["index"], table["name"], strict=True)}


def _join_tables(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame | None:
    """Join the tables of several atlases, whose numbers must mean the same."""
    names: dict[int, str] = {}
    owner: dict[int, str] = {}
    for atlas, table in tables.items():
        for number, name in _names(table).items():
            if names.setdefault(number, name) != name:
                raise UsageError(
                    f"label tables of {owner[number]} and {atlas}: expected one name for label {number}, found "
                    f"{names[number]!r} and {name!r}: labels of several atlases are fused by their numbers"
                )
            owner.setdefault(number, atlas)
    if not names:
        return None
    return pd.DataFrame({"index": sorted(names), "name": [names[number] for number in sorted(names)]})


def _to_text(table: pd.DataFrame) -> str:
    """Write a label table as TSV."""
    return table.to_csv(sep="\t", index=False, na_rep="n/a", lineterminator="\n")
