"""Settings: what changes the numbers of an audit, beside model and data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from forward_inf_mlflow import trainers
from forward_inf_mlflow.directions import Direction
from forward_inf_mlflow.errors import ForwardInfError
from forward_inf_mlflow.probe import Which

Effort = Literal["quick", "standard", "thorough"]
#: How often the training rows are halved.
_REPEATS = {"quick": 0, "standard": 2, "thorough": 8}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What changes the numbers of an audit, beside model and data.

    Attributes:
        seed: Of the halves and their training.
        effort: "quick" trains nothing, "standard" halves the training rows twice, "thorough" eight
            times.
        fdr: Largest expected share of innocent rows among those that are certainly mislabeled.
        influence_queries: How many rows are asked about one by one: queries that are copies, up to
            half of the rest for mislabeled training rows, then the queries with the largest loss.
            All queries are asked about together anyway.
        top: Proponents and opponents that are kept of each of them.
        direction: How queries move the model; None leaves it to the planner.
        readout: What is read of a training row; None leaves it to the planner.
        weight_decay: The training objective's penalty; None for the model's own, or none.
        compiled: Whether a sweep's passes run through ``torch.compile``.
        recipe: How half-models are trained, where nobody says how the model was.
        trainer: Who trains half-models instead, as ``module:function`` (see `training_function`).
        receipt_seeds: How often the trainer trains with and without the mislabeled rows.
    """

    seed: int = 0
    effort: Effort = "standard"
    fdr: float = 0.1
    influence_queries: int = 100
    top: int = 10
    direction: Direction | None = None
    readout: Which | None = None
    weight_decay: float | None = None
    compiled: bool = False
    recipe: trainers.Recipe = field(default_factory=trainers.Recipe)
    trainer: str | None = None
    receipt_seeds: int = 5

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ForwardInfError: There is no such effort, or the rate is no share.
        """
        if self.effort not in _REPEATS:
            raise ForwardInfError(f"effort is one of {', '.join(_REPEATS)}, not {self.effort!r}")
        if not 0 < self.fdr < 1:
            raise ForwardInfError(f"fdr is {self.fdr:g}: it is a share such as 0.1, for 10 %")

    @property
    def repeats(self) -> int:
        """Return how often the training rows are halved."""
        return _REPEATS[self.effort]

    def describe(self) -> dict[str, Any]:
        """Return the settings as ``audit.json`` keeps them."""
        return {
            "seed": self.seed,
            "effort": self.effort,
            "fdr": self.fdr,
            "influence_queries": self.influence_queries,
            "top": self.top,
            "weight_decay": self.weight_decay,
            "compiled": self.compiled,
            "halves": trainers.describe(self.recipe),
            "trainer": self.trainer,
            "receipt_seeds": self.receipt_seeds,
        }
