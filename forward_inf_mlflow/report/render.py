"""Render: an audit and its rows become one HTML file that needs nothing else; see ``page``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from forward_inf_mlflow.decision import WORDS
from forward_inf_mlflow.errors import DataError
from forward_inf_mlflow.report.album import Album
from forward_inf_mlflow.report.approvals import approvals_html
from forward_inf_mlflow.report.expected import Expected
from forward_inf_mlflow.report.formats import number
from forward_inf_mlflow.report.measures import BOUNDS, Verdict
from forward_inf_mlflow.report.origins import guilty, origins
from forward_inf_mlflow.report.page import template
from forward_inf_mlflow.report.portraits import Portraits
from forward_inf_mlflow.report.reviews import review_sentences
from forward_inf_mlflow.report.rows import Presenter
from forward_inf_mlflow.report.sections import Section, section, strings
from forward_inf_mlflow.report.since import since_section
from forward_inf_mlflow.verdicts.seal import Sealed

MAX_SOURCES = 100
#: What more there is to say below a verdict, by the parts of the record that say it.
_MORE = {
    "mislabeled": ("receipt", "duplicates"),
    "leaked": ("leak_worth",),
    "memorized": ("membership",),
}


def render(
    audit: Mapping[str, Any],
    flagged: pd.DataFrame,
    scores: pd.DataFrame,
    portraits: Portraits | None = None,
    influence: pd.DataFrame | None = None,
    *,
    approvals: Sequence[Sealed] = (),
) -> str:
    """Render the report.

    Args:
        audit: The content of ``audit.json``. Every key may be missing, as in an older audit;
            ``leak_scores`` (one per query, smaller is closer) may be added for the chart.
        flagged: One line per verdict and row, worst first: ``verdict`` (mislabeled, leaked,
            memorized), ``row_id``, ``query_id``, ``given_label``, ``likelier_label``, ``score``,
            ``p_value``, ``kind``, ``same_label``, ``source``, ``loss`` (nats), ``evidence``;
            columns ``feature.<name>`` are shown where nothing else shows the row.
        scores: One line per training row: ``id``, ``label``, ``source``, ``loss``, ``copy_of``,
            ``copy_exact`` and ``copy_conflicts`` for the work list; ``mislabeled_score``,
            ``mislabeled_suspicion``, ``mislabeled_surely``, ``memorized_score`` and the booleans
            ``mislabeled`` and ``memorized`` for what explains it.
        portraits: What rows are recognized by.
        influence: Proponents and opponents of single rows: ``asked``, ``query_id``, ``kind``,
            ``rank``, ``train_id``, ``influence``.
        approvals: Overrides of the version, newest first.

    Returns:
        A whole HTML document.

    Raises:
        TrackingError: A part of the audit is not of the kind that this version reads.
        DataError: ``flagged`` does not say which verdict its rows belong to.
    """
    if len(flagged) and "verdict" not in flagged:
        raise DataError("the flagged rows have no column 'verdict': audit the version again")
    portraits = portraits or Portraits()
    top = section(audit, "audit.json")
    parts = {
        name: section(top[name], name)
        for name in ("model", "run", "tool", "settings", "costs", "policy", "decision", "data")
    }
    regression = top["task"] == "regression"
    measures = section(top["measures"], "measures")
    verdicts = [
        Verdict.of(
            name,
            measure=section(measures[name], f"measures.{name}"),
            bound=number(parts["policy"][key]),
            scores=scores,
            leaks=top["leak_scores"],
        )
        for name, key in BOUNDS.items()
    ]
    album = Album(portraits.pictures)
    presenter = Presenter(scores, influence, portraits.values, album, regression=regression)
    by_name = {verdict.name: verdict for verdict in verdicts}
    named = number(by_name["mislabeled"].measure["count"])
    expected = Expected.of(scores, named, probable=not regression)
    sources = origins(top["sources"])
    outcome, reasons = _decision(top, parts["decision"])
    uri = str(parts["model"]["uri"] or "MODEL_URI")
    return template(
        "report.html.j2"
    ).render(
        audit=top,
        **parts,
        train=section(parts["data"]["train"], "data.train"),
        queries=section(parts["data"]["queries"], "data.queries"),
        outcome=outcome,
        headline=WORDS[outcome],
        reasons=reasons,
        notes=strings(top["notes"]),
        verdicts=verdicts,
        by_name=by_name,
        list=presenter.show(flagged, scores),
        asked=section(top["influence"], "influence"),
        reviewed=review_sentences(section(top["review"], "review")),
        regression=regression,
        # Older audits do not say it.
        unit=top["unit"] or ("half squared units" if regression else "nats"),
        expected=expected,
        slider=Markup(json.dumps(expected.stops)),  # noqa: S704  numbers that we counted
        more={
            verdict: [
                said
                for part in names
                if (said := section(top[part], part)["sentence"]) and said not in reasons
            ]
            for verdict, names in _MORE.items()
        },
        since=since_section(top["since"], uri),
        sources=sources[:MAX_SOURCES],
        more_sources=max(0, len(sources) - MAX_SOURCES),
        guilty=guilty(sources),
        album=album,
        approvals=approvals_html(approvals),
        audit_command=_own_command(top["repeat"]) or shlex.join(["forward-inf", "audit", uri]),
        promote_command=shlex.join(["forward-inf", "promote", uri, "--alias", "champion"]),
    )


def _decision(audit: Section, decision: Section) -> tuple[str, list[str]]:
    """Return the outcome and its reasons; whatever is not clearly a decision is undecided."""
    reasons = strings(decision["reasons"])
    outcome = decision["outcome"]
    if audit["finished"] is False:
        return "undecided", ["the audit did not finish: run it again", *reasons]
    if not isinstance(outcome, str) or outcome not in WORDS:
        return "undecided", ["the audit holds no decision: run it again", *reasons]
    return outcome, reasons


def _own_command(value: Any) -> str | None:
    """Return a command line that calls nothing but our own tool, for readers who paste it."""
    try:
        words = shlex.split(value) if isinstance(value, str) else []
    except ValueError:  # a quotation without an end: no command line of ours
        return None
    return shlex.join(words) if words[:1] == ["forward-inf"] else None
