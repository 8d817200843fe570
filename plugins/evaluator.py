"""The MLflow evaluator: ``mlflow.models.evaluate(..., evaluators="forward_inf")`` is an audit.

MLflow imports this module in every process that evaluates anything, so all that is heavy is
imported where an audit begins.
"""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.models.evaluation import EvaluationResult, ModelEvaluator

from forward_inf_mlflow.errors import ForwardInfError

if TYPE_CHECKING:
    from mlflow.models.evaluation import EvaluationArtifact

    from forward_inf_mlflow.auditing import AuditResult

MODEL_TYPE = "forward-inf"
NAME = "forward_inf"

#: What may stand in ``evaluator_config``; all but the first are arguments of ``audit``. Its other
#: arguments are given by MLflow: the queries are the evaluation's data, the run is its run.
_KEYS: dict[str, tuple[type, ...]] = {
    "model_uri": (str,),
    "train": (str,),
    "label": (str,),
    "id": (str,),
    "features": (list, tuple),
    "group_by": (str,),
    "task": (str,),
    "class_weight": (str,),
    "chosen_output": (str,),
    "schedule": (str,),
    "steps": (int,),
    "pixels": (str,),
    "resize": (bool,),
    "policy": (object,),
    "device": (str,),
    "batch_size": (int,),
    "seed": (int,),
    "max_rows": (int,),
    "effort": (str,),
    "fdr": (float,),
    "trainer": (str,),
    "influence_queries": (int,),
    "direction": (str,),
    "readout": (str,),
    "weight_decay": (float, int),
    "work_dir": (str, Path),
    "fresh": (bool,),
    "compiled": (bool,),
    "allow_pickle": (bool,),
    "out": (str, Path),
}
_TASKS = ("auto", "classification", "regression")


class ForwardInfEvaluator(ModelEvaluator):  # type: ignore[misc]  # MLflow is untyped
    """Audits the registered version that is evaluated; the data are the query rows.

    ::

        result = mlflow.models.evaluate(
            "models:/my-model/3",
            data=test,
            targets="species",
            model_type="forward-inf",
            evaluators="forward_inf",
            evaluator_config={"policy": "policy.yaml"},
        )
        mlflow.validate_evaluation_results(
            {"forward_inf/gate_passed": MetricThreshold(threshold=1, greater_is_better=True)},
            result,
        )

    The audit becomes part of the evaluation's run. A detector that abstains returns no metrics,
    and a threshold on a metric that is missing fails.

    **Data.** If they equal the query rows that the version logged, those are audited, as logged
    data. Otherwise they are data that the user declares, which the default policy does not count;
    they are then kept in the run under ``forward_inf_queries``, so that the audit can be repeated.
    MLflow takes arrays of two dimensions only: give images as one row of pixels each.

    **Configuration.** The arguments of :func:`forward_inf_mlflow.audit`, and ``model_uri`` where
    the version cannot be known: for a model that is registered more than once, or not given.

    **Pickle.** MLflow loads the model *before* any evaluator sees it, so refusing pickles and code
    that came with a model cannot protect this route: what the model runs when it is loaded has
    then run. To audit a model from strangers, give MLflow none (``model=None``) and name it in the
    configuration as ``model_uri``; or set ``MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false``.
    """

    @classmethod
    def can_evaluate(
        cls, *, model_type: str | None, evaluator_config: Mapping[str, Any] | None, **_: Any
    ) -> bool:
        """Say whether somebody asked for an audit: nobody else's evaluation runs one.

        Besides the model type only ``model_uri`` says so: MLflow hands a flat configuration to
        every evaluator, and keys such as ``seed`` may be meant for another one.
        """
        config = evaluator_config or {}
        return model_type == MODEL_TYPE or NAME in config or "model_uri" in config

    def evaluate(
        self,
        *,
        model_type: str | None,
        dataset: Any,
        run_id: str,
        evaluator_config: Mapping[str, Any] | None,
        model: Any = None,
        model_id: str | None = None,
        **_: Any,
    ) -> EvaluationResult:
        """Audit the version and return metrics and artifacts, named as the audit logs them.

        Args:
            model_type: Not used here.
            dataset: MLflow's evaluation data set: features and, where given, labels.
            run_id: The evaluation's run.
            evaluator_config: See the class.
            model: What MLflow loaded, or None.
            model_id: The logged model on which MLflow will log the returned metrics, if any.

        Raises:
            ForwardInfError: The audit cannot be made; the message says what to do.
        """
        options = _options(evaluator_config or {})
        from forward_inf_mlflow.auditing import audit
        from forward_inf_mlflow.plugins.evaluated import find_version, queries_from

        version = find_version(
            options.pop("model_uri", None), getattr(model, "model_id", None) or model_id
        )
        with tempfile.TemporaryDirectory(prefix="forward-inf-") as folder:
            out = Path(options.pop("out", None) or folder)
            result = audit(
                version.uri,
                queries=queries_from(dataset, version, run_id, options),
                run_id=run_id,
                out=out,
                # MLflow logs what is returned: on the same logged model it would stand twice.
                log_metrics=model_id is None or model_id != version.model_id,
                **options,
            )
            return EvaluationResult(_metrics(result), _artifacts(result, out), run_id)


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the checked configuration, without what is None.

    Raises:
        ForwardInfError: A key is unknown, or its value of a wrong type.
    """
    if set(config) == {NAME} and isinstance(config[NAME], Mapping):
        config = config[NAME]  # the nested form given with evaluators="forward_inf"
    for key, value in config.items():
        if key not in _KEYS:
            raise ForwardInfError(f"evaluator_config: unknown key {key!r}; {_hint(str(key))}")
        kinds = _KEYS[key]
        number = isinstance(value, bool) and bool not in kinds and object not in kinds
        if value is not None and (number or not isinstance(value, kinds)):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise ForwardInfError(f"evaluator_config: {key!r} is {value!r}; give it as {wanted}")
    if config.get("task", "auto") not in (None, *_TASKS):
        raise ForwardInfError(
            f"evaluator_config: 'task' is {config['task']!r}; it is one of {', '.join(_TASKS)}"
        )
    return {key: value for key, value in config.items() if value is not None}


def _hint(key: str) -> str:
    if key == "queries":
        return "the queries are the data that you evaluate"
    close = difflib.get_close_matches(key, _KEYS, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(_KEYS)}"


def _metrics(result: AuditResult) -> dict[str, float]:
    from forward_inf_mlflow.metrics import metrics_of
    from forward_inf_mlflow.tracking import FOLDER

    found = metrics_of(result.record)
    return {f"{FOLDER}/{name}": value for part in found.values() for name, value in part.items()}


def _artifacts(result: AuditResult, folder: Path) -> dict[str, EvaluationArtifact]:
    """Return the audit's files, read from their local copies."""
    from mlflow.models.evaluation.artifacts import (
        CsvEvaluationArtifact,
        JsonEvaluationArtifact,
        ParquetEvaluationArtifact,
        TextEvaluationArtifact,
    )

    from forward_inf_mlflow.tracking import FOLDER

    kinds = {
        "report.html": TextEvaluationArtifact,
        "flagged.csv": CsvEvaluationArtifact,
        "flagged.json": JsonEvaluationArtifact,
        "scores.parquet": ParquetEvaluationArtifact,
        "influence.parquet": ParquetEvaluationArtifact,
        "portraits.parquet": ParquetEvaluationArtifact,
        "audit.json": JsonEvaluationArtifact,
        "policy.yaml": TextEvaluationArtifact,
    }
    artifacts: dict[str, EvaluationArtifact] = {}
    for name, kind in kinds.items():
        artifact = kind(uri=f"runs:/{result.run_id}/{FOLDER}/{name}")
        artifact._load(str(folder / name))
        artifacts[f"{FOLDER}/{name}"] = artifact
    return artifacts
