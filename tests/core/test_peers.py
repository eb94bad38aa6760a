"""The same weights in zuko's and nflows' flows give the same densities; needs ``pip install arflows[bench]``."""

import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from arflows.core import flows
from arflows.core.conditioners.masked_mlp import MaskedLinear

FEATURES, WIDTH = 9, 32  # a multiple of 8, so that all libraries have as many hidden units of each degree


def randomize(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter))


def assign(layer: MaskedLinear, weight: Tensor, bias: Tensor) -> None:
    """Puts a whole matrix into the blocks of a masked layer."""
    row = 0
    with torch.no_grad():
        for block in layer.blocks:
            rows = slice(row, row + len(block.bias))
            dense, steps = weight[rows, : block.width].split([block.shared, block.width - block.shared], 1)
            if block.dense is not None:
                block.dense.copy_(dense)
            block.steps.copy_(steps)
            block.bias.copy_(bias[rows])
            row = rows.stop


def copy_made(ours: nn.Module, weights: list[Tensor], biases: list[Tensor], features_in_order: Tensor) -> None:
    """Copies masked matrices, with units sorted by how many inputs they see and parameters grouped by variable.

    Args:
        ours: a MADE.
        weights: the masked matrices of the peer; rows of the last one are (features, parameters) in turn.
        biases: their biases.
        features_in_order: which of the peer's features is generated first, second, ….
    """
    columns = features_in_order
    seen = torch.eye(FEATURES, dtype=torch.bool)
    for layer, weight, bias in zip(ours.layers[:-1], weights[:-1], biases[:-1], strict=True):
        seen = ((weight != 0).float() @ seen.float()) > 0
        order = seen.sum(1).argsort(stable=True)
        assign(layer, weight[order][:, columns], bias[order])
        columns = order
    count = ours.parameter_count
    rows = (features_in_order[:, None] * count + torch.arange(count)).flatten()
    assign(ours.layers[-1], weights[-1][rows][:, columns], biases[-1][rows])


def test_maf_of_zuko():
    zuko = pytest.importorskip("zuko")
    torch.manual_seed(0)
    theirs = zuko.flows.MAF(FEATURES, transforms=3, hidden_features=(WIDTH, WIDTH)).double()
    ours = flows.MAF(FEATURES, transforms=3, hidden_features=(WIDTH, WIDTH), batch_norm=False).double()
    randomize(theirs)
    for mine, their in zip(ours.bijection.bijections[1], theirs.transform.transforms, strict=True):
        linears = [layer for layer in their.hyper if isinstance(layer, nn.Linear)]
        weights = [layer.weight * layer.mask for layer in linears]
        order = torch.arange(FEATURES) if mine.order is None else mine.order
        copy_made(mine.conditioner, weights, [layer.bias for layer in linears], order)
        # zuko bounds log-scales by a = raw / (1 + |raw / log slope|), and its scale is exp(a).
        mine.elementwise.bound.fill_(-math.log(1e-3))
    x = torch.randn(20, FEATURES, dtype=torch.float64)
    torch.testing.assert_close(ours.log_prob(x), theirs().log_prob(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize("spline", [False, True], ids=["affine", "spline"])
def test_autoregressive_transforms_of_nflows(spline):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("nflows")
        from nflows.distributions import StandardNormal
        from nflows.flows import Flow
        from nflows.transforms import (
            MaskedAffineAutoregressiveTransform,
            MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
        )
    torch.manual_seed(0)
    options = {"features": FEATURES, "hidden_features": WIDTH, "num_blocks": 1, "use_residual_blocks": False}
    if spline:
        options |= {"num_bins": 5, "tails": "linear", "tail_bound": 4.0}
        transform = MaskedPiecewiseRationalQuadraticAutoregressiveTransform(**options)
        ours = flows.NSF(FEATURES, bins=5, bound=4.0, slope=None, transforms=1, hidden_features=(WIDTH, WIDTH)).double()
    else:
        transform = MaskedAffineAutoregressiveTransform(**options)
        ours = flows.MADE(FEATURES, hidden_features=(WIDTH, WIDTH)).double()
    theirs = Flow(transform, StandardNormal([FEATURES])).double()
    randomize(theirs)
    linears = [m for m in transform.modules() if isinstance(m, nn.Linear)]
    weights, biases = [m.weight * m.mask for m in linears], [m.bias.clone() for m in linears]
    layers = ours.bijection.bijections[1]
    layer = next(iter(layers)) if spline else layers
    x = torch.randn(20, FEATURES, dtype=torch.float64)
    if spline:  # derivatives that nflows' networks leave at zero are not 1, ours are
        offset = torch.zeros(FEATURES, 14, dtype=torch.float64)
        offset[:, 10:] = layer.elementwise.derivative_offset
        biases[-1] -= offset.flatten()
    copy_made(layer.conditioner, weights, biases, torch.arange(FEATURES))
    if spline:
        got = ours.log_prob(x)
    else:  # its affine map is another, so the networks are compared, and the density put together from what they give
        raw = layer.conditioner(x)
        scale = torch.nn.functional.softplus(raw[..., 0]) + 1e-3
        z = scale * x + raw[..., 1]
        got = torch.distributions.Normal(0, 1).log_prob(z).sum(1) + scale.log().sum(1)
    torch.testing.assert_close(got, theirs.log_prob(x), atol=1e-6, rtol=0)
