"""Memory and time of a training run, predicted before any weights are loaded."""

from poad.plan.hardware import device_kind, matrix_speed, read_size
from poad.plan.predict import hindsight
from poad.plan.scale import LINK, Machines
from poad.plan.shape import Shape, model_shape
from poad.plan.show import show

__all__ = [
    "LINK",
    "Machines",
    "Shape",
    "device_kind",
    "hindsight",
    "matrix_speed",
    "model_shape",
    "read_size",
    "show",
]
