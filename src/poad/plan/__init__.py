"""Memory and time of a training run, predicted before any weights are loaded."""

from poad.plan.hardware import matrix_speed
from poad.plan.predict import hindsight, show
from poad.plan.shape import Shape, model_shape

__all__ = [
    "Shape",
    "hindsight",
    "matrix_speed",
    "model_shape",
    "show",
]
