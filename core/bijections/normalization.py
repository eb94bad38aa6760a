"""Normalisation layers and initialisation from data."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from math import prod
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arflows.core.bijections.base import Bijection, zero_log_det
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.machine import double
from arflows.core.runtime.processes import batch_statistics, world_size


class InitializedFromData(nn.Module, ABC):
    """Module with state that is set from data once.

    A buffer records that the state has been set. It is saved and loaded, so that a trained model keeps its state
    however often training starts. Files of older versions lack the record, and their state counts as set.

    Attributes:
        initialized: True if the state has been set, bool ().
    """

    initialized: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def initialize_from(self, x: Tensor) -> None:
        """Set the state from a batch of data, unless it was initialised or loaded before."""
        if not self.initialized:
            self._set_from(x)
            self.initialized.fill_(True)

    @abstractmethod
    def _set_from(self, x: Tensor) -> None:
        """Set the state from a batch of data."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if any(name.startswith(prefix) for name in state_dict):
            state_dict.setdefault(f"{prefix}initialized", torch.ones((), dtype=torch.bool))
        super()._load_from_state_dict(state_dict, prefix, *args)


class ActNorm(InitializedFromData, Bijection):
    """Activation normalisation: a learned scale and shift for each channel, initialised from a batch of data.

    Kingma & Dhariwal, "Glow", 2018 (arXiv:1807.03039), section 3.1: z = x · exp(s) + b. It is the identity until
    `initialize` sets it so that every channel of the given batch has zero mean and unit variance.

    Args:
        channels: size of the first event dimension.

    >>> layer = ActNorm(1)
    >>> x = torch.tensor([[2.0], [4.0]])
    >>> initialize(layer, lambda: layer(x))
    >>> layer(x)[0].flatten().detach()
    tensor([-1.,  1.])
    """

    reversible = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    def _set_from(self, x: Float[Tensor, "batch channels *space"]) -> None:
        """Normalise ``x``; a channel without spread keeps its scale, and a trained layer keeps scale and shift."""
        if self.log_scale.any() or self.shift.any():
            return
        mean, variance = channel_statistics(x)
        scale = torch.where(variance > 0, variance.clamp_min(torch.finfo(x.dtype).tiny).rsqrt(), 1.0)
        self.log_scale.copy_(scale.log())
        self.shift.copy_(-mean * scale)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data → latent."""
        scale = along_channels(self.log_scale.exp(), x)
        z = torch.addcmul(along_channels(self.shift, x), x, scale)
        return z, zero_log_det(x) + sites(x) * self.log_scale.sum()

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent → data."""
        scale = along_channels((-self.log_scale).exp(), z)
        return (z - along_channels(self.shift, z)) * scale, zero_log_det(z) - sites(z) * self.log_scale.sum()


class Standardize(InitializedFromData, Bijection):
    """Standardisation of each channel to zero mean and unit variance: z = (x − mean) / scale, without parameters.

    It is the identity until `initialize` sets mean and scale from a sample of the data. The density of a flow that
    begins with it is in the units of the data: log|det| is −Σ log scale.

    Args:
        channels: size of the first event dimension.

    >>> layer = Standardize(1)
    >>> layer.initialize_from(torch.tensor([[2.0], [4.0]]))
    >>> layer(torch.tensor([[3.0]]))
    (tensor([[0.]]), tensor([0.]))
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))

    def _set_from(self, x: Float[Tensor, "batch channels *space"]) -> None:
        """Set mean and scale from ``x``; a constant channel keeps its scale."""
        x = double(x)  # means far larger than spreads are common in data
        mean, variance = channel_statistics(x)
        over = [0, *range(2, x.ndim)]
        spread = x.amax(over) > x.amin(over)  # the computed variance of equal numbers can be positive
        self.mean.copy_(mean.to(self.mean.dtype))  # before it goes to a device that may lack float64
        self.scale.copy_(torch.where(spread, variance.sqrt(), 1.0).to(self.scale.dtype))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data → latent."""
        z = (x - along_channels(self.mean, x)) / along_channels(self.scale, x)
        return z, zero_log_det(x) - sites(x) * self.scale.log().sum()

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent → data."""
        x = torch.addcmul(along_channels(self.mean, z), z, along_channels(self.scale, z))
        return x, zero_log_det(z) + sites(z) * self.scale.log().sum()


class BatchNorm(Bijection):
    """Batch normalisation as a bijection: z = (x − μ) / sqrt(σ² + ε).

    A training step, which is a forward pass in training mode with gradients enabled, moves running averages towards the
    batch, μ̃ ← ρ μ̃ + (1 − ρ) μ̂. Everything else uses the averages as they stand and changes nothing: the inverse,
    evaluation mode, and passes under `torch.no_grad`. A training step normalises by either of

    - "running": the updated averages, with gradients through the share of the batch. Training and evaluation then
      normalise alike, which stabilises deep flows on images. Dinh, Sohl-Dickstein & Bengio 2017 (arXiv:1605.08803),
      section 3.7 and appendix E.
    - "batch": the mean and variance of the batch. Papamakarios, Pavlakou & Murray 2017 (arXiv:1705.07057), section 3.1.

    During the first 1 / (1 − ρ) batches the averages are plain means of all batches so far. Processes that share a
    training batch use the statistics of the whole batch.

    Args:
        channels: size of the first event dimension.
        momentum: weight ρ of the past.
        epsilon: ε, added to the variance.
        statistics: statistics that a training step normalises by.

    Raises:
        UserError: at a training step on a single value for each channel.

    >>> layer = BatchNorm(2)
    >>> z, log_det = layer(torch.randn(8, 2))
    >>> layer.batches
    tensor(1)

    Attributes:
        tracks_batches: True: a forward pass of a training step changes the averages and must not be repeated.
    """

    tracks_batches = True
    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(
        self,
        channels: int,
        momentum: float = 0.9,
        epsilon: float = 1e-4,
        statistics: Literal["running", "batch"] = "running",
    ) -> None:
        super().__init__()
        self.statistics = statistics
        self.momentum = momentum
        self.epsilon = epsilon
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data → latent."""
        step = self.training and torch.is_grad_enabled()
        mean, variance = self._training_statistics(x) if step else (self.mean, self.variance)
        log_scale = -0.5 * (variance + self.epsilon).log()
        z = (x - along_channels(mean, x)) * along_channels(log_scale.exp(), x)
        return z, zero_log_det(x) + sites(x) * log_scale.sum()

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent → data by the running averages."""
        log_scale = 0.5 * (self.variance + self.epsilon).log()
        x = z * along_channels(log_scale.exp(), z) + along_channels(self.mean, z)
        return x, zero_log_det(z) + sites(z) * log_scale.sum()

    def _training_statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if len(x) * sites(x) * world_size() == 1:
            raise UserError(
                "batch normalisation cannot train on a batch of one example, which has no variance: use a larger "
                "batch_size, or flow.eval() to score"
            )
        batch_mean, batch_variance = batch_statistics(*channel_statistics(x))
        self.batches.add_(1)
        weight = (1 / self.batches).clamp_min(1 - self.momentum).to(x.dtype)
        mean = torch.lerp(self.mean, batch_mean, weight)
        variance = torch.lerp(self.variance, batch_variance, weight)
        self.mean.copy_(mean.detach())
        self.variance.copy_(variance.detach())
        return (mean, variance) if self.statistics == "running" else (batch_mean, batch_variance)


def initialize(module: nn.Module, run: Callable[[], object]) -> None:
    """Initialise every layer of ``module`` that starts from data, in the order in which ``run`` reaches them.

    Such a layer is an `InitializedFromData`, or has a method ``initialize_from(x)`` that passes the data on to one. The
    method is called with the layer's first input just before the layer runs, so each layer sees data normalised by the
    layers before it. A layer that was initialised before stays as it is.

    Args:
        module: a flow or bijection; one without such layers stays as it is.
        run: function that passes data through the module, such as ``lambda: flow.log_prob(x)``.
    """
    parts = [layer for layer in module.modules() if isinstance(layer, InitializedFromData)]
    if all(part.initialized for part in parts):
        return
    layers = [layer for layer in module.modules() if hasattr(layer, "initialize_from")]
    hooks = [
        layer.register_forward_pre_hook(lambda layer, inputs: layer.initialize_from(inputs[0])) for layer in layers
    ]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()


def mark_initialized(module: nn.Module) -> None:
    """Mark every layer of ``module`` as initialised, so that its state stays as it is when training continues."""
    for layer in module.modules():
        if isinstance(layer, InitializedFromData):
            layer.initialized.fill_(True)


def channel_statistics(
    x: Float[Tensor, "batch channels *space"],
) -> tuple[Float[Tensor, " channels"], Float[Tensor, " channels"]]:
    """Return mean and biased variance of each channel over the batch and all positions."""
    variance, mean = torch.var_mean(x, dim=[0, *range(2, x.ndim)], correction=0)
    return mean, variance


def along_channels(values: Float[Tensor, " channels"], x: Tensor) -> Tensor:
    """Reshape one value per channel to broadcast over ``x`` (batch, channels, *space)."""
    return values.view(1, -1, *[1] * (x.ndim - 2))


def sites(x: Tensor) -> int:
    """Return the number of positions that share the parameters of a channel."""
    return prod(x.shape[2:])
