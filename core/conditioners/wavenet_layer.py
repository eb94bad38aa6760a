"""Layers of a `WaveNet`, and its weights with constants folded in."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from arflows.core.conditioners.weight_norm import WeightNormConv2d


class Layer(nn.Module):
    """Gated convolution with its residual and skip paths; the last layer has no residual path."""

    def __init__(
        self, channels: int, kernel: tuple[int, int], dilation: tuple[int, int], causal_width: bool, last: bool
    ) -> None:
        super().__init__()
        self.kernel, self.dilation = kernel, dilation
        reach = (kernel[1] - 1) * dilation[1]
        # Reach of the convolution: columns to the left and to the right, and rows above.
        self.margins = (reach, 0) if causal_width else (reach // 2, reach // 2)
        self.past = (kernel[0] - 1) * dilation[0]
        self.convolution = WeightNormConv2d(channels, 2 * channels, kernel, dilation=dilation)
        self.mix = WeightNormConv2d(channels, channels if last else 2 * channels, 1)

    def forward(
        self,
        hidden: Float[Tensor, "batch rows columns width"],
        kernel: Float[Tensor, "2*channels width down along"],
        added: Float[Tensor, "#batch #rows columns 2*channels"],
        past: Float[Tensor, "batch past columns width"] | None,
    ) -> Float[Tensor, "batch rows columns channels"]:
        """Return the output of the gates, given the folded kernel."""
        seen, missing = hidden, self.past
        if past is not None:
            seen, missing = torch.cat([past, hidden], 1), self.past - past.shape[1]
        padded = F.pad(seen, (0, 0, *self.margins, missing, 0)).movedim(3, 1)
        signal, gate = (F.conv2d(padded, kernel, dilation=self.dilation).movedim(1, 3) + added).chunk(2, -1)
        return 2 * torch.tanh(signal) * torch.sigmoid(2 * gate)


class Folded(NamedTuple):
    """Weights of a `WaveNet` with constants folded in; see `WaveNet.folded`."""

    kernels: list[Float[Tensor, "2*channels width down along"]]
    input_proj: Float[Tensor, "2 channels"]
    from_context: Float[Tensor, "layers features 2*channels"] | None
    bias: Float[Tensor, "layers 1 2*channels"]
    residuals: list[tuple[Float[Tensor, "channels channels"], Float[Tensor, " channels"]]]
    skips: list[Float[Tensor, "channels 2"]]
    left: Float[Tensor, " 2"]
