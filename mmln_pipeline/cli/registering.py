"""``mmln register``: one pair, or the pairs of a table, one after the other or several at once."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from mmln_pipeline.cli.applying import bring, check_kind

FILES = ("fixed_dseg", "moving_dseg", "fixed_mask", "moving_mask", "moving_lesion")
"""What may belong to a pair beside its images."""
ALONG = {"apply_to": "linear", "apply_to_labels": "label"}
"""Options that name what comes along with the moving image, and how it is sampled."""
_IMAGES = (".nii", ".nii.gz", ".mgz")


class PairsError(RuntimeError):
    """Some pairs of a table failed; the others are done."""


def run_register(options: argparse.Namespace) -> None:
    """Register a pair, or all pairs of a table, and write the results."""
    from mmln_pipeline.registration.result import check_output_dir

    folder, prefix = _split_output(options)
    check_output_dir(folder, make=False)
    outputs = _parse_outputs(options.outputs)
    if options.pairs is not None:
        for name in (name for name in ALONG if getattr(options, name)):
            raise ValueError(f"{_flag(name)}: belongs to one pair, not to --pairs; use mmln apply.")
        _run_pairs(options, folder / prefix if prefix else folder, outputs)
        return
    missing = [name for name in ("fixed", "moving") if getattr(options, name) is None]
    if missing:
        raise ValueError(f"--{missing[0]}: expected an image (or --pairs, a table of many), found none.")
    if options.jobs != 1:
        raise ValueError(f"--jobs: expected --pairs beside it, found {options.jobs} jobs for one pair.")
    _run_one(options, folder, prefix, outputs)


def resolve_fixed(options: argparse.Namespace) -> None:
    """Take the image and the mask of a template, where `--fixed` is the name of one and no file."""
    name = options.fixed
    if not isinstance(name, str) or name.endswith(_IMAGES) or Path(name).exists():
        return
    from mmln_pipeline.atlas.templates import load_template

    template = load_template(name)
    options.fixed = template.image
    options.fixed_mask = options.fixed_mask or template.mask


def _run_one(options: argparse.Namespace, folder: Path, prefix: str, outputs: Sequence[str] | None) -> None:
    """Register one pair, with its stages shown, and print what came of it."""
    from mmln_pipeline.cli.commands import print_scores
    from mmln_pipeline.cli.stages import show_stages
    from mmln_pipeline.registration.api import register
    from mmln_pipeline.registration.result import QualityWarning
    from mmln_pipeline.registration.settings import Settings
    from mmln_pipeline.weights import restriction

    along = _list_along(options, folder, prefix)
    _check_outputs(vars(options), folder, prefix, outputs)
    resolve_fixed(options)
    with show_stages() as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore", QualityWarning)  # the same is printed below
        result = register(
            options.fixed,
            options.moving,
            labels=options.labels,
            **{name: getattr(options, name) for name in FILES},
            **{item.name: getattr(options, item.name) for item in fields(Settings)},
            progress=progress,
        )
        progress("save", 0, 1)
        begin = time.perf_counter()
        paths = result.save(folder, outputs, prefix)
        took = time.perf_counter() - begin
        progress("save", 1, 1)
    print_scores(result.metrics)
    seconds, device = result.metrics["seconds"], result.metrics["device"]
    if text := restriction(result.metrics["model"], result.metrics["model_license"]):
        print(f"Licence    {text}")
    print(f"Time       {seconds['total'] + took:.1f} s (network {seconds['network']:.1f} s) on {device}")
    print(f"Written to {folder}: {', '.join(path.name for path in paths.values())}")
    for path, output, interpolation in along:
        bring(path, output, result.transform, result.inverse, result.fixed, interpolation)


def _list_along(options: argparse.Namespace, folder: Path, prefix: str) -> list[tuple[str, Path, str]]:
    """Return each file that comes along with its output and interpolation, checked before any work."""
    from mmln_pipeline.images.series import count_volumes
    from mmln_pipeline.images.volumes import load_labels
    from mmln_pipeline.machine.files import is_same_file
    from mmln_pipeline.registration.result import OUTPUTS

    found = []
    taken = {f"{prefix}{name}": "a part of the result" for name in OUTPUTS.values()}
    for option, interpolation in ALONG.items():
        for path in getattr(options, option):
            output = folder / f"{prefix}{Path(path).name}"
            if output.name in taken:
                raise ValueError(f"{_flag(option)}: '{path}' would be called like {taken[output.name]}: '{output}'.")
            if is_same_file(output, path):
                raise ValueError(f"{_flag(option)}: '{path}' lies where its result goes; choose another folder.")
            check_kind(path, output, _flag(option))
            if interpolation == "label" and count_volumes(path) == 1:
                load_labels(path, _flag(option))
            taken[output.name] = f"'{path}'"
            found.append((path, output, interpolation))
    return found


def _check_outputs(
    given: Mapping[str, Any], folder: Path, prefix: str = "", outputs: Sequence[str] | None = None
) -> None:
    """Refuse to write a result over an image that is registered, or what belongs to it."""
    from mmln_pipeline.machine.files import is_same_file
    from mmln_pipeline.registration.result import OUTPUTS

    for name in ("fixed", "moving", *FILES):
        path = given.get(name)
        for output in (folder / f"{prefix}{OUTPUTS[part]}" for part in outputs or OUTPUTS):
            if path and is_same_file(output, path):
                raise ValueError(f"{_flag(name)}: '{path}' lies where a result goes; choose another folder.")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _split_output(options: argparse.Namespace) -> tuple[Path, str]:
    """Return the folder for the results, and what their names begin with."""
    if options.output_dir is not None:
        return Path(options.output_dir), ""
    folder, prefix = os.path.split(options.output_prefix)
    return Path(folder or "."), prefix


def _parse_outputs(text: str | None) -> tuple[str, ...] | None:
    """Read which parts of a result to write; None for all."""
    from mmln_pipeline.machine.options import suggest
    from mmln_pipeline.registration.result import OUTPUTS

    names = None if text is None else tuple(part.strip() for part in text.split(","))
    for name in names or ():
        if name not in OUTPUTS:
            known = ", ".join(OUTPUTS)
            raise ValueError(f"--outputs: expected some of {known}, found {name!r}{suggest(name, OUTPUTS)}")
    return names


# ------------------------------------------------------------------------------------------------ tables of pairs


def _run_pairs(options: argparse.Namespace, root: Path, outputs: Sequence[str] | None) -> None:
    """Register the pairs of a table that are not done; name those that fail, and go on."""
    from mmln_pipeline.machine.progress import progress_bar
    from mmln_pipeline.registration import steps
    from mmln_pipeline.registration.settings import Settings
    from mmln_pipeline.weights import read_licence, restriction

    settings = Settings(**{item.name: getattr(options, item.name) for item in fields(Settings)})
    steps.check(settings)
    if options.jobs > 1 and settings.threads is None:
        settings = replace(settings, threads=max(1, (os.cpu_count() or 1) // options.jobs))
    rows = _read_pairs(Path(options.pairs), options)
    wanted = outputs if outputs is None else (*outputs, *(["metrics"] if "metrics" not in outputs else []))
    todo = [row for row in rows if not _is_done(row, root / row["name"], settings)]
    print(f"{len(rows) - len(todo)} of {len(rows)} pairs are done already", flush=True)
    if text := restriction(str(settings.model), read_licence(settings.model)):
        print(f"Licence: {text}", flush=True)
    failed = {}
    with progress_bar("pairs", len(rows), len(rows) - len(todo)) as advance:
        tasks = [(row, root / row["name"], settings, options.labels, wanted) for row in todo]
        for name, cause in _work(tasks, options.jobs):
            if cause:
                failed[name] = cause
                print(f"mmln: error: {name}: {cause}", file=sys.stderr, flush=True)
            advance(name)
    if failed:
        raise PairsError(f"{len(failed)} of {len(rows)} pairs failed ({', '.join(failed)}); the others are done")


def _work(tasks: Sequence[tuple[Any, ...]], jobs: int) -> Iterator[tuple[str, str]]:
    """Yield each pair's name and, if it failed, the cause, as they end."""
    if jobs == 1:
        yield from (_register_row(*task) for task in tasks)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(_register_row, *task): task[0]["name"] for task in tasks}
        for future in as_completed(futures):
            error = future.exception()  # a process that was killed
            yield (futures[future], f"{type(error).__name__}: {error}") if error else future.result()


def _register_row(
    row: dict[str, str], folder: Path, settings: Any, labels: str | None, outputs: Sequence[str] | None
) -> tuple[str, str]:
    """Register one pair of a table; return its name and why it failed, or nothing."""
    from mmln_pipeline.machine.reading import explain
    from mmln_pipeline.registration import steps
    from mmln_pipeline.registration.pair import load_pair
    from mmln_pipeline.registration.result import QualityWarning

    start = time.perf_counter()
    pair = argparse.Namespace(**{name: row.get(name) for name in ("fixed", "moving", *FILES)})
    try:
        with warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore", QualityWarning)  # the verdict is in metrics.json
            _check_outputs(row, folder, outputs=outputs)
            resolve_fixed(pair)
            images = load_pair(labels=labels, **vars(pair))
            result = steps.run(images, settings, start, loaded=_load_model(str(settings.model)))
            result.save(folder, outputs)
    except Exception as error:
        return row["name"], explain(error)
    return row["name"], ""


@cache
def _load_model(name: str) -> Any:
    """Load a model once a process; the first pair takes it to its device, where it stays."""
    from mmln_pipeline import weights

    return weights.load_model(name, "cpu")


@contextmanager
def _quiet() -> Iterator[None]:
    """Let warnings of many pairs be one line each."""
    shown = warnings.showwarning
    warnings.showwarning = lambda message, *_: print(f"mmln: warning: {message}", file=sys.stderr)
    try:
        yield
    finally:
        warnings.showwarning = shown


def _read_pairs(path: Path, options: argparse.Namespace) -> list[dict[str, str]]:
    """Read a table of pairs, and check names and files before any work."""
    import pandas as pd

    if not path.is_file():
        raise FileNotFoundError(f"--pairs {path}: no such file")
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    known = ("name", "fixed", "moving", *FILES)
    strange = [column for column in table.columns if column not in known]
    given = {name: getattr(options, name) for name in ("fixed", "moving") if getattr(options, name)}
    lacking = [name for name in ("fixed", "moving") if name not in (*table.columns, *given)]
    if strange or lacking or table.empty:
        found = ", ".join(table.columns)
        raise ValueError(f"--pairs {path}: expected rows with the columns {', '.join(known)}, found {found}")
    rows = []
    for number, record in enumerate(table.to_dict("records"), start=1):
        row = {k: v if k == "name" else _place(v, path.parent) for k, v in record.items() if v} | given
        for column, value in row.items():
            is_template = column == "fixed" and not value.endswith(_IMAGES)
            if column != "name" and not is_template and not Path(value).is_file():
                raise FileNotFoundError(f"--pairs {path}, row {number}: {column}: no such file: '{value}'")
        if "fixed" not in row or "moving" not in row:
            raise ValueError(f"--pairs {path}, row {number}: expected a fixed and a moving image, found {record}")
        row.setdefault("name", f"{_stem(row['moving'])}_to_{_stem(row['fixed'])}")
        rows.append(row)
    names = [row["name"] for row in rows]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"--pairs {path}: two rows are called '{twice}'; give each a name of its own")
    return rows


def _place(value: str, folder: Path) -> str:
    """Return where a file of a table is: beside the table, if it is not a path by itself; names of templates stay."""
    return str(folder / value) if (folder / value).exists() else value


def _stem(path: str) -> str:
    return Path(path).name.removesuffix(".gz").removesuffix(".nii").removesuffix(".mgz").replace(":", "")


def _is_done(row: dict[str, str], folder: Path, settings: Any) -> bool:
    """Tell whether a pair's scores are there, as these settings make them, and newer than all that they are of."""
    metrics = folder / "metrics.json"
    try:
        found, made = json.loads(metrics.read_text(encoding="utf-8")), metrics.stat().st_mtime
    except (OSError, ValueError):
        return False
    asked = {"init": settings.init_name, "refine": settings.refine, "random_seed": settings.random_seed}
    is_same = all(found.get(name) == value for name, value in asked.items())
    is_same = is_same and found["model"] in (str(settings.model), Path(settings.model).stem)
    is_same = is_same and found["topology"]["mode"] == settings.topology
    files = [Path(value) for column, value in row.items() if column != "name"]
    return is_same and all(file.stat().st_mtime <= made for file in files if file.is_file())
