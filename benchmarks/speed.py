"""Time whole commands side by side: builds of this package, greedy, ANTs; one pair after the other, interleaved.

Every command starts a process of its own and is timed until it exits, with its CPU-seconds and its peak memory. What
counts are ratios within one run on an otherwise idle machine.

Example, with the Python of an older build's environment beside this one's:
python benchmarks/speed.py ../shared/bench --output benchmarks/results --build before=../before/.venv/bin/python
    --build now=.venv/bin/python --greedy .venv/bin/python --against greedy
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from mmln_pipeline.machine.files import write_text

MEASURES = ["seconds", "cpu_seconds", "peak_memory_mb"]
PROGRAM = "import sys; from mmln_pipeline.cli import main; sys.exit(main())"
GREEDY = """
import sys, picsl_greedy
options = "-d 3 -m NCC 2x2x2 -n 100x50x10 -i {} {} -o {} -threads {}"
picsl_greedy.Greedy3D().execute(options.format(*sys.argv[1:]))
"""
SYN = """
import sys, ants
fixed, moving = map(ants.image_read, sys.argv[1:3])
ants.registration(fixed, moving, "SyNOnly", initial_transform="identity", outprefix=sys.argv[3] + "/syn")
"""


def list_commands(
    builds: dict[str, str], greedy: str | None, has_syn: bool, threads: int
) -> Iterator[tuple[str, list[str]]]:
    """List the rows' names and commands, with ``{fixed}``, ``{moving}`` and ``{out}`` to be filled in."""
    register = ["register", "--fixed={fixed}", "--moving={moving}", "--output-dir={out}", "--init=identity"]
    for name, python in builds.items():
        for refine, what in (("auto", "refined"), ("0", "network only")):
            options = [*register, f"--refine={refine}", f"--threads={threads}", "--device=cpu"]
            yield f"{name}, {what}", [python, "-I", "-c", PROGRAM, *options]  # not what the working folder holds
    if greedy:
        yield "greedy", [greedy, "-c", GREEDY, "{fixed}", "{moving}", "{out}/warp.nii.gz", str(threads)]
    if has_syn:
        yield "SyN (antspyx)", [sys.executable, "-c", SYN, "{fixed}", "{moving}", "{out}"]


def measure(command: Sequence[str], threads: int) -> dict[str, float]:
    """Run a command and return its seconds, its CPU-seconds and its peak memory."""
    environment = os.environ | dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"), str(threads)
    )
    with tempfile.TemporaryFile() as said:
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        if status:
            said.seek(0)
            raise RuntimeError(f"{command[0]} failed: {said.read().decode(errors='replace')[-2000:]}")
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_memory_mb": usage.ru_maxrss / 1024,
    }


def _fill(part: str, places: dict[str, object]) -> str:
    """Put paths in the place of their names in braces."""
    for name, path in places.items():
        part = part.replace(f"{{{name}}}", str(path))
    return part


def summarize(rows: pd.DataFrame, against: str) -> pd.DataFrame:
    """Return each row's medians, and the median and range of its seconds by those of `against`, pair by pair."""
    wide = rows.pivot(index="pair", columns="method", values="seconds")
    ratios = wide.div(wide[against], axis=0)
    table = rows.groupby("method", sort=False)[MEASURES].median()
    table["ratio"] = ratios.median()
    table["lowest"], table["highest"] = ratios.min(), ratios.max()
    return table.reset_index()


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", type=Path, help="folder of pairs.tsv and aligned/ID_T1w.nii.gz")
    parser.add_argument("--output", type=Path, required=True, help="folder of speed.tsv and speed.md")
    parser.add_argument("--build", action="append", default=[], metavar="NAME=PYTHON", help="a build, repeatable")
    parser.add_argument("--greedy", metavar="PYTHON", help="a Python that has picsl-greedy")
    parser.add_argument("--syn", action="store_true", help="time SyN of antspyx (its defaults) too")
    parser.add_argument("--against", default="greedy", help="the row that ratios are against (default: greedy)")
    parser.add_argument("--pairs", type=int, help="only the first so many pairs")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    builds = dict(build.split("=", 1) for build in options.build) or {"mmln": sys.executable}
    commands = list(list_commands(builds, options.greedy, options.syn, options.threads))
    pairs = pd.read_csv(options.bench / "pairs.tsv", sep="\t", dtype=str)[: options.pairs]
    rows = []
    for pair in pairs.itertuples():
        places = {role: options.bench / "aligned" / f"{getattr(pair, role)}_T1w.nii.gz" for role in ("fixed", "moving")}
        for name, command in commands:
            with tempfile.TemporaryDirectory() as out:
                filled = [_fill(part, {**places, "out": out}) for part in command]
                rows.append(
                    {"pair": f"{pair.moving} to {pair.fixed}", "method": name, **measure(filled, options.threads)}
                )
            print({k: round(v, 1) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    frame = pd.DataFrame(rows)
    write_text(options.output / "speed.tsv", frame.to_csv(sep="\t", index=False, float_format="%.2f"))
    table = summarize(frame, options.against)
    note = (
        f"Medians over {len(pairs)} pairs, {options.threads} threads, {platform.machine()}; ratio: of the seconds to "
        f"those of {options.against} on the same pair, median, lowest and highest.\n"
    )
    write_text(options.output / "speed.md", table.to_markdown(index=False, floatfmt=".2f") + f"\n\n{note}")
    print(table.to_markdown(index=False, floatfmt=".2f"))


if __name__ == "__main__":
    main()
