"""Coupling flows over vectors."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from arflows.core.bijections import Affine, Chain, Elementwise, RationalQuadraticSpline
from arflows.core.conditioners.activations import Activation
from arflows.core.flows.base import VectorFlow
from arflows.core.flows.layers import coupling_layers, with_batch_norm


class _CouplingFlow(VectorFlow):
    """Stack of couplings that keep one half of the features and the other alternately.

    Args:
        elementwise: makes the map of each coupling.
        features: size of an example, at least 2.
        context: size of the context that the density is conditioned on; 0 for none.
        transforms: number of couplings.
        hidden_features: widths of the networks' hidden layers.
        randmask: use random halves for each coupling instead.
        batch_norm: normalise after each layer, by the batch in training and by running averages in evaluation.
        activation: nonlinearity of the networks.

    Raises:
        UserError: if there is a single feature, which cannot be halved.
    """

    def __init__(
        self,
        elementwise: Callable[[], Elementwise],
        features: int,
        context: int = 0,
        transforms: int = 5,
        hidden_features: Sequence[int] = (256, 256),
        randmask: bool = False,
        batch_norm: bool = False,
        activation: Activation = "relu",
    ) -> None:
        layers = coupling_layers(elementwise, features, context, transforms, hidden_features, randmask, activation)
        if batch_norm:
            layers = with_batch_norm(layers, features)
        super().__init__(Chain(*layers), features, context)


class RealNVP(_CouplingFlow):
    """RealNVP over vectors: affine couplings. Samples as fast as it scores.

    Dinh, Sohl-Dickstein & Bengio, 2017 (arXiv:1605.08803). Papamakarios et al. 2017 (arXiv:1705.07057) put batch
    normalisation between the layers.

    Args:
        features: size of an example, at least 2.
        context: size of the context that the density is conditioned on; 0 for none.
        scale_bound: largest absolute log-scale of a layer: one coupling makes a feature's
            standard deviation no smaller than exp(−scale_bound) times that of the (standardised) data.
        **kwargs: ``transforms``, ``hidden_features``, ``randmask``, ``batch_norm`` and ``activation``.

    >>> import torch
    >>> RealNVP(3, transforms=2, hidden_features=(16,)).sample(5).shape
    torch.Size([5, 3])
    """

    def __init__(self, features: int, context: int = 0, scale_bound: float = 5.0, **kwargs: Any) -> None:
        super().__init__(partial(Affine, scale_bound), features, context, **kwargs)


class NSFC(_CouplingFlow):
    """Neural spline flow with couplings, NSF (C). Samples as fast as it scores.

    Durkan, Bekasov, Murray & Papamakarios, 2019 (arXiv:1906.04032). Call `initialize` with data before training:
    outside ±``bound`` standard deviations the splines are the identity.

    Args:
        features: size of an example, at least 2.
        context: size of the context that the density is conditioned on; 0 for none.
        bins: number of bins of the splines.
        bound: half-width of the splines' interval.
        slope: limit of the splines' steepness, see `RationalQuadraticSpline`; None for no limit.
        **kwargs: ``transforms``, ``hidden_features``, ``randmask`` and ``activation``.

    >>> import torch
    >>> NSFC(4, bins=4, transforms=2, hidden_features=(16,)).log_prob(torch.zeros(5, 4)).shape
    torch.Size([5])
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        bins: int = 8,
        bound: float = 5.0,
        slope: float | None = 1e-3,
        **kwargs: Any,
    ) -> None:
        spline = partial(RationalQuadraticSpline, bins, bound, slope=slope)
        super().__init__(spline, features, context, batch_norm=False, **kwargs)
