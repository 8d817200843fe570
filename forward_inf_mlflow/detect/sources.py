"""Sources: which supplier, annotator or crawl do the accused rows come from?

Whether a source is worse than the others is tested for every source, by Fisher's exact test, and
whether its rows influence the queries otherwise, by Welch's; with many sources some differ by
chance, so that each kind of p-values is adjusted (Holm, 1979): that anybody is blamed by chance has
a chance of at most 5 % for each kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from forward_inf_mlflow.detect.measure import binomial_interval

#: Chance that any innocent source is blamed, at most.
LEVEL = 0.05


def by_source(
    sources: np.ndarray,
    *,
    mislabeled: np.ndarray,
    leaked: np.ndarray,
    memorized: np.ndarray,
    influence: np.ndarray,
) -> pd.DataFrame:
    """Sum up every source's rows, the worst first.

    Args:
        sources: ``(n,)`` names.
        mislabeled: ``(n,)`` bool.
        leaked: ``(n,)`` bool, rows that a query is a copy of.
        memorized: ``(n,)`` bool.
        influence: ``(n,)`` on all queries together, nats per added copy of them; NaN for rows of
            which it is not known, which are left out.

    Returns:
        A row a source: ``source``, ``rows``; for each verdict the count of its rows
        (``mislabeled``, ``leaked``, ``memorized``), their share of the source (``..._rate``), and
        the share's 95 % Clopper-Pearson interval (``..._low``, ``..._high``), and how likely chance
        alone gives the source so many of these rows (``..._p``); ``influence``, the mean of its
        rows (so that a large source does not weigh more than a small one), with a 95 % normal
        interval (``influence_low``, ``influence_high``), how likely chance alone sets it so far
        from the others' (``influence_p``), and their sum (``influence_net``). All p-values are
        adjusted for as many tests as there are sources.
    """
    rows: list[dict[str, Any]] = []
    verdicts = {"mislabeled": mislabeled, "leaked": leaked, "memorized": memorized}
    for name in sorted(set(sources)):
        mine = sources == name
        n = int(mine.sum())
        row: dict[str, Any] = {"source": name, "rows": n}
        for verdict, flags in verdicts.items():
            count = int(flags[mine].sum())
            low, high = binomial_interval(count, n)
            row |= {
                verdict: count,
                f"{verdict}_rate": count / n,
                f"{verdict}_low": low,
                f"{verdict}_high": high,
            }
        known = np.isfinite(influence)  # a row that could not be read says nothing of the others
        own = influence[mine & known]
        mean = float(own.mean()) if len(own) else float("nan")
        half = 1.96 * float(own.std(ddof=1)) / len(own) ** 0.5 if len(own) > 1 else float("nan")
        row |= {"influence": mean, "influence_low": mean - half, "influence_high": mean + half}
        row["influence_p"] = _differs(own, influence[~mine & known])
        row["influence_net"] = mean * len(own) if len(own) else mean
        rows.append(row)
    table = pd.DataFrame(rows)
    for verdict, flags in verdicts.items():
        by_chance = stats.hypergeom.sf(table[verdict] - 1, len(flags), flags.sum(), table["rows"])
        table[f"{verdict}_p"] = _holm(np.asarray(by_chance))
    table["influence_p"] = _holm(table["influence_p"].to_numpy())
    return table.sort_values(
        ["mislabeled_low", "source"], ascending=[False, True], ignore_index=True
    )


def sentence(source: Mapping[str, Any]) -> str:
    """Return a row of the table in words."""

    def share(verdict: str) -> str:
        rate = source[f"{verdict}_rate"]
        if rate is None or rate != rate:
            return f"{verdict} unknown"
        low, high = source[f"{verdict}_low"], source[f"{verdict}_high"]
        return f"{verdict} {source[f'{verdict}_rate']:.1%} ({low:.1%} to {high:.1%})"

    mean, low, high = (source[name] for name in ("influence", "influence_low", "influence_high"))
    influence = "influence unknown"
    if mean is not None and mean == mean:
        influence = f"influence {mean:+.2g}"
        if low is not None and low == low:  # one row has no spread
            influence += f" ({low:+.2g} to {high:+.2g})"
        influence += " per row"
        if (net := source.get("influence_net")) is not None:  # older audits have none
            influence += f", {net:+.2g} net"
    shares = ", ".join(share(verdict) for verdict in ("mislabeled", "leaked", "memorized"))
    return f"{source['source']}: {source['rows']:,} rows; {shares}; {influence}"


def guilty(sources: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the sources that have more mislabeled rows than chance gives them, the worst first.

    Args:
        sources: Rows of the table.
    """
    return [str(source["source"]) for source in sources if source["mislabeled_p"] < LEVEL]


def _differs(mine: np.ndarray, others: np.ndarray) -> float:
    """Return how likely chance alone sets two means so far apart (Welch's test, two-sided)."""
    if min(len(mine), len(others)) < 2 or not (mine.std() > 0 or others.std() > 0):
        return 1.0
    return float(stats.ttest_ind(mine, others, equal_var=False).pvalue)


def _holm(p: np.ndarray) -> np.ndarray:
    """Return Holm's p-values."""
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    found = np.empty(len(p))
    found[order] = np.minimum(1, adjusted)
    return found
