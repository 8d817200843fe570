from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from forward_inf_mlflow.report import render

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: install it to run these"),
]
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A refused report in which every text from data is hostile."""
    measure = {
        "count": 3, "total": 30, "rate": 0.1, "rate_low": 0.05, "rate_high": 0.2,
        "certain": 2, "threshold": 0.5,
        "note": HOSTILE, "abstained": None,
    }  # fmt: skip
    audit = {
        "format": 2,
        "finished": True,
        "model": {"uri": HOSTILE, "name": HOSTILE, "version": "1"},
        "notes": [HOSTILE],
        "measures": dict.fromkeys(("mislabeled", "leaked", "memorized"), measure),
        "policy": {"max_mislabeled_rate": 0.03, "max_leakage_rate": 0.01},
        "decision": {"outcome": "fail", "reasons": [HOSTILE]},
        "repeat": HOSTILE,
    }
    flagged = pd.DataFrame(
        {
            "verdict": ["mislabeled", "leaked", "memorized"],
            "row_id": HOSTILE,
            "query_id": [None, HOSTILE, None],
            "given_label": HOSTILE,
            "likelier_label": HOSTILE,
            "score": 0.9,
            "kind": [None, "near", None],
            "same_label": [None, True, None],
            "source": HOSTILE,
            "loss": 1.0,
            "evidence": HOSTILE,
        }
    )
    score = np.linspace(0, 1, 30)
    scores = pd.DataFrame(
        {
            "mislabeled_score": score,
            "mislabeled_suspicion": score,
            "mislabeled_surely": score,
            "mislabeled": False,
        }
    )
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(render(audit, flagged, scores), encoding="utf-8")
    return file


@pytest.fixture
def browse(report: Path, tmp_path: Path) -> Callable[..., str]:
    """Open the report in a headless Chromium and return what it prints."""

    def run(*switches: str) -> str:
        return subprocess.run(
            [
                str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
                "--disable-background-networking", "--disable-component-update",
                "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", *switches,
                report.as_uri(),
            ],
            capture_output=True, text=True, timeout=120, check=True,
        ).stdout  # fmt: skip

    return run


def test_hostile_texts_stay_texts_in_a_real_browser(browse: Callable[..., str]) -> None:
    page = browse("--dump-dom")
    assert "<title>owned" not in page
    assert "&lt;script&gt;document.title" in page
    assert "<img src=" not in page.replace('<img src="data:', "")


@pytest.mark.parametrize("width", [600, 1400])
def test_the_decision_is_the_first_thing_seen_at_either_width(
    browse: Callable[..., str], tmp_path: Path, width: int
) -> None:
    shot = tmp_path / "shot.png"
    browse("--hide-scrollbars", f"--window-size={width},800", f"--screenshot={shot}")
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert pixels.shape[1] == width
    red = (pixels[..., 0] > 120) & (pixels[..., 1] < 90) & (pixels[..., 2] < 90)
    assert red[:100].mean() > 0.5, "a refused version opens with a red banner"


def test_the_slider_says_what_to_expect(browse: Callable[..., str]) -> None:
    page = browse("--dump-dom")
    assert "data-depths" in page
    assert "Of the first 3 rows about 0, at most 0 are innocent." in page
