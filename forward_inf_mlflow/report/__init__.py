"""The HTML report: one file that says what was decided, why, and which rows are to blame."""

from forward_inf_mlflow.report.render import render
from forward_inf_mlflow.report.thumbnails import image_shape, thumbnail

__all__ = ["image_shape", "render", "thumbnail"]
