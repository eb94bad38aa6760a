"""Multiscale architecture: half of the variables are factored out at every level."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from arflows.core.bijections.base import Bijection, zero_log_det


class Multiscale(Bijection):
    """Chain of levels that factors out the second half of the channels after each level but the last.

    Dinh, Sohl-Dickstein & Bengio 2017 (arXiv:1605.08803), section 3.6, equations 14–16. The latent is one vector: the
    factored-out halves in order, then the output of the last level.

    A split prior (Glow's, for example) is a coupling at the end of a level whose mask keeps the first half of the
    channels: it normalises the half to be factored out given the other half, which is equivalent to a conditional base
    density.

    Args:
        levels: bijections, one for each level.
        event_shape: (channels, height, width) of the data.

    Raises:
        ValueError: if the output of a level has an odd number of channels and cannot be halved.

    >>> from arflows.core.bijections import ActNorm, Chain, Squeeze
    >>> multiscale = Multiscale([Chain(Squeeze(), ActNorm(4)), Squeeze()], (1, 4, 4))
    >>> z, log_det = multiscale(torch.randn(2, 1, 4, 4))
    >>> z.shape, multiscale.part_shapes
    (torch.Size([2, 16]), [(2, 2, 2), (8, 1, 1)])
    """

    def __init__(self, levels: Sequence[Bijection], event_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.levels: Sequence[Bijection] = nn.ModuleList(levels)  # type: ignore[assignment]
        self.event_shape = tuple(event_shape)
        # Shapes of the parts of the latent: the half factored out at each level, then the output of the last level.
        self.part_shapes: list[tuple[int, ...]] = []
        shape = self.event_shape
        for number, level in enumerate(levels):
            channels, *space = level.latent_shape(shape)
            shape = (channels, *space)
            if number < len(levels) - 1:
                if channels % 2:
                    raise ValueError(f"level {number} returns {channels} channels, which cannot be halved")
                shape = (channels // 2, *space)
                self.part_shapes.append(shape)
        self.part_shapes.append(shape)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data (batch, *event_shape) → latent (batch, variables)."""
        if x.shape[1:] != self.event_shape:
            raise ValueError(f"expected examples of shape {self.event_shape}, got {tuple(x.shape[1:])}")
        log_det, parts = zero_log_det(x), []
        for number, level in enumerate(self.levels):
            x, part = level(x, context)
            log_det = log_det + part
            if number < len(self.levels) - 1:
                x, factored_out = x.chunk(2, 1)
                parts.append(factored_out.flatten(1))
        return torch.cat([*parts, x.flatten(1)], 1), log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent (batch, variables) → data (batch, *event_shape)."""
        *factored_out, last = z.split([prod(shape) for shape in self.part_shapes], 1)
        x, log_det = last.unflatten(1, self.part_shapes[-1]), zero_log_det(z)
        for number in reversed(range(len(self.levels))):
            if number < len(self.levels) - 1:
                x = torch.cat([x, factored_out[number].unflatten(1, self.part_shapes[number])], 1)
            x, part = self.levels[number].inverse(x, context)
            log_det = log_det + part
        return x, log_det

    def latent_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a vector with as many variables as the data."""
        return (prod(event_shape),)
