"""Writing results: atomic, and only where the content changes, so that a repeated run touches no file."""

import json
import os
import shutil
from filecmp import cmp
from pathlib import Path

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from mmln_pipeline.machine.files import atomic_path


def put_file(source: str | os.PathLike, target: str | os.PathLike) -> bool:
    """Copy a file unless the target holds the same bytes already.

    Parameters
    ----------
    source : path
        File to copy.
    target : path
        Where it goes; folders are made.

    Returns
    -------
    bool
        Whether anything was written.
    """
    target = Path(target)
    if target.is_file() and cmp(source, target, shallow=False):
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
    return True


def put_text(text: str, target: str | os.PathLike) -> bool:
    """Write text unless the target holds the same text already.

    Parameters
    ----------
    text : str
        Whole content, written as UTF-8.
    target : path
        Where it goes; folders are made.

    Returns
    -------
    bool
        Whether anything was written.
    """
    target = Path(target)
    data = text.encode("utf-8")
    if target.is_file() and target.read_bytes() == data:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        Path(temporary).write_bytes(data)
    return True


def to_json(content: dict) -> str:
    """Return a dictionary as indented JSON that ends with a line feed."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _check_owner(target: Path, template: str) -> None:
    """Refuse to replace what another template left, which a run at the same time may have."""
    try:
        content = json.loads(target.with_name(f"{target.name.split('.')[0]}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    owner = content.get("Template", content.get("template")) if isinstance(content, dict) else None
    if isinstance(owner, str) and owner != template:
        raise ValueError(
            f"{target}: expected results of template {template}, found those of {owner}, made at the same time: run "
            "again, and names will tell them apart"
        )


class _SaveDerivativeInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="file in the work directory")
    out_file = traits.Str(mandatory=True, desc="absolute path of the derivative")
    metadata = traits.Dict(desc="content of the JSON sidecar (default: no sidecar)")
    template = traits.Str(desc="name of the template: a file of this name that is another template's is not replaced")


class _SaveDerivativeOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="path of the derivative")


class SaveDerivative(SimpleInterface):
    """Copy a result to its derivative's name, with a JSON sidecar.

    It runs in every run, so that a derivative deleted by hand comes back, and writes only what differs.
    """

    input_spec = _SaveDerivativeInputSpec
    output_spec = _SaveDerivativeOutputSpec
    _always_run = True

    def _run_interface(self, runtime):
        target = Path(self.inputs.out_file)
        if isdefined(self.inputs.template):
            _check_owner(target, self.inputs.template)
        put_file(self.inputs.in_file, target)
        if isdefined(self.inputs.metadata):
            stem = target.name.split(".")[0]
            put_text(to_json(self.inputs.metadata), target.with_name(f"{stem}.json"))
        self._results["out_file"] = str(target)
        return runtime
