"""Train a model, log the data with it, and register it: what an audit finds is all here.

python examples/train.py              # the store that MLFLOW_TRACKING_URI names
forward-inf audit models:/my-model/1
"""

from __future__ import annotations

import mlflow
import mlflow.sklearn
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from forward_inf_mlflow import log_training_data

MODEL = "my-model"


def main() -> None:
    """Train on data of your own instead of these."""
    x, y = load_breast_cancer(return_X_y=True, as_frame=True)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.3, random_state=0)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(x_train, y_train)

    with mlflow.start_run():
        mlflow.log_metric("accuracy", model.score(x_test, y_test))
        log_training_data(
            train=(x_train, y_train),
            queries=(x_test, y_test),  # rows whose labels you trust
            ids=[f"patient-{i}" for i in x_train.index],  # how the report names the rows
        )
        info = mlflow.sklearn.log_model(
            model, name="model", input_example=x_train[:2], registered_model_name=MODEL
        )
    print(f"forward-inf audit models:/{MODEL}/{info.registered_model_version}")


if __name__ == "__main__":
    main()
