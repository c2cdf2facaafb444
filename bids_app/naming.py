"""Names in an output directory that holds results for other templates: nothing of theirs is replaced."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mmln_pipeline.bids_app.arguments import UsageError
from mmln_pipeline.bids_app.checks import Method
from mmln_pipeline.derivatives.targets import Target
from mmln_pipeline.reporting.record import read_records


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
    records = read_records(output_dir)
    for target in method.targets:
        _check_same(output_dir, target)
    targets = tuple(_name_target(target, records) for target in method.targets)
    renamed = {old.atlas: new.atlas for old, new in zip(method.targets, targets, strict=True)}
    tables = {renamed.get(atlas) or atlas: table for atlas, table in method.tables.items()}
    names = {str(record.get("template")) for record in records.values()} - {target.name for target in targets}
    return replace(method, targets=targets, tables=tables, other_templates=tuple(sorted(names)))


def _name_target(target: Target, records: Mapping[str, Mapping]) -> Target:
    """Let the names of scores and labels say the template where the plain ones are another's."""
    others = {name: record for name, record in records.items() if record.get("template") != target.name}
    is_taken = any("_space-" not in name for name in others)
    was_spaced = any(name.endswith(f"_space-{target.name}") for name in records)
    atlas = target.atlas
    if atlas and any(record.get("atlas") == atlas for record in others.values()):
        atlas += re.sub(r"[^0-9a-zA-Z]", "", target.name)
    return replace(target, spaced=target.spaced or is_taken or was_spaced, atlas=atlas)


def _check_same(output_dir: Path, target: Target) -> None:
    """Refuse a template whose name another one has; a file that changed since counts as the same."""
    for path in output_dir.glob(f"sub-*/**/anat/*_from-T1w_to-{target.name}_mode-image_xfm.json"):
        try:
            sidecar = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if not isinstance(sidecar, dict) or not sidecar.get("TemplateSHA256"):
            continue
        reference = sidecar.get("SpatialReference")
        is_file = str(reference).startswith("file:") and reference == target.spatial_reference
        if sidecar["TemplateSHA256"] != target.image_checksum and not is_file:
            raise UsageError(
                f"--template {target.source.image}: OUTPUT_DIR {output_dir} holds results for another template that is "
                f"called {target.name} too ({reference}): choose another folder, or another name (tpl-NAME_T1w.nii.gz)"
            )
        return
