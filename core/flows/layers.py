"""Layers of flows over vectors: stacks of autoregressive layers or couplings."""

from collections.abc import Callable, Sequence

import torch

from arflows.core.bijections import (
    Autoregressive,
    BatchNorm,
    Bijection,
    Chain,
    ChannelMask,
    Coupling,
    Elementwise,
    Permutation,
)
from arflows.core.conditioners import MLP, MaskedMLP
from arflows.core.conditioners.activations import Activation
from arflows.core.runtime.errors import UserError


def autoregressive_layers(
    elementwise: Callable[[], Elementwise],
    features: int,
    context: int,
    transforms: int,
    hidden_features: Sequence[int],
    randperm: bool = False,
    residual: bool = False,
    activation: Activation = "relu",
) -> list[Bijection]:
    """Build autoregressive layers over the features in their order and in its reverse, alternately.

    Args:
        elementwise: makes the map of each layer.
        features: size of an example.
        context: size of the context; 0 for none.
        transforms: number of layers.
        hidden_features: widths of the networks' hidden layers.
        randperm: use a random order for each layer instead.
        residual: use residual blocks in the networks.
        activation: nonlinearity of the networks.

    Raises:
        UserError: if a size is out of range.
    """
    check_sizes(features, context, transforms)
    layers: list[Bijection] = []
    for number in range(transforms):
        order = torch.arange(features).flip(0) if number % 2 else None
        if randperm:
            order = torch.randperm(features)
        mapping = elementwise()
        network = MaskedMLP(features, mapping.parameter_count, hidden_features, context, residual, activation)
        layers.append(Autoregressive(mapping, network, order))
    return layers


def coupling_layers(
    elementwise: Callable[[], Elementwise],
    features: int,
    context: int,
    transforms: int,
    hidden_features: Sequence[int],
    randmask: bool = False,
    activation: Activation = "relu",
) -> list[Bijection]:
    """Build couplings that change the second half of the features and the first, alternately.

    Args:
        elementwise: makes the map of each coupling.
        features: size of an example, at least 2.
        context: size of the context; 0 for none.
        transforms: number of couplings.
        hidden_features: widths of the networks' hidden layers.
        randmask: use random halves for each coupling instead.
        activation: nonlinearity of the networks.

    Raises:
        UserError: if a size is out of range, or there is a single feature, which cannot be halved.
    """
    check_sizes(features, context, transforms)
    if features < 2:
        raise UserError("a coupling keeps one part of an example and changes another: features must be at least 2")
    layers: list[Bijection] = []
    for number in range(transforms):
        mask, mapping = ChannelMask(features, swap=bool(number % 2)), elementwise()
        outputs = mapping.parameter_count * mask.changed_channels
        coupling = Coupling(mask, mapping, MLP(mask.input_channels, outputs, hidden_features, context, activation))
        if randmask:
            order = torch.randperm(features)
            layers.append(Chain(Permutation(order), coupling, Permutation(order.argsort())))
        else:
            layers.append(coupling)
    return layers


def with_batch_norm(layers: list[Bijection], features: int) -> list[Bijection]:
    """Put batch normalisation after each layer, by the batch's own statistics in training."""
    return [part for layer in layers for part in (layer, BatchNorm(features, statistics="batch"))]


def check_sizes(features: int, context: int, transforms: int) -> None:
    """Raise UserError if a size is too small for a flow.

    Args:
        features: number of features of an example; at least 1.
        context: number of features of the context; 0 for none.
        transforms: number of transforms; at least 1.
    """
    if features < 1 or context < 0 or transforms < 1:
        raise UserError(
            f"features={features} and transforms={transforms} must be at least 1, context={context} at least 0"
        )
