"""Many scans as chunks of them, so that work begins, and memory stays, as with few."""

from collections.abc import Sequence

from mmln_pipeline.workflows import Scan, Target, targets_of

SCANS_PER_PROCESSOR = 8
"""At a chunk's end processors wait for its last scan: an eighth of a chunk's time at worst, if none shared a scan."""
LEAST, MOST = 32, 256
"""Scans of a chunk; the most takes some twenty seconds to build."""


def chunk_size(nprocs: int, is_elsewhere: bool = False) -> int:
    """Return how many scans are to be built and run at a time.

    Parameters
    ----------
    nprocs : int
        Processors of this machine.
    is_elsewhere : bool, default False
        Whether other machines do the work, however many they are.

    Returns
    -------
    int

    Examples
    --------
    >>> chunk_size(2), chunk_size(16), chunk_size(2, is_elsewhere=True)
    (32, 128, 256)
    """
    return MOST if is_elsewhere else min(max(LEAST, SCANS_PER_PROCESSOR * nprocs), MOST)


def split(scans: Sequence[Scan], size: int) -> list[Sequence[Scan]]:
    """Split scans into chunks of a size, in their order; the last one takes what is left."""
    return [scans[start : start + size] for start in range(0, len(scans), size)]


def group_alike(scans: Sequence[Scan], targets: Sequence[Target]) -> list[list[Scan]]:
    """Group scans whose workflows have the same nodes and the same methods text, each group in the order of names.

    Parameters
    ----------
    scans : sequence of Scan
        The scans.
    targets : sequence of Target
        The templates of the run.

    Returns
    -------
    list of list of Scan
    """
    groups: dict[tuple, list[Scan]] = {}
    for scan in sorted(scans, key=lambda scan: scan.workflow_name):
        files = tuple(scan.has(kind) for kind in ("mask", "dseg", "lesion"))
        names = (target.name for target in targets_of(scan, targets))
        kind = (*files, len(scan.images), len(scan.along), scan.reference, *names)
        groups.setdefault(kind, []).append(scan)
    return list(groups.values())
