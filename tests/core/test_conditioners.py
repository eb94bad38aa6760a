"""Properties of convolutional conditioners."""

import pytest
import torch

from arflows.core.conditioners import GatedResidualCNN, ResidualCNN, ShallowCNN


def network(**options) -> GatedResidualCNN:
    torch.manual_seed(0)
    conditioner = GatedResidualCNN(2, 3, 8, 1, **options).double()
    torch.nn.init.normal_(conditioner.output_proj.weight)
    return conditioner


def sensitivity(conditioner: torch.nn.Module, size: int = 8) -> torch.Tensor:
    """Change of the parameters of the first pixel with each pixel of the input."""
    x = torch.randn(1, 2, size, size, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(conditioner(x)[0, :, 0, 0].sum(), x)
    return gradient[0].abs().sum(0)


def test_self_attention_sees_the_whole_image_and_convolutions_their_neighbourhood():
    assert sensitivity(network())[-1, -1] == 0
    assert sensitivity(network(attention_heads=2, space=(8, 8))).min() > 0


def test_self_attention_knows_places():
    conditioner = network(attention_heads=2, space=(4, 4))
    with torch.no_grad():
        same = conditioner(torch.ones(1, 2, 4, 4, dtype=torch.float64))[0, :, 1:-1, 1:-1].flatten(1)
        torch.nn.init.zeros_(conditioner.positions)
        without = conditioner(torch.ones(1, 2, 4, 4, dtype=torch.float64))[0, :, 1:-1, 1:-1].flatten(1)
    assert (same - same[:, :1]).abs().max() > 1e-6
    assert (without - same).abs().max() > 1e-6


@pytest.mark.parametrize("options", [{"attention_heads": 3, "space": (4, 4)}, {"attention_heads": 2}])
def test_impossible_attention_is_refused(options):
    with pytest.raises(ValueError, match="self-attention needs"):
        network(**options)


def test_dropout_acts_in_training_alone():
    conditioner, x = network(dropout=0.5), torch.randn(1, 2, 4, 4, dtype=torch.float64)
    assert not torch.equal(conditioner(x), conditioner(x))
    conditioner.eval()
    assert torch.equal(conditioner(x), conditioner(x))


@pytest.mark.parametrize(
    "build",
    [
        lambda: GatedResidualCNN(2, 3, 8, 2, context_features=5),
        lambda: ResidualCNN(2, 3, 8, 2, context_features=5),
        lambda: ShallowCNN(2, 3, 8, context_features=5),
    ],
)
def test_a_feature_map_as_context_acts_pixel_by_pixel(build):
    torch.manual_seed(0)
    conditioner = build().double().eval()
    with torch.no_grad():
        for parameter in conditioner.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x, vector = torch.randn(2, 2, 9, 9, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    everywhere = vector[:, :, None, None].expand(2, 5, 9, 9)
    torch.testing.assert_close(conditioner(x, everywhere), conditioner(x, vector))
    elsewhere = everywhere.clone()
    elsewhere[:, :, -1, -1] += 1
    change = (conditioner(x, elsewhere) - conditioner(x, vector)).abs().sum(1)
    assert change[:, -1, -1].min() > 0
    assert change[:, 0, 0].max() < 1e-12


def shallow_loss(network: ShallowCNN, x: torch.Tensor) -> torch.Tensor:
    return network(x).square().sum()


def plain_loss(network: ShallowCNN, x: torch.Tensor) -> torch.Tensor:
    """The same without any rectification in place."""
    hidden = network.middle(network.input_proj(x).relu()).relu()
    return network.output_proj(hidden).square().sum()


@pytest.fixture(scope="module")
def shallow() -> ShallowCNN:
    torch.manual_seed(0)
    network = ShallowCNN(2, 3, 8).double()
    torch.nn.init.normal_(network.output_proj.weight)
    return network


def test_gradients_in_place_are_gradients(shallow):
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    wanted = [x, *shallow.parameters()]
    for got, expected in zip(
        torch.autograd.grad(shallow_loss(shallow, x), wanted),
        torch.autograd.grad(plain_loss(shallow, x), wanted),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)


def test_gradients_in_place_have_gradients_themselves(shallow):
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    seconds = []
    for loss in (shallow_loss, plain_loss):
        (gradient,) = torch.autograd.grad(loss(shallow, x), x, create_graph=True)
        seconds.append(torch.autograd.grad(gradient.square().sum(), x)[0])
    assert seconds[0].abs().max() > 0
    torch.testing.assert_close(*seconds)


def test_functional_transforms_reach_through_rectification_in_place(shallow):
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    jacobian = torch.func.jacrev(lambda v: shallow_loss(shallow, v))(x)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(jacobian, torch.autograd.grad(plain_loss(shallow, leaf), leaf)[0])
