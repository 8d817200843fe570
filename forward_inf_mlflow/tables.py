"""Tables: findings as data frames, the way they are logged and read."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from forward_inf_mlflow.data.several import NONE, written
from forward_inf_mlflow.decisions import FEATURE
from forward_inf_mlflow.detect.measure import Measure
from forward_inf_mlflow.detect.sources import by_source
from forward_inf_mlflow.examine import Findings
from forward_inf_mlflow.preparation import Problem
from forward_inf_mlflow.several_outputs import coded
from forward_inf_mlflow.task import Task
from forward_inf_mlflow.tasks import MultiLabel

#: Columns of ``flagged.csv``, one row per verdict; the training row's main features follow.
FLAGGED = (
    "verdict",
    "row_id",
    "query_id",
    "given_label",
    "likelier_label",
    "score",
    "p_value",
    "margin_change",
    "kind",
    "same_label",
    "source",
    "loss",
    "evidence",
)
#: How many features, and how many characters of one.
_FEATURES, _MAX_TEXT = 6, 200


def scores_table(problem: Problem, found: Findings) -> pd.DataFrame:
    """Return one row per training row, in the order of the data: ``scores.parquet``.

    Columns: id, label, source, loss (nats or half squared units), given_probability,
    held_out_probability (by who never learned the label), likelier_label, likelier_probability (by
    the same: low where a row is only odd), mislabeled_score, mislabeled_suspicion (what rows are
    ranked by), memorized_score, memorized_fall, memorized_low and memorized_high (mem_i's 95 %
    interval in its own unit; empty where only a rank is known), influence (on all queries
    together), the flags mislabeled, leaked and memorized; mislabeled_certain, the flags at the
    promised error rate; and mislabeled_surely, the share of the rows down to this one by
    mislabeled_suspicion that are wrong at least; copy_of, a training row that is the same example,
    copy_exact, whether it has every value in common, and copy_conflicts, whether a copy has another
    label; features_digest and row_digest (with the label), by which a row is known in any version.
    """
    rows, n = problem.train_rows, len(problem.train_rows)
    return pd.DataFrame(
        {
            "id": rows.ids,
            "label": rows.labels if problem.task.labelled else np.full(n, ""),
            "source": rows.sources if rows.sources is not None else np.full(n, ""),
            "loss": found.loss,
            "given_probability": found.labels.given_probability,
            "held_out_probability": found.labels.mislabeled.held_out_probability,
            "likelier_label": _likelier(problem, found.labels.mislabeled.likelier),
            "likelier_probability": found.labels.mislabeled.likelier_probability,
            "mislabeled_score": found.labels.mislabeled.score,
            "mislabeled_suspicion": found.labels.mislabeled.suspicion,
            "memorized_score": found.labels.memorized.score,
            "memorized_fall": found.labels.memorized.fall,
            "memorized_low": found.labels.memorized.low,
            "memorized_high": found.labels.memorized.high,
            "influence": found.influence,
            "mislabeled": found.labels.mislabeled.flags,
            "mislabeled_certain": found.labels.mislabeled.certain,
            "mislabeled_surely": found.labels.mislabeled.surely,
            "leaked": found.leaked.train_flags,
            "memorized": found.labels.memorized.flags,
            "copy_of": np.where(found.duplicates.twin >= 0, rows.ids[found.duplicates.twin], ""),
            "copy_exact": found.duplicates.exact,
            "copy_conflicts": found.duplicates.conflict,
            "features_digest": rows.feature_digests,
            "row_digest": rows.digests,
        }
    )


def _likelier(problem: Problem, likelier: np.ndarray) -> np.ndarray:
    """Return likelier labels ``(n,)`` as they are read: classes, numbers, several as text.

    Nothing where there are no labels.
    """
    if not problem.task.labelled:
        return np.full(len(likelier), "")
    if problem.classes is not None:
        return np.asarray(problem.classes[likelier])
    if likelier.ndim == 1:
        return likelier
    flags = isinstance(problem.task, MultiLabel)
    return written(likelier, problem.train_rows.label_names, flags=flags)


def flagged_table(problem: Problem, found: Findings, scores: pd.DataFrame) -> pd.DataFrame:
    """Return one row per verdict, the surest of each kind first: ``flagged.csv``.

    After the columns ``FLAGGED`` stand the first features of the training row, ``feature.<name>``,
    where its features are columns; images have thumbnails.
    """
    parts = [
        _mislabeled(problem, scores),
        _leaked(problem, found, scores),
        _memorized(scores, labelled=problem.task.labelled),
    ]
    filled = [part.reindex(columns=FLAGGED) for part in parts if len(part)]
    table = pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=list(FLAGGED))
    where = pd.Index(problem.train_rows.ids).get_indexer(table["row_id"])
    return table.join(_main_features(problem.train_rows.features, where))


def _main_features(features: pd.DataFrame | np.ndarray, rows: np.ndarray) -> pd.DataFrame:
    """Return the first columns of some rows, short enough to read; none of what has no columns."""
    if isinstance(features, np.ndarray):
        features = pd.DataFrame(features if features.ndim == 2 else np.empty((len(features), 0)))
    shown = features.iloc[rows, :_FEATURES].reset_index(drop=True).add_prefix(FEATURE)
    texts = shown.select_dtypes(exclude=["number", "bool", "datetime"]).columns
    return shown.assign(**{name: shown[name].map(_short, na_action="ignore") for name in texts})


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"


def influence_table(found: Findings, k: int) -> pd.DataFrame:
    """Return the top k proponents and opponents of every row that was asked about alone.

    Columns: asked ("query" or "train": which kind of row ``query_id`` names), then those of
    `InfluenceScores.top`. A training row is asked about with the label that it was given, and is
    in no list of its own.
    """
    parts = [
        scores.top(k).assign(asked=role)
        for role, scores in (("train", found.asked.rows), ("query", found.asked.queries))
        if len(scores.query_ids)
    ]
    if not parts:
        parts = [found.asked.queries.top(k).assign(asked="query")]
    table = pd.concat(parts, ignore_index=True)
    return table[["asked", *(name for name in table.columns if name != "asked")]]


def sources_table(
    problem: Problem, scores: pd.DataFrame, measures: Mapping[str, Measure]
) -> pd.DataFrame | None:
    """Return one row per data source, or None where the rows have none.

    Shares of a verdict that was not given are NaN.
    """
    if problem.train_rows.sources is None:
        return None
    table = by_source(
        problem.train_rows.sources,
        mislabeled=scores["mislabeled"].to_numpy(),
        leaked=scores["leaked"].to_numpy(),
        memorized=scores["memorized"].to_numpy(),
        influence=scores["influence"].to_numpy(),
    )
    for verdict in ("mislabeled", "memorized"):  # nobody named is no share of zero
        if measures[verdict].abstained is not None and not measures[verdict].count:
            unknown = [f"{verdict}_{part}" for part in ("rate", "low", "high")]
            table[unknown] = np.nan
            table[f"{verdict}_p"] = 1.0
    return table


def _common(rows: pd.DataFrame, verdict: str, score: str) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "verdict": verdict,
            "row_id": rows["id"],
            "given_label": rows["label"],
            "likelier_label": rows["likelier_label"],
            "score": rows[score],
            "source": rows["source"],
            "loss": rows["loss"],
        }
    )


def _mislabeled(problem: Problem, scores: pd.DataFrame) -> pd.DataFrame:
    rows = scores[scores["mislabeled"]].sort_values(
        ["mislabeled_suspicion", "loss", "id"], ascending=[False, False, True]
    )
    table = _common(rows, "mislabeled", "mislabeled_score")
    rank = scores["loss"].rank(ascending=False, method="min").astype(int)
    if problem.train.targets.ndim == 2:
        said = _said_of_several(problem, rows)
    elif problem.classes is None:
        table["likelier_label"] = [float(f"{value:.4g}") for value in rows["likelier_label"]]
        said = [f"who never saw the row predicts {value:.4g}" for value in rows["likelier_label"]]
    else:
        said = [
            f"who never learned its label gives it {row.held_out_probability:.1%}, "
            f"and {row.likelier_label} {row.likelier_probability:.1%}"
            + (
                ""
                if row.mislabeled_score > 0.5
                else "; it stands among the certain by its rank, which the model itself and its "
                "features decide too"
            )
            for row in rows.itertuples()
        ]
    table["kind"] = np.where(rows["mislabeled_certain"], "certain", "likely")
    table["evidence"] = [
        f"{what}; its own loss ranks {rank[i]:,} of {len(scores):,}"
        for i, what in zip(rows.index, said, strict=True)
    ]
    return table


def _said_of_several(problem: Problem, rows: pd.DataFrame) -> list[str]:
    """Return the evidence against each of some rows with several labels, a clause."""
    if not isinstance(problem.task, MultiLabel):
        return [f"who never saw the row predicts {one} there" for one in rows["likelier_label"]]
    return [
        f"who never learned its labels gives {_changed(given, likelier)} {probability:.1%}"
        for given, likelier, probability in zip(
            rows["label"], rows["likelier_label"], rows["held_out_probability"], strict=True
        )
    ]


def _changed(given: object, likelier: object) -> str:
    """Return which label is the most suspicious: the one that differs, if it is one alone."""
    before, after = (set(str(said).split(", ")) - {NONE} for said in (given, likelier))
    if len(before ^ after) != 1:
        return "the most suspicious of them"
    (label,) = before ^ after
    return f"'{label}'" if label in before else f"that it is not '{label}'"


def _leaked(problem: Problem, found: Findings, scores: pd.DataFrame) -> pd.DataFrame:
    leaks = found.leaked
    queries = np.flatnonzero(leaks.flags)
    kinds = pd.Categorical(
        leaks.kind[queries], categories=["exact", "near", "encoded", "influence"]
    )
    queries = queries[np.argsort(kinds.codes, kind="stable")]
    rows = scores.iloc[leaks.train_index[queries]]
    table = _common(rows, "leaked", "loss").reset_index(drop=True)
    table["query_id"] = problem.query_rows.ids[queries]
    table["score"] = leaks.score[queries]
    table["p_value"] = leaks.p_value[queries]
    table["margin_change"] = found.margin_change[queries]
    table["kind"] = leaks.kind[queries]
    if problem.task.labelled:
        table["likelier_label"] = problem.query_rows.labels[queries]
        own, asked = coded(problem.train.targets, problem.queries.targets)
        table["same_label"] = own[leaks.train_index[queries]] == asked[queries]
    else:  # two rows that have none do not differ in it
        table["same_label"] = True
    # Where the margin is minus the loss, the loss is what readers know.
    plain = type(problem.task).margin is Task.margin
    read, sign = ("loss", -1) if plain else ("margin", 1)
    table["evidence"] = [
        f"{what}; without the training row the query's {read} changes by {sign * change:+.2g}"
        if np.isfinite(change)
        else what
        for what, change in zip(leaks.evidence[queries], table["margin_change"], strict=True)
    ]
    return table


def _memorized(scores: pd.DataFrame, *, labelled: bool) -> pd.DataFrame:
    rows = scores[scores["memorized"]].sort_values(
        ["memorized_score", "id"], ascending=[False, True]
    )
    table = _common(rows, "memorized", "memorized_score")
    table["kind"] = np.where(rows["mislabeled"], "mislabeled", "rare")
    if not labelled:
        table["evidence"] = [
            f"the model saves {row.memorized_fall:.0%} of the loss that models have on it which "
            "did not see it"
            for row in rows.itertuples()
        ]
        return table
    table["evidence"] = [
        (
            f"models that saw the row give its label oftener by {row.memorized_fall:.2f} "
            f"({row.memorized_low:.2f} to {row.memorized_high:.2f}); "
            if np.isfinite(row.memorized_low)
            else f"the audited model gives the label {row.given_probability:.1%}, models that did "
            f"not see the row {row.memorized_fall:.2f} less; "
        )
        + ("it is among the mislabeled rows" if row.mislabeled else "rare, as far as can be told")
        for row in rows.itertuples()
    ]
    return table
