"""Signed verdicts: what a registry can check without the model, its data, torch or MLflow."""
