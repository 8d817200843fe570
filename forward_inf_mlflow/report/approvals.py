"""The report's approvals: a part of the page that may change after the audit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from forward_inf_mlflow.clock import moment
from forward_inf_mlflow.report.formats import visible
from forward_inf_mlflow.verdicts.seal import Sealed

_MOST = 20
#: What other people wrote is escaped, so that only our own template writes these marks.
_PART = re.compile("<!-- approvals -->.*?<!-- /approvals -->", re.DOTALL)


def approvals_html(approvals: Sequence[Sealed]) -> Markup:
    """Return the part of the page; nothing that a reader sees where there are no approvals.

    Args:
        approvals: Overrides, newest first, as anybody may have written them.
    """
    some = approvals[:_MOST]
    html = _template().render(approvals=some, more=len(approvals) - len(some))
    return Markup(html.strip())  # noqa: S704  autoescaped


def with_approvals(report: str, approvals: Sequence[Sealed]) -> str | None:
    """Return a report with its approvals brought up to date, and nothing else changed.

    None if it has no place for them, as reports of older releases.
    """
    new = approvals_html(approvals)
    changed, count = _PART.subn(lambda _: str(new), report, count=1)
    return changed if count else None


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["when"] = moment
    text = (files("forward_inf_mlflow.report") / "parts/approvals.html.j2").read_text("utf-8")
    return environment.from_string(text)
