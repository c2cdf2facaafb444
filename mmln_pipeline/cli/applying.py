"""``mmln apply``: bring anything along with a transform: images, labels, series, points, surfaces, tractograms."""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

IMAGE_SUFFIXES = (".nii", ".nii.gz", ".mgz")


def run_apply(options: argparse.Namespace) -> None:
    """Bring each input along, through one chain of transforms."""
    from mmln_pipeline.space.other_tools import read_alone
    from mmln_pipeline.space.transforms import read_chain

    pairs = _pair_with_outputs(options.input, options.output)
    _check_files(pairs, options)
    transform = read_chain(options.transform, read_alone)
    reference = _read_reference(options.reference, options.spacing) if options.reference else None
    back = transform.inverse() if any(_is_points(path) for path, _ in pairs) else None
    for path, output in pairs:
        bring(path, output, transform, back, reference, options.interpolation, options.points)


def bring(
    path: str, output: Path, transform: Any, back: Any, reference: Any, interpolation: str, world: str | None = None
) -> None:
    """Bring one file along, and say so: what has voxels through a transform, points through the way back.

    Parameters
    ----------
    path : str
        Image, series, table of points, surface or tractogram.
    output : Path
        File of the same kind.
    transform, back : Transform
        From the reference's world to the file's, and back, which only points need.
    reference : Nifti1Image
        Grid to resample onto.
    interpolation : str
        One of `mmln_pipeline.space.interpolation.INTERPOLATIONS`.
    world : {"lps", "ras"}, optional
        Of a table's numbers.
    """
    if _is_points(path):
        from mmln_pipeline.space.point_files import map_file

        map_file(path, output, back.map_points, world, reference)
    else:
        _resample(path, output, transform, reference, interpolation)
    print(f"Written to {output}")


def _pair_with_outputs(inputs: Sequence[str], output: str) -> list[tuple[str, Path]]:
    """Return each input with its output: a file for one, files of the same names in a folder for several."""
    is_folder = output.endswith(os.sep) or len(inputs) > 1
    if not is_folder:
        if Path(output).is_dir():
            raise ValueError(f"--output: '{output}' is a folder; give the name of a file, or '{output}/'.")
        return [(inputs[0], Path(output))]
    if Path(output).is_file() or _suffixes(output):
        raise ValueError(f"--output: expected a folder for {len(inputs)} inputs, found '{output}'.")
    pairs = [(path, Path(output) / Path(path).name) for path in inputs]
    names = [target.name for _, target in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"--output: two inputs are called '{twice}' and would be one file in '{output}'.")
    return pairs


def _check_files(pairs: Sequence[tuple[str, Path]], options: argparse.Namespace) -> None:
    """Check before any work what each input needs, and that nothing is written over what is read."""
    from mmln_pipeline.machine.files import is_same_file
    from mmln_pipeline.space.transforms import split_name

    for path, output in pairs:
        check_kind(path, output)
        if options.reference is None and not _is_points(path):
            raise ValueError(f"--reference: expected the image whose grid {path} is resampled onto, found none.")
        read = [("input", path), ("reference", options.reference or "")]
        read += [("transform", split_name(name)[0]) for name in options.transform]
        for name, given in read:
            if is_same_file(output, given):
                raise ValueError(f"--output: '{output}' is the {name} itself; give another name.")
    if options.spacing and options.reference is None:
        raise ValueError("--spacing: expected --reference too, whose field of view it divides; found none.")


def check_kind(path: str, output: Path, option: str = "--output") -> None:
    """Check that an input is there, and that its output can be of the same kind; an error names the option."""
    from mmln_pipeline.images.series import SERIES_SUFFIXES, count_volumes

    allowed = _suffixes(path) if _is_points(path) else IMAGE_SUFFIXES
    if not output.name.endswith(allowed):
        raise ValueError(f"{option}: expected a name that ends in {' or '.join(allowed)}, found '{output}'.")
    if not Path(path).exists():
        raise FileNotFoundError(f"input {path}: no such file")
    if count_volumes(path) > 1 and not output.name.endswith(SERIES_SUFFIXES):
        raise ValueError(f"{option}: a series needs the suffix {' or '.join(SERIES_SUFFIXES)}, found '{output}'.")


def _read_reference(text: str, spacing: Sequence[float] | None) -> Any:
    """Return an image that has the grid to resample onto: of a file, or of a template by its name."""
    import nibabel as nib
    import numpy as np

    from mmln_pipeline.atlas.templates import load_template
    from mmln_pipeline.images.series import count_volumes
    from mmln_pipeline.images.volumes import load_image
    from mmln_pipeline.space.grids import Grid, affine_in_mm, new_image

    if not text.endswith(IMAGE_SUFFIXES) and not Path(text).exists():
        image = load_template(text).image
    elif count_volumes(text) == 1:
        image = load_image(text, name="reference image")
    else:  # of a series only the grid counts
        series: Any = nib.load(text)
        empty = np.broadcast_to(np.uint8(0), series.shape[:3])
        image = new_image(empty, Grid(series.shape[:3], affine_in_mm(series)), like=series)
    if not spacing:
        return image
    grid = Grid.of(image).with_spacing(spacing)
    return new_image(np.broadcast_to(np.uint8(0), grid.shape), grid, like=image)


def _resample(path: str, output: Path, transform: Any, reference: Any, interpolation: str) -> None:
    """Resample an image or a series."""
    from mmln_pipeline.images import series, volumes
    from mmln_pipeline.machine.progress import progress_bar
    from mmln_pipeline.space.interpolation import FOR_LABELS

    n_volumes = series.count_volumes(path)
    if n_volumes > 1:
        with progress_bar(Path(path).name, n_volumes) as advance:
            series.resample_series(path, output, transform, reference, interpolation, advance)
        return
    if interpolation == "label":
        image = volumes.load_labels(path, name="input image")
    else:  # nearest may be asked for labels as well: whatever it picks stays as it is
        image = volumes.load_image(path, name="input image", exact=interpolation == "nearest")
    if interpolation not in FOR_LABELS and _looks_like_labels(image):
        warnings.warn(
            f"input image {path}: whole numbers, as labels have; {interpolation} interpolation mixes them: "
            "--interpolation label keeps them",
            stacklevel=2,
        )
    volumes.save_image(transform.resample(image, reference, interpolation), output)


def _looks_like_labels(image: Any) -> bool:
    """Tell whether an image of whole numbers has so few of them, or such large areas of one, that they are labels."""
    import numpy as np

    data = np.asanyarray(image.dataobj)
    if data.dtype.kind not in "iu":
        return False
    inside = data[1:] != 0
    return bool(inside.any() and (data[1:] == data[:-1])[inside].mean() > 0.5)


def _is_points(path: str) -> bool:
    from mmln_pipeline.space.point_files import is_points

    return is_points(path)


def _suffixes(path: str) -> tuple[str, ...]:
    """Return how a file of a known kind may end; empty for a kind that is not known."""
    from mmln_pipeline.space.point_files import POINT_SUFFIXES, TABLES

    if path.endswith(tuple(TABLES)):
        return tuple(TABLES)
    return tuple(suffix for suffix in (*IMAGE_SUFFIXES, *POINT_SUFFIXES) if path.endswith(suffix))
