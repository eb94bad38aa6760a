"""A WaveNet over the rows of folded signals: causal down the rows, dilated along them, with a stream row by row."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from arflows.core.conditioners import wavenet_pass
from arflows.core.conditioners.autoregressive import AutoregressiveConditioner
from arflows.core.conditioners.wavenet_layer import Folded, Layer
from arflows.core.conditioners.wavenet_pass import product_type
from arflows.core.conditioners.wavenet_stream import WaveNetStream
from arflows.core.conditioners.weight_norm import WeightNormConv1d, WeightNormConv2d

PARAMETERS = 2
"""Parameters of a sample: those of an affine map."""


class WaveNet(AutoregressiveConditioner):
    """Gated dilated convolutions over a signal that is folded to rows, each row seeing the rows before it.

    The network of WaveFlow (Ping, Peng, Zhao & Song 2020, arXiv:1912.01219, section 3.2), after WaveNet (van den Oord
    et al. 2016, arXiv:1609.03499): layers with residual and skip paths, 2-D convolutions that are causal down the rows
    and look to both sides along them, unless ``causal_width``. Sites are the rows, in the order of generation.

    The context (batch, context_features, columns) has a vector for each column, which all rows of the column share: it
    is projected once for a column, not once for a sample. A context (batch, context_features, rows, columns) has one
    for each sample, rows as they lie. It may have one channel more, which counts the samples of each column that belong
    to the signal, where signals of a batch differ in length or do not fill their last column. What does not belong
    acts as the zeros that convolutions see beyond a border, and gets zero parameters.

    Args:
        channels: of the hidden layers.
        dilations: of each layer down the rows and along them, ``[(1, 1), (1, 2), …]``.
        kernel: size of the convolutions down the rows and along them; the latter is odd.
        context_features: size of a column's context; 0 for none.
        causal_width: let no column see the columns after it.
        order: which row of a column is generated first, second, …; None for the order in which they lie. Only a
            context that counts samples, or has rows, needs it.

    Raises:
        ValueError: for sizes below 1, or an even width of the kernel.
    """

    order: Tensor | None

    def __init__(
        self,
        channels: int,
        dilations: Sequence[tuple[int, int]],
        kernel: tuple[int, int] = (3, 3),
        context_features: int = 0,
        causal_width: bool = False,
        order: Int[Tensor, " rows"] | None = None,
    ) -> None:
        if channels < 1 or not dilations or min(min(pair) for pair in [kernel, *dilations]) < 1 or not kernel[1] % 2:
            raise ValueError(
                f"channels={channels}, dilations={dilations} and kernel={kernel} must be positive, and the kernel's "
                "width odd"
            )
        super().__init__(PARAMETERS, context_features)
        self.channels = channels
        self.causal_width = causal_width
        self.input_proj = WeightNormConv2d(1, channels, 1)
        self.layers = nn.ModuleList(
            Layer(channels, kernel, dilation, causal_width, last=number == len(dilations) - 1)
            for number, dilation in enumerate(dilations)
        )
        # One product gives what the context adds to every layer.
        self.from_context = (
            WeightNormConv1d(context_features, 2 * channels * len(dilations), 1) if context_features else None
        )
        self.output_proj = nn.Conv2d(channels, PARAMETERS, 1)
        nn.init.zeros_(self.output_proj.weight)
        nn.init.zeros_(self.output_proj.bias)  # type: ignore[arg-type]
        self.register_buffer("order", order, persistent=False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(
        self, x: Float[Tensor, "batch rows columns"], context: Float[Tensor, "batch context columns"] | None = None
    ) -> Float[Tensor, "batch rows columns 2"]:
        """Computes the parameters of all samples at once."""
        before = F.pad(x[:, :-1], (0, 0, 1, 0))  # each row sees the rows before it
        return self.rows_given(before, context)[0]

    def rows_given(
        self,
        before: Float[Tensor, "batch rows columns"],
        context: Tensor | None,
        position: int = 0,
        past: Sequence[Tensor | None] | None = None,
    ) -> tuple[Float[Tensor, "batch rows columns 2"], list[Float[Tensor, "batch rows columns width"]]]:
        """Parameters of rows from ``position`` on, and what entered each layer.

        Args:
            before: the row before each; zeros before the first.
            context: as `forward` has it.
            position: number of the first row.
            past: what entered each layer of earlier rows, as many as it still sees or None if there are none; without
                it the rows are all there are, and what entered is not returned.
        """
        features, inside = self.split_context(context)
        low = product_type(before)
        valid = None if inside is None else (inside > 0).to(before.dtype)[:, None, :, None]
        ones = torch.ones_like(before) if valid is None else valid[..., 0].expand_as(before)
        with torch.autocast(before.device.type, enabled=False):
            folded = self.folded(low)
            entry = torch.stack([before if valid is None else before * ones, ones], -1).to(low)
            added = self.added(folded, features, position, before)
            valid = None if valid is None else valid.to(low)
            entered: list[Tensor] = []
            if past is None and wavenet_pass.fits(before, low):
                summed = wavenet_pass.parameters(self.stack, folded, entry, added, valid)
            else:
                summed = self._sum(folded, entry, added, valid, past, entered)
            parameters = summed + folded.left
        if inside is not None:
            parameters = parameters * self.belongs(inside, before.shape[1], position)[..., None]
        return parameters, entered

    def _sum(
        self,
        folded: Folded,
        entry: Tensor,
        added: Tensor,
        valid: Tensor | None,
        past: Sequence[Tensor | None] | None,
        entered: list[Tensor],
    ) -> Float[Tensor, "batch rows columns 2"]:
        """What `wavenet_pass.parameters` computes, on any device and with rows before; fills ``entered``."""
        hidden, summed = entry, folded.left.new_zeros(())
        for number, layer in enumerate(self.stack):
            entered.append(hidden)
            earlier = None if past is None else past[number]
            passed = layer(hidden, folded.kernels[number], added[number], earlier)
            summed = summed + (passed @ folded.skips[number]).to(summed.dtype)
            if number < len(folded.residuals):
                weight, bias = folded.residuals[number]
                hidden = (hidden if number else hidden @ folded.input_proj) + (passed @ weight + bias)
                hidden = hidden if valid is None else hidden * valid
        return summed

    def folded(self, low: torch.dtype) -> Folded:
        """The weights with all folded that can be, products in another precision; differentiable.

        So are weight normalisation and the factors √½ between layers: layers sum to hidden states that are 2^(layer/2)
        times those of the published network. So is the ½ of 2 tanh(a) σ(b), with b halved, which is what gates let
        through. So is the skip path into the last layer, for nothing but sums lies between; and the first layer, which
        sees one number of each sample, into the convolution after it. What enters that are two numbers, the sample and
        one that tells it from the zeros beyond a border.
        """
        count, channels = len(self.layers), self.channels
        input_proj = torch.stack([self.input_proj.weight.flatten(), _bias(self.input_proj)])
        output_proj = self.output_proj.weight[:, :, 0, 0].T
        halves = input_proj.new_ones(2 * channels)
        halves[channels:] = 0.5
        kernels, biases, residuals, skips = [], [], [], []
        left = _bias(self.output_proj)
        for number, layer in enumerate(self.stack):
            scale = 2 ** (number / 2)
            kernel = layer.convolution.weight * (halves / scale)[:, None, None, None]
            if number == 0:
                kernel = torch.einsum("ocij,ec->oeij", kernel, input_proj)
            kernels.append(kernel.to(low, memory_format=torch.contiguous_format))
            biases.append(_bias(layer.convolution))
            weight, bias = layer.mix.weight[:, :, 0, 0].T, _bias(layer.mix)
            if number < count - 1:
                residual = (0.5 * scale * weight[:, :channels]).contiguous()
                residuals.append((residual.to(low), (scale * bias[:channels]).to(low)))
                weight, bias = weight[:, channels:], bias[channels:]
            skips.append((0.5 * count**-0.5 * weight @ output_proj).to(low))
            left = left + count**-0.5 * bias @ output_proj
        bias, from_context = torch.stack(biases), None
        if self.from_context is not None:
            projected = self.from_context.weight[:, :, 0].unflatten(0, (count, -1))
            from_context = (projected * halves[:, None]).mT.contiguous().to(low)
            bias = bias + _bias(self.from_context).view_as(bias)
        bias = (bias * halves)[:, None].to(low)
        return Folded(kernels, input_proj.to(low), from_context, bias, residuals, skips, left)

    def added(
        self, folded: Folded, features: Tensor | None, position: int, like: Float[Tensor, "batch rows columns"]
    ) -> Float[Tensor, "layers #batch #rows columns 2*channels"]:
        """What context and biases add to the gates of each layer, in rows from ``position`` on."""
        if features is None or folded.from_context is None:
            return folded.bias[:, :, None, None].expand(-1, 1, 1, like.shape[2], -1).contiguous()
        features = features[:, :, None] if features.ndim == 3 else self._rows_of(features, position, like.shape[1])
        features = features.movedim(1, -1).to(folded.bias.dtype)
        flat = features.flatten(0, 2).expand(len(folded.bias), -1, -1)
        return torch.baddbmm(folded.bias, flat, folded.from_context).unflatten(1, features.shape[:3])

    def split_context(self, context: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """The features of each column, and how many of its samples belong to the signal (None: all).

        Raises:
            ValueError: for a missing context, or one of another width.
        """
        features = self.context_features
        given = 0 if context is None else context.shape[1]
        if given not in (features, features + 1):
            raise ValueError(f"the conditioner needs a context with {features} features a column, got {given}")
        if context is None:
            return None, None
        inside = None if given == features else context[:, features]
        if inside is not None and inside.ndim == 3:
            inside = inside[:, 0]  # the same in all rows
        return context[:, :features] if features else None, inside

    def _rows_of(self, features: Tensor, position: int, rows: int) -> Float[Tensor, "batch features rows columns"]:
        return features.index_select(2, self._place(position, rows, features.device))

    def belongs(
        self, inside: Float[Tensor, "batch columns"], rows: int, position: int = 0
    ) -> Float[Tensor, "batch rows columns"]:
        """Which samples of rows from ``position`` on belong to the signal, rows in the order of generation."""
        return (self._place(position, rows, inside.device)[:, None] < inside[:, None]).to(inside.dtype)

    def _place(self, position: int, rows: int, device: torch.device) -> Int[Tensor, " rows"]:
        """Where rows from ``position`` on lie."""
        if self.order is not None:
            return self.order[position : position + rows]
        return torch.arange(position, position + rows, device=device)

    def stream(self, like: Tensor, context: Tensor | None = None, memory: list[Tensor] | None = None) -> WaveNetStream:
        """Starts a generation, a row at a time; see `WaveNetStream`.

        Raises:
            ValueError: for a memory of a network that is not of causal width.
        """
        if memory is not None and not self.causal_width:
            raise ValueError("only a network of causal width can go on where earlier columns ended")
        return WaveNetStream(self, like, context, memory)

    @property
    def stack(self) -> list[Layer]:
        """The layers, from the samples to the parameters."""
        return list(self.layers)  # type: ignore[arg-type]

    def memory(self, like: Float[Tensor, "batch rows columns"]) -> list[Tensor]:
        """What streams over successive columns hand on: for each layer and row, the last columns that entered."""
        batch, rows = like.shape[:2]
        widths = [2, *[self.channels] * (len(self.layers) - 1)]
        return [
            like.new_zeros(rows, batch, layer.margins[0], width, dtype=product_type(like))
            for layer, width in zip(self.stack, widths, strict=True)
        ]


def _bias(convolution: nn.Module) -> Tensor:
    bias = convolution.bias
    assert isinstance(bias, Tensor)
    return bias
