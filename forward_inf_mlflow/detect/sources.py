"""Sources: which supplier, annotator or crawl do the accused rows come from?"""

from __future__ import annotations

import numpy as np
import pandas as pd

from forward_inf_mlflow.detect.measure import binomial_interval


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
        influence: ``(n,)`` on all queries together, nats per added copy of them.

    Returns:
        A row a source: counts, the mislabeled rate with its 95 % Clopper-Pearson interval, and
        the mean influence of its rows with a 95 % normal interval.
    """
    rows = []
    for name in sorted(set(sources)):
        mine = sources == name
        n, wrong = int(mine.sum()), int(mislabeled[mine].sum())
        low, high = binomial_interval(wrong, n)
        mean = float(influence[mine].mean())
        half = 1.96 * float(influence[mine].std(ddof=1)) / n**0.5 if n > 1 else float("nan")
        rows.append(
            {
                "source": name,
                "rows": n,
                "mislabeled": wrong,
                "mislabeled_rate": wrong / n,
                "mislabeled_low": low,
                "mislabeled_high": high,
                "leaked": int(leaked[mine].sum()),
                "memorized": int(memorized[mine].sum()),
                "influence": mean,
                "influence_low": mean - half,
                "influence_high": mean + half,
            }
        )
    return pd.DataFrame(rows).sort_values(
        ["mislabeled_low", "source"], ascending=[False, True], ignore_index=True
    )
