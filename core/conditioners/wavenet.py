"""A WaveNet over the rows of folded signals: causal down the rows, dilated along them, with a stream row by row."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from arflows.core.conditioners.autoregressive import AutoregressiveConditioner, Stream

PARAMETERS = 2
"""Parameters of a sample: those of an affine map."""


class WaveNet(AutoregressiveConditioner):
    """Gated dilated convolutions over a signal that is folded to rows, each row seeing the rows before it.

    The network of WaveFlow (Ping, Peng, Zhao & Song 2020, arXiv:1912.01219, section 3.2), after WaveNet (van den Oord
    et al. 2016, arXiv:1609.03499): layers with residual and skip paths, 2-D convolutions that are causal down the rows
    and look to both sides along them, unless ``causal_width``. Sites are the rows, in the order of generation.

    The context (batch, context_features, columns) has a vector for each column, which all rows of the column share: it
    is projected once for a column, not once for a sample. It may have one channel more, which counts the samples of
    each column that belong to the signal, where signals of a batch differ in length or do not fill their last column.
    What does not belong acts as the zeros that convolutions see beyond a border, and gets zero parameters.

    Args:
        channels: of the hidden layers.
        dilations: of each layer down the rows and along them, ``[(1, 1), (1, 2), …]``.
        kernel: size of the convolutions down the rows and along them; the latter is odd.
        context_features: size of a column's context; 0 for none.
        causal_width: let no column see the columns after it.
        order: which row of a column is generated first, second, …; None for the order in which they lie. Only a
            context that counts samples needs it.

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
                f"channels={channels}, dilations={dilations} and kernel={kernel} must be positive, the kernel's width odd"
            )
        super().__init__(PARAMETERS, context_features)
        self.channels = channels
        self.enter = weight_norm(nn.Conv2d(1, channels, 1))
        self.layers = nn.ModuleList(
            _Layer(channels, kernel, dilation, causal_width, last=number == len(dilations) - 1)
            for number, dilation in enumerate(dilations)
        )
        # One product gives what the context adds to every layer.
        self.from_context = (
            weight_norm(nn.Conv1d(context_features, 2 * channels * len(dilations), 1)) if context_features else None
        )
        self.leave = nn.Conv2d(channels, PARAMETERS, 1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)  # type: ignore[arg-type]
        self.register_buffer("order", order, persistent=False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(
        self, x: Float[Tensor, "batch rows columns"], context: Float[Tensor, "batch context columns"] | None = None
    ) -> Float[Tensor, "batch rows columns 2"]:
        """Computes the parameters of all samples at once."""
        context, inside = self.split_context(context)
        columns = None if inside is None else (inside > 0).to(x.dtype)[:, None, None]
        before = F.pad(x[:, :-1], (0, 0, 1, 0))  # each row sees the rows before it
        hidden = self.enter(before[:, None]).contiguous(memory_format=torch.channels_last)
        skipped: Tensor | None = None
        for layer, added in zip(self.layers, self.context_of_layers(context), strict=True):
            hidden, skip = layer(hidden if columns is None else hidden * columns, added)
            skipped = skip if skipped is None else skipped + skip
        assert skipped is not None
        parameters = self.leave(skipped * len(self.layers) ** -0.5).movedim(1, -1)
        if inside is not None:
            parameters = parameters * self.belongs(inside, x.shape[1])[..., None]
        return parameters

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
        return context[:, :features] if features else None, context[:, features] if given > features else None

    def context_of_layers(self, context: Tensor | None) -> Sequence[Tensor | None]:
        """What the context adds in each layer, (batch, 2 · channels, 1, columns)."""
        if self.from_context is None or context is None:
            return [None] * len(self.layers)
        return self.from_context(context)[:, :, None].chunk(len(self.layers), 1)

    def belongs(self, inside: Float[Tensor, "batch columns"], rows: int) -> Float[Tensor, "batch rows columns"]:
        """Which samples belong to the signal, rows in the order of generation."""
        place = torch.arange(rows, device=inside.device) if self.order is None else self.order
        return (place[None, :, None] < inside[:, None]).to(inside.dtype)

    def stream(self, like: Tensor, context: Tensor | None = None) -> "WaveNetStream":
        """Starts a generation, a row at a time.

        Under autocast whole passes are recomputed: only the same products round as the parallel pass does.
        """
        if torch.is_autocast_enabled(like.device.type):
            return super().stream(like, context)
        return WaveNetStream(self, like, context)


class _Layer(nn.Module):
    """One gated convolution with its residual and skip paths; the last layer has no residual path to feed."""

    def __init__(
        self, channels: int, kernel: tuple[int, int], dilation: tuple[int, int], causal_width: bool, last: bool
    ) -> None:
        super().__init__()
        self.kernel, self.dilation = kernel, dilation
        reach = (kernel[1] - 1) * dilation[1]
        # Columns that the convolution sees to the left and to the right, and rows above.
        self.margins = (reach, 0) if causal_width else (reach // 2, reach // 2)
        self.past = (kernel[0] - 1) * dilation[0]
        self.convolution = weight_norm(nn.Conv2d(channels, 2 * channels, kernel, dilation=dilation))
        self.mix = weight_norm(nn.Conv2d(channels, channels if last else 2 * channels, 1))

    def forward(self, hidden: Tensor, added: Tensor | None) -> tuple[Tensor, Tensor]:
        gates = self.convolution(F.pad(hidden, (*self.margins, self.past, 0)))
        return _paths(hidden, gates, added, self.mix.weight, self.mix.bias)


def _paths(
    hidden: Tensor, gates: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What goes on to the next layer, and what skips to the end; the last layer only has the latter."""
    signal, gate = (gates if added is None else gates + added).chunk(2, 1)
    mixed = F.conv2d(torch.tanh(signal) * torch.sigmoid(gate), weight, bias)
    if mixed.shape[1] == hidden.shape[1]:
        return hidden, mixed
    residual, skip = mixed.chunk(2, 1)
    return (hidden + residual) * math.sqrt(0.5), skip


class WaveNetStream(Stream):
    """A WaveNet that computes a row at a time, keeping of each layer the rows that its convolution still needs.

    A layer with a kernel of k rows dilated by d keeps k · d rows, in d rings of k: the rows that one convolution sees
    are one ring, and where in it the newest lies decides only how the kernel is rotated. So a step moves no rows, has
    static shapes, and is the same for every height, kernel and dilation.
    """

    def __init__(self, network: WaveNet, like: Tensor, context: Tensor | None) -> None:
        super().__init__()
        self.network = network
        self.rows = like.shape[1]
        context, inside = network.split_context(context)
        self.belongs = None if inside is None else network.belongs(inside, self.rows)
        self.columns = None if inside is None else (inside > 0).to(like.dtype)[:, None, None]
        self.added = network.context_of_layers(context)
        self.layers: list[_Layer] = list(network.layers)  # type: ignore[arg-type]
        # Weight normalisation is folded into the weights once.
        self.enter = network.enter.weight, network.enter.bias
        self.kernels = [layer.convolution.weight for layer in self.layers]
        self.mixes = [(layer.mix.weight, layer.mix.bias) for layer in self.layers]
        self.rotated = [
            [kernel.roll(turn + 1, 2).contiguous(memory_format=torch.channels_last) for turn in range(kernel.shape[2])]
            for kernel in self.kernels
        ]
        batch, _, columns = like.shape
        # For each layer (dilation, batch, channels, kernel, columns and margins), channels lying next to each other.
        self.rings = [
            like.new_zeros(d, batch, k, columns + sum(layer.margins), network.channels).movedim(-1, 2)
            for layer in self.layers
            for k, d in [(layer.kernel[0], layer.dilation[0])]
        ]
        self.last = like.new_zeros(batch, 1, columns)
        self.swept: tuple[Tensor, list[Tensor]] | None = None

    def step(self, previous: Float[Tensor, "batch columns"] | None) -> Float[Tensor, "batch columns 2"]:
        """Takes the row before (None at the first) and returns the parameters of the next."""
        if previous is not None:
            self.last = previous[:, None]
            self.position += 1
        return self._compute(self.last)[0][:, 0]

    def sweep(self, guess: Float[Tensor, "batch rows columns"]) -> Float[Tensor, "batch rows columns 2"]:
        """The parameters of the next rows, given a guess at their values; nothing is committed."""
        parameters, entered = self._compute(torch.cat([self.last, guess[:, :-1]], 1))
        self.swept = guess, entered
        return parameters

    def commit(self, values: Float[Tensor, "batch rows columns"]) -> None:
        """Takes the values of the next rows."""
        # What the last sweep computed stands where the values are those it was given: the rule, since they are a fixed
        # point. The last row has not entered yet.
        if self.swept is None or not torch.equal(self.swept[0][:, :-1], values[:, :-1]):
            self.sweep(values)
        assert self.swept is not None
        for number, entered in enumerate(self.swept[1]):
            count = min(entered.shape[2], self.layers[number].kernel[0] * self.layers[number].dilation[0])
            for back in range(count, 0, -1):
                self._place(number, self.position + values.shape[1] - back).copy_(entered[:, :, -back])
        self.swept = None
        self.last = values[:, -1:]
        self.position += values.shape[1]

    def _compute(self, previous: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Parameters of rows, given the row before each, and what entered each layer. A single row enters the rings."""
        count = previous.shape[1]
        self.computed += count
        hidden = F.conv2d(previous[:, None].contiguous(memory_format=torch.channels_last), *self.enter)
        skipped: Tensor | None = None
        entered = []
        for number, layer in enumerate(self.layers):
            if self.columns is not None:
                hidden = hidden * self.columns
            entered.append(hidden)
            if count == 1:
                self._place(number, self.position).copy_(hidden[:, :, 0])
                turn = self.position // layer.dilation[0] % layer.kernel[0]
                seen, kernel = self.rings[number][self.position % layer.dilation[0]], self.rotated[number][turn]
                dilation = (1, layer.dilation[1])
            else:
                past = [self._place(number, row) for row in range(self.position - layer.past, self.position)]
                seen = torch.cat([torch.stack(past, 2), hidden], 2) if past else hidden
                seen, kernel, dilation = F.pad(seen, layer.margins), self.kernels[number], layer.dilation
            gates = F.conv2d(seen, kernel, layer.convolution.bias, dilation=dilation)
            hidden, skip = _paths(hidden, gates, self.added[number], *self.mixes[number])
            skipped = skip if skipped is None else skipped + skip
        assert skipped is not None
        parameters = self.network.leave(skipped * len(self.layers) ** -0.5).movedim(1, -1)
        if self.belongs is not None:
            parameters = parameters * self.belongs[:, self.position : self.position + count, :, None]
        return parameters, entered

    def _place(self, number: int, row: int) -> Float[Tensor, "batch channels columns"]:
        """Where a layer keeps a row; rows above the first are zeros, in places that no row has taken yet."""
        layer = self.layers[number]
        turn, ring = divmod(row, layer.dilation[0])
        columns = self.last.shape[2]
        left = layer.margins[0]
        return self.rings[number][ring, :, :, turn % layer.kernel[0], left : left + columns]
