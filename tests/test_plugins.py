"""Whoever imports MLflow or this package pays for nothing that they do not use."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
from importlib.metadata import entry_points
from types import ModuleType

import pytest

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
