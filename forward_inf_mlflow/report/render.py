"""Render: an audit and its rows become one HTML file that needs nothing else.

Every string in the audit and in the rows is other people's. Three walls keep it text: autoescape is
always on; ``visible`` stands at every output of the template, so that no control or bidirectional
character reorders what a reader sees; and the page's own policy forbids the network, and every
script but our own, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from forward_inf_mlflow.decision import WORDS
from forward_inf_mlflow.detect.sources import LEVEL
from forward_inf_mlflow.errors import DataError, TrackingError
from forward_inf_mlflow.report.approvals import approvals_html
from forward_inf_mlflow.report.charts import distribution
from forward_inf_mlflow.report.formats import (
    command,
    count,
    figure,
    label,
    number,
    percent,
    visible,
    when,
)
from forward_inf_mlflow.verdicts.seal import Sealed

MAX_ROWS = 100  # per verdict; flagged.csv has them all
#: Most suspicious rows of which the report says what to expect.
_DEPTHS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
#: Where the slider stops, at most.
_STOPS = 200
_FEATURE, _MAX_FEATURES, _MAX_VALUE = "feature.", 6, 60
_THUMBNAIL_BUDGET = 3_000_000  # bytes of PNG as base64, so that the page opens at once
_BOUNDS = {
    "mislabeled": "max_mislabeled_rate",
    "leaked": "max_leakage_rate",
    "memorized": "max_memorized_rate",
}


#: What more there is to say below a verdict, by the parts of the record that say it.
_MORE = {
    "mislabeled": ("receipt", "duplicates"),
    "leaked": ("leak_worth",),
    "memorized": ("membership",),
}


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
        undrawn: Rows without a score, which the chart leaves out.
    """

    name: str
    measure: Section
    bound: float | None
    state: str
    bar: Section | None
    rows: list[Section]
    more: int
    chart: Markup | None
    undrawn: int


def render(
    audit: Mapping[str, Any],
    flagged: pd.DataFrame,
    scores: pd.DataFrame,
    thumbnails: Mapping[str, bytes],
    *,
    approvals: Sequence[Sealed] = (),
) -> str:
    """Render the report.

    Args:
        audit: The content of ``audit.json``. Every key may be missing, as in an older audit;
            ``leak_scores`` (one per query, smaller is closer) may be added for the chart.
        flagged: One line per verdict and row, worst first: ``verdict`` (mislabeled, leaked,
            memorized), ``row_id``, ``query_id``, ``given_label``, ``likelier_label``, ``score``,
            ``kind``, ``same_label``, ``source``, ``loss`` (nats), ``evidence``; columns
            ``feature.<name>`` are shown where a row has no picture.
        scores: One line per training row; ``mislabeled_score``, ``memorized_score`` and the
            booleans ``mislabeled`` and ``memorized`` are read.
        thumbnails: PNG bytes by ``train:<row id>`` and ``query:<query id>``.
        approvals: Overrides of the version, newest first.

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
    album = Album(thumbnails)
    verdicts = [
        _verdict(
            name,
            measure=_section(measures[name], f"measures.{name}"),
            bound=number(parts["policy"][key]),
            flagged=flagged[flagged["verdict"] == name] if len(flagged) else flagged,
            scores=scores,
            leaks=top["leak_scores"],
            album=album,
        )
        for name, key in _BOUNDS.items()
    ]
    regression = top["task"] == "regression"
    named = number(_section(measures["mislabeled"], "measures.mislabeled")["count"])
    expected = _expected(scores, named, probable=not regression)
    sources = _sources(top["sources"])
    outcome, reasons = _decision(top, parts["decision"])
    uri = str(parts["model"]["uri"] or "MODEL_URI")
    return template().render(
        audit=top,
        **parts,
        train=_section(parts["data"]["train"], "data.train"),
        queries=_section(parts["data"]["queries"], "data.queries"),
        outcome=outcome,
        headline=WORDS[outcome],
        reasons=reasons,
        notes=_strings(top["notes"]),
        verdicts=verdicts,
        by_name={verdict.name: verdict for verdict in verdicts},
        flagged_any=len(flagged) > 0,
        regression=regression,
        depths=_depths(expected),
        slider=Markup(json.dumps(expected)),  # noqa: S704  numbers that we counted
        slider_start=_start(expected, named),
        more={
            verdict: [
                said
                for part in names
                if (said := _section(top[part], part)["sentence"]) and said not in reasons
            ]
            for verdict, names in _MORE.items()
        },
        sources=sources[:MAX_ROWS],
        more_sources=max(0, len(sources) - MAX_ROWS),
        guilty=_guilty(sources),
        album=album,
        approvals=approvals_html(approvals),
        audit_command=_own_command(top["repeat"]) or shlex.join(["forward-inf", "audit", uri]),
        promote_command=shlex.join(["forward-inf", "promote", uri, "--alias", "champion"]),
    )


class Album:
    """The thumbnails as data URIs, until the page would become too heavy."""

    def __init__(self, thumbnails: Mapping[str, bytes]) -> None:
        self._thumbnails = thumbnails
        self._left = _THUMBNAIL_BUDGET
        self.full = False

    def find(self, kind: str, row: Any) -> str | None:
        """Return the picture of a training row (``train``) or a query (``query``), if any."""
        png = self._thumbnails.get(f"{kind}:{label(row)}")
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


def _state(measure: Section, bound: float | None) -> str:
    rate = number(measure["rate"])
    if measure["abstained"] or rate is None:
        return "unknown"
    if bound is None:
        return "report"
    if rate <= bound:
        return "within"
    low = number(measure["rate_low"])
    return "over" if low is None or low > bound else "near"


def _bar(measure: Section, bound: float | None) -> Section | None:
    rate = number(measure["rate"])
    if rate is None or measure["abstained"]:
        return None
    low = min(rate, number(measure["rate_low"]) or 0.0)
    # Room to the right of the longest mark, and a rate of zero against no bound still has a length.
    length = min(1.0, max(rate, bound or 0.0) * 1.25) or 1.0
    marks = {"low": low, "rate": rate, "bound": bound}
    return Section(
        {k: None if v is None else round(100 * min(1, v / length), 2) for k, v in marks.items()}
    )


def _decision(audit: Section, decision: Section) -> tuple[str, list[str]]:
    """Return the outcome and its reasons; whatever is not clearly a decision is undecided."""
    reasons = _strings(decision["reasons"])
    outcome = decision["outcome"]
    if audit["finished"] is False:
        return "undecided", ["the audit did not finish: run it again", *reasons]
    if not isinstance(outcome, str) or outcome not in WORDS:
        return "undecided", ["the audit holds no decision: run it again", *reasons]
    return outcome, reasons


def _verdict(
    name: str,
    *,
    measure: Section,
    bound: float | None,
    flagged: pd.DataFrame,
    scores: pd.DataFrame,
    leaks: Any,
    album: Album,
) -> Verdict:
    threshold = number(measure["threshold"])
    if name == "leaked":
        values = _floats(leaks if isinstance(leaks, list | np.ndarray) else [])
        # By score, not by verdict: an exact copy is found without one.
        flags = values <= (-np.inf if threshold is None else threshold)
        noun = "query rows"
        axis = "minus nearness to a training row, over the threshold: further left is closer"
    else:
        unknown = [None] * len(scores)
        values = _floats(scores.get(f"{name}_score", unknown))
        # Read back from a file, a column of booleans may hold None: that is no flag.
        flags = np.array([str(flag) == "True" for flag in scores.get(name, unknown)], bool)
        noun = "training rows"
        axis = f"{name} score: further right is more suspicious"
    drawn = f"{len(values):,} {noun}, {int(flags.sum()):,} of them flagged"
    if threshold is not None:
        drawn += f"; the threshold is {threshold:.3g}"
    return Verdict(
        name=name,
        measure=measure,
        bound=bound,
        state=_state(measure, bound),
        bar=_bar(measure, bound),
        rows=[_row(record, name, album) for record in flagged.head(MAX_ROWS).to_dict("records")],
        more=max(0, len(flagged) - MAX_ROWS),
        chart=distribution(
            values,
            flags,
            threshold=threshold,
            axis=axis,
            noun=noun,
            description=f"Histogram of the score behind the verdict {name}: {drawn}.",
        ),
        undrawn=int(np.isnan(values).sum()),
    )


def _expected(
    scores: pd.DataFrame, named: float | None, *, probable: bool
) -> list[tuple[int, float | None, float]]:
    """Return how many of the first rows are wrong, about and at least, at many depths.

    The depths of the table and the number of named rows are among them. About is None where the
    rows' scores are no probabilities.
    """
    needed = ("mislabeled_score", "mislabeled_suspicion", "mislabeled_surely")
    if not set(needed) <= set(scores.columns):
        return []
    score, suspicion, surely = (_floats(scores[name]) for name in needed)
    if np.isnan(suspicion).all():
        return []
    order = np.argsort(-np.nan_to_num(suspicion, nan=-np.inf), kind="stable")
    n = len(order)
    stops = np.unique(np.geomspace(1, n, min(n, _STOPS)).astype(int))
    wanted = [k for k in (*_DEPTHS, int(named or 0)) if 1 <= k <= n]
    depths = np.union1d(stops, wanted).astype(int)
    score, surely = (np.clip(np.nan_to_num(share), 0, 1) for share in (score, surely))
    about = np.cumsum(score[order])[depths - 1]
    # What is wrong among fewer rows is wrong among more.
    least = np.maximum.accumulate(surely[order][depths - 1] * depths)
    return [
        (int(k), round(float(a), 1) if probable else None, round(float(w), 1))
        for k, a, w in zip(depths, about, least, strict=True)
    ]


def _depths(expected: list[tuple[int, float | None, float]]) -> list[Section]:
    """Return the depths of the table."""
    names = ("rows", "about", "surely")
    return [Section(zip(names, one, strict=True)) for one in expected if one[0] in _DEPTHS]


def _start(expected: list[tuple[int, float | None, float]], named: float | None) -> int:
    """Return where the slider stands first: at the named rows."""
    depths = np.array([one[0] for one in expected])
    return int(np.abs(depths - (named or 0)).argmin()) if len(depths) else 0


def _row(record: Mapping[Any, Any], name: str, album: Album) -> Section:
    row = Section({str(key): value for key, value in record.items()})
    row["picture"] = album.find("train", row["row_id"])
    row["features"] = [] if row["picture"] else _features(row)
    if name == "leaked":
        row["query_picture"] = album.find("query", row["query_id"])
    return row


def _features(row: Section) -> list[tuple[str, str]]:
    """Return what a row without a picture is recognized by: names and values, short."""
    found = []
    for key in [key for key in row if key.startswith(_FEATURE)][:_MAX_FEATURES]:
        value = label(row[key])
        value = value if len(value) <= _MAX_VALUE else value[: _MAX_VALUE - 1] + "…"
        found.append((key.removeprefix(_FEATURE)[:_MAX_VALUE], value))
    return found


def _floats(values: Any) -> np.ndarray:
    """Return numbers ``(n,)``; what is none becomes NaN."""
    return np.array([np.nan if (v := number(value)) is None else v for value in values], float)


def _sources(value: Any) -> list[Section]:
    """Return the sources, the one with most mislabeled rows per row first."""
    if not isinstance(value, list | None):
        raise TrackingError("the audit cannot be read: sources is no list; audit the version again")
    sources = [_section(item, "sources") for item in value or []]
    for source in sources:
        source["high"] = [name for name in _BOUNDS if _by_chance(source, name) < LEVEL]
    return sorted(sources, key=lambda source: -(number(source["mislabeled_rate"]) or 0.0))


def _by_chance(source: Section, verdict: str) -> float:
    """Return how likely chance alone gives the source so many of these rows; 1 if nobody says."""
    p = number(source[f"{verdict}_p"])
    return 1.0 if p is None else p


def _guilty(sources: list[Section]) -> list[Section]:
    """Return the sources whose mislabeled rate is above the others' beyond chance."""
    return [source for source in sources if "mislabeled" in source["high"]][:3]


def _own_command(value: Any) -> str | None:
    """Return a command line that calls nothing but our own tool, for readers who paste it."""
    try:
        words = shlex.split(value) if isinstance(value, str) else []
    except ValueError:  # a quotation without an end: no command line of ours
        return None
    return shlex.join(words) if words[:1] == ["forward-inf"] else None


@cache
def template() -> Template:
    """Return the audit's page."""
    folder = files("forward_inf_mlflow.report")
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=count, percent=percent, figure=figure, label=label, when=when, command=command
    )
    # Our own files, the only text that is not escaped; no other script runs.
    script = (folder / "slider.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals |= {
        "css": Markup((folder / "report.css").read_text(encoding="utf-8")),  # noqa: S704
        "script": Markup(script),  # noqa: S704
        "script_hash": f"sha256-{digest}",
    }
    return environment.from_string((folder / "report.html.j2").read_text(encoding="utf-8"))
