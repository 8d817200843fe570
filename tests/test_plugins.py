"""Whoever imports MLflow or this package pays for nothing that they do not use."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

import pytest
from conftest import empty_database

import forward_inf_mlflow

AUDIT = ("forward_inf_mlflow.auditing", "forward_inf_mlflow.examine")


def loaded_by(code: str) -> set[str]:
    """Return the names of all modules that a new interpreter has loaded after ``code``."""
    program = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_command_line_loads_nothing_heavy_before_it_knows_what_for() -> None:
    loaded = loaded_by("import forward_inf_mlflow.cli")
    assert loaded.isdisjoint({"mlflow", "torch", "sklearn", *AUDIT})


def test_mlflow_loads_the_plugin_when_evaluators_are_asked_for_and_never_the_audit() -> None:
    loaded = loaded_by(
        "import mlflow, sys\n"
        "assert 'forward_inf_mlflow' not in sys.modules\n"
        "import mlflow.models.evaluation.evaluator_registry as r\n"
        "assert r._model_evaluation_registry.is_registered('forward_inf')"
    )
    assert loaded.isdisjoint({"torch", *AUDIT})


def test_the_evaluator_is_the_class_that_mlflow_registers() -> None:
    from mlflow.models.evaluation import ModelEvaluator
    from mlflow.models.evaluation.evaluator_registry import _model_evaluation_registry

    (entry,) = entry_points(group="mlflow.model_evaluator", name="forward_inf")
    registered = _model_evaluation_registry.get_evaluator("forward_inf")
    assert issubclass(entry.load(), ModelEvaluator)
    assert type(registered) is entry.load()


def test_naming_the_gated_registry_loads_none_of_it() -> None:
    loaded = loaded_by(
        "from mlflow.tracking._model_registry.utils import _get_store_registry\n"
        "assert 'forward-inf-gate' in _get_store_registry()._registry"
    )
    assert {name for name in loaded if name.startswith("forward_inf_mlflow.")} == {
        "forward_inf_mlflow.plugins",
        "forward_inf_mlflow.plugins.registry_store",
        "forward_inf_mlflow.version",
    }


def test_the_gate_costs_a_server_no_library_that_it_would_not_load_anyway(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(empty_database())
    loaded_by(
        "import sys, mlflow.store.model_registry.sqlalchemy_workspace_store\n"
        "from forward_inf_mlflow.plugins.registry_store import build\n"
        "before = set(sys.modules)\n"
        f"build('forward-inf-gate:sqlite:///{tmp_path}/mlflow.db')\n"
        "more = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "heavy = 'torch', 'pandas', 'sklearn', 'scipy', 'numpy', 'matplotlib', 'pyarrow'\n"
        "assert not more & set(heavy), more"
    )


@pytest.mark.parametrize("name", forward_inf_mlflow.__all__)
def test_public_names_are_the_things_themselves_whatever_modules_were_imported(name: str) -> None:
    for module in pkgutil.walk_packages(forward_inf_mlflow.__path__, "forward_inf_mlflow."):
        importlib.import_module(module.name)
    value = getattr(forward_inf_mlflow, name)
    assert value is not None
    assert not isinstance(value, ModuleType)
    assert name in dir(forward_inf_mlflow)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'audits'"):
        forward_inf_mlflow.audits  # noqa: B018
