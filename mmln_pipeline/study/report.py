"""Tables and figures, written from the table of results and the kept slices, and from nothing else."""

from __future__ import annotations

from pathlib import Path

from mmln_pipeline.machine.files import write_text
from mmln_pipeline.study.configuration import StudyConfig
from mmln_pipeline.study.results import read_results
from mmln_pipeline.study.significance import compare_rows
from mmln_pipeline.study.tables import make_tables


def write_report(study: StudyConfig, folder: Path) -> list[Path]:
    """Write tables, tests and figures into the folder of the results; their bytes depend on its files alone.

    Parameters
    ----------
    study : StudyConfig
    folder : Path
        Holds ``results.tsv`` and, for figures 3 and 5, ``slices``.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    FileNotFoundError, ValueError
        When there are no results, or they are no table of them.
    """
    from mmln_pipeline.study.plots import write_plots

    results = read_results(folder)
    tables = make_tables(study, results)
    text = f"# {study.name}\n\n" + "\n".join(table.to_markdown() for table in tables)
    written = [write_text(folder / "tables.md", text)]
    written += [write_text(folder / f"table{table.number}.tex", table.to_latex()) for table in tables]
    tests = []
    for item in study.sets:
        rows = [row.name for row in study.rows if ((results["row"] == row.name) & (results["set"] == item.name)).any()]
        if rows:
            tests.append(compare_rows(results, rows, study.reference, [item.name]).assign(set=item.name))
    import pandas as pd

    statistics = pd.concat(tests).to_csv(sep="\t", index=False, float_format="%.6g", na_rep="n/a", lineterminator="\n")
    written.append(write_text(folder / "statistics.tsv", statistics))
    return [*written, *write_plots(study, results, folder)]
