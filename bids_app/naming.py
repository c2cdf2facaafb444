"""Names in an output directory that holds results for other templates: nothing of theirs is replaced."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mmln_pipeline.bids_app.arguments import UsageError
from mmln_pipeline.bids_app.method import Method
from mmln_pipeline.derivatives.filenames import TEMPLATES
from mmln_pipeline.derivatives.targets import Target
from mmln_pipeline.interfaces.saving import put_text, to_json
from mmln_pipeline.reporting.record import read_records


@dataclass(frozen=True)
class Taken:
    """What a dataset's results for one template are called.

    Attributes
    ----------
    spaced : bool
        Whether the names of scores and labels say the template.
    plain : bool
        Whether there are some that do not.
    atlas : str
        Name of the labels, empty where there are none.
    image_checksum : str
        SHA-256 of the template, empty where no sidecar tells it.
    spatial_reference : str
        Where it is from.
    """

    spaced: bool = False
    plain: bool = False
    atlas: str = ""
    image_checksum: str = ""
    spatial_reference: str = ""


def name_apart(output_dir: Path, method: Method) -> Method:
    """Give names of their own to what another template's results are called already.

    Parameters
    ----------
    output_dir : Path
        Root of the derivative dataset.
    method : Method
        The templates and their labels.

    Returns
    -------
    Method
        With the template in the names of scores and labels where another one took the plain names.

    Raises
    ------
    UsageError
        The dataset holds results for another template of the same name.
    """
    if not output_dir.is_dir():
        return method
    taken = read_taken(output_dir)
    for target in method.targets:
        _check_same(output_dir, target, taken.get(target.name, Taken()))
    targets = tuple(_name_target(target, taken) for target in method.targets)
    renamed = {old.atlas: new.atlas for old, new in zip(method.targets, targets, strict=True)}
    tables = {renamed.get(atlas) or atlas: table for atlas, table in method.tables.items()}
    names = set(taken) - {target.name for target in targets}
    return replace(method, targets=targets, tables=tables, other_templates=tuple(sorted(names)))


def note_templates(output_dir: Path, method: Method) -> None:
    """Note what the results of a run are called, so that the next one need not read them all.

    Parameters
    ----------
    output_dir : Path
        Root of the derivative dataset.
    method : Method
        The templates of the run.
    """
    taken = read_taken(output_dir)
    for target in method.targets:
        before = taken.get(target.name, Taken())
        taken[target.name] = Taken(
            spaced=before.spaced or target.spaced,
            plain=before.plain or not target.spaced,
            atlas=target.atlas or before.atlas,
            image_checksum=target.image_checksum,
            spatial_reference=target.spatial_reference,
        )
    put_text(to_json({name: asdict(taken[name]) for name in sorted(taken)}), output_dir / TEMPLATES)


def read_taken(output_dir: Path) -> dict[str, Taken]:
    """Read what the results of a dataset are called, by template: from its note, or where it has none from them.

    Parameters
    ----------
    output_dir : Path
        Root of the derivative dataset.

    Returns
    -------
    dict of str to Taken
    """
    try:
        content = json.loads((output_dir / TEMPLATES).read_text(encoding="utf-8"))
        return {name: Taken(**own) for name, own in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        pass
    taken: dict[str, Taken] = {}
    for name, record in read_records(output_dir).items():
        template = str(record.get("template"))
        before = taken.get(template) or _read_origin(output_dir, template)
        is_spaced = "_space-" in name
        taken[template] = replace(
            before,
            spaced=before.spaced or is_spaced,
            plain=before.plain or not is_spaced,
            atlas=str(record.get("atlas") or before.atlas),
        )
    return taken


def _read_origin(output_dir: Path, template: str) -> Taken:
    """Read from a sidecar of a transform which template it leads to."""
    for path in output_dir.glob(f"sub-*/**/anat/*_from-T1w_to-{template}_mode-image_xfm.json"):
        try:
            sidecar = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(sidecar, dict) and sidecar.get("TemplateSHA256"):
            reference = str(sidecar.get("SpatialReference"))
            return Taken(image_checksum=str(sidecar["TemplateSHA256"]), spatial_reference=reference)
    return Taken()


def _name_target(target: Target, taken: Mapping[str, Taken]) -> Target:
    """Let the names of scores and labels say the template where the plain ones are another's."""
    others = [own for name, own in taken.items() if name != target.name]
    is_taken = any(own.plain for own in others)
    was_spaced = taken.get(target.name, Taken()).spaced
    atlas = target.atlas
    if atlas and any(own.atlas == atlas for own in others):
        atlas += re.sub(r"[^0-9a-zA-Z]", "", target.name)
    return replace(target, spaced=target.spaced or is_taken or was_spaced, atlas=atlas)


def _check_same(output_dir: Path, target: Target, found: Taken) -> None:
    """Refuse a template whose name another one has; a file that changed since counts as the same."""
    reference = found.spatial_reference
    is_file = reference.startswith("file:") and reference == target.spatial_reference
    if found.image_checksum and found.image_checksum != target.image_checksum and not is_file:
        raise UsageError(
            f"--template {target.source.image}: OUTPUT_DIR {output_dir} holds results for another template that is "
            f"called {target.name} too ({reference}): choose another folder, or another name (tpl-NAME_T1w.nii.gz)"
        )
