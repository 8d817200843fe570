"""Hostile texts stay texts on the pages about language models, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from test_browser import CHROMIUM, DRIVER, HOSTILE

from forward_inf_mlflow.report.recite import render_recitation
from forward_inf_mlflow.report.trace import render_trace

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        None in (CHROMIUM, DRIVER), reason="no Chromium with its driver here: install them"
    ),
]
DATA = {"rows": 2, "uri": HOSTILE, "origin": HOSTILE, "digest": HOSTILE, "sha256": HOSTILE}
SHARE = {"count": 1, "total": 2, "rate": 0.5, "low": 0.1, "high": 0.9}
SHARED: dict[str, Any] = {
    "model": {"name": HOSTILE, "version": "1", "uri": HOSTILE, "kind": "transformers"},
    "notes": [HOSTILE],
    "run": {"run_id": HOSTILE, "experiment_id": HOSTILE},
    "tool": {"torch": HOSTILE},
    "task": "causal_lm",
    "settings": {"seed": 0},
    "repeat": f"forward-inf {HOSTILE}",
}
TRACE: dict[str, Any] = {
    **SHARED,
    "partial": True,
    "unit": "nats",
    "per": "added copy",
    "data": {"train": DATA},
    "trace": {"why": HOSTILE, "read_why": HOSTILE, "readout": "margin"},
    "costs": {"rows": 2, "candidates": 2, "seconds": 1.0, "forward_passes": 4},
    "completion": {
        "prompt": HOSTILE,
        "text": HOSTILE,
        "probability": 0.5,
        "tokens": [{"text": HOSTILE, "probability": 0.5, "best": HOSTILE, "best_probability": 0.5}],
    },
    "rows": [
        {
            "rank": 1,
            "train_id": f"{'id' * 40}{HOSTILE}",
            "source": HOSTILE,
            "text": f"{HOSTILE} {'word ' * 400}{'long' * 200}",
            "words": [[0, 30]],
            "influence": 1.0,
            "screen": 1.0,
        }
    ],
}
RECITE: dict[str, Any] = {
    **SHARED,
    "data": {"train": DATA, "benchmark": DATA, "unseen": DATA},
    "costs": {"rows": 2, "seconds": 1.0},
    "extraction": {
        **SHARE,
        "given": 3,
        "written": 5,
        "short": 1,
        "unseen": SHARE,
        "rows": [
            {"id": HOSTILE, "given": HOSTILE, "continuation": HOSTILE, "needed": 1, "copies": 1}
        ],
    },
    "canaries": {
        "count": 1,
        "known": 1,
        "by_repeats": [{"repeats": 1, "count": 1, "bits": 9.9, "known": 1}],
        "rows": [
            {
                "text": HOSTILE,
                "repeats": 1,
                "bits": 9.9,
                "rank": 1,
                "compared": 1000,
                "known": True,
                "at_least": True,
                "whole": False,
                "chance": 0.001,
            }
        ],
    },
    "contamination": {
        **SHARE,
        "ngram": 8,
        "overlap": 0.8,
        "false_positives": 0.05,
        "short": 1,
        "unseen": SHARE,
        "ways": {way: {"count": 1, "unseen": SHARE} for way in ("exact", "ngram", "influence")},
        "rows": [
            {
                "id": HOSTILE,
                "found": "exact",
                "text": HOSTILE,
                "train_id": HOSTILE,
                "train_text": HOSTILE,
                "share": 1.0,
                "influence": 0.5,
                "chance": 0.01,
            }
        ],
    },
}
PAGES = {"trace": render_trace(TRACE), "recite": render_recitation(RECITE)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    options = ChromeOptions()
    for switch in ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"):
        options.add_argument(switch)
    options.binary_location = str(CHROMIUM)
    found = Chrome(options=options, service=Service(DRIVER))
    yield found
    found.quit()


@pytest.mark.parametrize("width", [600, 1200])
@pytest.mark.parametrize("name", PAGES)
def test_hostile_texts_stay_texts_and_nothing_is_wider_than_the_pane(
    name: str, width: int, browser: Chrome, tmp_path: Path
) -> None:
    page = tmp_path / f"{name}.html"
    page.write_text(PAGES[name], encoding="utf-8")
    browser.set_window_size(width, 900)
    browser.get(page.as_uri())
    assert HOSTILE in browser.title
    assert not browser.find_elements(By.CSS_SELECTOR, "script, img")
    assert browser.find_element(By.TAG_NAME, "main").text.count("<script>document.title") > 8
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(wide) == 0
