"""Detectors: losses and scores in, verdicts on rows out. Pure functions, no model, no MLflow."""
