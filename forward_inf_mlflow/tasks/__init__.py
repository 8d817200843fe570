"""Ready tasks: the losses of common kinds of model."""

from forward_inf_mlflow.tasks.classification import Classification
from forward_inf_mlflow.tasks.regression import Regression

__all__ = ["Classification", "Regression"]
