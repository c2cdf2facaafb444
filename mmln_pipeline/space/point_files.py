"""Points, surfaces and tractograms in files, brought along by a transform.

Each holds millimetres of a world: tables RAS+ or ITK's LPS+, GIFTI and tractograms (through NiBabel) RAS+.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel import Nifti1Image
from nibabel.streamlines import LazyTractogram, TckFile, TrkFile
from numpy.typing import NDArray

from mmln_pipeline.machine.files import atomic_path, why_unreadable
from mmln_pipeline.machine.reading import UNREADABLE, explain
from mmln_pipeline.space.grids import Grid
from mmln_pipeline.space.itk import itk_points

TABLES, SURFACES, TRACTS = {".csv": ",", ".tsv": "\t"}, (".gii",), (".trk", ".tck")
POINT_SUFFIXES = (*TABLES, *SURFACES, *TRACTS)
"""How files of points end: tables, surfaces, tractograms."""
WORLDS = ("lps", "ras")
"""Directions in which a table's numbers grow."""
Mapping = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Maps points, shape (N, 3), RAS+ mm."""
_STREAMLINES = 5000
_SURFACE_CENTRE = ("VolGeomC_R", "VolGeomC_A", "VolGeomC_S")
_POINTSET = "NIFTI_INTENT_POINTSET"


def is_points(path: str | os.PathLike[str]) -> bool:
    """Tell by its name whether a file holds points, a surface or a tractogram."""
    return os.fspath(path).endswith(POINT_SUFFIXES)


def map_file(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    mapping: Mapping,
    world: str | None = None,
    reference: Nifti1Image | None = None,
) -> Path:
    """Map all points of a file and write the same kind of file; what belongs to them stays.

    Parameters
    ----------
    path, output : path-like
        Of one kind: .csv or .tsv, .gii, .trk or .tck.
    mapping : callable
        Maps points, RAS+ mm.
    world : {"lps", "ras"}, optional
        Of a table's numbers. Default: by the columns' names, ``l p s`` or ``r a s``; ``x y z`` are LPS in .csv, as ANTs
        has them.
    reference : Nifti1Image, optional
        Grid of the space where the points end, for the header of a .trk.

    Returns
    -------
    Path
        The file written, atomically.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file cannot be read, holds no points, or the output is of another kind.
    """
    path, output = Path(path), Path(output)
    if not path.is_file():
        raise FileNotFoundError(f"points {path}: {why_unreadable(path)}")
    kinds = [tuple(TABLES), SURFACES, (".trk",), (".tck",)]
    kind = next((kind for kind in kinds if path.suffix in kind), POINT_SUFFIXES)
    if path.suffix not in kind or output.suffix not in kind:
        raise ValueError(f"{output}: expected the kind of {path.name} ({' or '.join(kind)}), found {output.suffix!r}")
    try:
        if path.suffix in TABLES:
            _map_table(path, output, mapping, world)
        elif path.suffix in SURFACES:
            _map_surface(path, output, mapping)
        else:
            _map_tracts(path, output, mapping, reference)
    except (*UNREADABLE, TypeError, KeyError) as error:
        raise ValueError(f"points {path}: {explain(error)}") from error
    return output


def _map_table(path: Path, output: Path, mapping: Mapping, world: str | None) -> None:
    """Map the points of a table; every other column stays as it was written."""
    table = pd.read_csv(path, sep=TABLES[path.suffix], dtype=str, keep_default_na=False)
    names = {name.strip().lower(): name for name in table.columns}
    axes = next((axes for axes in ("lps", "ras", "xyz") if set(axes) <= set(names)), None)
    if axes is None:
        raise ValueError(f"expected the columns x y z, l p s or r a s, found {', '.join(table.columns)}")
    if world is None and axes == "xyz" and path.suffix != ".csv":
        raise ValueError("x, y and z may be LPS, as ITK and ANTs have them, or RAS; say --points lps or --points ras")
    world = (axes if axes in WORLDS else "lps") if world is None else world
    columns = [names[axis] for axis in axes]
    points = table[columns].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if bad.size:
        row = int(bad[0])
        raise ValueError(f"expected three numbers a row, found {table[columns].iloc[row].tolist()} in row {row + 1}")
    turn = itk_points if world == "lps" else np.asarray
    moved = turn(mapping(turn(points))) if len(points) else points
    for axis, column in enumerate(columns):
        table[column] = [f"{value:.6f}" for value in moved[:, axis]]
    with atomic_path(output) as temporary:
        table.to_csv(temporary, sep=TABLES[output.suffix], index=False)


def _map_surface(path: Path, output: Path, mapping: Mapping) -> None:
    """Map the vertices of a GIFTI surface."""
    surface: Any = nib.load(path)
    arrays = surface.get_arrays_from_intent(_POINTSET)
    if not arrays:
        raise ValueError("expected a surface, found no vertices (NIFTI_INTENT_POINTSET)")
    for array in arrays:
        # FreeSurfer counts from the centre of its volume and says in the header where that lies, as fMRIPrep reads it.
        centre = np.array([float(array.meta.get(name, 0.0)) for name in _SURFACE_CENTRE])
        for name in _SURFACE_CENTRE:
            if name in array.meta:
                array.meta[name] = "0.000000"
        array.data = mapping(array.data.astype(np.float64) + centre).astype(np.float32)
    with atomic_path(output) as temporary:
        nib.save(surface, temporary)


def _map_tracts(path: Path, output: Path, mapping: Mapping, reference: Nifti1Image | None) -> None:
    """Map a tractogram, some thousand streamlines at a time."""
    kind: Any = TrkFile if path.suffix == ".trk" else TckFile
    source = kind.load(path, lazy_load=True)
    header = dict(source.header)
    if reference is not None and kind is TrkFile:
        grid = Grid.of(reference)
        header |= {
            "voxel_to_rasmm": grid.affine.astype(np.float32),
            "voxel_sizes": grid.spacing.astype(np.float32),
            "dimensions": np.array(grid.shape, dtype=np.int16),
            "voxel_order": "".join(grid.axes).encode(),
        }
    # One function a part: of streamlines and their data from one function, NiBabel does not turn the points.
    lazy = source.tractogram
    moved = LazyTractogram(
        lambda: _map_streamlines(lazy.streamlines, mapping),
        {key: partial(lazy.data_per_streamline.__getitem__, key) for key in lazy.data_per_streamline},
        {key: partial(lazy.data_per_point.__getitem__, key) for key in lazy.data_per_point},
        affine_to_rasmm=np.eye(4),
    )
    with atomic_path(output) as temporary:
        kind(moved, header).save(temporary)


def _map_streamlines(lines: Iterator[NDArray], mapping: Mapping) -> Iterator[NDArray[np.float32]]:
    """Yield streamlines, RAS+ mm, with their points mapped."""
    while batch := list(islice(lines, _STREAMLINES)):
        ends = np.cumsum([len(line) for line in batch])
        points = mapping(np.concatenate(batch).astype(np.float64))
        yield from np.split(points.astype(np.float32), ends[:-1])
