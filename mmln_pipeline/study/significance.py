"""Whether rows differ from the reference: paired Wilcoxon tests, with Holm's correction for their number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy.stats import wilcoxon

from mmln_pipeline.study.results import SCORES, by_pair

FEWEST_PAIRS = 6
"""With fewer, no difference of one sign can reach a p of 0.05, and the test says nothing."""


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number by Holm's step-down rule; NaN stays and does not count.

    Parameters
    ----------
    p_values : sequence of float

    Returns
    -------
    list of float
        In the order given.

    References
    ----------
    Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 1979.

    Examples
    --------
    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")[: np.count_nonzero(~np.isnan(p))]
    stepped = np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1))
    p[order] = np.minimum(stepped, 1.0)
    return p.tolist()


def compare_rows(
    results: pd.DataFrame,
    rows: Sequence[str],
    reference: str,
    test_sets: list[str],
    scores: Iterable[str] = tuple(SCORES),
) -> pd.DataFrame:
    """Test scores of some rows against the reference's on the pairs that both have.

    Parameters
    ----------
    results : DataFrame
    rows : sequence of str
    reference : str
    test_sets : list of str
    scores : iterable of str
        All by default.

    Returns
    -------
    DataFrame
        Columns ``score``, ``row``, ``pairs``, ``mean``, ``std``, ``difference`` (mean over the common pairs, row minus
        reference), ``common_pairs``, ``p`` and ``p_holm`` (over the rows, for each score); TC is compared by its
        distance from 1.
    """
    own = by_pair(results, reference, test_sets)
    records = []
    for score in scores:
        tested = []
        for row in rows:
            found = by_pair(results, row, test_sets)[score].dropna()
            there = own[score].dropna().reindex(found.index).dropna()
            here = found.reindex(there.index)
            mean, spread = found.mean(), found.std()
            p = float("nan") if row == reference else _test(_badness(score, here), _badness(score, there))
            tested.append((score, row, len(found), mean, spread, (here - there).mean(), len(here), p))
        corrected = holm([entry[-1] for entry in tested])
        records += [(*entry, p) for entry, p in zip(tested, corrected, strict=True)]
    columns = ["score", "row", "pairs", "mean", "std", "difference", "common_pairs", "p", "p_holm"]
    return pd.DataFrame(records, columns=columns)


def _badness(score: str, values: pd.Series) -> np.ndarray:
    return np.abs(values.to_numpy() - 1) if score == "tc" else values.to_numpy()


def _test(first: np.ndarray, second: np.ndarray) -> float:
    """Return the p-value of a paired two-sided Wilcoxon test without the pairs that do not differ.

    NaN where too few are left, and 1 where none is. Exact unless differences tie: SciPy would then permute them for
    seconds.
    """
    difference = (first - second)[first != second]
    if len(first) >= FEWEST_PAIRS and not len(difference):
        return 1.0
    if len(difference) < FEWEST_PAIRS:
        return float("nan")
    is_tied = len(np.unique(np.abs(difference))) < len(difference)
    return float(wilcoxon(difference, method="approx" if is_tied else "exact").pvalue)
