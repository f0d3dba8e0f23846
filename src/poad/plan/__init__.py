"""Predictions of memory and time, made before anything is loaded."""

from poad.plan.hardware import matrix_speed
from poad.plan.predict import hindsight, show
from poad.plan.profile import Shape, model_shape

__all__ = [
    "Shape",
    "hindsight",
    "matrix_speed",
    "model_shape",
    "show",
]
