"""Flows that set part of their variables aside at every scale."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from arflows.core.bijections.base import Bijection, zero_log_det


class Multiscale(Bijection):
    """Runs levels one after the other and factors out half of the channels after each but the last.

    Dinh, Sohl-Dickstein & Bengio 2017 (arXiv:1605.08803), section 3.6, equations 14–16. The latent is one vector: the
    halves factored out, in order, then what the last level returns.

    A split prior that depends on the kept half (Glow's, for example) is a coupling at the end of a level whose mask
    keeps the first half of the channels: it maps the half about to leave, given the half that stays, to the base
    density's scale, which is the same as giving it a conditional base density.

    Args:
        levels: one bijection for each level.
        event_shape: (channels, height, width) of the data.

    Raises:
        ValueError: if a level's output has an odd number of channels, so that it cannot be halved.
    """

    def __init__(self, levels: Sequence[Bijection], event_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.levels: Sequence[Bijection] = nn.ModuleList(levels)  # type: ignore[assignment]
        self.event_shape = tuple(event_shape)
        # Shapes of the latents' parts: what leaves at each level, then what remains at the end.
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
                x, leaving = x.chunk(2, 1)
                parts.append(leaving.flatten(1))
        return torch.cat([*parts, x.flatten(1)], 1), log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent (batch, variables) → data (batch, *event_shape)."""
        *leaving, last = z.split([prod(shape) for shape in self.part_shapes], 1)
        x, log_det = last.unflatten(1, self.part_shapes[-1]), zero_log_det(z)
        for number in reversed(range(len(self.levels))):
            if number < len(self.levels) - 1:
                x = torch.cat([x, leaving[number].unflatten(1, self.part_shapes[number])], 1)
            x, part = self.levels[number].inverse(x, context)
            log_det = log_det + part
        return x, log_det

    def latent_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        """A vector of as many variables as the data has."""
        return (prod(event_shape),)
