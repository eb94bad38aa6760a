"""The networks of a `PredictiveFlow`: what is known of frames, of chunks of samples, of single samples."""

from __future__ import annotations

import itertools
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from arflows.core.conditioners.causal_stack import CausalStack

RECENT = 32
"""Samples before its own that a sample's parameters see directly."""
PERIOD_TAPS = 12
"""Samples before and after that of one pitch period ago that they see too."""
FRAME_REACH = 3
"""Frames to either side of its own that a frame's features depend on."""


class FrameEncoder(nn.Module):
    """What is known of each frame → its features, by convolutions over neighbouring frames.

    Inputs are standardised by means and scales of training data (`fit`).

    Args:
        inputs: numbers of a frame.
        features: size of the result.
        speakers: number of speakers; 0 for none.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, inputs: int, features: int, speakers: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))
        sizes = [inputs, *[features] * FRAME_REACH]
        pairs = itertools.pairwise(sizes)
        self.convolutions = nn.ModuleList([nn.Conv1d(before, after, 3) for before, after in pairs])
        self.speakers = nn.Embedding(speakers, features) if speakers else None

    @torch.no_grad()
    def fit(self, known: Float[Tensor, "batch frames inputs"]) -> None:
        """Sets means and scales to those of training data; what does not vary keeps its scale."""
        deviation, mean = torch.std_mean(known.flatten(0, 1), 0)
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(deviation > 1e-6, deviation, 1.0))

    def forward(
        self, known: Float[Tensor, "batch frames inputs"], speaker: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, "batch inner features"]:
        """Computes the features of all frames but the first and last `FRAME_REACH`."""
        x = ((known - self.mean) / self.scale).mT
        for number, convolution in enumerate(self.convolutions):
            x = convolution(x if number == 0 else F.silu(x))
            if number == 0 and self.speakers is not None:
                x = x + self.speakers(speaker)[:, :, None]
        return x.mT


class Trunk(nn.Module):
    """The past of each chunk of samples and the condition of its sub-frame → a state for each of its samples.

    Args:
        inputs: numbers that a chunk's past is given by.
        channels: of the causal layers.
        dilations: of the causal layers, in chunks.
        features: size of a sub-frame's condition.
        chunk: samples of a chunk.
        width: size of the state of a sample.
    """

    def __init__(self, inputs: int, channels: int, dilations: list[int], features: int, chunk: int, width: int) -> None:
        super().__init__()
        self.chunk, self.width = chunk, width
        self.input_proj = nn.Linear(inputs, channels)
        self.stack = CausalStack(channels, dilations, features)
        self.output_proj = nn.Linear(channels, chunk * width)

    def forward(
        self, past: Float[Tensor, "batch chunks inputs"], condition: Float[Tensor, "batch subframes features"]
    ) -> Float[Tensor, "batch samples width"]:
        """Computes the states of all samples."""
        entry = F.silu(self.input_proj(past.transpose(0, 1)))
        states = self.stack(entry, F.silu(condition).transpose(0, 1))
        out = self.output_proj(F.silu(states)).transpose(0, 1)
        return out.reshape(len(past), -1, self.width)


class Head(nn.Module):
    """A sample's state and its own past → the parameters of its map; its last layers start at zero.

    Args:
        inputs: numbers that a sample's past is given by.
        width: size of the state, and of the hidden layers.
        outputs: number of parameters.
    """

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.past = nn.Linear(inputs, width, bias=False)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, outputs)
        self.direct = nn.Linear(inputs, outputs, bias=False)
        for zero in (self.out.weight, self.out.bias, self.direct.weight):
            nn.init.zeros_(zero)
        nn.init.normal_(self.past.weight, std=1 / math.sqrt(inputs))

    def forward(
        self, past: Float[Tensor, "batch samples inputs"], state: Float[Tensor, "batch samples width"]
    ) -> Float[Tensor, "batch samples outputs"]:
        """Computes the parameters of all samples, in full precision also under autocast."""
        with torch.autocast(past.device.type, enabled=False):
            hidden = F.silu(self.past(past) + state.to(past.dtype))
            return self.out(F.silu(self.hidden(hidden))) + self.direct(past)
