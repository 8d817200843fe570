"""Take the pictures of docs/images with a real MLflow server and a headless Chromium.

    python docs/screenshots.py

Runs the demo in a temporary folder, serves it, and photographs the report at both widths, its
leaks, and the MLflow pages that show a verdict. Look at them before you commit them.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

IMAGES = Path(__file__).parent / "images"
BIN = Path(sys.executable).parent
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)


#: What shows the leaks of a report, each beside its query.
LEAKS = """
document.querySelector("[value=leaked]").click();
document.querySelector("#rows").scrollIntoView();
"""


def photograph(
    url: str, name: str, *, width: int, height: int, wait: float = 1, then: str = ""
) -> None:
    """Write ``docs/images/<name>.png``, ``wait`` seconds after the page has loaded.

    What the script ``then`` does is done before.
    """
    options = webdriver.ChromeOptions()
    for switch in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--window-size={width},{height}",
    ):
        options.add_argument(switch)
    options.binary_location = str(CHROMIUM)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        driver.get(url)
        driver.execute_script(then)
        time.sleep(wait)
        driver.save_screenshot(str(IMAGES / f"{name}.png"))
    finally:
        driver.quit()
    shrink(IMAGES / f"{name}.png")


def shrink(file: Path) -> None:
    """Reduce a picture to 64 colours: a third of the bytes, and text stays sharp."""
    from PIL import Image

    Image.open(file).convert("RGB").quantize(64).save(file, optimize=True)


def main() -> None:
    if CHROMIUM is None:
        sys.exit("screenshots need Chromium and its driver: packages chromium, chromium-driver")
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {
            **os.environ,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }
        run = {"cwd": folder, "env": environment, "check": True}
        subprocess.run([BIN / "forward-inf", "demo"], **run)
        report = folder / "report.html"
        subprocess.run(
            [BIN / "forward-inf", "report", "models:/forward-inf-demo/1", "-o", report], **run
        )
        photograph(report.as_uri(), "report", width=1200, height=1500)
        photograph(report.as_uri(), "report-600", width=600, height=1500)
        photograph(report.as_uri(), "report-leaks", width=1200, height=1000, then=LEAKS)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = subprocess.Popen(
            [BIN / "mlflow", "server", "--workers", "1", "--port", str(port),
             "--backend-store-uri", environment["MLFLOW_TRACKING_URI"]],
            cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            base = f"http://127.0.0.1:{port}"
            until_up(base)
            photograph_mlflow(base, environment)
        finally:
            os.killpg(server.pid, 15)
            server.wait()


def until_up(base: str) -> None:
    for _ in range(120):
        try:
            urllib.request.urlopen(f"{base}/health", timeout=2)
            return
        except OSError:
            time.sleep(1)
    sys.exit("the MLflow server did not start")


def photograph_mlflow(base: str, environment: dict[str, str]) -> None:
    """Photograph the version page, the logged model's page and the report in the run."""
    import mlflow

    mlflow.set_tracking_uri(environment["MLFLOW_TRACKING_URI"])
    version = mlflow.MlflowClient().get_model_version("forward-inf-demo", "1")
    audit = mlflow.get_run(version.tags["fi.run"]).info
    model = version.source.removeprefix("models:/")
    pages = {
        "mlflow-versions": "models/forward-inf-demo",
        "mlflow-version": "models/forward-inf-demo/versions/1",
        "mlflow-model": f"experiments/{audit.experiment_id}/models/{model}",
        "mlflow-report": f"experiments/{audit.experiment_id}/runs/{audit.run_id}"
        "/artifacts/forward_inf/report.html",
        "mlflow-flagged": f"experiments/{audit.experiment_id}/runs/{audit.run_id}"
        "/artifacts/forward_inf/flagged.json",
    }
    for name, page in pages.items():
        photograph(f"{base}/#/{page}", name, width=1400, height=900, wait=10)


if __name__ == "__main__":
    main()
