from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content, apart from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def run(unpacked: Path, cwd: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the wheel's content in front of the checkout."""
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_the_wheel_holds_code_templates_policy_and_plugins_and_nothing_else(
    unpacked: Path,
) -> None:
    held = {str(f.relative_to(unpacked)) for f in unpacked.rglob("*") if f.is_file()}
    for name in (
        "forward_inf_mlflow/default_policy.yaml",
        "forward_inf_mlflow/py.typed",
        "forward_inf_mlflow/report/report.html.j2",
        "forward_inf_mlflow/report/report.css",
        "forward_inf_mlflow/plugins/evaluator.py",
    ):
        assert name in held
    code = {str(f.relative_to(ROOT)) for f in (ROOT / "forward_inf_mlflow").rglob("*.py")}
    assert code <= held
    assert {name.split("/")[0] for name in held} == {
        "forward_inf_mlflow",
        next(name.split("/")[0] for name in held if ".dist-info/" in name),
    }


def test_the_demo_runs_from_the_wheel(unpacked: Path, tmp_path: Path) -> None:
    start = "from forward_inf_mlflow.cli import main; main()"
    where = run(
        unpacked, tmp_path, "-c", "import forward_inf_mlflow as f; print(f.__file__)"
    ).stdout
    assert str(unpacked) in where, "the wheel's package is the one that is tested"
    done = run(unpacked, tmp_path, "-c", start, "demo", "-q")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mlflow.db").exists()
