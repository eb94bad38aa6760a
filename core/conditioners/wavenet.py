"""A WaveNet over the rows of folded signals: causal down the rows, dilated along them, with a stream row by row."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from arflows.core.conditioners.autoregressive import AutoregressiveConditioner
from arflows.core.conditioners.wavenet_stream import WaveNetStream

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
        before = F.pad(x[:, :-1], (0, 0, 1, 0))  # each row sees the rows before it
        return self.rows_given(before, context)[0]

    def rows_given(
        self,
        before: Float[Tensor, "batch rows columns"],
        context: Tensor | None,
        position: int = 0,
        past: Sequence[Tensor | None] | None = None,
    ) -> tuple[Float[Tensor, "batch rows columns 2"], list[Tensor]]:
        """Parameters of rows from ``position`` on, and what entered each layer.

        Args:
            before: the row before each; zeros before the first.
            context: as `forward` has it.
            position: number of the first row.
            past: what entered each layer of earlier rows, as many as it still sees, or None if there are none.
        """
        context, inside = self.split_context(context)
        columns = None if inside is None else (inside > 0).to(before.dtype)[:, None, None]
        hidden = self.enter(before[:, None]).contiguous(memory_format=torch.channels_last)
        skipped: Tensor | None = None
        entered = []
        added = self.context_of_layers(context, position, before.shape[1])
        for number, layer in enumerate(self.layers):
            if columns is not None:
                hidden = hidden * columns
            entered.append(hidden)
            hidden, skip = layer(hidden, added[number], None if past is None else past[number])
            skipped = skip if skipped is None else skipped + skip
        assert skipped is not None
        parameters = self.leave(skipped * len(self.layers) ** -0.5).movedim(1, -1)
        if inside is not None:
            belongs = self.belongs(inside, before.shape[1], position)
            parameters = parameters * belongs[..., None]
        return parameters, entered

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

    def context_of_layers(self, features: Tensor | None, position: int, rows: int) -> Sequence[Tensor | None]:
        """What the context adds in each layer to rows from ``position``, (batch, 2 · channels, rows or 1, columns)."""
        if self.from_context is None or features is None:
            return [None] * len(self.layers)
        features = self.features_of(features, position, rows)
        return self.from_context(features.flatten(2)).unflatten(2, features.shape[2:]).chunk(len(self.layers), 1)

    def features_of(self, features: Tensor, position: int, rows: int) -> Float[Tensor, "batch features rows columns"]:
        """The features of rows from ``position`` on; a single row where all share them."""
        if features.ndim == 3:
            return features[:, :, None]
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
    def stack(self) -> "list[_Layer]":
        """The layers, from the samples to the parameters."""
        return list(self.layers)  # type: ignore[arg-type]

    def memory(self, like: Float[Tensor, "batch rows columns"]) -> list[Tensor]:
        """What streams over successive columns hand on: for each layer and row, the last columns that entered."""
        kind = like.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else like.dtype
        batch, rows = like.shape[:2]
        widths = [2, *[self.channels] * (len(self.layers) - 1)]
        return [
            like.new_zeros(rows, batch, layer.margins[0], width, dtype=dtype)
            for layer, width in zip(self.stack, widths, strict=True)
        ]


class _Layer(nn.Module):
    """One gated convolution with its residual and skip paths; the last layer has no residual path to feed."""

    convolution: nn.Conv2d
    mix: nn.Conv2d

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

    def forward(self, hidden: Tensor, added: Tensor | None, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """What goes on to the next layer, and what skips to the end; the last layer only has the latter."""
        seen, missing = hidden, self.past
        if past is not None:
            seen, missing = torch.cat([past, hidden], 2), self.past - past.shape[2]
        gates = self.convolution(F.pad(seen, (*self.margins, missing, 0)))
        signal, gate = (gates if added is None else gates + added).chunk(2, 1)
        mixed = self.mix(torch.tanh(signal) * torch.sigmoid(gate))
        if mixed.shape[1] == hidden.shape[1]:
            return hidden, mixed
        residual, skip = mixed.chunk(2, 1)
        return (hidden + residual) * math.sqrt(0.5), skip
