"""Autoregressive flows over vectors."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from arflows.core.bijections import Affine, Chain, Elementwise, GaussianMixture, Inverse, RationalQuadraticSpline
from arflows.core.conditioners.activations import Activation
from arflows.core.flows.base import VectorFlow
from arflows.core.flows.layers import autoregressive_layers, with_batch_norm


class _AutoregressiveFlow(VectorFlow):
    """Stack of autoregressive layers, in one order of the features and its reverse alternately.

    Args:
        elementwise: makes the map of each layer.
        features: size of an example.
        context: size of the context that the density is conditioned on; 0 for none.
        transforms: number of autoregressive layers.
        hidden_features: widths of the networks' hidden layers.
        randperm: use a random order of the features for each layer instead.
        batch_norm: normalise after each layer, by the batch in training and by running averages in evaluation.
        residual: use residual blocks in the networks.
        activation: nonlinearity of the networks.
        inverse: exchange the directions of the layers.
        last: makes the map of one more layer, the nearest to the latent; None for no such layer.
    """

    def __init__(
        self,
        elementwise: Callable[[], Elementwise],
        features: int,
        context: int = 0,
        transforms: int = 5,
        hidden_features: Sequence[int] = (256, 256),
        randperm: bool = False,
        batch_norm: bool = False,
        residual: bool = False,
        activation: Activation = "relu",
        inverse: bool = False,
        last: Callable[[], Elementwise] | None = None,
    ) -> None:
        settings = (hidden_features, randperm, residual, activation)
        layers = autoregressive_layers(elementwise, features, context, transforms, *settings)
        if inverse:
            layers = [Inverse(layer) for layer in layers]
        if batch_norm:
            layers = with_batch_norm(layers, features)
        if last is not None:
            layers += autoregressive_layers(last, features, context, 1, *settings)
        super().__init__(Chain(*layers), features, context)


class MAF(_AutoregressiveFlow):
    """Masked autoregressive flow: affine autoregressive layers, one order and its reverse alternately.

    Papamakarios, Pavlakou & Murray, 2017 (arXiv:1705.07057). One pass of each network scores; the solver samples. The
    paper uses 5 or 10 layers of one or two hidden layers of 100 to 1024 units, and batch normalisation between them
    (section 3.1).

    Args:
        features: size of an example.
        context: size of the context that the density is conditioned on; 0 for none.
        scale_bound: largest absolute log-scale of a layer: given the features before it, one layer makes a feature's
            standard deviation no smaller than exp(−scale_bound) times that of the (standardised) data.
        **kwargs: ``transforms``, ``hidden_features``, ``randperm``, ``batch_norm``, ``residual`` and ``activation``.

    >>> import torch
    >>> flow = MAF(features=3, context=2, transforms=2, hidden_features=(16,))
    >>> flow.log_prob(torch.zeros(5, 3), torch.zeros(5, 2)).shape
    torch.Size([5])
    >>> flow.sample(4, torch.zeros(1, 2)).shape
    torch.Size([4, 3])
    """

    def __init__(self, features: int, context: int = 0, scale_bound: float = 5.0, **kwargs: Any) -> None:
        affine = partial(Affine, scale_bound)
        super().__init__(affine, features, context, inverse=False, last=None, **kwargs)


class MAFMoG(_AutoregressiveFlow):
    """MAF whose base density is a MADE MoG: `MAF` followed by the layer of `MADEMoG`.

    Papamakarios, Pavlakou & Murray, 2017 (arXiv:1705.07057), section 3.1, with 10 components as there.

    Args:
        features: size of an example.
        context: size of the context that the density is conditioned on; 0 for none.
        components: number of Gaussians of each conditional of the base, at least 2.
        scale_bound: largest absolute log-scale of a layer: given the features before it, one layer makes a feature's
            standard deviation no smaller than exp(−scale_bound) times that of the (standardised) data.
        **kwargs: as for `MAF`; ``transforms`` counts the affine layers.

    >>> import torch
    >>> MAFMoG(2, components=3, transforms=1, hidden_features=(8,)).log_prob(torch.zeros(4, 2)).shape
    torch.Size([4])
    """

    def __init__(
        self, features: int, context: int = 0, components: int = 10, scale_bound: float = 5.0, **kwargs: Any
    ) -> None:
        affine, last = partial(Affine, scale_bound), partial(GaussianMixture, components, spread=1.0)
        super().__init__(affine, features, context, inverse=False, last=last, **kwargs)


class IAF(_AutoregressiveFlow):
    """Inverse autoregressive flow: MAF with its directions exchanged, so it samples in one pass and scores by a solver.

    Kingma, Salimans, Jozefowicz, Chen, Sutskever & Welling, 2016 (arXiv:1606.04934). `log_prob` of given data inverts
    each layer, by `Sequential` unless ``with use_solver(...)`` names another; `sample_with_log_prob` does not.

    Args:
        features: size of an example.
        context: size of the context that the density is conditioned on; 0 for none.
        transforms: number of autoregressive layers.
        scale_bound: largest absolute log-scale of a layer: given the features before it, one layer makes a feature's
            standard deviation no smaller than exp(−scale_bound) times that of the (standardised) data.
        **kwargs: ``hidden_features``, ``randperm``, ``residual`` and ``activation``.

    >>> import torch
    >>> x, log_prob = IAF(3, hidden_features=(16,)).sample_with_log_prob(4)
    >>> x.shape, log_prob.shape
    (torch.Size([4, 3]), torch.Size([4]))
    """

    def __init__(
        self, features: int, context: int = 0, transforms: int = 4, scale_bound: float = 5.0, **kwargs: Any
    ) -> None:
        affine = partial(Affine, scale_bound)
        super().__init__(affine, features, context, transforms, batch_norm=False, inverse=True, last=None, **kwargs)


class NSF(_AutoregressiveFlow):
    """Autoregressive neural spline flow, NSF (AR): MAF with rational-quadratic splines for affine maps.

    Durkan, Bekasov, Murray & Papamakarios, 2019 (arXiv:1906.04032); the paper has residual networks. Call `initialize`
    with data before training: outside ±``bound`` standard deviations the splines are the identity.

    Args:
        features: size of an example.
        context: size of the context that the density is conditioned on; 0 for none.
        bins: number of bins of the splines.
        bound: half-width of the splines' interval.
        slope: limit of the splines' steepness, see `RationalQuadraticSpline`; None for no limit.
        **kwargs: ``transforms``, ``hidden_features``, ``randperm``, ``residual`` and ``activation``.

    >>> import torch
    >>> flow = NSF(2, bins=4, transforms=2, hidden_features=(16,))
    >>> flow.initialize(100 * torch.randn(50, 2))
    >>> flow.log_prob(torch.zeros(3, 2)).shape
    torch.Size([3])
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
        super().__init__(spline, features, context, batch_norm=False, inverse=False, last=None, **kwargs)


class _SingleLayerFlow(VectorFlow):
    """One autoregressive layer.

    Args:
        elementwise: makes the map of the layer.
        features: size of an example.
        context: size of the context that the density is conditioned on; 0 for none.
        hidden_features: widths of the network's hidden layers.
        randperm: use a random order of the features instead of the given one.
        residual: use residual blocks in the network.
        activation: nonlinearity of the network.
    """

    def __init__(
        self,
        elementwise: Callable[[], Elementwise],
        features: int,
        context: int = 0,
        hidden_features: Sequence[int] = (256, 256),
        randperm: bool = False,
        residual: bool = False,
        activation: Activation = "relu",
    ) -> None:
        (layer,) = autoregressive_layers(
            elementwise, features, context, 1, hidden_features, randperm, residual, activation
        )
        super().__init__(layer, features, context)


class MADE(_SingleLayerFlow):
    """Masked autoencoder for distribution estimation: normal conditionals, as one autoregressive affine layer.

    Germain, Gregor, Murray & Larochelle, 2015 (arXiv:1502.03509), with real-valued outputs as in Papamakarios et al.
    2017 (arXiv:1705.07057).

    Args:
        features: size of an example.
        context: size of the context that the density is conditioned on; 0 for none.
        scale_bound: largest absolute log-scale of a layer: given the features before it, one layer makes a feature's
            standard deviation no smaller than exp(−scale_bound) times that of the (standardised) data.
        **kwargs: ``hidden_features``, ``randperm``, ``residual`` and ``activation``.

    >>> import torch
    >>> MADE(3, hidden_features=(16,)).log_prob(torch.zeros(5, 3)).shape
    torch.Size([5])
    """

    def __init__(self, features: int, context: int = 0, scale_bound: float = 5.0, **kwargs: Any) -> None:
        super().__init__(partial(Affine, scale_bound), features, context, **kwargs)


class MADEMoG(_SingleLayerFlow):
    """Masked autoencoder for distribution estimation with mixtures of Gaussians for conditionals, MADE MoG.

    Papamakarios, Pavlakou & Murray, 2017 (arXiv:1705.07057), sections 3.1 and 4, with 10 components as there. As one
    autoregressive layer of `GaussianMixture` maps: x is exactly the mixture under a standard normal base.

    Args:
        features: size of an example.
        context: size of the context that the density is conditioned on; 0 for none.
        components: number of Gaussians of each conditional, at least 2. Their means start evenly spaced on [−1, 1].
        **kwargs: as for `MADE`.

    >>> import torch
    >>> MADEMoG(3, components=4, hidden_features=(16,)).sample(5).shape
    torch.Size([5, 3])
    """

    def __init__(self, features: int, context: int = 0, components: int = 10, **kwargs: Any) -> None:
        super().__init__(partial(GaussianMixture, components, spread=1.0), features, context, **kwargs)
