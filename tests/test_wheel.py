"""The built wheel, in an environment of its own that borrows the libraries installed here."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import mlflow
import pytest
from conftest import ROOT, points, register_points, sqlite_store, tracking

#: Print where the package and the class behind MLflow's entry point come from.
WHERE = """
import inspect
import forward_inf_mlflow
from mlflow.models.evaluation.evaluator_registry import _model_evaluation_registry as registry
print(forward_inf_mlflow.__file__)
print(inspect.getfile(type(registry.get_evaluator("forward_inf"))))
"""


def run(command: Sequence[str | Path], cwd: Path, **more: str) -> str:
    """Run a command as somebody would who has no checkout; return what it prints."""
    ours = ("PYTHON", "MLFLOW_TRACKING", "MLFLOW_EXPERIMENT", "COVERAGE", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment | more,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """The files that git knows, which a fresh clone has."""
    names = run(["git", "ls-files", "-z"], ROOT).split("\0")
    return [name for name in names if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from tracked files alone: a build folder left in the checkout adds nothing."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in tracked:
        target = folder / "clone" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    run([sys.executable, "-m", "build", "--wheel", "--outdir", folder, folder / "clone"], folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def binaries(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of another environment into which the wheel was installed."""
    home = tmp_path_factory.mktemp("environment")
    run([sys.executable, "-m", "venv", "--without-pip", home], home)
    found = home / "bin"
    pip = [sys.executable, "-m", "pip", "--python", found / "python", "--disable-pip-version-check"]
    run([*pip, "install", "--no-deps", "--no-index", wheel], home)
    # Only now, or pip would find the package here and install nothing. These folders come last on
    # the path, and Python does not act on the .pth files in them, such as the editable install's.
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text("\n".join(site.getsitepackages()))
    return found


def test_the_wheel_holds_the_tracked_code_and_data_and_nothing_else(
    wheel: Path, tracked: list[str]
) -> None:
    folders = {"plugins/": "forward_inf_mlflow/plugins/", "forward_inf_mlflow/": ""}
    expected = {
        (target + name.removeprefix(folder) if target else name): (
            wheel.parent / "clone" / name
        ).read_bytes()
        for name in tracked
        for folder, target in folders.items()
        if name.startswith(folder)
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {
            name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name
        }
    assert sorted(held) == sorted(expected)
    assert held == expected
    assert "forward_inf_mlflow/plugins/evaluator.py" in held
    assert "forward_inf_mlflow/report/report.html.j2" in held
    assert "forward_inf_mlflow/report/parts/why.html.j2" in held


def test_package_and_plugin_are_those_of_the_wheel(binaries: Path, tmp_path: Path) -> None:
    package, plugin = run([binaries / "python", "-c", WHERE], tmp_path).splitlines()
    assert Path(package).is_relative_to(binaries.parent)
    assert Path(plugin).is_relative_to(binaries.parent)


def test_the_installed_command_audits_and_writes_its_report(binaries: Path, tmp_path: Path) -> None:
    with tracking(sqlite_store(tmp_path)) as store:
        mlflow.set_experiment("tests")
        uri = register_points(points())
    audit = [binaries / "forward-inf", "audit", uri, "--out", "out"]
    assert f"PASS  {uri}" in run(audit, tmp_path, MLFLOW_TRACKING_URI=store)
    assert "<style" in (tmp_path / "out" / "report.html").read_text("utf-8")
