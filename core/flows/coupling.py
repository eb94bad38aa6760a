"""Flows of couplings over vectors."""

from collections.abc import Callable, Sequence

import torch

from arflows.core.bijections import (
    Affine,
    Bijection,
    Chain,
    ChannelMask,
    Coupling,
    Elementwise,
    Permutation,
    RationalQuadraticSpline,
)
from arflows.core.conditioners import MLP
from arflows.core.conditioners.masked_mlp import Activation
from arflows.core.flows.base import VectorFlow, check_sizes, normalized
from arflows.core.runtime.errors import UserError


class RealNVP(VectorFlow):
    """RealNVP on vectors: affine couplings that keep one half of the features and the other in turn.

    Dinh, Sohl-Dickstein & Bengio, 2017 (arXiv:1605.08803), with batch normalisation between the layers as in
    Papamakarios et al. 2017 (arXiv:1705.07057). Samples as fast as it scores.

    Args:
        features: size of an example, at least 2.
        context: size of what the density is conditioned on; 0 for nothing.
        transforms: number of couplings.
        hidden_features: widths of the hidden layers.
        randmask: halves drawn at random for each coupling.
        batch_norm: normalise between the layers, by the batch in training and by running averages in evaluation.
        activation: nonlinearity of the networks.

    Raises:
        UserError: for a single feature, of which a coupling has no half.
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        transforms: int = 5,
        hidden_features: Sequence[int] = (256, 256),
        randmask: bool = False,
        batch_norm: bool = True,
        activation: Activation = "relu",
    ) -> None:
        layers = _couplings(Affine, features, context, transforms, hidden_features, randmask, activation)
        super().__init__(Chain(*normalized(layers, features, batch_norm)), features, context)


class NSFC(VectorFlow):
    """Neural spline flow with couplings, NSF (C): samples as fast as it scores.

    Durkan, Bekasov, Murray & Papamakarios, 2019 (arXiv:1906.04032). Call `initialize` with data before training:
    outside ±``bound`` standard deviations the splines are the identity.

    Args:
        features: size of an example, at least 2.
        context: size of what the density is conditioned on; 0 for nothing.
        bins: bins of the splines.
        bound: half-width of the splines' interval.
        transforms: number of couplings.
        hidden_features: widths of the hidden layers.
        randmask: halves drawn at random for each coupling.
        activation: nonlinearity of the networks.

    Raises:
        UserError: for a single feature, of which a coupling has no half.
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        bins: int = 8,
        bound: float = 5.0,
        transforms: int = 5,
        hidden_features: Sequence[int] = (256, 256),
        randmask: bool = False,
        activation: Activation = "relu",
    ) -> None:
        layers = _couplings(
            lambda: RationalQuadraticSpline(bins, bound),
            features,
            context,
            transforms,
            hidden_features,
            randmask,
            activation,
        )
        super().__init__(Chain(*layers), features, context)


def _couplings(
    elementwise: Callable[[], Elementwise],
    features: int,
    context: int,
    transforms: int,
    hidden_features: Sequence[int],
    randmask: bool,
    activation: Activation,
) -> list[Bijection]:
    """Couplings that change one half of the features and the other in turn, or halves drawn at random."""
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
