"""The HTML report: one file that says what was decided, why, and which rows are to blame."""

from forward_inf_mlflow.report.portraits import Portraits
from forward_inf_mlflow.report.rebuild import rebuild
from forward_inf_mlflow.report.render import render
from forward_inf_mlflow.report.rows import rows_to_show
from forward_inf_mlflow.report.thumbnails import image_shape, thumbnail

__all__ = ["Portraits", "image_shape", "rebuild", "render", "rows_to_show", "thumbnail"]
