"""Elementwise maps: monotone functions of single numbers with given parameters.

An `Elementwise` map contains no network. It takes the parameters of every element as a tensor with one more axis, which
a conditioner computes (`Coupling`, `Autoregressive`) or which is learned directly (`Pointwise`). Unless its docstring
says otherwise, a map with all-zero parameters is the identity, so a new flow whose conditioners end in a layer of zeros
is the identity.
"""

from abc import ABC, abstractmethod
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arflows.core.bijections.base import Bijection, sum_except_batch


class Elementwise(nn.Module, ABC):
    """Monotone map of each element, with ``parameter_count`` parameters per element.

    Both directions take ``values`` (batch, *event) and ``parameters`` (batch, *event, parameter_count). They return the
    mapped values and the elementwise log-derivative of the direction called, both (batch, *event).
    """

    parameter_count: int

    @abstractmethod
    def forward(
        self, values: Float[Tensor, "batch *event"], parameters: Float[Tensor, "batch *event parameters"]
    ) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, "batch *event"]]:
        """Data → latent."""

    @abstractmethod
    def inverse(
        self, values: Float[Tensor, "batch *event"], parameters: Float[Tensor, "batch *event parameters"]
    ) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, "batch *event"]]:
        """Latent → data."""


class Affine(Elementwise):
    """z = x · exp(s) + t with the log-scale bounded by s = raw / (1 + |raw| / bound).

    The bound keeps samples finite where a conditioner extrapolates badly. It also limits how narrow a conditional
    density one layer can represent: a scale of exp(−bound), e⁻⁵ ≈ 0.007 by default. Near zero, s equals the raw
    parameter. Parameters: (t, raw).

    Args:
        bound: largest absolute log-scale.

    >>> z, log_derivative = Affine()(torch.tensor([2.0]), torch.tensor([[1.0, 0.0]]))
    >>> z, log_derivative
    (tensor([3.]), tensor([0.]))
    """

    parameter_count = 2
    bound: Tensor

    def __init__(self, bound: float = 5.0) -> None:
        super().__init__()
        # A tensor: operations with Python numbers take twice as long when a stream maps few elements at a time.
        self.register_buffer("bound", torch.tensor(bound), persistent=False)

    def log_scale(self, raw: Tensor) -> Tensor:
        """Return the bounded log-scale s of an unbounded parameter."""
        return bounded(raw, self.bound)

    def forward(self, values: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Data → latent."""
        shift, raw = parameters.unbind(-1)
        log_scale = self.log_scale(raw)
        return torch.addcmul(shift, values, log_scale.exp()), log_scale

    def inverse(self, values: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Latent → data."""
        shift, raw = parameters.unbind(-1)
        log_scale = self.log_scale(raw).neg()
        return (values - shift) * log_scale.exp(), log_scale


class TanhAffine(Affine):
    """Affine map of RealNVP: s = factor · tanh(raw) with one learned factor for the whole layer.

    Dinh, Sohl-Dickstein & Bengio, "Density estimation using Real NVP", 2017 (arXiv:1605.08803), section 4.1.
    Parameters: (t, raw).

    >>> z, log_derivative = TanhAffine()(torch.ones(1), torch.tensor([[0.0, 100.0]]))
    >>> log_derivative
    tensor([1.], grad_fn=<MulBackward0>)
    """

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def log_scale(self, raw: Tensor) -> Tensor:
        """Return the log-scale s, at most |factor| in size."""
        return self.factor * torch.tanh(raw)


class LocationScale(Affine):
    """z = (x − μ) · exp(−α), with the log-scale α bounded as in `Affine`.

    Papamakarios, Pavlakou & Murray 2017 (arXiv:1705.07057), equations 3–4: x given the sites before it is normal with
    mean μ and standard deviation exp α. Unlike the shift of `Affine`, μ has the scale of the data however narrow the
    density is. Parameters: (μ, raw).

    >>> z, log_derivative = LocationScale()(torch.tensor([3.0]), torch.tensor([[1.0, 0.0]]))
    >>> z
    tensor([2.])
    """

    def forward(self, values: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Data → latent."""
        mean, raw = parameters.unbind(-1)
        log_derivative = self.log_scale(raw).neg()
        return (values - mean) * log_derivative.exp(), log_derivative

    def inverse(self, values: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Latent → data."""
        mean, raw = parameters.unbind(-1)
        log_scale = self.log_scale(raw)
        return torch.addcmul(mean, values, log_scale.exp()), log_scale


class ElementwiseChain(Elementwise):
    """Composition of elementwise maps; the first one is applied to the data.

    Parameters: those of the maps, in the same order.

    Args:
        *elementwise: the maps.

    >>> chain = ElementwiseChain(Affine(), LocationScale())
    >>> chain.parameter_count
    4
    """

    def __init__(self, *elementwise: Elementwise) -> None:
        super().__init__()
        self.parts = nn.ModuleList(elementwise)
        self.parameter_counts = [part.parameter_count for part in elementwise]
        self.parameter_count = sum(self.parameter_counts)

    def forward(self, values: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Data → latent; log-derivatives of the parts add up."""
        log_derivative = torch.zeros_like(values)
        for part, own in zip(self.parts, parameters.split(self.parameter_counts, -1), strict=True):
            values, more = part(values, own)
            log_derivative = log_derivative + more
        return values, log_derivative

    def inverse(self, values: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Latent → data by the inverses of the parts in reverse order."""
        log_derivative = torch.zeros_like(values)
        pairs = zip(self.parts, parameters.split(self.parameter_counts, -1), strict=True)
        for part, own in reversed(list(pairs)):
            values, more = part.inverse(values, own)
            log_derivative = log_derivative + more
        return values, log_derivative


class Pointwise(Bijection):
    """Elementwise map with learned parameters, one set for each element of the event.

    Args:
        elementwise: the map.
        event_shape: shape of an example, without the batch dimension.

    >>> layer = Pointwise(Affine(), (3,))
    >>> z, log_det = layer(torch.ones(2, 3))
    >>> z.shape, log_det.shape
    (torch.Size([2, 3]), torch.Size([2]))
    """

    def __init__(self, elementwise: Elementwise, event_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.elementwise = elementwise
        self.event_shape = tuple(event_shape)
        self.parameters_of_elements = nn.Parameter(torch.zeros(*event_shape, elementwise.parameter_count))

    def _parameters_for(self, values: Tensor) -> Tensor:
        if values.shape[1:] != self.event_shape:
            raise ValueError(f"expected examples of shape {self.event_shape}, got {tuple(values.shape[1:])}")
        return self.parameters_of_elements.expand(values.shape[0], *self.parameters_of_elements.shape)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data → latent."""
        z, log_det = self.elementwise(x, self._parameters_for(x))
        return z, sum_except_batch(log_det)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent → data."""
        x, log_det = self.elementwise.inverse(z, self._parameters_for(z))
        return x, sum_except_batch(log_det)

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        return f"event_shape={self.event_shape}, elements={prod(self.event_shape)}"


def bounded(raw: Tensor, bound: float | Tensor) -> Tensor:
    """Squash an unbounded parameter into (−bound, bound), with slope 1 at zero: raw / (1 + |raw| / bound)."""
    return raw * bound / (raw.abs() + bound)
