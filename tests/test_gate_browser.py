"""What a person sees on a version's page: why an alias is refused, and foreign texts as texts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from conftest import Server, tracking
from gate_cases import override_for, subject_of, verdict_on, write_gate
from mlflow import MlflowClient
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from test_browser import CHROMIUM

from forward_inf_mlflow.description import describe_approvals, describe_version
from forward_inf_mlflow.registry import resolve
from forward_inf_mlflow.tracking import AuditRun, tag_version

DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.server,
    pytest.mark.browser,
    pytest.mark.skipif(
        None in (CHROMIUM, DRIVER), reason="no Chromium with its driver here: install them"
    ),
]
PATIENCE = 60


@pytest.fixture
def page(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for switch in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--window-size=1300,900", f"--user-data-dir={tmp_path / 'profile'}"),
    ):
        options.add_argument(switch)
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


def ask_for_champion(page: webdriver.Chrome, url: str) -> None:
    """Open a version's page and save the alias champion in its dialog."""
    page.get(url)
    wait = WebDriverWait(page, PATIENCE)

    def click(selector: str) -> None:
        wait.until(lambda p: p.find_elements(By.CSS_SELECTOR, selector))[0].click()

    click("button[data-component-id*='aliases_modelversionviewaliaseditor']")
    field = wait.until(lambda p: p.find_elements(By.CSS_SELECTOR, "[role=dialog] input"))[0]
    field.send_keys("champion", Keys.ENTER)
    click("[role=dialog] button[data-component-id='mlflow.edit-aliases-modal.save-button']")


def test_the_alias_dialog_shows_why_and_what_to_run(
    gated: tuple[Server, Path], page: webdriver.Chrome
) -> None:
    server, folder = gated
    write_gate(folder)
    url = f"{server.url}/#/models/clicked/versions/1"
    with tracking(server.url):
        client = MlflowClient()
        client.create_registered_model("clicked")
        client.create_model_version("clicked", "s3://nowhere/model")
        ask_for_champion(page, url)
        sentence = (
            "models:/clicked/1 may not become 'champion': it has no signed verdict; run "
            "'forward-inf audit models:/clicked/1', then 'forward-inf sign models:/clicked/1 "
            "--key KEY --audit-sha256 SHA256'"
        )
        WebDriverWait(page, PATIENCE).until(
            lambda p: sentence in p.find_element(By.CSS_SELECTOR, "[role=dialog]").text
        )
        assert client.get_registered_model("clicked").aliases == {}
        sealed = verdict_on(subject_of(client, "clicked", "1"))
        client.set_model_version_tag("clicked", "1", sealed.tag, sealed.text)
        page.get("about:blank")
        ask_for_champion(page, url)
        WebDriverWait(page, PATIENCE).until(
            lambda p: client.get_registered_model("clicked").aliases
        )
        assert {k: str(v) for k, v in client.get_registered_model("clicked").aliases.items()} == {
            "champion": "1"
        }


def test_hostile_texts_stay_texts_on_a_versions_page(
    gated: tuple[Server, Path], page: webdriver.Chrome
) -> None:
    """What a description quotes of labels, sources, models and people is Markdown to MLflow."""
    server, _ = gated
    owned = "document.title='owned'"
    hostile = (
        f"<script>{owned}</script> <img src=x onerror={owned}> [link](javascript:{owned}) "
        f"<a href=javascript:{owned}>click</a> ![picture](x) **bold**"
    )
    name = f"<img src=x onerror={owned}>"
    with tracking(server.url):
        client = MlflowClient()
        client.create_registered_model(name)
        client.create_model_version(name, "s3://nowhere/model")
        version = resolve(f"models:/{name}/1")
        decision = {"outcome": "fail", "reasons": [f"label {hostile}", f"source {hostile}"]}
        assert describe_version(version, decision, AuditRun("0" * 32, "1")) is None
        override = override_for(subject_of(client, name, "1"), alias=name, reason=hostile)
        assert describe_approvals(version, [override]) is None
        tag_version(version, "fail", AuditRun("0" * 32, "1"), hostile)
    page.get(f"{server.url}/#/models/{quote(name, safe='')}/versions/1")
    element = (By.TAG_NAME, "body")
    WebDriverWait(page, PATIENCE).until(
        lambda p: "Approved for alias" in p.find_element(*element).text
    )
    body = page.find_element(*element).text
    assert body.count(hostile) >= 3  # twice a reason, once an approval's
    assert f"Data audit of models:/{name}/1: refused" in body
    assert "owned" not in page.title.split("=")[0]
    for selector in ("img[src='x']", "[onerror]", "a[href^='javascript']"):
        assert page.find_elements(By.CSS_SELECTOR, selector) == []
    scripts = page.find_elements(By.TAG_NAME, "script")
    assert not any(owned in (one.get_attribute("textContent") or "") for one in scripts)
    [report] = page.find_elements(By.CSS_SELECTOR, "a[href*='report.html']")
    assert report.text == "Report"
