"""Published flows over vectors, by name.

    flow = flows.MAF(features=64, transforms=5, hidden_features=(256, 256))
    flow.log_prob(x); flow.sample(100, solver=Jacobi()); x, log_prob = flow.sample_with_log_prob(100)

Arguments have zuko's names. All flows take ``features`` (size of an example), ``context`` (size of what the density is
conditioned on, 0 for nothing) and ``hidden_features`` (widths of the networks' hidden layers). They start as the
standard normal density (those with mixtures near it); ``flow.initialize(x)`` before training makes it the one with the
means and standard deviations of x. `log_prob` is always that of the data as given.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arflows.core.bases import StandardNormal
from arflows.core.bijections import (
    Affine,
    Autoregressive,
    BatchNorm,
    Bijection,
    Chain,
    ChannelMask,
    Coupling,
    Elementwise,
    GaussianMixture,
    Inverse,
    Permutation,
    RationalQuadraticSpline,
    Standardize,
)
from arflows.core.conditioners import MADE as MADENetwork
from arflows.core.conditioners import MLP
from arflows.core.conditioners.made import Activation
from arflows.core.errors import UserError
from arflows.core.flow import Flow
from arflows.core.inversion import Solver
from arflows.core.pretrained import Pretrained


class VectorFlow(Flow, Pretrained):
    """A flow over vectors with a standard normal base, optionally conditional.

    It begins by standardising examples and context, as `initialize` has set it; without that call, by nothing.

    Args:
        bijection: from data to latents, both (batch, features).
        features: size of an example.
        context: size of what the density is conditioned on; 0 for nothing.
    """

    def __init__(self, bijection: Bijection, features: int, context: int = 0) -> None:
        super().__init__(
            StandardNormal((features,)),
            Chain(Standardize(features), bijection),
            context_encoder=_StandardizedContext(context) if context else None,
        )
        self.context_features = context

    def log_prob(
        self, x: Float[Tensor, "batch features"], context: Float[Tensor, "#batch context"] | None = None
    ) -> Float[Tensor, " batch"]:
        """Log-density in nats.

        Args:
            x: examples.
            context: what they are conditioned on, a row for each, or one row for all.

        Raises:
            UserError: if x or context do not fit the flow in shape, type or device, or hold NaN or infinite values.
        """
        self._check("x", x, self.dims)
        return super().log_prob(x, self._rows(context, len(x)))

    def sample(
        self,
        count: int,
        context: Float[Tensor, "#count context"] | None = None,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        solver: Solver | None = None,
    ) -> Float[Tensor, "count features"]:
        """Draws examples; see `Flow.sample`. One row of context serves for all of them."""
        context = self._rows(context, count)
        return super().sample(count, context, temperature=temperature, generator=generator, solver=solver)

    def sample_with_log_prob(
        self,
        count: int,
        context: Float[Tensor, "#count context"] | None = None,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        solver: Solver | None = None,
    ) -> tuple[Float[Tensor, "count features"], Float[Tensor, " count"]]:
        """Draws examples with their log-densities; see `Flow.sample_with_log_prob`."""
        context = self._rows(context, count)
        return super().sample_with_log_prob(count, context, temperature=temperature, generator=generator, solver=solver)

    def _rows(self, context: Tensor | None, count: int) -> Tensor | None:
        """One row of context for each example."""
        if not self.context_features:
            if context is not None:
                raise UserError("this flow was built without context: leave it out, or build it with context=…")
            return None
        if context is None:
            raise UserError(f"this flow needs a context of {self.context_features} features for each example")
        context = context.expand(count, -1) if len(context) == 1 or context.ndim == 1 else context
        self._check("context", context, self.context_features)
        if len(context) != count:
            raise UserError(
                f"expected one row of context for each of {count} examples, or one for all, got {len(context)}"
            )
        return context

    def _check(self, name: str, values: Tensor, features: int) -> None:
        if values.ndim != 2 or values.shape[1] != features:
            raise UserError(f"{name} must have shape (batch, {features}), got {tuple(values.shape)}")
        own = self.base.origin
        if values.dtype != own.dtype or values.device != own.device:
            raise UserError(
                f"{name} is {values.dtype} on {values.device}, the flow {own.dtype} on {own.device}: "
                f"convert one of them, as by {name}.to(…) or flow.to(…)"
            )
        # Looking at values makes a GPU wait and cannot be compiled; there NaN goes through to the result.
        if not (torch.compiler.is_compiling() or values.is_cuda) and not values.isfinite().all():
            rows = (~values.isfinite().all(1)).nonzero().flatten()
            raise UserError(f"{name} holds NaN or infinite values in {len(rows)} of its rows, the first {int(rows[0])}")


class _StandardizedContext(nn.Module):
    """What a flow is conditioned on, as its networks see it."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.standardize = Standardize(features)

    def forward(self, context: Float[Tensor, "batch features"]) -> Float[Tensor, "batch features"]:
        return self.standardize(context)[0]


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
    each layer, by `Sequential` unless ``with solving(...)`` names another; `sample_with_log_prob` does not.

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
    _check_sizes(features, context, transforms)
    layers: list[Bijection] = []
    for number in range(transforms):
        order = torch.arange(features).flip(0) if number % 2 else None
        if randperm:
            order = torch.randperm(features)
        mapping = elementwise()
        network = MADENetwork(features, mapping.parameter_count, hidden_features, context, residual, activation)
        layers.append(Autoregressive(mapping, network, order))
    return layers


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
    _check_sizes(features, context, transforms)
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


def normalized(layers: list[Bijection], features: int, batch_norm: bool) -> list[Bijection]:
    """The layers with batch normalisation after each, if wanted."""
    if not batch_norm:
        return layers
    return [part for layer in layers for part in (layer, BatchNorm(features, statistics="batch"))]


def _check_sizes(features: int, context: int, transforms: int) -> None:
    if features < 1 or context < 0 or transforms < 1:
        raise UserError(
            f"features={features} and transforms={transforms} must be at least 1, context={context} at least 0"
        )
