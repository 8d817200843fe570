"""Render: an audit and its rows become one HTML file that needs nothing else.

Every string in the audit and in the rows is other people's. Three walls keep it text: autoescape is
always on; ``_visible`` stands at every output of the template, so that no control or bidirectional
character reorders what a reader sees; and the page's own policy forbids scripts and the network.
"""

from __future__ import annotations

import base64
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup, escape

from forward_inf_mlflow.errors import DataError, TrackingError
from forward_inf_mlflow.report.charts import distribution

MAX_ROWS = 100  # per verdict; flagged.csv has them all
_MAX_TEXT = 400  # characters of one label, id or sentence
_MAX_COMMAND = 4_000
_THUMBNAIL_BUDGET = 3_000_000  # bytes of PNG as base64, so that the page opens at once
_DASH = "–"
_BOUNDS = {
    "mislabeled": "max_mislabeled_rate",
    "leaked": "max_leakage_rate",
    "memorized": "max_memorized_rate",
}
_OUTCOMES = {"pass": "PASS", "fail": "REFUSED", "undecided": "UNDECIDED"}


class Section(dict[str, Any]):
    """A part of an audit; what an older audit lacks reads as None."""

    def __missing__(self, key: str) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One of the three questions, as the template shows it.

    Attributes:
        name: ``mislabeled``, ``leaked`` or ``memorized``.
        measure: Counts, rates, threshold and note, from the audit.
        bound: The largest rate that the policy allows; None if the verdict is report-only.
        state: ``over``, ``near`` or ``within`` the bound, ``report``, or ``unknown``.
        bar: Where the rate, its lower end and the bound lie on a bar, in percent of its length.
        rows: The rows to show, worst first.
        more: How many further rows ``flagged.csv`` holds.
        chart: How the score is distributed.
    """

    name: str
    measure: Section
    bound: float | None
    state: str
    bar: Section | None
    rows: list[Section]
    more: int
    chart: Markup | None


def render(
    audit: Mapping[str, Any],
    flagged: pd.DataFrame,
    scores: pd.DataFrame,
    thumbnails: Mapping[str, bytes],
) -> str:
    """Render the report.

    Args:
        audit: The content of ``audit.json``. Every key may be missing, as in an older audit;
            ``leak_scores`` (one per query, smaller is closer) may be added for the chart.
        flagged: One line per verdict and row, worst first: ``verdict`` (mislabeled, leaked,
            memorized), ``row_id``, ``query_id``, ``given_label``, ``likelier_label``, ``score``,
            ``kind``, ``same_label``, ``source``, ``loss`` (nats), ``evidence``.
        scores: One line per training row; ``mislabeled_score``, ``memorized_score`` and the
            booleans ``mislabeled`` and ``memorized`` are read.
        thumbnails: PNG bytes by ``train:<row id>`` and ``query:<query id>``.

    Returns:
        A whole HTML document.

    Raises:
        TrackingError: A part of the audit is not of the kind that this version reads.
        DataError: ``flagged`` does not say which verdict its rows belong to.
    """
    if len(flagged) and "verdict" not in flagged:
        raise DataError("the flagged rows have no column 'verdict': audit the version again")
    top = _section(audit, "audit.json")
    parts = {
        name: _section(top[name], name)
        for name in ("model", "run", "tool", "settings", "costs", "policy", "decision", "data")
    }
    measures = _section(top["measures"], "measures")
    album = _Album(thumbnails)
    verdicts = [
        Verdict(
            name=name,
            measure=(measure := _section(measures[name], f"measures.{name}")),
            bound=(bound := _number(parts["policy"][key])),
            state=_state(measure, bound),
            bar=_bar(measure, bound),
            rows=_rows(flagged, name, album),
            more=max(0, _matching(flagged, name) - MAX_ROWS),
            chart=_chart(name, measure, top["leak_scores"], scores),
        )
        for name, key in _BOUNDS.items()
    ]
    sources = _sources(top["sources"])
    given = parts["decision"]["outcome"]
    outcome = given if isinstance(given, str) and given in _OUTCOMES else "undecided"
    reasons = _strings(parts["decision"]["reasons"])
    if given != outcome:
        reasons.append("the audit holds no decision: run forward-inf gate on this version")
    uri = parts["model"]["uri"] or "MODEL_URI"
    return _template().render(
        audit=top,
        **parts,
        train=_section(parts["data"]["train"], "data.train"),
        queries=_section(parts["data"]["queries"], "data.queries"),
        outcome=outcome,
        headline=_OUTCOMES[outcome],
        reasons=reasons,
        notes=_strings(parts["model"]["notes"]),
        verdicts=verdicts,
        by_name={verdict.name: verdict for verdict in verdicts},
        flagged_any=len(flagged) > 0,
        regression=top["task"] == "regression",
        sources=sources[:MAX_ROWS],
        more_sources=max(0, len(sources) - MAX_ROWS),
        guilty=_guilty(sources, verdicts[0].measure),
        album=album,
        audit_command=top["repeat"] or f"forward-inf audit {shlex.quote(str(uri))}",
        promote_command=f"forward-inf promote {shlex.quote(str(uri))} --alias champion",
    )


class _Album:
    """The thumbnails as data URIs, until the page would become too heavy."""

    def __init__(self, thumbnails: Mapping[str, bytes]) -> None:
        self._thumbnails = thumbnails
        self._left = _THUMBNAIL_BUDGET
        self.full = False

    def find(self, kind: str, row: Any) -> str | None:
        """Return the picture of a training row (``train``) or a query (``query``), if any."""
        png = self._thumbnails.get(f"{kind}:{_label(row)}")
        if png is None:
            return None
        encoded = base64.b64encode(png).decode("ascii")
        if len(encoded) > self._left:
            self.full = True
            return None
        self._left -= len(encoded)
        return f"data:image/png;base64,{encoded}"


def _section(value: Any, name: str) -> Section:
    if value is None:
        return Section()
    if not isinstance(value, Mapping):
        raise TrackingError(
            f"the audit cannot be read: {name} is a {type(value).__name__}, not a mapping; "
            "audit the version again"
        )
    return Section({str(key): content for key, content in value.items()})


def _strings(value: Any) -> list[str]:
    """Return a list of sentences; a lone one counts as a list."""
    if value is None:
        return []
    return [str(item) for item in value] if isinstance(value, list | tuple) else [str(value)]


def _number(value: Any) -> float | None:
    """Return a finite number, or None for anything else."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number):
        return None
    return float(value) if math.isfinite(value) else None


def _state(measure: Section, bound: float | None) -> str:
    rate = _number(measure["rate"])
    if measure["abstained"] or rate is None:
        return "unknown"
    if bound is None:
        return "report"
    if rate <= bound:
        return "within"
    low = _number(measure["rate_low"])
    return "over" if low is None or low > bound else "near"


def _bar(measure: Section, bound: float | None) -> Section | None:
    rate = _number(measure["rate"])
    if rate is None or measure["abstained"]:
        return None
    low = min(rate, _number(measure["rate_low"]) or 0.0)
    # Room to the right of the longest mark, and a rate of zero against no bound still has a length.
    length = min(1.0, max(rate, bound or 0.0) * 1.25) or 1.0
    marks = {"low": low, "rate": rate, "bound": bound}
    return Section(
        {k: None if v is None else round(100 * min(1, v / length), 2) for k, v in marks.items()}
    )


def _matching(flagged: pd.DataFrame, name: str) -> int:
    return int((flagged["verdict"] == name).sum()) if len(flagged) else 0


def _rows(flagged: pd.DataFrame, name: str, album: _Album) -> list[Section]:
    if not len(flagged):
        return []
    rows = [
        Section({str(key): value for key, value in record.items()})
        for record in flagged[flagged["verdict"] == name].head(MAX_ROWS).to_dict("records")
    ]
    for row in rows:
        row["picture"] = album.find("train", row["row_id"])
        if name == "leaked":
            row["query_picture"] = album.find("query", row["query_id"])
    return rows


def _chart(name: str, measure: Section, leaks: Any, scores: pd.DataFrame) -> Markup | None:
    threshold = _number(measure["threshold"])
    if name == "leaked":
        if not isinstance(leaks, Sequence | np.ndarray) or isinstance(leaks, str):
            return None
        values = _floats(pd.Series(list(leaks), dtype=object))
        flags = values <= (-np.inf if threshold is None else threshold)
        axis = "gap to the nearest training row (z score of its log): further left is closer"
        noun = "queries"
    else:
        if f"{name}_score" not in scores:
            return None
        values = _floats(scores[f"{name}_score"])
        flags = np.zeros(len(values), bool)
        if name in scores:
            flags = scores[name].to_numpy() == True  # noqa: E712  (None and NaN are not flagged)
        axis = f"{name} score: further right is more suspicious"
        noun = "training rows"
    drawn = f"{len(values):,} {noun}, {int(flags.sum()):,} of them flagged"
    if threshold is not None:
        drawn += f"; the threshold is {threshold:.3g}"
    return distribution(
        values,
        flags,
        threshold=threshold,
        axis=axis,
        noun=noun,
        description=f"Histogram of the score behind the verdict {name}: {drawn}.",
    )


def _floats(column: pd.Series) -> np.ndarray:
    return np.asarray(pd.to_numeric(column, errors="coerce"), dtype=np.float64)


def _sources(value: Any) -> list[Section]:
    """Return the sources, the one with most mislabeled rows per row first."""
    sources = [_section(item, "sources") for item in value or []]
    return sorted(sources, key=lambda source: -(_number(source["mislabeled_rate"]) or 0.0))


def _guilty(sources: list[Section], measure: Section) -> list[Section]:
    """Return the sources whose mislabeled rate is above the whole set's beyond chance."""
    overall = _number(measure["rate"])
    if overall is None:
        return []
    return [s for s in sources if (_number(s["mislabeled_low"]) or 0.0) > overall][:3]


def _label(value: Any) -> str:
    """Write a label or an id: whole numbers as such, since a gap in a column makes them floats."""
    number = _number(value)
    if number is None or isinstance(value, int | np.integer):
        return _DASH if value is None or value is pd.NA or value != value else str(value)
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else _figure(number)


def _figure(value: Any) -> str:
    """Write a number with three significant digits, thousands apart."""
    number = _number(value)
    if number is None:
        return _DASH
    if number != 0 and not 1e-3 <= abs(number) < 1e9:
        text = f"{number:.1e}"
    elif abs(number) >= 1000:
        text = f"{number:,.0f}"
    else:
        text = f"{number:#.3g}".rstrip(".")
    return text.replace("-", "\N{MINUS SIGN}")


def _count(value: Any) -> str:
    number = _number(value)
    return _DASH if number is None else f"{number:,.0f}"


def _percent(value: Any) -> str:
    number = _number(value)
    if number is None:
        return _DASH
    small = 0 < abs(number) < 0.0005
    return "< 0.1\u00a0%" if small else f"{100 * number:.1f}\u00a0%"


def _when(value: Any) -> str:
    """Write milliseconds since 1970 as a date; zero is what a server without dates says."""
    number = _number(value)
    if not number or not 0 < number < 4e12:
        return _DASH
    return datetime.fromtimestamp(number / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _visible(value: Any) -> Any:
    """Make anything printable: capped, with every character that cannot be seen spelt out."""
    if hasattr(value, "__html__"):
        return value
    return _printable(_label(value), _MAX_TEXT)


def _printable(text: str, most: int) -> str:
    if len(text) > most:
        text = text[: most - 1] + "…"
    return "".join(
        char
        if char.isprintable() or char in "\u00a0\u202f\u200c\u200d"
        else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def _command(value: Any) -> Markup:
    """Write a command line whole: a shortened one would do something else."""
    return escape(_printable(str(value), _MAX_COMMAND))


@cache
def _template() -> Template:
    folder = files("forward_inf_mlflow.report")
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=_count, percent=_percent, figure=_figure, label=_label, when=_when, command=_command
    )
    # Our own file, the only text that is not escaped.
    environment.globals["css"] = Markup((folder / "report.css").read_text(encoding="utf-8"))  # noqa: S704
    return environment.from_string((folder / "report.html.j2").read_text(encoding="utf-8"))
