"""From queries to moves: how the model is displaced before the training rows are read."""

from forward_inf_mlflow.directions.curvature import Curvature
from forward_inf_mlflow.directions.gradient import GradientStep
from forward_inf_mlflow.directions.held import held
from forward_inf_mlflow.directions.leaves import LeafValues
from forward_inf_mlflow.directions.moves import Direction, Move, Moves
from forward_inf_mlflow.directions.optimizer import OptimizerSteps
from forward_inf_mlflow.directions.refit import Refit
from forward_inf_mlflow.directions.replay import Replay

__all__ = [
    "Curvature",
    "Direction",
    "GradientStep",
    "LeafValues",
    "Move",
    "Moves",
    "OptimizerSteps",
    "Refit",
    "Replay",
    "held",
]
