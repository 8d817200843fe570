"""GradientStep: one step along the query's gradient, of a stated length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from torch import nn

from forward_inf_mlflow.directions.moves import (
    Move,
    MoveEach,
    Moves,
    Sign,
    Tangent,
    at_rest,
    check_settings,
    loss_gradient,
    small_step,
)
from forward_inf_mlflow.task import Task
from forward_inf_mlflow.tensors import Stream, Tensors
from forward_inf_mlflow.work import KEEP_NOTHING, Work


@dataclass(frozen=True, kw_only=True)
class GradientStep:
    """Step ``s`` along the gradient g of a query group's mean loss: ``theta +- s g / |g|``.

    With ``s = relative_size * |theta|`` the influence is the change of a row's loss divided by
    ``s / |g|``: in the limit of a small step the product ``g_row . g_query`` of both gradients,
    in nats per unit of gradient step on the query. Positive: row and query pull the same way.

    Because the length does not depend on ``|g|``, a query that the model knows by heart, whose
    gradient nearly vanishes, is asked as precisely as any other.

    Cost per group: about 3 forward-equivalents on the query, then one sweep ("both": two).
    Source: Forward-INF (Ko et al., CVPR 2024), with the step normalised and the sign kept.

    Attributes:
        relative_size: Length of the step over the norm of the parameters. At .001 a one-sided
            difference correlates at .999 with the exact derivative on the demo's network, at .01
            at .78 to .90; far smaller ones drown in float32 rounding.
        sign: "down" learns the query, "up" unlearns it, "both" takes the central difference.
            "up" is the default: where fitted rows are saturated, a step down cannot be seen.
    """

    relative_size: float = 0.001
    sign: Sign = "up"

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ForwardInfError: One is out of its range.
        """
        check_settings(self, ("relative_size",))

    def plan(
        self,
        module: nn.Module,
        task: Task,
        groups: Sequence[Tensors],
        train: Stream,
        work: Work = KEEP_NOTHING,
    ) -> Moves:
        """Return one move per query group; they are cheap, so nothing is kept."""
        base = at_rest(module)

        def make(group: Tensors) -> Move:
            """Return the move along one group's gradient."""
            gradient = loss_gradient(base, task, group)
            along = {name: -g for name, g in gradient.items()}  # one copy pulls the loss down
            return small_step(Tangent(base, along), self.relative_size, self.sign)

        return MoveEach(base, groups, make)

    def describe(self) -> dict[str, object]:
        """Return the settings that repeat these moves."""
        return {"direction": "gradient", **asdict(self)}
