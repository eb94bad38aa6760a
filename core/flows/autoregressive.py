"""Autoregressive flows over vectors."""

from collections.abc import Callable, Sequence

import torch

from arflows.core.bijections import (
    Affine,
    Autoregressive,
    Bijection,
    Chain,
    Elementwise,
    GaussianMixture,
    Inverse,
    RationalQuadraticSpline,
)
from arflows.core.conditioners import MaskedMLP
from arflows.core.conditioners.masked_mlp import Activation
from arflows.core.flows.base import VectorFlow, check_sizes, normalized


class MADE(VectorFlow):
    """Masked autoencoder for distribution estimation: normal conditionals, as one autoregressive affine layer.

    Germain, Gregor, Murray & Larochelle, 2015 (arXiv:1502.03509), with real-valued outputs as in Papamakarios et al.
    2017 (arXiv:1705.07057).

    Args:
        features: size of an example.
        context: size of what the density is conditioned on; 0 for nothing.
        hidden_features: widths of the hidden layers.
        randperm: an order drawn at random instead of the given one.
        residual: residual blocks in the network.
        activation: nonlinearity of the network.
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        hidden_features: Sequence[int] = (256, 256),
        randperm: bool = False,
        residual: bool = False,
        activation: Activation = "relu",
    ) -> None:
        (layer,) = autoregressive_layers(Affine, features, context, 1, hidden_features, randperm, residual, activation)
        super().__init__(layer, features, context)


class MADEMoG(VectorFlow):
    """Masked autoencoder for distribution estimation with mixtures of Gaussians for conditionals, MADE MoG.

    Papamakarios, Pavlakou & Murray, 2017 (arXiv:1705.07057), sections 3.1 and 4, with 10 components as there. As one
    autoregressive layer of `GaussianMixture` maps: x is exactly the mixture under a standard normal base.

    Args:
        features: size of an example.
        context: size of what the density is conditioned on; 0 for nothing.
        components: Gaussians of each conditional, at least 2. Their means start evenly spaced on [−1, 1].
        hidden_features: widths of the hidden layers.
        randperm: an order drawn at random instead of the given one.
        residual: residual blocks in the network.
        activation: nonlinearity of the network.
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        components: int = 10,
        hidden_features: Sequence[int] = (256, 256),
        randperm: bool = False,
        residual: bool = False,
        activation: Activation = "relu",
    ) -> None:
        (layer,) = autoregressive_layers(
            lambda: GaussianMixture(components, spread=1.0),
            features,
            context,
            1,
            hidden_features,
            randperm,
            residual,
            activation,
        )
        super().__init__(layer, features, context)


class MAF(VectorFlow):
    """Masked autoregressive flow: affine autoregressive layers, one order and its reverse in turn.

    Papamakarios, Pavlakou & Murray, 2017 (arXiv:1705.07057), with batch normalisation between the layers (section
    3.1). Scores in one pass of each network, samples by the solver.

    Args:
        features: size of an example.
        context: size of what the density is conditioned on; 0 for nothing.
        transforms: number of autoregressive layers; the paper uses 5 and 10.
        hidden_features: widths of the hidden layers; the paper has one or two of 100 to 1024.
        randperm: orders drawn at random instead, one for each layer.
        batch_norm: normalise between the layers, by the batch in training and by running averages in evaluation.
        residual: residual blocks in the networks.
        activation: nonlinearity of the networks.
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        transforms: int = 5,
        hidden_features: Sequence[int] = (256, 256),
        randperm: bool = False,
        batch_norm: bool = True,
        residual: bool = False,
        activation: Activation = "relu",
    ) -> None:
        layers = autoregressive_layers(
            Affine, features, context, transforms, hidden_features, randperm, residual, activation
        )
        super().__init__(Chain(*normalized(layers, features, batch_norm)), features, context)


class MAFMoG(VectorFlow):
    """MAF whose base density is a MADE MoG: `MAF` followed by the layer of `MADEMoG`.

    Papamakarios, Pavlakou & Murray, 2017 (arXiv:1705.07057), section 3.1, with 10 components as there.

    Args:
        features: size of an example.
        context: size of what the density is conditioned on; 0 for nothing.
        transforms: number of affine autoregressive layers; the paper uses 5.
        components: Gaussians of each conditional of the base, at least 2.
        hidden_features: widths of the hidden layers.
        randperm: orders drawn at random, one for each layer, instead of one and its reverse in turn.
        batch_norm: normalise between the layers, by the batch in training and by running averages in evaluation.
        residual: residual blocks in the networks.
        activation: nonlinearity of the networks.
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        transforms: int = 5,
        components: int = 10,
        hidden_features: Sequence[int] = (256, 256),
        randperm: bool = False,
        batch_norm: bool = True,
        residual: bool = False,
        activation: Activation = "relu",
    ) -> None:
        layers = autoregressive_layers(
            Affine, features, context, transforms, hidden_features, randperm, residual, activation
        )
        (base,) = autoregressive_layers(
            lambda: GaussianMixture(components, spread=1.0),
            features,
            context,
            1,
            hidden_features,
            randperm,
            residual,
            activation,
        )
        super().__init__(Chain(*normalized(layers, features, batch_norm), base), features, context)


class IAF(VectorFlow):
    """Inverse autoregressive flow: MAF with its directions exchanged, so it samples in one pass and scores by a solver.

    Kingma, Salimans, Jozefowicz, Chen, Sutskever & Welling, 2016 (arXiv:1606.04934). `log_prob` of given data inverts
    each layer, by `Sequential` unless ``with use_solver(...)`` names another; `sample_with_log_prob` does not.

    Args:
        features: size of an example.
        context: size of what the density is conditioned on; 0 for nothing.
        transforms: number of autoregressive layers.
        hidden_features: widths of the hidden layers.
        randperm: orders drawn at random, one for each layer, instead of one and its reverse in turn.
        residual: residual blocks in the networks.
        activation: nonlinearity of the networks.
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        transforms: int = 4,
        hidden_features: Sequence[int] = (256, 256),
        randperm: bool = False,
        residual: bool = False,
        activation: Activation = "relu",
    ) -> None:
        layers = autoregressive_layers(
            Affine, features, context, transforms, hidden_features, randperm, residual, activation
        )
        super().__init__(Chain(*(Inverse(layer) for layer in layers)), features, context)


class NSF(VectorFlow):
    """Autoregressive neural spline flow, NSF (AR): MAF with rational-quadratic splines for affine maps.

    Durkan, Bekasov, Murray & Papamakarios, 2019 (arXiv:1906.04032). Call `initialize` with data before training:
    outside ±``bound`` standard deviations the splines are the identity.

    Args:
        features: size of an example.
        context: size of what the density is conditioned on; 0 for nothing.
        bins: bins of the splines.
        bound: half-width of the splines' interval.
        transforms: number of autoregressive layers.
        hidden_features: widths of the hidden layers.
        randperm: orders drawn at random, one for each layer, instead of one and its reverse in turn.
        residual: residual blocks in the networks, as in the paper.
        activation: nonlinearity of the networks.
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        bins: int = 8,
        bound: float = 5.0,
        transforms: int = 5,
        hidden_features: Sequence[int] = (256, 256),
        randperm: bool = False,
        residual: bool = False,
        activation: Activation = "relu",
    ) -> None:
        layers = autoregressive_layers(
            lambda: RationalQuadraticSpline(bins, bound),
            features,
            context,
            transforms,
            hidden_features,
            randperm,
            residual,
            activation,
        )
        super().__init__(Chain(*layers), features, context)


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
    """Autoregressive layers in the given order and its reverse in turn, or in orders drawn at random."""
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
