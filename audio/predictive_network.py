"""Networks of `PredictiveFlow` over frames, chunks of samples, and single samples."""

from __future__ import annotations

import itertools
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from arflows.core.conditioners.causal_stack import CausalStack

RECENT = 32
"""Number of past samples that are direct inputs of a sample's parameters."""
PERIOD_TAPS = 12
"""Samples on either side of one pitch period ago that are inputs too."""
FRAME_REACH = 3
"""Frames on either side that a frame's features depend on."""


class FrameEncoder(nn.Module):
    """Encoder of frames to features, by convolutions over neighbouring frames.

    Inputs are standardised with means and scales of training data (`fit`).

    >>> FrameEncoder(inputs=5, features=8, speakers=0)(torch.zeros(1, 10, 5), None).shape
    torch.Size([1, 4, 8])

    Args:
        inputs: number of inputs per frame.
        features: number of features per frame.
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
        """Set means and scales to those of training data; constant inputs keep scale 1."""
        deviation, mean = torch.std_mean(known.flatten(0, 1), 0)
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(deviation > 1e-6, deviation, 1.0))

    def forward(
        self, known: Float[Tensor, "batch frames inputs"], speaker: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, "batch inner features"]:
        """Compute the features of all frames but the first and last `FRAME_REACH`."""
        x = ((known - self.mean) / self.scale).mT
        for number, convolution in enumerate(self.convolutions):
            x = convolution(x if number == 0 else F.silu(x))
            if number == 0 and self.speakers is not None:
                x = x + self.speakers(speaker)[:, :, None]
        return x.mT


class Trunk(nn.Module):
    """Causal network over chunks: the past of each chunk and its sub-frame's features → a state for each sample.

    Args:
        inputs: number of inputs per chunk.
        channels: channels of the causal layers.
        dilations: dilation of each causal layer, in chunks.
        features: number of features per sub-frame.
        chunk: samples per chunk.
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
        """Compute the states of all samples."""
        entry = F.silu(self.input_proj(past.transpose(0, 1)))
        states = self.stack(entry, F.silu(condition).transpose(0, 1))
        out = self.output_proj(F.silu(states)).transpose(0, 1)
        return out.reshape(len(past), -1, self.width)


class Head(nn.Module):
    """Network over single samples: state and past of a sample → parameters of its map. Last layers start at zero.

    >>> Head(inputs=6, width=4, outputs=2)(torch.zeros(1, 3, 6), torch.zeros(1, 3, 4)).shape
    torch.Size([1, 3, 2])

    Args:
        inputs: number of inputs per sample.
        width: size of the state and of the hidden layers.
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
        """Compute the parameters of all samples, in full precision even under autocast."""
        with torch.autocast(past.device.type, enabled=False):
            hidden = F.silu(self.past(past) + state.to(past.dtype))
            return self.out(F.silu(self.hidden(hidden))) + self.direct(past)
