"""Cases of every bijection of the core: add a new one to `CASES`.

A case covers every class that it contains: couplings cover masks, elementwise maps and conditioners. The domains' own
bijections have cases in tests/<domain>/bijection_cases.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from arflows.core.bijections import (
    ActNorm,
    Affine,
    Autoregressive,
    BatchNorm,
    Bijection,
    Chain,
    ChannelMask,
    CheckerboardMask,
    ColumnMask,
    Coupling,
    ElementwiseChain,
    Flatten,
    GaussianMixture,
    Inverse,
    InvertibleConv1x1,
    JohnsonSU,
    LocationScale,
    LogisticMixture,
    Logit,
    Multiscale,
    NormalizedConv1x1,
    Permutation,
    PiecewiseLinearCDF,
    Pointwise,
    RationalQuadraticSpline,
    Squeeze,
    Standardize,
    TanhAffine,
)
from arflows.core.conditioners import (
    MLP,
    CausalTransformer,
    GatedResidualCNN,
    Guided,
    MaskedMLP,
    ResidualCNN,
    ShallowCNN,
    WaveNet,
    ZeroConv,
)


@dataclass(frozen=True)
class Case:
    """Construction of a bijection, and its guaranteed properties.

    Attributes:
        build: makes a new, untrained bijection.
        event_shape: shape of an example it takes.
        context_features: size of the context it takes; 0 for none.
        unit: its data lie in [0, 1] rather than on the whole line.
        identity: it promises to start as the identity.
        half_precision: tolerance of its round trip under autocast.
        largest_latent: largest latent whose data can be represented.
    """

    build: Callable[[], Bijection]
    event_shape: tuple[int, ...]
    context_features: int = 0
    unit: bool = False
    identity: bool = False
    half_precision: float = 1e-5
    largest_latent: float = 1e6

    def randomized(self, dtype: torch.dtype, scale: float = 0.3, seed: int = 0) -> Bijection:
        """The bijection in evaluation mode, with noise on every parameter and running statistic."""
        torch.manual_seed(seed)
        bijection = self.build().to(dtype).eval()
        with torch.no_grad():
            for parameter in bijection.parameters():
                parameter.add_(scale * torch.randn_like(parameter))
            for name, buffer in bijection.named_buffers():
                if name.endswith("mean"):
                    buffer.add_(scale * torch.randn_like(buffer))
                elif name.endswith(("var", "variance", "scale")):
                    buffer.mul_(torch.exp(scale * torch.randn_like(buffer)))
        return bijection

    def data(self, batch: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
        """Random examples."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.rand if self.unit else torch.randn
        return noise(batch, *self.event_shape, generator=generator, dtype=torch.float64).to(dtype)

    def extreme_data(self, dtype: torch.dtype) -> Tensor:
        """Examples at the ends of the domain and far out on the line, both alone and side by side."""
        ends = [0.0, 1e-12, 0.5, 1 - 1e-7, 1.0] if self.unit else [-1e6, -50.0, -3.0, 0.0, 3.0, 50.0, 1e6]
        uniform = torch.stack([torch.full(self.event_shape, end, dtype=dtype) for end in ends])
        generator = torch.Generator().manual_seed(2)
        mixed = torch.tensor(ends, dtype=dtype)[torch.randint(len(ends), (4, *self.event_shape), generator=generator)]
        return torch.cat([uniform, mixed])

    def context(self, batch: int, dtype: torch.dtype, seed: int = 3) -> Tensor | None:
        """A random context, or None."""
        if not self.context_features:
            return None
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, self.context_features, generator=generator, dtype=torch.float64).to(dtype)


def vector_coupling(
    features: int, elementwise: Callable[[], nn.Module], swap: bool = False, context_features: int = 0
) -> Coupling:
    """A coupling on vectors."""
    mask, elementwise = ChannelMask(features, swap), elementwise()
    outputs = elementwise.parameter_count * mask.changed_channels
    return Coupling(mask, elementwise, MLP(mask.input_channels, outputs, (16,), context_features, "tanh"))


def autoregressive(
    features: int, elementwise: nn.Module, hidden_features=(12, 12), order: list[int] | None = None, **options
) -> Autoregressive:
    """An autoregressive layer on vectors; smooth, for derivatives of ReLU networks jump."""
    made = MaskedMLP(features, elementwise.parameter_count, hidden_features, activation="tanh", **options)
    return Autoregressive(elementwise, made, None if order is None else torch.tensor(order))


def image_coupling(mask, elementwise, network, context_features: int = 0) -> Coupling:
    """A coupling on images."""
    outputs = elementwise.parameter_count * mask.changed_channels
    return Coupling(mask, elementwise, network(mask.input_channels, outputs, context_features))


def residual(inputs: int, outputs: int, context_features: int) -> ResidualCNN:
    """A small RealNVP network."""
    return ResidualCNN(inputs, outputs, width=8, blocks=2, context_features=context_features)


def gated(inputs: int, outputs: int, context_features: int) -> GatedResidualCNN:
    """A small gated network."""
    return GatedResidualCNN(inputs, outputs, width=8, blocks=2, context_features=context_features)


def attentive(inputs: int, outputs: int, context_features: int) -> GatedResidualCNN:
    """A small gated network with self-attention, for inputs of 4×3 pixels."""
    return GatedResidualCNN(inputs, outputs, 8, 2, context_features, attention_heads=2, space=(4, 3), dropout=0.5)


def shallow(inputs: int, outputs: int, context_features: int) -> ShallowCNN:
    """A small Glow network."""
    return ShallowCNN(inputs, outputs, width=8, context_features=context_features)


def transformer(elementwise, context_features: int = 0) -> CausalTransformer:
    """A small transformer for 3 tokens of 2 values."""
    return CausalTransformer(3, 2, elementwise.parameter_count, 8, layers=2, heads=2, context_features=context_features)


WAVENET_HALF_PRECISION = 0.02
"""The stream of a WaveNet rounds to bfloat16, of 8 bits, in other places than its parallel pass."""


def wavenet(**options) -> WaveNet:
    """A small WaveNet."""
    return WaveNet(4, [(1, 1), (2, 2)], **options)


def multiscale(context_features: int) -> Multiscale:
    """Two levels, the first with a split prior that depends on the kept half."""
    prior = image_coupling(ChannelMask(4), Affine(), ZeroConv, context_features)
    return Multiscale([Chain(Squeeze(), InvertibleConv1x1(4), prior), Chain(Squeeze(), ActNorm(8))], (1, 4, 4))


CASES: dict[str, Case] = {
    "affine": Case(lambda: Pointwise(Affine(), (3, 2)), (3, 2), identity=True),
    "tanh_affine": Case(lambda: Pointwise(TanhAffine(), (3, 2)), (3, 2), identity=True),
    "spline": Case(lambda: Pointwise(RationalQuadraticSpline(), (3, 2)), (3, 2), identity=True),
    "spline_two_bins": Case(lambda: Pointwise(RationalQuadraticSpline(bins=2, bound=1.0), (2,)), (2,), identity=True),
    "logistic_mixture": Case(lambda: Pointwise(LogisticMixture(4), (3, 2)), (3, 2), identity=True),
    "logistic_mixture_spread": Case(lambda: Pointwise(LogisticMixture(3, spread=2.0), (3,)), (3,)),
    "gaussian_mixture": Case(lambda: Pointwise(GaussianMixture(4), (3, 2)), (3, 2), identity=True),
    "gaussian_mixture_spread": Case(lambda: Pointwise(GaussianMixture(3, spread=2.0), (3,)), (3,)),
    "mixture_then_affine": Case(
        lambda: Pointwise(ElementwiseChain(LogisticMixture(2), Affine()), (3,)), (3,), identity=True
    ),
    "piecewise_linear": Case(lambda: Pointwise(PiecewiseLinearCDF(5), (3, 2)), (3, 2), unit=True, identity=True),
    "piecewise_linear_categories": Case(lambda: Pointwise(PiecewiseLinearCDF(4, upper=4.0), (3,)), (3,)),
    "logit": Case(lambda: Logit(), (2, 3), unit=True),
    "logit_narrow": Case(lambda: Logit(alpha=1e-4), (2, 3), unit=True),
    "inverse": Case(lambda: Inverse(Pointwise(Affine(), (4,))), (4,), identity=True),
    "chain": Case(lambda: Chain(Pointwise(Affine(), (4,)), Permutation(torch.tensor([2, 0, 3, 1]))), (4,)),
    "empty_chain": Case(lambda: Chain(), (4,), identity=True),
    "permutation_vector": Case(lambda: Permutation(torch.tensor([2, 0, 3, 1])), (4,)),
    "permutation_image": Case(lambda: Permutation(torch.tensor([2, 0, 1])), (3, 2, 4)),
    "squeeze": Case(lambda: Squeeze(), (2, 4, 6)),
    "invertible_conv": Case(lambda: InvertibleConv1x1(4), (4, 3, 2)),
    "normalized_conv": Case(lambda: NormalizedConv1x1(4), (4, 3, 2)),
    "actnorm_image": Case(lambda: ActNorm(3), (3, 4, 2), identity=True),
    "actnorm_vector": Case(lambda: ActNorm(5), (5,), identity=True),
    "standardize_image": Case(lambda: Standardize(3), (3, 4, 2), identity=True),
    "standardize_vector": Case(lambda: Standardize(5), (5,), identity=True),
    "batch_norm_image": Case(lambda: BatchNorm(3), (3, 4, 2)),
    "batch_norm_vector": Case(lambda: BatchNorm(5), (5,)),
    "coupling_vector": Case(lambda: vector_coupling(5, Affine), (5,), identity=True),
    "coupling_vector_swapped": Case(lambda: vector_coupling(5, Affine, swap=True), (5,), identity=True),
    "coupling_vector_spline": Case(lambda: vector_coupling(4, RationalQuadraticSpline), (4,), identity=True),
    "coupling_vector_logistic_mixture": Case(
        lambda: vector_coupling(4, lambda: ElementwiseChain(LogisticMixture(3, spread=1.0), Affine())), (4,)
    ),
    "coupling_vector_gaussian_mixture": Case(lambda: vector_coupling(4, lambda: GaussianMixture(3, spread=1.0)), (4,)),
    "coupling_vector_piecewise_linear": Case(
        lambda: vector_coupling(4, lambda: PiecewiseLinearCDF(5)), (4,), unit=True, identity=True
    ),
    "coupling_channels": Case(lambda: image_coupling(ChannelMask(5), Affine(), shallow), (5, 4, 3), identity=True),
    "coupling_channels_context": Case(
        lambda: image_coupling(ChannelMask(4, swap=True), TanhAffine(), shallow, 6), (4, 4, 3), 6, identity=True
    ),
    "coupling_columns": Case(lambda: image_coupling(ColumnMask(3), Affine(), shallow), (3, 2, 6), identity=True),
    "coupling_columns_attention_context": Case(
        lambda: image_coupling(ColumnMask(2, swap=True), Affine(), attentive, 6), (2, 4, 6), 6, identity=True
    ),
    "coupling_checkerboard": Case(
        lambda: image_coupling(CheckerboardMask(2, 4, 4), TanhAffine(), residual), (2, 4, 4), identity=True
    ),
    "coupling_checkerboard_context": Case(
        lambda: image_coupling(CheckerboardMask(2, 3, 4, swap=True), TanhAffine(), residual, 6),
        (2, 3, 4),
        6,
        identity=True,
    ),
    "coupling_checkerboard_spline": Case(
        lambda: image_coupling(CheckerboardMask(1, 4, 4), RationalQuadraticSpline(4), gated, 6),
        (1, 4, 4),
        6,
        identity=True,
    ),
    "coupling_vector_context": Case(lambda: vector_coupling(5, Affine, False, 3), (5,), 3, identity=True),
    "flatten": Case(lambda: Flatten((2, 3)), (2, 3)),
    "autoregressive": Case(lambda: autoregressive(5, Affine()), (5,), identity=True),
    "autoregressive_ordered": Case(lambda: autoregressive(5, Affine(), order=[3, 0, 4, 2, 1]), (5,), identity=True),
    "autoregressive_spline": Case(lambda: autoregressive(4, RationalQuadraticSpline(4)), (4,), identity=True),
    "autoregressive_context": Case(
        lambda: autoregressive(4, Affine(), (9,), context_features=6), (4,), 6, identity=True
    ),
    "autoregressive_residual": Case(
        lambda: autoregressive(6, Affine(), (8, 8, 8), residual=True, context_features=6), (6,), 6, identity=True
    ),
    "autoregressive_few_units": Case(lambda: autoregressive(7, Affine(), (3, 2)), (7,), identity=True),
    "inverse_autoregressive": Case(lambda: Inverse(autoregressive(5, Affine())), (5,), identity=True),
    "location_scale": Case(lambda: Pointwise(LocationScale(), (3, 2)), (3, 2), identity=True),
    "johnson": Case(lambda: Pointwise(JohnsonSU(), (3, 2)), (3, 2), largest_latent=50.0),
    "autoregressive_johnson": Case(lambda: autoregressive(4, JohnsonSU()), (4,), largest_latent=50.0),
    "transformer": Case(lambda: Autoregressive(LocationScale(), transformer(LocationScale)), (3, 2), identity=True),
    "transformer_context": Case(
        lambda: Autoregressive(Affine(), transformer(Affine, 6), torch.tensor([2, 0, 1])), (3, 2), 6, identity=True
    ),
    "guided_transformer": Case(
        lambda: Autoregressive(LocationScale(), Guided(transformer(LocationScale, 3), 0.5)), (3, 2), 6, identity=True
    ),
    "wavenet": Case(
        lambda: Autoregressive(Affine(), wavenet()), (3, 5), identity=True, half_precision=WAVENET_HALF_PRECISION
    ),
    "wavenet_causal": Case(
        lambda: Autoregressive(Affine(), wavenet(causal_width=True), torch.tensor([2, 0, 1])),
        (3, 5),
        identity=True,
        half_precision=WAVENET_HALF_PRECISION,
    ),
    "multiscale": Case(lambda: multiscale(0), (1, 4, 4)),
    "multiscale_context": Case(lambda: multiscale(6), (1, 4, 4), 6),
}
