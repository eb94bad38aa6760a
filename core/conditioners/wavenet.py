"""WaveNet over the rows of folded signals: causal down the rows, dilated along them."""

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
"""Number of parameters of a sample, for an affine map."""


class WaveNet(AutoregressiveConditioner):
    """Gated dilated convolutions over a signal folded to rows, in which each row depends on the rows before it.

    The network of WaveFlow (Ping, Peng, Zhao & Song 2020, arXiv:1912.01219, section 3.2), after WaveNet (van den Oord
    et al. 2016, arXiv:1609.03499): layers with residual and skip paths, 2-D convolutions that are causal down the rows
    and symmetric along them, unless ``causal_width``. Sites are the rows, in the order of generation.

    The context (batch, context_features, columns) has a vector for each column, which is shared by its rows and
    projected once. A context (batch, context_features, rows, columns) has a vector for each sample, rows in the order
    of the signal. One more channel may give the number of samples of each column that belong to the signal, for batches
    of signals of different lengths and incomplete last columns. Other samples are treated as the zeros beyond a border
    and get zero parameters.

    Args:
        channels: number of channels of the hidden layers.
        dilations: dilations of each layer down the rows and along them, ``[(1, 1), (1, 2), …]``.
        kernel: size of the convolutions down the rows and along them; the latter is odd.
        context_features: size of the context of a column; 0 for none.
        causal_width: let each column depend only on itself and the columns before it.
        order: row of a column that is generated first, second, …; None for the order of the signal. Used only with a
            context that counts samples or has rows.

    Raises:
        ValueError: if a size is below 1, or the width of the kernel is even.

    >>> network = WaveNet(channels=4, dilations=[(1, 1), (1, 2)])
    >>> network(torch.randn(2, 3, 10)).shape
    torch.Size([2, 3, 10, 2])
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
        # One product projects the context for all layers.
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
        """Compute the parameters of all samples in one pass."""
        before = F.pad(x[:, :-1], (0, 0, 1, 0))  # each row depends on the rows before it
        return self.rows_given(before, context)[0]

    def rows_given(
        self,
        before: Float[Tensor, "batch rows columns"],
        context: Tensor | None,
        position: int = 0,
        past: Sequence[Tensor | None] | None = None,
    ) -> tuple[Float[Tensor, "batch rows columns 2"], list[Float[Tensor, "batch rows columns width"]]]:
        """Compute the parameters of rows from ``position`` on, and the inputs of each layer.

        Args:
            before: the row before each row; zeros before the first.
            context: context as for `forward`.
            position: number of the first row.
            past: inputs of each layer for the earlier rows that its convolution reaches, None for a layer without; None
                for a pass over all rows, which may return no inputs of layers.

        Returns:
            Parameters, and the inputs of each layer for these rows.
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
        """Compute `wavenet_pass.parameters` on any device and with earlier rows; append layer inputs to ``entered``."""
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
        """Return the weights with constants folded in; differentiable.

        Folded are weight normalisation, the √½ between layers (hidden states are 2^(layer/2) times those of the
        published network), the ½ of the gates (they output 2 tanh(a) σ(2b), with b halved), the skip paths into the
        output layer, and the input layer into the first convolution. The input of that convolution has two channels,
        the sample and a one that distinguishes it from the zeros beyond a border.

        Args:
            low: dtype of the matrix products.
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
        """Return the contribution of context and biases to the gates of each layer, for rows from ``position`` on.

        Args:
            folded: folded weights.
            features: features of each column, (batch, features, columns), or of each sample in the order of the signal,
                (batch, features, rows, columns); None for none.
            position: number of the first row, in the order of generation.
            like: samples; only the shape is used.
        """
        if features is None or folded.from_context is None:
            return folded.bias[:, :, None, None].expand(-1, 1, 1, like.shape[2], -1).contiguous()
        features = features[:, :, None] if features.ndim == 3 else self._rows_of(features, position, like.shape[1])
        features = features.movedim(1, -1).to(folded.bias.dtype)
        flat = features.flatten(0, 2).expand(folded.bias.shape[0], -1, -1)
        return torch.baddbmm(folded.bias, flat, folded.from_context).unflatten(1, features.shape[:3])

    def split_context(self, context: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return the features of each column and its number of samples that belong to the signal (None: all).

        Raises:
            ValueError: if the context is missing or has the wrong number of features.
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
        return features.index_select(2, self._rows_of_signal(position, rows, features.device))

    def belongs(
        self, inside: Float[Tensor, "batch columns"], rows: int, position: int = 0
    ) -> Float[Tensor, "batch rows columns"]:
        """Return ones for samples that belong to the signal, in rows of generation from ``position`` on.

        Args:
            inside: number of samples of each column that belong to the signal.
            rows: number of rows.
            position: number of the first row, in the order of generation.
        """
        return (self._rows_of_signal(position, rows, inside.device)[:, None] < inside[:, None]).to(inside.dtype)

    def _rows_of_signal(self, position: int, rows: int, device: torch.device) -> Int[Tensor, " rows"]:
        """Return the row of the signal for each row from ``position`` on."""
        if self.order is not None:
            return self.order[position : position + rows]
        return torch.arange(position, position + rows, device=device)

    def stream(self, like: Tensor, context: Tensor | None = None, memory: list[Tensor] | None = None) -> WaveNetStream:
        """Start a generation, one row at a time; see `WaveNetStream`.

        Raises:
            ValueError: if there is a memory, but the network is not of causal width.
        """
        if memory is not None and not self.causal_width:
            raise ValueError("only a network with causal_width=True can continue from the memory of earlier columns")
        return WaveNetStream(self, like, context, memory)

    @property
    def stack(self) -> list[Layer]:
        """Layers from the samples to the parameters."""
        return list(self.layers)  # type: ignore[arg-type]

    def memory(self, like: Float[Tensor, "batch rows columns"]) -> list[Tensor]:
        """Return the state passed between streams over successive columns: the last inputs of each layer and row."""
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
