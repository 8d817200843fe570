"""Comparison: what changed between two audits; pure.

Rows are the same if their digests are, features and label, wherever they stand and whatever they
are called. Two questions are asked of chance, each by a test that needs little:

- *Do the rates differ?* They do if their intervals do not overlap. Each end of an interval errs in
  at most 5 % of audits (the lower end of mislabeled rows 1 %), so such a claim is wrong in at most
  10 % (6 %) of cases, however the two audits depend on each other. Rates that differ by less than
  their intervals show are not told apart. Memorized rows are counted, of one model: their rate has
  no such interval, and is not tested.
- *Are unchanged rows named differently?* Of those that one audit named and the other did not, half
  should be on either side (McNemar's exact test, two-sided, at 5 % over the three verdicts
  together). It takes the rows for independent, and a difference says that models, queries or
  settings differ, since the rows do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from forward_inf_mlflow.detect.measure import Measure
from forward_inf_mlflow.errors import TrackingError
from forward_inf_mlflow.metrics import metrics_of
from forward_inf_mlflow.record import facts_of, measures_of

VERDICTS = ("mislabeled", "leaked", "memorized")
#: What the rates are rates of.
_OF = {"mislabeled": "training rows", "leaked": "query rows", "memorized": "training rows"}
#: How often chance alone may make any of the three verdicts differ.
LEVEL = 0.05
#: How often a rate's lower and upper end may each err. Memorized rows are counted, with no ends.
_ERRS = {"mislabeled": (0.01, 0.05), "leaked": (0.05, 0.05)}
#: Why a row is named no longer, or newly.
_WHY = {
    "went": {
        "removed": "removed",
        "relabelled": "relabelled",
        "kept": "kept by a person",
        "cleared": "no longer named",
    },
    "came": {"added": "added", "relabelled": "relabelled", "accused": "not named before"},
}
#: Rows of each kind that are named.
_NAMED = 20
_DIGESTS = ("row_digest", "features_digest")
_NEEDED = ("id", "label", *VERDICTS)
#: What rows are sorted by, the most suspicious first.
_ORDER = {"mislabeled": "mislabeled_suspicion", "leaked": "loss", "memorized": "memorized_score"}


@dataclass(frozen=True)
class Side:
    """One of two audits.

    Attributes:
        uri: Its version.
        run_id: Its run.
        record: ``audit.json``.
        scores: ``scores.parquet``.
    """

    uri: str
    run_id: str
    record: Mapping[str, Any]
    scores: pd.DataFrame


def compare_sides(old: Side, new: Side) -> dict[str, Any]:
    """Return what changed from one audit to another, as ``compare.json`` holds it.

    Raises:
        TrackingError: One of them holds no tables that can be compared.
    """
    measures = []
    for side in (old, new):
        if missing := [name for name in _NEEDED if name not in side.scores]:
            raise TrackingError(
                f"scores.parquet of run {side.run_id} lacks '{missing[0]}': audit {side.uri} again"
            )
        measures.append(measures_of(side.record))
    by_digest = all(name in side.scores for side in (old, new) for name in _DIGESTS)
    before, now = (
        side.scores.reset_index(drop=True).assign(
            **{name: _truth(side.scores, name) for name in (*VERDICTS, "kept")}
        )
        for side in (old, new)
    )
    pairs, relabelled = _matched(before, now, by_digest=by_digest)
    data = {
        "old": len(before),
        "new": len(now),
        "same": len(pairs),
        "relabelled": len(relabelled),
        "added": len(now) - len(pairs) - len(relabelled),
        "removed": len(before) - len(pairs) - len(relabelled),
    }
    verdicts = {
        verdict: {
            **_flags(verdict, before, now, pairs, relabelled),
            "rate": _rates(verdict, *(found.get(verdict) for found in measures)),
        }
        for verdict in VERDICTS
    }
    content = {
        "format": 1,
        "old": _head(old),
        "new": _head(new),
        "rows_known_by": "row digest" if by_digest else "id",
        "rows": data,
        "verdicts": verdicts,
        "settings": _differing(old.record, new.record),
        "metrics": _metrics(old.record, new.record),
    }
    return {**content, "sentences": _sentences(content)}


def _head(side: Side) -> dict[str, Any]:
    model, decision = (side.record.get(key) or {} for key in ("model", "decision"))
    return {
        "model": side.uri,
        "version": str(model.get("version")),
        "run_id": side.run_id,
        "outcome": str(decision.get("outcome")),
        "declared": bool(facts_of(side.record).declared),
    }


def _truth(scores: pd.DataFrame, name: str) -> np.ndarray:
    """Return a column of flags ``(n,)`` bool; none where there is none."""
    values = scores[name] if name in scores else [False] * len(scores)
    # Read back from a file, a column of booleans may hold None.
    return np.array([str(value) == "True" for value in values], dtype=bool)


def _matched(
    before: pd.DataFrame, now: pd.DataFrame, *, by_digest: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return positions of the same rows, and of rows with another label, each ``(k, 2)``.

    Of equal rows the first is matched with the first, the second with the second.
    """
    if not by_digest:
        both = _joined(before["id"].astype(str), now["id"].astype(str))
        same = (
            before["label"].astype(str).to_numpy()[both[:, 0]]
            == now["label"].astype(str).to_numpy()[both[:, 1]]
        )
        return both[same], both[~same]
    pairs = _joined(before["row_digest"], now["row_digest"])
    left, right = (
        frame["features_digest"].drop(index=pairs[:, side])
        for side, frame in enumerate((before, now))
    )
    return pairs, _joined(left, right)


def _joined(left: pd.Series, right: pd.Series) -> np.ndarray:
    """Return the index values ``(k, 2)`` of equal entries, each used once."""
    a, b = (
        pd.DataFrame({"key": some, "nth": some.groupby(some).cumcount(), side: some.index})
        for side, some in (("left", left), ("right", right))
    )
    joined = a.merge(b, on=["key", "nth"], how="inner")
    found: np.ndarray = joined[["left", "right"]].to_numpy(dtype=np.int64).reshape(-1, 2)
    return found


def _flags(
    verdict: str,
    before: pd.DataFrame,
    now: pd.DataFrame,
    pairs: np.ndarray,
    relabelled: np.ndarray,
) -> dict[str, Any]:
    """Return which rows are no longer named, still named, and newly named."""
    was, is_ = before[verdict].to_numpy(), now[verdict].to_numpy()
    a, b = was[pairs[:, 0]], is_[pairs[:, 1]]
    cleared, accused = pairs[a & ~b, 0], pairs[~a & b, 1]
    stayed = pairs[a & b, 1]
    # A person took the kept ones off the list, not the audit.
    kept = before["kept"].to_numpy()[pairs[:, 0]] | now["kept"].to_numpy()[pairs[:, 1]]
    only_old, only_new = int((a & ~b & ~kept).sum()), int((~a & b & ~kept).sum())
    other_before, other_now = was[relabelled[:, 0]], is_[relabelled[:, 1]]
    p_value = (
        float(stats.binomtest(only_old, only_old + only_new, 0.5).pvalue)
        if only_old + only_new
        else 1.0
    )
    went, came = int(was.sum()) - len(stayed), int(is_.sum()) - len(stayed)
    gone, new = int(other_before.sum()), int(other_now.sum())
    return {
        "old": int(was.sum()),
        "new": int(is_.sum()),
        "stayed": len(stayed),
        "went": {
            "rows": went,
            "cleared": only_old,
            "kept": len(cleared) - only_old,
            "relabelled": gone,
            "removed": went - len(cleared) - gone,
            "ids": _first(before, np.setdiff1d(np.flatnonzero(was), pairs[a & b, 0]), verdict),
        },
        "came": {
            "rows": came,
            "accused": len(accused),
            "relabelled": new,
            "added": came - len(accused) - new,
            "ids": _first(now, np.setdiff1d(np.flatnonzero(is_), stayed), verdict),
        },
        "unchanged_rows": {
            "rows": int((~kept).sum()),
            "only_old": only_old,
            "only_new": only_new,
            "p_value": p_value,
            "differs": p_value < LEVEL / len(VERDICTS),
        },
    }


def _first(scores: pd.DataFrame, rows: np.ndarray, verdict: str) -> list[str]:
    """Return the ids of the most suspicious of some rows."""
    some = scores.iloc[rows]
    if (order := _ORDER[verdict]) in some:
        values = pd.to_numeric(some[order], errors="coerce")
        some = some.iloc[np.argsort(-values.to_numpy(dtype=np.float64), kind="stable")]
    return [str(name) for name in some["id"].head(_NAMED)]


def _rates(verdict: str, old: Measure | None, new: Measure | None) -> dict[str, Any]:
    """Return both rates, and whether they differ beyond chance."""
    known = [None if one is None or one.abstained is not None else one for one in (old, new)]
    shown = [None if m is None else [m.rate_low, m.rate, m.rate_high] for m in known]
    differs = None
    if known[0] is not None and known[1] is not None and verdict in _ERRS:
        differs = "no"
        if known[1].rate_low > known[0].rate_high:
            differs = "higher"
        elif known[1].rate_high < known[0].rate_low:
            differs = "lower"
    return {
        "old": shown[0],
        "new": shown[1],
        "of": _OF[verdict],
        "differs": differs,
        "wrong_at_most": sum(_ERRS[verdict]) if verdict in _ERRS else None,
    }


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the names of the settings that differ: flags may differ for that alone."""
    a, b = (one.get("settings") for one in (old, new))
    if not isinstance(a, Mapping) or not isinstance(b, Mapping):
        return []
    return sorted(str(key)[:40] for key in {*a, *b} if a.get(key) != b.get(key))[:_NAMED]


def _metrics(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return all metrics side by side; None where one of the audits has no such metric."""
    a, b = (
        {name: value for part in metrics_of(one).values() for name, value in part.items()}
        for one in (old, new)
    )
    return [{"name": name, "old": a.get(name), "new": b.get(name)} for name in sorted({*a, *b})]


def _sentences(content: Mapping[str, Any]) -> list[str]:
    """Return the comparison in words."""
    old, new, rows = content["old"], content["new"], content["rows"]
    said = [
        f"{old['model']} was {old['outcome']}, {new['model']} is {new['outcome']}",
        f"training rows: {rows['old']:,} before and {rows['new']:,} now; {rows['same']:,} are the "
        f"same, {rows['relabelled']:,} have another label, {rows['removed']:,} went, "
        f"{rows['added']:,} came (known by {content['rows_known_by']})",
    ]
    said += [
        f"the audit of {side['model']} was asked about declared data, not those that were logged "
        "with it"
        for side in (old, new)
        if side["declared"]
    ]
    for verdict, found in content["verdicts"].items():
        went, came = found["went"], found["came"]
        said.append(
            f"{verdict}: {found['stayed']:,} rows stayed named, {_parts('went', went)}, "
            f"{_parts('came', came)}"
        )
        said.append(_of_rate(verdict, found["rate"]))
        if found["unchanged_rows"]["differs"]:
            test = found["unchanged_rows"]
            said.append(
                f"{verdict}: unchanged rows are named differently beyond chance "
                f"({test['only_old']:,} only before, {test['only_new']:,} only now, exact McNemar "
                f"p = {test['p_value']:.2g})"
            )
    if content["settings"]:
        said.append(
            f"the two audits differ in their settings ({', '.join(content['settings'])}): flags "
            "may differ for that alone"
        )
    return said


def _parts(word: str, change: Mapping[str, Any]) -> str:
    """Return how many rows went or came, and why."""
    parts = [f"{change[key]:,} {why}" for key, why in _WHY[word].items() if change[key]]
    return f"{change['rows']:,} {word}" + (f" ({', '.join(parts)})" if parts else "")


def _of_rate(verdict: str, rate: Mapping[str, Any]) -> str:
    def shown(interval: list[float] | None) -> str:
        if interval is None:
            return "no verdict"
        low, about, high = interval
        return f"{about:.1%} ({low:.1%} to {high:.1%})" if low < high else f"{about:.1%}"

    text = f"{verdict}: {shown(rate['old'])} of the {rate['of']} before, {shown(rate['new'])} now"
    if rate["differs"] is None:
        return text
    if rate["differs"] == "no":
        return f"{text}: no difference beyond chance is shown"
    return (
        f"{text}: {rate['differs']} beyond chance (the intervals do not overlap; wrong in at most "
        f"{rate['wrong_at_most']:.0%} of cases)"
    )
