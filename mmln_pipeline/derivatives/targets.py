"""What images are registered to: a template with its labels, by the names that its outputs carry."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mmln_pipeline.atlas.sources import TemplateSource
from mmln_pipeline.atlas.templates import EMBEDDED, TISSUES
from mmln_pipeline.derivatives.scans import Scan
from mmln_pipeline.derivatives.sidecars import Provenance
from mmln_pipeline.images.volumes import DARK_SHARE


@dataclass(frozen=True)
class Target:
    """One template to register to.

    Attributes
    ----------
    name : str
        Name of the template, as in `space-<name>`.
    spatial_reference : str
        Name of a standard template, or the URI of its image.
    source : TemplateSource
        Where it comes from.
    atlas : str or None
        Name of its labels, as in `seg-<atlas>`; None where it has none.
    label_names : mapping of int to str
        Names of its labels.
    compare_labels : bool
        Whether its labels and those of the scans share one numbering, and so can be scored.
    checksum : str
        Of image, mask and labels: after a change of one, all is registered anew.
    image_checksum : str
        Of the image inside its mask: tells whether two templates of one name are the same.
    spaced : bool
        Whether the names of its scores say the template: the run, or the dataset, has another's.
    suffix : str
        What tells the fields of this target from those of the run's others; empty where it is the only one.
    formats : tuple of str
        Other tools that get the transforms as their own files.
    votes : bool
        Whether its labels are fused with those of others.
    dark_share : float
        Intensity of its darkest voxels per that of its brightest, which brains without a zero are lifted to.
    """

    name: str
    spatial_reference: str
    source: TemplateSource
    atlas: str | None = None
    label_names: Mapping[int, str] = field(default_factory=dict)
    compare_labels: bool = False
    checksum: str = ""
    image_checksum: str = ""
    spaced: bool = False
    suffix: str = ""
    formats: tuple[str, ...] = ()
    votes: bool = True
    dark_share: float = DARK_SHARE

    @property
    def workflow_name(self) -> str:
        """Return a node name that no other target has.

        Examples
        --------
        >>> Target("MNIPediatricAsym+2", "", TemplateSource("")).workflow_name
        'to_MNIPediatricAsym_2_wf'
        """
        return f"to_{self._field_name}_wf"

    @property
    def _field_name(self) -> str:
        return re.sub(r"[^0-9a-zA-Z]", "_", self.name)

    @property
    def files(self) -> dict[str, str]:
        """Return the files that are there of it, by what they are."""
        parts = {"template": self.source.image, "template mask": self.source.mask, "template labels": self.source.dseg}
        return {name: str(path) for name, path in parts.items() if path is not None and Path(path).is_file()}

    def describe(self, provenance: Provenance) -> Provenance:
        """Return what a run says about itself, with this target as its template."""
        return replace(
            provenance,
            template=self.name,
            template_sha256=self.image_checksum,
            spatial_reference=self.spatial_reference,
        )

    def shows(self, scan: Scan) -> bool:
        """Tell whether the template is the scan itself, which is not registered to itself."""
        own = Path(self.source.image)
        return own.is_file() and any(image.t1w.is_file() and own.samefile(image.t1w) for image in scan.images)


EMBEDDED_TARGET = Target(
    EMBEDDED, EMBEDDED, TemplateSource(EMBEDDED), "tissue", dict(zip(TISSUES["index"], TISSUES["name"], strict=True))
)
"""The embedded template with its tissue labels."""


def tell_apart(targets: Sequence[Target]) -> tuple[Target, ...]:
    """Let fields and names of scores say which of several targets they are of.

    Parameters
    ----------
    targets : sequence of Target
        The targets of a run.

    Returns
    -------
    tuple of Target
        The same; of several, each with its suffix.

    Examples
    --------
    >>> [target.suffix for target in tell_apart([EMBEDDED_TARGET, replace(EMBEDDED_TARGET, name="other")])]
    ['_MNI152NLin2009aSym', '_other']
    """
    if len(targets) < 2:
        return tuple(targets)
    return tuple(replace(target, spaced=True, suffix=f"_{target._field_name}") for target in targets)


def targets_of(scan: Scan, targets: Sequence[Target]) -> tuple[Target, ...]:
    """Return the targets that a scan is registered to: all but itself.

    Parameters
    ----------
    scan : Scan
        The scan.
    targets : sequence of Target
        The targets of the run.

    Returns
    -------
    tuple of Target
    """
    return tuple(target for target in targets if not target.shows(scan))


def fused_targets(targets: Sequence[Target]) -> tuple[Target, ...]:
    """Return the targets whose labels are fused: all that have some and vote, if there are at least two.

    Parameters
    ----------
    targets : sequence of Target
        What a scan is registered to.

    Returns
    -------
    tuple of Target
    """
    labelled = tuple(target for target in targets if target.atlas and target.votes)
    return labelled if len(labelled) > 1 else ()
