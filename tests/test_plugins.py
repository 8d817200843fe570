"""Whoever imports MLflow or this package pays for nothing that they do not use."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import entry_points
from types import ModuleType

import pytest

import forward_inf_mlflow

HEAVY = ("torch", "sklearn", "forward_inf_mlflow.auditing", "forward_inf_mlflow.examine")


def loaded_by(code: str) -> set[str]:
    """Return the names of all modules that a new interpreter has loaded after ``code``."""
    program = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("code", "never"),
    [
        pytest.param("import mlflow", ("torch", "forward_inf_mlflow"), id="mlflow"),
        pytest.param("import forward_inf_mlflow", ("mlflow", *HEAVY), id="package"),
        pytest.param("import forward_inf_mlflow.cli", ("mlflow", *HEAVY), id="cli"),
        pytest.param(
            "import mlflow.models.evaluation.evaluator_registry as r\n"
            "assert r._model_evaluation_registry.is_registered('forward_inf')",
            ("torch", "forward_inf_mlflow.auditing", "forward_inf_mlflow.examine"),
            id="evaluators",
        ),
    ],
)
def test_importing_loads_nothing_heavy(code: str, never: tuple[str, ...]) -> None:
    assert loaded_by(code).isdisjoint(never)


def test_the_evaluator_is_the_class_that_mlflow_registers() -> None:
    from mlflow.models.evaluation import ModelEvaluator
    from mlflow.models.evaluation.evaluator_registry import _model_evaluation_registry

    (entry,) = entry_points(group="mlflow.model_evaluator", name="forward_inf")
    registered = _model_evaluation_registry.get_evaluator("forward_inf")
    assert issubclass(entry.load(), ModelEvaluator)
    assert type(registered) is entry.load()


@pytest.mark.parametrize("name", forward_inf_mlflow.__all__)
def test_public_names_are_the_things_themselves_never_modules(name: str) -> None:
    value = getattr(forward_inf_mlflow, name)
    assert value is not None
    assert not isinstance(value, ModuleType)
    assert name in dir(forward_inf_mlflow)


def test_public_names_survive_the_import_of_modules_with_similar_names() -> None:
    code = (
        "import forward_inf_mlflow.auditing, forward_inf_mlflow.promotion, forward_inf_mlflow\n"
        "from types import ModuleType\n"
        "for name in forward_inf_mlflow.__all__:\n"
        "    assert not isinstance(getattr(forward_inf_mlflow, name), ModuleType), name"
    )
    assert "torch" in loaded_by(code)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'audits'"):
        forward_inf_mlflow.audits  # noqa: B018
