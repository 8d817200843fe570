"""Page: the environment that every page is rendered in, and the walls that it stands behind.

Every string in an audit and in its rows is other people's. Three walls keep it text: autoescape is
always on; ``visible`` stands at every output of a template, so that no control or bidirectional
character reorders what a reader sees; and the page's own policy forbids the network, and every
script but our own, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

from forward_inf_mlflow.report.formats import (
    command,
    count,
    figure,
    label,
    percent,
    probability,
    signed,
    visible,
    when,
)


def template(name: str) -> Template:
    """Return a page of this package: ``report.html.j2`` or ``influence.html.j2``."""
    return _environment().get_template(name)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_read),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=count,
        percent=percent,
        figure=figure,
        label=label,
        when=when,
        command=command,
        probability=probability,
        signed=signed,
    )
    # Our own files, the only text that is not escaped; no other script runs.
    script = _read("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals |= {
        "css": Markup(_read("report.css")),  # noqa: S704
        "script": Markup(script),  # noqa: S704
        "script_hash": f"sha256-{digest}",
    }
    return environment


def _read(name: str) -> str:
    return (files("forward_inf_mlflow.report") / name).read_text(encoding="utf-8")
