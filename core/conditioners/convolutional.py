"""Convolutional networks that produce the parameters of a coupling on images.

They take (batch, in_channels, height, width) and optionally a context, and return (batch, out_channels, height, width).
The context is one vector for all pixels, (batch, context_features), or a feature map with a vector for each pixel,
(batch, context_features, height, width). The last layer starts at zero, so a coupling starts as the identity. The
memory format is channels-last, in which convolutions run fastest on CPUs and on tensor cores.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from arflows.core.conditioners.attention import attention
from arflows.core.conditioners.autoregressive import check_context
from arflows.core.conditioners.batch_norm import BatchNorm2d
from arflows.core.conditioners.weight_norm import WeightNormConv2d
from arflows.core.runtime.torch_compat import is_transformed


class ImageConditioner(nn.Module):
    """Base class of the networks of this file, with their memory format and their injection of context.

    Args:
        width: number of channels of the hidden layers.
        context_features: size of the context; 0 for none.
        injections: number of hidden layers to which the context is added.
    """

    def __init__(self, width: int, context_features: int, injections: int) -> None:
        super().__init__()
        self.context_features = context_features
        self.context_shifts = nn.ModuleList(
            nn.Linear(context_features, width) for _ in range(injections if context_features else 0)
        )

    def with_context(self, hidden: Tensor, context: Tensor | None, number: int) -> Tensor:
        """Add a linear function of the context, that of injection ``number``, to every pixel.

        Args:
            hidden: hidden states, (batch, width, rows, columns).
            context: context of shape (batch, features), or (batch, features, rows, columns) for one of each pixel; not
                read by a network without context.
            number: index of the injection, from 0.
        """
        if not self.context_features:
            return hidden
        check_context(context, self.context_features)
        assert context is not None
        shift = self.context_shifts[number]
        if context.ndim == 2:
            return hidden + shift(context)[:, :, None, None]
        return hidden + shift(context.movedim(1, -1)).movedim(-1, 1)

    def lay_out_channels_last(self) -> None:
        """Convert all weights to the channels-last format, at the end of construction."""
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @staticmethod
    def channels_last(x: Tensor) -> Tensor:
        """Lay out the values with channels next to each other, where no transform hides the layout."""
        return x if is_transformed() else x.contiguous(memory_format=torch.channels_last)


class ResidualCNN(ImageConditioner):
    """Residual network of RealNVP with batch normalisation, weight normalisation and skip connections.

    Dinh, Sohl-Dickstein & Bengio 2017 (arXiv:1605.08803), section 3.7 and appendix D. The input is batch-normalised and
    joined to its negative. Each pre-activation block has two 3×3 convolutions; its output also passes through a 1×1
    convolution to the end of the network, where these skip paths are summed.

    Args:
        in_channels: number of channels of the input.
        out_channels: number of channels of the parameters.
        width: number of channels of the hidden layers.
        blocks: number of residual blocks.
        context_features: size of the context; 0 for none.

    >>> ResidualCNN(in_channels=3, out_channels=6, width=8, blocks=2)(torch.randn(2, 3, 4, 4)).shape
    torch.Size([2, 6, 4, 4])
    """

    def __init__(self, in_channels: int, out_channels: int, width: int, blocks: int, context_features: int = 0) -> None:
        super().__init__(width, context_features, blocks)
        self.normalize_input = BatchNorm2d(in_channels, eps=1e-4)
        self.input_proj = WeightNormConv2d(2 * in_channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(_ResidualBlock(width) for _ in range(blocks))
        self.skips = nn.ModuleList(WeightNormConv2d(width, width, 1) for _ in range(blocks + 1))
        self.normalize_output = BatchNorm2d(width, eps=1e-4)
        self.output_proj = WeightNormConv2d(width, out_channels, 1)
        _start_at_zero(self.output_proj)
        self.lay_out_channels_last()

    def forward(
        self, x: Float[Tensor, "batch in_channels height width"], context: Tensor | None = None
    ) -> Float[Tensor, "batch out_channels height width"]:
        """Compute the parameters."""
        hidden = self.normalize_input(self.channels_last(x))
        hidden = self.input_proj(torch.cat([hidden, -hidden], 1).relu_())
        collected = self.skips[0](hidden)
        for number, block in enumerate(self.blocks):
            hidden = block(self.with_context(hidden, context, number))
            collected = collected + self.skips[number + 1](hidden)
        return self.output_proj(F.relu(self.normalize_output(collected)))


class _ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.normalize_in = BatchNorm2d(width, eps=1e-4)
        self.conv_in = WeightNormConv2d(width, width, 3, padding=1, bias=False)
        self.normalize_out = BatchNorm2d(width, eps=1e-4)
        self.conv_out = WeightNormConv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv_in(F.relu(self.normalize_in(x)))
        return x + self.conv_out(F.relu(self.normalize_out(hidden)))


class GatedResidualCNN(ImageConditioner):
    """Residual network of gated convolutions and optional self-attention with layer normalisation.

    Ho, Chen, Srinivas, Duan & Abbeel, "Flow++", 2019 (arXiv:1902.00275), section 3.2, and its published code. A block
    is a gated convolution (a 3×3 convolution, then a 1×1 convolution to twice the width whose halves multiply as
    a · sigmoid(b)) and, with ``attention_heads``, a gated multi-head self-attention over all pixels with learned
    position embeddings. A layer norm over the channels of each pixel follows each residual addition. The network has no
    batch statistics.

    Args:
        in_channels: number of channels of the input.
        out_channels: number of channels of the parameters.
        width: number of channels of the hidden layers.
        blocks: number of residual blocks.
        context_features: size of the context; 0 for none.
        attention_heads: number of heads of the self-attention; 0 for convolutions only.
        space: height and width of the input; required for self-attention.
        dropout: share of the hidden features dropped in each gate during training.

    Raises:
        ValueError: if ``attention_heads`` does not divide ``width``, or ``space`` is missing.

    >>> network = GatedResidualCNN(3, 6, width=8, blocks=1, attention_heads=2, space=(4, 4))
    >>> network(torch.randn(2, 3, 4, 4)).shape
    torch.Size([2, 6, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int,
        blocks: int,
        context_features: int = 0,
        attention_heads: int = 0,
        space: tuple[int, int] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(width, context_features, blocks)
        self.input_proj = nn.Conv2d(in_channels, width, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(2 * width, width, 3, padding=1) for _ in range(blocks))
        self.gates = nn.ModuleList(nn.Conv2d(2 * width, 2 * width, 1) for _ in range(blocks))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(blocks))
        self.dropout = nn.Dropout(dropout)
        self.attentions: nn.ModuleList | None = None
        if attention_heads:
            if width % attention_heads or space is None:
                raise ValueError(f"self-attention needs space, and heads that divide width={width}")
            self.positions = nn.Parameter(0.01 * torch.randn(*space, width))
            self.attentions = nn.ModuleList(_GatedAttention(width, attention_heads, dropout) for _ in range(blocks))
        self.output_proj = nn.Conv2d(width, out_channels, 3, padding=1)
        nn.init.zeros_(self.output_proj.weight)
        nn.init.zeros_(self.output_proj.bias)  # type: ignore[arg-type]
        self.lay_out_channels_last()

    def forward(
        self, x: Float[Tensor, "batch in_channels height width"], context: Tensor | None = None
    ) -> Float[Tensor, "batch out_channels height width"]:
        """Compute the parameters."""
        hidden = self.input_proj(self.channels_last(x))
        for number, (conv, gate, norm) in enumerate(zip(self.convs, self.gates, self.norms, strict=True)):
            update = self.with_context(conv(_both_signs_elu(hidden)), context, number)
            hidden = hidden + F.glu(gate(self.dropout(_both_signs_elu(update))), 1)
            pixels = norm(hidden.permute(0, 2, 3, 1))
            if self.attentions is not None:
                pixels = self.attentions[number](pixels, self.positions)
            hidden = pixels.permute(0, 3, 1, 2)
        return self.output_proj(hidden)


class _GatedAttention(nn.Module):
    """Multi-head self-attention over the pixels of an image: gate, residual addition, layer norm."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.input_proj = nn.Linear(width, 3 * width)
        self.gate = nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, pixels: Float[Tensor, "batch height width features"], positions: Float[Tensor, "height width features"]
    ) -> Float[Tensor, "batch height width features"]:
        """Attend from every pixel to all pixels."""
        hidden = self.input_proj(pixels + positions).flatten(1, 2).unflatten(-1, (3, self.heads, -1))
        queries, keys, values = hidden.permute(2, 0, 3, 1, 4)  # each (batch, heads, pixels, features of a head)
        attended = attention(queries, keys, values)
        attended = attended.transpose(1, 2).reshape(pixels.shape)
        return self.norm(pixels + F.glu(self.gate(self.dropout(attended)), -1))


class ShallowCNN(ImageConditioner):
    """Network of Glow: convolutions of 3×3, 1×1 and 3×3 pixels with ReLUs between them.

    Kingma & Dhariwal, "Glow", 2018 (arXiv:1807.03039), section 4.

    Args:
        in_channels: number of channels of the input.
        out_channels: number of channels of the parameters.
        width: number of channels of the two hidden layers.
        context_features: size of the context; 0 for none.

    >>> ShallowCNN(in_channels=3, out_channels=6, width=8)(torch.randn(2, 3, 4, 4)).shape
    torch.Size([2, 6, 4, 4])
    """

    def __init__(self, in_channels: int, out_channels: int, width: int, context_features: int = 0) -> None:
        super().__init__(width, context_features, 1)
        self.input_proj = nn.Conv2d(in_channels, width, 3, padding=1)
        self.middle = nn.Conv2d(width, width, 1)
        self.output_proj = nn.Conv2d(width, out_channels, 3, padding=1)
        for conv in (self.input_proj, self.middle):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.output_proj.weight)
        nn.init.zeros_(self.output_proj.bias)  # type: ignore[arg-type]
        self.lay_out_channels_last()

    def forward(
        self, x: Float[Tensor, "batch in_channels height width"], context: Tensor | None = None
    ) -> Float[Tensor, "batch out_channels height width"]:
        """Compute the parameters."""
        hidden = _relu_before_convolution(self.with_context(self.input_proj(self.channels_last(x)), context, 0))
        return self.output_proj(_relu_before_convolution(self.middle(hidden)))


class ZeroConv(ImageConditioner):
    """One 3×3 convolution that starts at zero: the conditioner of Glow's split prior.

    Args:
        in_channels: number of channels of the input.
        out_channels: number of channels of the parameters.
        context_features: size of the context; 0 for none.

    >>> ZeroConv(3, 6)(torch.randn(2, 3, 4, 4)).abs().max()
    tensor(0., grad_fn=<MaxBackward1>)
    """

    def __init__(self, in_channels: int, out_channels: int, context_features: int = 0) -> None:
        super().__init__(out_channels, context_features, 1)
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        for shift in self.context_shifts:
            nn.init.zeros_(shift.weight)  # type: ignore[arg-type]
            nn.init.zeros_(shift.bias)  # type: ignore[arg-type]
        self.lay_out_channels_last()

    def forward(
        self, x: Float[Tensor, "batch in_channels height width"], context: Tensor | None = None
    ) -> Float[Tensor, "batch out_channels height width"]:
        """Compute the parameters."""
        return self.with_context(self.conv(self.channels_last(x)), context, 0)


class _ReLU(torch.autograd.Function):
    """ReLU in place, with the gradient in place too.

    The backward pass overwrites the incoming gradient, so nothing else may hold it; the gradient that a convolution
    computes for its input qualifies. Wide features exceed the caches, and allocating memory would cost more than the
    arithmetic.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        ctx.save_for_backward(x.relu_())
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # for second derivatives
            return gradient * (output > 0)
        return torch.ops.aten.threshold_backward.grad_input(gradient, output, 0, grad_input=gradient)


def _relu_before_convolution(hidden: Tensor) -> Tensor:
    """Apply ReLU in place to features that only a convolution takes as its input."""
    plain = torch.compiler.is_compiling() or is_transformed()
    if plain or not (torch.is_grad_enabled() and hidden.requires_grad):
        return hidden.relu_()
    return _ReLU.apply(hidden)


def _start_at_zero(conv: WeightNormConv2d) -> None:
    """Set a weight-normalised convolution to zero by its magnitudes, so that its directions stay random."""
    with torch.no_grad():
        conv.weight_g.zero_()
        conv.get_parameter("bias").zero_()


def _both_signs_elu(x: Tensor) -> Tensor:
    return F.elu(torch.cat([x, -x], 1))
