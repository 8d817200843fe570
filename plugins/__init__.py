"""MLflow plugin points, one thin file each; installed as ``forward_inf_mlflow.plugins``."""
