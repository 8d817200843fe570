"""Data-quality audits of registered MLflow models, by mirrored influence.

Importing the package imports neither torch nor mlflow: MLflow imports its plugins in every
process, and most of those never audit anything. Names are loaded when they are asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from forward_inf_mlflow.version import __version__

if TYPE_CHECKING:
    from forward_inf_mlflow.auditing import AuditResult, audit
    from forward_inf_mlflow.cleaning import Cleaned, apply_decisions
    from forward_inf_mlflow.comparing import Comparison, compare
    from forward_inf_mlflow.data.logging_data import log_training_data
    from forward_inf_mlflow.decision import Decision
    from forward_inf_mlflow.diffusion.attributing import Attribution, attribute
    from forward_inf_mlflow.errors import ForwardInfError
    from forward_inf_mlflow.explaining import Explanation, explain
    from forward_inf_mlflow.influence import ForwardInfluence
    from forward_inf_mlflow.language.reciting import Recitation, recite
    from forward_inf_mlflow.language.tracing import Trace, trace
    from forward_inf_mlflow.policy import Policy, load_policy
    from forward_inf_mlflow.promotion import GateResult, PromotionResult, gate, promote
    from forward_inf_mlflow.scores import InfluenceScores
    from forward_inf_mlflow.task import Task

_HOME = {
    "Attribution": "diffusion.attributing",
    "AuditResult": "auditing",
    "Cleaned": "cleaning",
    "Comparison": "comparing",
    "Decision": "decision",
    "Explanation": "explaining",
    "ForwardInfError": "errors",
    "ForwardInfluence": "influence",
    "GateResult": "promotion",
    "InfluenceScores": "scores",
    "Policy": "policy",
    "PromotionResult": "promotion",
    "Recitation": "language.reciting",
    "Task": "task",
    "Trace": "language.tracing",
    "apply_decisions": "cleaning",
    "attribute": "diffusion.attributing",
    "audit": "auditing",
    "compare": "comparing",
    "explain": "explaining",
    "gate": "promotion",
    "load_policy": "policy",
    "log_training_data": "data.logging_data",
    "promote": "promotion",
    "recite": "language.reciting",
    "trace": "language.tracing",
}

__all__ = [
    "Attribution",
    "AuditResult",
    "Cleaned",
    "Comparison",
    "Decision",
    "Explanation",
    "ForwardInfError",
    "ForwardInfluence",
    "GateResult",
    "InfluenceScores",
    "Policy",
    "PromotionResult",
    "Recitation",
    "Task",
    "Trace",
    "__version__",
    "apply_decisions",
    "attribute",
    "audit",
    "compare",
    "explain",
    "gate",
    "load_policy",
    "log_training_data",
    "promote",
    "recite",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
