from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from report_cases import NO_SCORES, make_audit, make_explanation, make_flagged, make_influence
from selenium.webdriver import ActionChains, Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.select import Select

from forward_inf_mlflow.report import Portraits, render, thumbnail
from forward_inf_mlflow.report.influence import render_influence
from forward_inf_mlflow.report.rows import COLUMNS
from forward_inf_mlflow.report.sample import render_sample
from forward_inf_mlflow.report.trace import render_trace
from forward_inf_mlflow.verdicts.keys import PrivateKey
from forward_inf_mlflow.verdicts.seal import seal
from forward_inf_mlflow.verdicts.statement import Override, Subject

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRIVER = shutil.which("chromedriver")
driven = pytest.mark.skipif(DRIVER is None, reason="no chromedriver here: install chromium-driver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: install it to run these"),
]
HOSTILE = (
    "<script>document.title='owned'</script></textarea>"
    "<img src=x onerror=\"document.title='owned'\">'"
)


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
        "since": {"problem": HOSTILE},
    }
    subject = Subject(name=HOSTILE, version="1", creation_timestamp=1, source="", model_id=None)
    override = Override(subject=subject, alias=HOSTILE, reason=HOSTILE, issued=1, expires=2**52)
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
            "id": [HOSTILE, *map(str, range(29))],
            "label": HOSTILE,
            "source": HOSTILE,
            "copy_of": HOSTILE,
            "copy_conflicts": [True, *[False] * 29],
            "mislabeled_score": score,
            "mislabeled_suspicion": score,
            "mislabeled_surely": score,
            "mislabeled": False,
        }
    )
    file = tmp_path_factory.mktemp("report") / "report.html"
    values = {f"{role}:{HOSTILE}": [(HOSTILE, HOSTILE + role)] for role in ("train", "query")}
    sides = make_influence([(f"train:{HOSTILE}", HOSTILE, 1.0)])
    approvals = [seal(override, PrivateKey.generate())]
    html = render(audit, flagged, scores, Portraits({}, values), sides, approvals=approvals)
    file.write_text(html, encoding="utf-8")
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
    assert page.split('id="approvals"')[1].count("&lt;script&gt;document.title") > 2
    assert page.split('id="since"')[1].count("&lt;script&gt;document.title") > 1
    assert "<img src=" not in page.replace('<img src="data:', "")


def spoiled(value: Any, *kept: str) -> Any:
    """Return a record in which every text is hostile, but for those under some keys."""
    if isinstance(value, dict):
        return {k: part if k in kept else spoiled(part, *kept) for k, part in value.items()}
    if isinstance(value, list):
        return [spoiled(part, *kept) for part in value]
    return HOSTILE if isinstance(value, str) else value


def influence_page() -> str:
    record = spoiled(make_explanation(notes=["a"]), "task", "readout")
    record["answers"][0]["sources"] = [
        {"source": HOSTILE, "rows": 1, "influence": 1.0, "low": 0.0, "high": 2.0}
    ]
    shown = {f"{role}:{HOSTILE}": [(HOSTILE, HOSTILE)] for role in ("train", "query")}
    return render_influence(record, {}, [shown])


def trace_page() -> str:
    token = {"text": "t", "probability": 0.5, "best": "b", "best_probability": 0.5}
    said = {"prompt": "p", "text": "t", "probability": 0.5, "tokens": [token]}
    row = {"rank": 1, "train_id": "1", "source": "s", "text": "t", "words": [[0, 3]]}
    rows = [{**row, "influence": 1.0, "screen": 1.0}]
    how = {"why": "w", "read_why": "r", "readout": "loss"}
    record = make_explanation(completion=said, rows=rows, trace=how, notes=["a"])
    record["costs"]["candidates"] = 1
    return render_trace(spoiled(record, "readout"))


def sample_page() -> str:
    values = pd.DataFrame({HOSTILE: [HOSTILE], "short": ["<img src=x onerror=alert(1)>"]})
    return render_sample(HOSTILE, HOSTILE, [HOSTILE], [HOSTILE], [None], values)


@driven
@pytest.mark.parametrize("page", [influence_page, trace_page, sample_page])
def test_hostile_texts_stay_texts_on_the_other_pages_too(
    page: Callable[[], str], driver: WebDriver, tmp_path: Path
) -> None:
    (tmp_path / "page.html").write_text(page(), "utf-8")
    driver.get((tmp_path / "page.html").as_uri())
    assert "owned" not in driver.title.split("<script>")[0]
    assert driver.find_elements(By.CSS_SELECTOR, "script, img, iframe, a, [onerror]") == []
    body = driver.find_element(By.TAG_NAME, "body").text
    assert body.count("<script>document.title='owned'</script></textarea>") > 3
    assert body.count("<img src=x onerror=") > 3


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


SOURCES = [f"vendor {HOSTILE}", "archive"]


@pytest.fixture(scope="module")
def driver() -> Iterator[WebDriver]:
    """A headless Chromium that presses keys."""
    options = ChromeOptions()
    for switch in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--window-size=600,900",
    ):  # fmt: skip
        options.add_argument(switch)
    options.binary_location = str(CHROMIUM)
    found = Chrome(options=options, service=Service(DRIVER))
    yield found
    found.quit()


@pytest.fixture(scope="module")
def pane(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of twelve rows in a frame as MLflow shows it, beside a place to paste into."""
    folder = tmp_path_factory.mktemp("pane")
    flagged = make_flagged(4).assign(
        row_id=[f"row-{i:02}" for i in range(12)],
        source=[SOURCES[i % 2] for i in range(12)],
        evidence=[f"because {HOSTILE}", "=1+1", *["so it is"] * 10],
    )
    (folder / "report.html").write_text(render(make_audit(), flagged, NO_SCORES), "utf-8")
    (folder / "pane.html").write_text(
        "<title>pane</title><textarea></textarea>"
        '<iframe src="report.html" sandbox="allow-scripts" width="560" height="700"></iframe>',
        "utf-8",
    )
    return folder / "pane.html"


@pytest.fixture
def framed(driver: WebDriver, pane: Path) -> WebDriver:
    """The browser inside the frame of a page that was just opened."""
    driver.get(pane.as_uri())
    driver.switch_to.frame(driver.find_element(By.TAG_NAME, "iframe"))
    return driver


def seen(driver: WebDriver) -> list[str]:
    """Return the ids of the rows that are shown."""
    rows = driver.find_elements(By.CSS_SELECTOR, "[data-kinds]")
    return [row.find_element(By.CSS_SELECTOR, "th code").text for row in rows if row.is_displayed()]


def said(driver: WebDriver) -> str:
    return driver.find_element(By.CSS_SELECTOR, "[data-said]").text


@driven
def test_rows_are_filtered_by_finding_source_and_words(framed: WebDriver) -> None:
    assert len(seen(framed)) == 12
    framed.find_element(By.CSS_SELECTOR, "[value=leaked] + span").click()
    assert seen(framed) == ["row-04", "row-05", "row-06", "row-07"]
    assert said(framed) == "4 of 12 rows"
    Select(framed.find_element(By.CSS_SELECTOR, "[data-source]")).select_by_visible_text("archive")
    assert seen(framed) == ["row-05", "row-07"]
    search = framed.find_element(By.CSS_SELECTOR, "[data-search]")
    search.send_keys("SO row-07")
    assert seen(framed) == ["row-07"]
    search.send_keys("x")
    assert seen(framed) == []
    assert "No row is like that." in framed.find_element(By.ID, "list").text


@driven
def test_the_keyboard_alone_reaches_and_searches_the_rows(framed: WebDriver) -> None:
    framed.switch_to.default_content()
    framed.find_element(By.TAG_NAME, "textarea").send_keys(Keys.TAB)
    framed.switch_to.frame(framed.find_element(By.TAG_NAME, "iframe"))
    skip = framed.switch_to.active_element
    assert skip.text == "Skip to the rows"
    assert skip.value_of_css_property("outline-style") == "solid", "focus is seen"
    skip.send_keys(Keys.ENTER)
    assert framed.switch_to.active_element.get_attribute("id") == "rows"
    ActionChains(framed).send_keys("/").perform()
    search = framed.switch_to.active_element
    assert search.get_attribute("type") == "search"
    search.send_keys("row-03")
    assert seen(framed) == ["row-03"]
    search.send_keys(Keys.ESCAPE)
    assert len(seen(framed)) == 12
    ActionChains(framed).key_down(Keys.SHIFT).send_keys(Keys.TAB, Keys.TAB).key_up(
        Keys.SHIFT
    ).send_keys(Keys.ARROW_RIGHT).perform()
    assert seen(framed) == ["row-04", "row-05", "row-06", "row-07"], "the next of the findings"


@driven
def test_the_rows_shown_are_pasted_into_a_spreadsheet(framed: WebDriver) -> None:
    framed.find_element(By.CSS_SELECTOR, "[value=likely] + span").click()
    framed.find_element(By.CSS_SELECTOR, "[data-copy]").click()
    assert said(framed).startswith("4 rows ")
    ActionChains(framed).key_down(Keys.CONTROL).send_keys("c").key_up(Keys.CONTROL).perform()
    framed.switch_to.default_content()
    sheet = framed.find_element(By.TAG_NAME, "textarea")
    sheet.click()
    ActionChains(framed).key_down(Keys.CONTROL).send_keys("v").key_up(Keys.CONTROL).perform()
    head, *rows = [line.split("\t") for line in sheet.get_attribute("value").split("\n")]
    assert tuple(head) == COLUMNS
    assert [row[1] for row in rows] == ["row-00", "row-01", "row-02", "row-03"]
    assert {len(row) for row in rows} == {len(COLUMNS)}
    assert rows[0][-1] == f"because {HOSTILE}"
    assert rows[1][-1] == "'=1+1"
    assert framed.title == "pane"


@driven
def test_five_hundred_rows_open_in_under_a_second(driver: WebDriver, tmp_path: Path) -> None:
    ids = [f"r{i}" for i in range(500)]
    flagged = make_flagged(167).head(500).assign(row_id=ids)
    rng = np.random.default_rng(0)
    noise = {
        f"train:{row}": thumbnail(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)) for row in ids
    }
    sides = make_influence([(f"train:{row}", ids[j], 0.5) for row in ids[:50] for j in range(8)])
    page = tmp_path / "report.html"
    page.write_text(render(make_audit(), flagged, NO_SCORES, Portraits(noise), sides), "utf-8")
    times = []
    while not times or (min(times) > 1000 and len(times) < 5):  # others use the processor too
        driver.get(page.as_uri())
        times.append(
            driver.execute_script(
                "return performance.getEntriesByType('navigation')[0].loadEventEnd"
            )
        )
    assert len(driver.find_elements(By.CSS_SELECTOR, "[data-kinds]")) == 500
    assert 0 < min(times) < 1000
