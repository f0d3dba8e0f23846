"""How right the critic is, place by place."""

from __future__ import annotations

import pytest
import torch

from poad.learn.accuracy import accuracy
from poad.learn.experience import ValueTerms


def test_accuracy_is_measured_place_by_place() -> None:
    place = torch.tensor([0, 0, 1, 1, 3])
    value = torch.tensor([1.0, 2.0, 0.5, 0.5, 4.0])
    target = torch.tensor([1.0, 2.0, 0.0, 2.0, 3.0])
    root = torch.tensor([0, 1, 0, 1, 1])
    found = accuracy(ValueTerms(torch.arange(5), target, value, place, root))
    assert found == pytest.approx(
        {
            "explained_variance_root": 1.0,
            "value_bias_root": 0.0,
            "explained_variance_second": 0.0,  # a constant explains nothing
            "value_bias_second": -0.5,
            "explained_variance_last": 0.0,  # of one reading there is nothing to explain
            "value_bias_last": 1.0,
        }
    )
