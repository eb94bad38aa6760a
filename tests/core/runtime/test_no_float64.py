"""Flows on a device without float64."""

import pytest
import torch

from arflows.core.bijections import Standardize
from arflows.core.flows import NSF
from arflows.core.likelihood import Estimate, Reference, log_probs
from tests.core.runtime.no_float64 import Factories, NoFloat64, on_device

pytestmark = pytest.mark.report


def test_the_stand_in_refuses_float64():
    x = on_device(torch.randn(3))
    assert x.device.type == "mps"
    assert isinstance(x + 1, NoFloat64)
    for ask in (lambda: x.double(), lambda: x.to(torch.float64), lambda: torch.zeros_like(x, dtype=torch.float64)):
        with pytest.raises(TypeError, match="float64"):
            ask()
    assert x.cpu().double().dtype == torch.float64


def test_standardising_by_data_on_such_a_device():
    x = 1e6 + torch.randn(500, 3)
    wanted, layer = Standardize(3), on_device(Standardize(3))
    wanted.initialize_from(x)
    layer.initialize_from(on_device(x))
    torch.testing.assert_close(layer.mean.cpu(), wanted.mean)
    torch.testing.assert_close(layer.scale.cpu(), wanted.scale)


def test_scores_of_a_flow_on_such_a_device():
    torch.manual_seed(0)
    flow, x = NSF(3, hidden_features=(8,)).eval(), torch.randn(10, 3)
    wanted = log_probs(flow, [{"x": x}])
    with Factories():
        found = log_probs(on_device(flow), [{"x": on_device(x)}])
    torch.testing.assert_close(found, wanted)
    assert Estimate.of(on_device(wanted.float()), None, "density").value == pytest.approx(-float(wanted.mean()))
    assert Reference.of(on_device(wanted.float())).mean == pytest.approx(float(wanted.mean()))
