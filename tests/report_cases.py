"""What the tests of the report share: audits to render, and a page taken apart."""

from __future__ import annotations

from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd

from forward_inf_mlflow.report.influence import MAX_ROWS

HOSTILE = (
    "<script>alert(1)</script></textarea><img src=http://evil.test/x onerror=y>\"'\u202e{{7*7}}"
)
COLUMNS = [
    "verdict", "row_id", "query_id", "given_label", "likelier_label", "score", "kind",
    "same_label", "source", "loss", "evidence",
]  # fmt: skip


def make_audit(**changes: Any) -> dict[str, Any]:
    rows = {"uri": "runs:/r/train.npz", "rows": 1240, "sha256": "ab" * 32, "origin": "logged"}
    rows |= {"digest": "verified", "problem": None}
    audit: dict[str, Any] = {
        "format": 2,
        "finished": True,
        "tool": {"mlflow": "3.17.2", "torch": "2.13.0"},
        "model": {"uri": "models:/m/1", "name": "m", "version": "1"},
        "notes": ["was logged so"],
        "run": {"run_id": "r", "experiment_id": "1"},
        "data": {"train": rows, "queries": rows},
        "partial": False,
        "task": "classification",
        "settings": {"seed": 0},
        "measures": {
            name: {
                "count": 40,
                "total": 1240,
                "rate": 0.0323,
                "rate_low": 0.025,
                "rate_high": 0.05,
                "certain": 30,
                "reliability": 0.93,
                **extra,
            }
            for name, extra in (
                ("mislabeled", {"threshold": 0.62, "abstained": None, "note": "a note"}),
                ("leaked", {"threshold": -4.5, "abstained": None, "note": None}),
                ("memorized", {"threshold": 0.25, "abstained": None, "note": None}),
            )
        },
        "sources": [
            {
                "source": "vendor-b",
                "rows": 400,
                "mislabeled": 30,
                "mislabeled_rate": 0.075,
                "mislabeled_low": 0.05,
                "mislabeled_high": 0.1,
                "mislabeled_p": 0.0007,
                "leaked_p": 0.42,
                "influence": -0.01,
                "influence_p": 0.03,
            },
            {"source": "vendor-a", "rows": 840, "mislabeled_p": 1.0, "influence": 0.02},
        ],
        "review": {
            "looked": {"certain": 10, "rest": 40},
            "wrong": {"certain": 9, "rest": 3},
            "unsure": 2,
            "rate": {"estimate": 0.081, "low": 0.04, "high": 0.14},
            "precision": {"estimate": 0.8, "low": 0.6, "high": 0.95},
            "by": "A. Owner",
        },
        "costs": {
            "rows": 1240,
            "queries": 557,
            "seconds": 21.0,
            "forward_passes": 1234567,
            "forward_equivalents": 7654321,
        },
        "policy": {
            "sha256": "cd" * 32,
            "max_mislabeled_rate": 0.01,
            "max_leakage_rate": 0.01,
            "max_memorized_rate": None,
        },
        "decision": {
            "outcome": "fail",
            "reasons": ["mislabeled rows: too many", "leaked rows: too many"],
        },
        "repeat": "forward-inf audit models:/m/1 --seed 0",
    }
    return audit | changes


def make_flagged(each: int = 3, **changes: Any) -> pd.DataFrame:
    rows = [
        [verdict, f"r{i}", f"q{i}", 3, 5, 0.9, "near", True, "vendor-b", 1.5, "because"]
        for verdict in ("mislabeled", "leaked", "memorized")
        for i in range(each)
    ]
    return pd.DataFrame(rows, columns=COLUMNS).assign(**changes)


NO_SCORES = pd.DataFrame()  # draws no chart, which is most of the time that a report takes
LEAK_SCORES = [*np.linspace(-9, 3, 50), None]


def make_scores() -> pd.DataFrame:
    """Scores of 100 rows; c0 and c1, and c2 and c3, are copies that disagree."""
    score = np.linspace(0, 1, 100)
    ids = [*(f"r{i}" for i in range(96)), "c0", "c1", "c2", "c3"]
    twins = [*[""] * 96, "c1", "c0", "c3", "c2"]
    return pd.DataFrame(
        {
            "id": ids,
            "label": [*[3] * 96, 1, 2, 3, 4],
            "source": "vendor-a",
            "loss": score,
            "copy_of": twins,
            "copy_exact": [*[False] * 98, True, True],
            "copy_conflicts": [twin != "" for twin in twins],
            "mislabeled_score": score,
            "mislabeled_suspicion": score,
            "mislabeled_surely": score,
            "memorized_score": score**2,
            "mislabeled": score > 0.62,
            "memorized": score**2 > 0.25,
        }
    )


def make_influence(rows: Sequence[tuple[str, str, float]] = ()) -> pd.DataFrame:
    """Proponents and opponents: who was asked, as ``train:r0``, of which row, and how much."""
    asked = [key.partition(":") for key, _, _ in rows]
    return pd.DataFrame(
        {
            "asked": [role for role, _, _ in asked],
            "query_id": [name for _, _, name in asked],
            "kind": ["proponent" if value > 0 else "opponent" for _, _, value in rows],
            "rank": range(1, len(rows) + 1),
            "train_id": [row for _, row, _ in rows],
            "influence": [value for _, _, value in rows],
        }
    )


class Page(HTMLParser):
    """The page as a browser would take it apart."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def attributes(self, tag: str, name: str) -> list[str]:
        return [attrs[name] or "" for t, attrs in self.tags if t == tag and name in attrs]


def make_explanation(**changes: Any) -> dict[str, Any]:
    """Return an ``influence.json`` of one query, with two rows more than are shown."""
    row = {"id": "1", "label": 3, "influence": 0.5, "source": ""}
    data = {"uri": "u", "rows": 9, "origin": "logged", "digest": "verified", "sha256": "a"}
    query = {"id": "1", "label": 3, "answer": 3, "right": True}
    query |= {"probability": 0.9, "label_probability": 0.9}
    answer = {"query_id": "1", "queries": [query], "opponents": [], "sources": None}
    return {
        "task": "classification",
        "unit": "nats",
        "per": "added copy",
        "notes": [],
        "partial": False,
        "repeat": "x",
        "model": {"uri": "models:/m/1", "name": "m", "version": "1", "kind": "pt2"},
        "data": {"train": data, "queries": data},
        "run": {"run_id": "r", "experiment_id": "0"},
        "influence": {"why": "w", "read_why": None, "readout": "loss"},
        "costs": {"rows": 9, "queries": 1, "seconds": 1.0, "forward_passes": 18},
        "settings": {"together": False},
        "tool": {},
        "answers": [{**answer, "proponents": [row] * (MAX_ROWS + 2)}],
        **changes,
    }
