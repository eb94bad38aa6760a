"""Layers that learn from batches: batch normalisation in training, initialisation from data."""

import copy

import pytest
import torch
from torch import nn

from arflows.core.bijections import (
    ActNorm,
    BatchNorm,
    Chain,
    InvertibleConv1x1,
    NormalizedConv1x1,
    Permutation,
    Standardize,
    initialize,
)
from arflows.core.runtime.errors import UserError


def spread_out(batch: int = 64) -> torch.Tensor:
    torch.manual_seed(0)
    return 5 + torch.tensor([0.1, 1.0, 30.0])[:, None, None] * torch.randn(batch, 3, 4, 4)


def test_initialisation_normalises_each_layer_in_turn():
    torch.manual_seed(1)
    chain = Chain(ActNorm(3), InvertibleConv1x1(3), ActNorm(3))
    x = spread_out()
    initialize(chain, lambda: chain(x))
    for values in (chain.bijections[0](x)[0], chain(x)[0]):
        torch.testing.assert_close(values.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
        torch.testing.assert_close(values.std((0, 2, 3)), torch.ones(3), atol=1e-2, rtol=0)
    before = [parameter.clone() for parameter in chain.parameters()]
    chain(3 * x)
    assert all(torch.equal(a, b) for a, b in zip(before, chain.parameters(), strict=True)), "it happens once"
    assert not chain.bijections[0]._forward_pre_hooks


def test_normalized_convolution_is_the_chain_of_its_parts():
    torch.manual_seed(1)
    fused, x = NormalizedConv1x1(3), spread_out()
    initialize(fused, lambda: fused(x))
    chain = Chain(fused.norm, fused.conv)
    torch.testing.assert_close(fused(x), chain(x), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(fused.norm(x)[0].std((0, 2, 3)), torch.ones(3), atol=1e-2, rtol=0)


def test_initialisation_survives_constant_channels():
    layer, x = ActNorm(2), torch.stack([torch.full((8, 3, 3), 7.0), torch.randn(8, 3, 3)], 1)
    initialize(layer, lambda: layer(x))
    z, log_det = layer(x)
    assert z.isfinite().all()
    assert log_det.isfinite().all()


def test_initialisation_without_such_layers_runs_nothing():
    initialize(Permutation(torch.arange(3)), lambda: pytest.fail("nothing to initialise, so nothing to run"))


def test_standardising_takes_mean_and_spread_of_the_data():
    layer, x = Standardize(3), torch.tensor([[1.0, 0.1, -5e6], [3.0, 0.1, -5e6 + 1]]).repeat(50_000, 1)
    initialize(layer, lambda: layer(x))
    torch.testing.assert_close(layer.mean, torch.tensor([2.0, 0.1, -5e6 + 0.5]))
    torch.testing.assert_close(layer.scale, torch.tensor([1.0, 1.0, 0.5]))  # a constant column keeps its scale
    z, log_det = layer(x)
    torch.testing.assert_close(z[0, 0], torch.tensor(-1.0))
    torch.testing.assert_close(log_det, torch.full((len(x),), 2.0).log())
    assert not list(layer.parameters())


@pytest.mark.report
@pytest.mark.parametrize("make", [ActNorm, Standardize, NormalizedConv1x1])
def test_state_set_from_data_is_set_once(make):
    """It stays when data come again, also after saving and loading, and where it came out as the identity."""
    layer, x = make(3), spread_out()
    identity = (x - x.mean((0, 2, 3), keepdim=True)) / x.var((0, 2, 3), correction=0, keepdim=True).sqrt()
    for first in (x, identity):
        layer = make(3)
        initialize(layer, lambda layer=layer, first=first: layer(first))
        state = {name: value.clone() for name, value in layer.state_dict().items()}
        loaded = make(3)
        loaded.load_state_dict(state)
        for again in (layer, loaded):
            initialize(again, lambda again=again: again(7 - 100 * x))
            for name, value in again.state_dict().items():
                assert torch.equal(value, state[name]), name


@pytest.mark.report
def test_state_of_older_files_counts_as_set():
    for make in (ActNorm, Standardize, NormalizedConv1x1):
        older = {name: value for name, value in make(3).state_dict().items() if not name.endswith("initialized")}
        layer = make(3)
        layer.load_state_dict(older)
        initialize(layer, lambda layer=layer: layer(spread_out()))
        for name, value in older.items():
            assert torch.equal(layer.state_dict()[name], value), name


def test_training_sees_what_evaluation_sees():
    layer, x = BatchNorm(3).train(), spread_out()
    for _ in range(3):
        z, log_det = layer(x)
    again, log_det_again = layer.eval()(x)
    torch.testing.assert_close(again, z)
    torch.testing.assert_close(log_det_again, log_det)


def test_first_batches_count_equally_and_later_ones_by_the_momentum():
    layer, batches = BatchNorm(3, momentum=0.9).train(), [spread_out() + shift for shift in range(30)]
    means = [batch.mean((0, 2, 3)) for batch in batches]
    for number, batch in enumerate(batches):
        before = layer.mean.clone()
        layer(batch)
        if number < 10:
            torch.testing.assert_close(layer.mean, torch.stack(means[: number + 1]).mean(0), atol=1e-4, rtol=1e-4)
        else:
            torch.testing.assert_close(layer.mean, 0.9 * before + 0.1 * means[number], atol=1e-4, rtol=1e-4)


def test_inverse_in_training_undoes_the_forward_pass_before_it():
    layer, x = BatchNorm(3).train(), spread_out()
    layer(x + 2)
    z, log_det = layer(x)
    back, inverse_log_det = layer.inverse(z)
    torch.testing.assert_close(back, x, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(inverse_log_det, -log_det)


def test_gradient_flows_through_the_batch_but_not_through_the_past():
    layer, x = BatchNorm(3).double().train(), spread_out(4).double()
    layer(x)
    layer(x)
    past_mean, past_variance = layer.mean.clone(), layer.variance.clone()
    x.requires_grad_()
    weights = torch.randn_like(x)
    z, log_det = layer(x)
    (gradient,) = torch.autograd.grad((weights * z).sum() + log_det.sum(), x)

    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    mean, variance = (2 * past_mean + mean) / 3, (2 * past_variance + variance) / 3
    scale = (variance + layer.epsilon).rsqrt()
    reference = (x - mean[:, None, None]) * scale[:, None, None]
    objective = (weights * reference).sum() + len(x) * 16 * scale.log().sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(objective, x)[0])


def test_compiles_in_training_mode():
    layer, x = nn.Sequential(BatchNorm(3)).train()[0], spread_out()
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    z, _ = compiled(x)
    assert layer.batches == 1
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(3), atol=1e-3, rtol=0)


@pytest.mark.report
def test_batch_norm_of_networks_is_moved_by_training_steps_alone():
    from arflows.core.conditioners.batch_norm import BatchNorm2d

    norm, x = BatchNorm2d(2).train(), 3 + torch.randn(4, 2, 3, 3)
    norm(x)
    mean, expected = norm.running_mean.clone(), copy.deepcopy(norm).eval()(x)
    with torch.no_grad():
        torch.testing.assert_close(norm(x), expected)
    assert torch.equal(norm.running_mean, mean)


@pytest.mark.report
@pytest.mark.parametrize("layer", [InvertibleConv1x1, NormalizedConv1x1])
def test_a_nearly_singular_convolution_is_not_inverted(layer):
    """In float32 the round trip would be wrong by as much as the values; in float64 it is right."""
    torch.manual_seed(0)
    bijection = layer(4)
    convolution = bijection if layer is InvertibleConv1x1 else bijection.conv
    with torch.no_grad():
        convolution.log_scale[1] = -20
    x = torch.randn(3, 4, 2, 2)
    with pytest.raises(UserError, match=r"too near to a singular matrix .*smallest log-scale -20\.0"):
        bijection.inverse(bijection(x)[0])
    bijection.double()
    back, _ = bijection.inverse(bijection(x.double())[0])
    torch.testing.assert_close(back, x.double(), atol=1e-5, rtol=1e-5)


@pytest.mark.report
def test_convolutions_of_trained_models_are_inverted():
    """Up to a condition of some ten thousand, as far as the round trip is better than a hundredth."""
    torch.manual_seed(0)
    bijection = InvertibleConv1x1(12)
    with torch.no_grad():
        bijection.log_scale.add_(torch.linspace(-4, 4, 12))
    x = torch.randn(3, 12, 2, 2)
    back, _ = bijection.inverse(bijection(x)[0])
    torch.testing.assert_close(back, x, atol=0.01, rtol=0)
