"""Ready tasks: the losses of common kinds of model."""

from forward_inf_mlflow.tasks.causal_lm import CausalLM
from forward_inf_mlflow.tasks.classification import Classification, Weighted
from forward_inf_mlflow.tasks.denoising import Denoising, cosine_schedule
from forward_inf_mlflow.tasks.multilabel import MultiLabel
from forward_inf_mlflow.tasks.regression import Regression

__all__ = [
    "CausalLM",
    "Classification",
    "Denoising",
    "MultiLabel",
    "Regression",
    "Weighted",
    "cosine_schedule",
]
