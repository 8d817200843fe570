"""What a person sees who clicks an alias that the gate refuses."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Server, tracking
from gate_cases import subject_of, verdict_on, write_gate
from mlflow import MlflowClient
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from test_browser import CHROMIUM

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
