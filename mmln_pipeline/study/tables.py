"""The paper's four tables from the table of results, in Markdown and in LaTeX."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from mmln_pipeline.study.configuration import Row, StudyConfig
from mmln_pipeline.study.results import by_pair, costs
from mmln_pipeline.study.significance import compare_rows

NOTHING = "–"


@dataclass(frozen=True)
class Column:
    """A column of scores.

    Parameters
    ----------
    score : str
        Column of the results.
    digits : int
    text, latex : str
        Its heading.
    """

    score: str
    digits: int
    text: str
    latex: str


COLUMNS = (
    Column("dice", 3, "Dice", "Dice"),
    Column("folding_percent", 4, "%&#124;J&#124;≤0", r"$\%|J_\phi|_{\le 0}$"),
    Column("tc", 3, "TC", "TC"),
    Column("dice_cortex", 3, "Dice, cortex", "Dice, cortex"),
    Column("folding_percent_brain", 4, "%&#124;J&#124;≤0, brain", r"$\%|J_\phi|_{\le 0}$, brain"),
    Column("ndv_percent", 4, "NDV, %", r"NDV, \%"),
    Column("hd95_mm", 2, "HD95, mm", "HD95, mm"),
    Column("sdlogj", 3, "SDlogJ", "SDlogJ"),
    Column("sdlogj_learn2reg", 3, "SDlogJ, Learn2Reg", "SDlogJ, Learn2Reg"),
)
TITLES = {
    1: "All methods on the set {sets}",
    2: "The same on other collections, which no row has learned from: {sets}",
    3: "With and without the core strengthening strategy, on the set {sets}",
    4: "With and without the multi-dimensional joint strategy, on the set {sets}",
}
NOTES = (
    "Mean (standard deviation) over the pairs; a pair's scores are averaged over the seeds of a row first.",
    "p: paired Wilcoxon test of Dice against {reference}, corrected for the number of rows by Holm; pairs share scans, "
    "so take it as a guide. Those of the other scores stand in statistics.tsv.",
    "{improvements}Time: median seconds of a registration by a method that has run before (* none had), {threads}.",
    "Memory: peak of the whole process, GiB, in training and in registration. Scored on voxels of {scored} mm.",
)


@dataclass(frozen=True)
class Table:
    """A table as text.

    Parameters
    ----------
    number : int
        The paper's.
    title : str
    header, latex_header : list of str
    blocks : list of (title, rows)
        One a test set.
    notes : list of str
    """

    number: int
    title: str
    header: list[str]
    latex_header: list[str]
    blocks: list[tuple[str, list[list[str]]]]
    notes: list[str] = field(default_factory=list)

    def to_markdown(self) -> str:
        """Return the table in Markdown."""
        lines = [f"## Table {self.number}. {self.title}", ""]
        for title, rows in self.blocks:
            lines += [f"**{title}**", ""] if len(self.blocks) > 1 else []
            lines += [_bar(self.header), _bar(["---"] * len(self.header)), *map(_bar, rows), ""]
        return "\n".join([*lines, *self.notes, ""])

    def to_latex(self) -> str:
        """Return the table in LaTeX, for `booktabs` and `graphicx`."""
        columns = "l" + "r" * (len(self.header) - 2) + "p{60mm}"
        lines = [r"\begin{table*}", rf"\caption{{{_escape(self.title)}}}", rf"\label{{tab:study-{self.number}}}"]
        lines += [r"\resizebox{\textwidth}{!}{%", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
        lines += [_row(self.latex_header)]
        for title, rows in self.blocks:
            lines += [r"\midrule"]
            if len(self.blocks) > 1:
                lines += [rf"\multicolumn{{{len(self.header)}}}{{l}}{{\emph{{{_escape(title)}}}}} \\"]
            lines += [_row([_escape(cell) for cell in row]) for row in rows]
        lines += [r"\bottomrule", r"\end{tabular}}", r"\par\footnotesize " + _escape(" ".join(self.notes))]
        return "\n".join([*lines, r"\end{table*}", ""])


def make_tables(study: StudyConfig, results: pd.DataFrame) -> list[Table]:
    """Make the tables of which there are results.

    Parameters
    ----------
    study : StudyConfig
        Says which rows stand in which table.
    results : DataFrame
        As of `mmln_pipeline.study.results.read_results`.

    Returns
    -------
    list of Table
        In the order of their numbers.
    """
    tables = []
    for number in TITLES:
        sets = [item.name for item in (study.sets[1:] if number == 2 else study.sets[:1])]
        rows = [row for row in study.rows_of(number)]
        blocks = [(name, _make_rows(study, rows, results, name, number)) for name in sets]
        blocks = [(name, found) for name, found in blocks if found]
        if blocks:
            title = TITLES[number].format(sets=", ".join(name for name, _ in blocks))
            notes = _notes(study, results, rows, sets, number)
            tables.append(Table(number, title, _header(number), _header(number, latex=True), blocks, notes))
    return tables


def baseline(rows: Sequence[Row]) -> Row | None:
    """Return the row that improvements are counted from: VoxelMorph's, as in the paper."""
    return next((row for row in rows if row.method == "voxelmorph"), None)


def _header(number: int, latex: bool = False) -> list[str]:
    """Return the headings: the paper's columns first, ours behind."""
    names = [column.latex if latex else column.text for column in COLUMNS]
    names = [_escape(name) if latex and "$" not in name and "\\" not in name else name for name in names]
    dice, folds, tc, *others = names
    percent = (r"\%Dice", r"$\Delta\%|J_\phi|_{\le 0}$") if latex else ("%Dice", "Δ%&#124;J&#124;≤0")
    scores = [dice, percent[0], folds, percent[1], tc] if number < 3 else [dice, folds, tc]
    costs_ = ["Time, s", "Memory, training", "Memory", "p", "Pairs"]
    return ["Method", *scores, *costs_[:2], *others, *costs_[2:], "Weights; trained on what, for how long"]


def _make_rows(
    study: StudyConfig, rows: Sequence[Row], results: pd.DataFrame, test_set: str, number: int
) -> list[list[str]]:
    """Return the cells of a table on one set; rows without results are left out."""
    present = [row for row in rows if len(by_pair(results, row, [test_set]))]
    if not present:
        return []
    tested = compare_rows(results, [row.name for row in present], study.reference, [test_set], ["dice"])
    p_values = tested.set_index("row")["p_holm"]
    base = baseline(present)
    base_means = by_pair(results, present[0] if base is None else base, [test_set]).mean()
    made = []
    for row in present:
        found, cost = by_pair(results, row, [test_set]), costs(results, row.name, [test_set])
        cells = {column.score: _mean(found[column.score], column.digits) for column in COLUMNS}
        if row.method == "initial":  # no deformation: what says how regular it is says nothing
            cells = {name: text if name.startswith(("dice", "hd95")) else NOTHING for name, text in cells.items()}
        dice, folds, tc, *others = (cells[column.score] for column in COLUMNS)
        scores = [dice, folds, tc]
        if number < 3:
            has_change = base is not None and row.name != base.name and row.method != "initial"
            names = ("dice", "folding_percent")
            changes = [_change(found[n].mean(), base_means[n]) if has_change else NOTHING for n in names]
            scores = [dice, changes[0], folds, changes[1], tc]
        time = NOTHING if row.method == "initial" else _number(cost["seconds"], 2) + "*" * (not cost["is_warm"])
        facts = _facts(results, row, test_set)
        memory = _gib(facts["training_memory_mb"]), _gib(cost["peak_memory_mb"])
        last = _p(p_values.get(row.name)), str(len(found)), _origin(facts)
        made.append([row.name, *scores, time, memory[0], *others, memory[1], *last])
    return made


def _facts(results: pd.DataFrame, row: Row, test_set: str) -> dict:
    """Return what is said of a row's origin: the first seed's, and what differs from the study's own way."""
    chosen = results[(results["row"] == row.name) & (results["set"] == test_set)]
    facts = chosen.iloc[0].to_dict()
    seeds = chosen.groupby("seed")["dice"].mean()
    return facts | {"seeds": len(seeds), "dice_range": float(seeds.max() - seeds.min())}


def _origin(facts: dict) -> str:
    """Say where a row's weights come from, on what and how long they were trained, and how it was registered."""
    text = facts["provenance"] if isinstance(facts["provenance"], str) else ""
    parts = [text] if text else ["no weights"]
    updates, seconds = _float(facts["gradient_updates"]), _float(facts["training_seconds"])
    if "updates" not in text and not math.isnan(updates):
        parts.append(f"{updates:,.0f} gradient updates")
    if "updates" not in text and not math.isnan(seconds):
        parts.append(f"{seconds:,.0f} s of training")
    if facts["seeds"] > 1:
        parts.append(f"{facts['seeds']} seeds, whose Dice spans {facts['dice_range']:.3f}")
    if facts["voxel_mm"] != facts["scored_voxel_mm"]:
        parts.append(f"registered on voxels of {facts['voxel_mm']:g} mm")
    return "; ".join(parts)


def _notes(
    study: StudyConfig, results: pd.DataFrame, rows: Sequence[Row], sets: Sequence[str], number: int
) -> list[str]:
    """Return what stands below a table."""
    chosen = results[results["set"].isin(sets)]
    base = baseline(rows)
    threads = int(chosen["threads"].max())
    facts = {
        "reference": study.reference,
        "improvements": f"%Dice and the change of folds: against {base.name}. " if base and number < 3 else "",
        "threads": f"{threads} thread{'s' if threads > 1 else ''}",
        "scored": f"{chosen['scored_voxel_mm'].max():g}",
    }
    absent = [row.name for row in rows if not (chosen["row"] == row.name).any()]
    missing = [f"Not run: {', '.join(absent)}."] if absent else []
    return [note.format(**facts) for note in NOTES] + missing


def _float(value: object) -> float:
    return float("nan") if value is None else float(value)  # type: ignore[arg-type]


def _number(value: float, digits: int) -> str:
    return NOTHING if math.isnan(value) else f"{value:.{digits}f}"


def _mean(values: pd.Series, digits: int) -> str:
    """Return mean (standard deviation); of one pair the mean alone."""
    known = values.dropna()
    if not len(known):
        return NOTHING
    spread = f" ({known.std():.{digits}f})" if len(known) > 1 else ""
    return f"{known.mean():.{digits}f}{spread}"


def _change(value: float, base: float) -> str:
    """Return a change in percent of the base."""
    return NOTHING if not base or math.isnan(value) else f"{100 * (value - base) / base:+.1f}%"


def _gib(mebibytes: object) -> str:
    return _number(_float(mebibytes) / 1024, 2)


def _p(value: float | None) -> str:
    if value is None or math.isnan(value):
        return NOTHING
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _bar(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _escape(text: str) -> str:
    """Return text as LaTeX wants it.

    Examples
    --------
    >>> _escape("5% of A_B – <0.001")
    '5\\\\% of A\\\\_B -- $<$0.001'
    """
    for char in "&%$#_{}":
        text = text.replace(char, f"\\{char}")
    for char, code in (("–", "--"), ("<", "$<$"), ("≤", r"$\le$"), ("Δ", r"$\Delta$"), ("&#124;", "|")):
        text = text.replace(char, code)
    return text
