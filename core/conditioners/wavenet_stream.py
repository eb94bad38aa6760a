"""Incremental WaveNet: one row per step with folded weights, or Jacobi sweeps over blocks of rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from arflows.core.conditioners.autoregressive import Stream
from arflows.core.conditioners.wavenet_layer import Folded, Layer
from arflows.core.conditioners.wavenet_loops import PRECISIONS, gated
from arflows.core.conditioners.wavenet_pass import product_type

TILE_BYTES = 3 << 19
"""Bytes that a step works on at a time on a CPU, so that they stay in a core's second-level cache."""
GATED = 1 << 10
"""Smallest number of columns for a thread of the gates; fewer take less time than starting a thread."""


class Network(Protocol):
    """The part of `WaveNet` that its stream uses; its methods are described there."""

    channels: int

    @property
    def stack(self) -> list[Layer]:
        """The layers."""

    def folded(self, low: torch.dtype) -> Folded:
        """The weights in a precision."""

    def split_context(self, context: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """The features of each column, and the number of its samples that belong to the signal."""

    def added(self, folded: Folded, features: Tensor | None, position: int, like: Tensor) -> Tensor:
        """The terms that context and biases add to the gates.

        Args:
            folded: folded weights.
            features: features of each column or sample; None for none.
            position: number of the first row.
            like: samples, (batch, rows, columns); only the shape is used.
        """

    def belongs(self, inside: Tensor, rows: int, position: int = 0) -> Tensor:
        """The samples that belong to the signal.

        Args:
            inside: number of samples of each column that belong to the signal, (batch, columns).
            rows: number of rows.
            position: number of the first row.
        """

    def rows_given(
        self, before: Tensor, context: Tensor | None, position: int = 0, past: Sequence[Tensor | None] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The parameters of rows, and the inputs of each layer.

        Args:
            before: the row before each row, (batch, rows, columns).
            context: context as for `WaveNet.forward`.
            position: number of the first row.
            past: inputs of each layer for the earlier rows; None for a pass over all rows.
        """


class WaveNetStream(Stream):
    """Incremental WaveNet that stores, for each layer, the rows that its convolution still needs.

    A step computes one row with the folded weights of the parallel pass (`WaveNet.folded`). A layer whose convolution
    reaches p rows back stores p + 1 rows in a ring buffer, where the newest replaces the oldest, so shapes are static.

    Under autocast the products of a step are in the lower precision, and parameters are summed in that of the samples.

    Args:
        network: the WaveNet.
        like: a tensor of the shape, dtype and device of the samples, rows in the order of generation.
        context: context of the columns, see `WaveNet`.
        memory: for a network of causal width, the result of `WaveNet.memory`: the columns then continue those of the
            previous stream with this memory instead of following zeros.
    """

    def __init__(
        self,
        network: Network,
        like: Float[Tensor, "batch rows columns"],
        context: Tensor | None,
        memory: list[Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.like, self.context, self.memory = network, like, context, memory
        self.last = like.new_zeros(len(like), 1, like.shape[2])
        self.past: list[Tensor | None] = [None] * len(network.stack)
        self.swept: tuple[Tensor, list[Tensor]] | None = None
        self.rows: _RowSteps | None = None

    def step(self, previous: Float[Tensor, "batch columns"] | None) -> Float[Tensor, "batch columns 2"]:
        """Take the previous row (None at the first) and return the parameters of the next one."""
        if self.rows is None:
            self.rows = _RowSteps(self.network, self.like, self.context, self.memory)
        if previous is not None:
            self.position += 1
        self.computed += 1
        return self.rows.compute(self.position, previous)

    def sweep(self, guess: Float[Tensor, "batch rows columns"]) -> Float[Tensor, "batch rows columns 2"]:
        """Return the parameters of the next rows for a guess of their values, without advancing the stream."""
        before = torch.cat([self.last, guess[:, :-1]], 1)
        parameters, entered = self.network.rows_given(before, self.context, self.position, self.past)
        self.computed += guess.shape[1]
        self.swept = guess, entered
        return parameters

    def commit(self, values: Float[Tensor, "batch rows columns"]) -> None:
        """Take the values of the next rows and advance the stream."""
        # The layer inputs of the last sweep are reused if the values are those it was given, which is the rule for a
        # fixed point. The last row has not been an input yet.
        if self.swept is None or not torch.equal(self.swept[0][:, :-1], values[:, :-1]):
            self.sweep(values)
        assert self.swept is not None
        for number, (layer, entered) in enumerate(zip(self.network.stack, self.swept[1], strict=True)):
            past = self.past[number]
            joined = entered if past is None else torch.cat([past, entered], 1)
            self.past[number] = joined[:, max(joined.shape[1] - layer.past, 0) :]
        self.swept = None
        self.last = values[:, -1:]
        self.position += values.shape[1]


class _RowSteps:
    """State of the steps: folded weights, stored rows and work buffers.

    All tensors are (batch, columns, channels), so that the samples under a kernel, side by side, make one product.
    """

    def __init__(self, network: Network, like: Tensor, context: Tensor | None, memory: list[Tensor] | None) -> None:
        self.network, self.like, self.memory = network, like, memory
        batch, rows, columns = like.shape
        low = product_type(like)
        with torch.autocast(like.device.type, enabled=False):
            self.features, inside = network.split_context(context)
            self.folded = folded = network.folded(low)
        self.belongs = None if inside is None else network.belongs(inside, rows)[..., None]
        self.valid = like.new_ones(batch, columns, 1) if inside is None else (inside > 0).to(like.dtype)[..., None]
        self.kernels = [self._turned(kernel) for kernel in folded.kernels]
        self.residuals = [(weight[None], bias) for weight, bias in folded.residuals]
        self.skips = [weight[None] for weight in folded.skips]
        self.input_proj = folded.input_proj[None]
        # A context with rows is projected row by row, one without rows once.
        self.features_of_rows = self.features is not None and self.features.ndim == 4
        self.mask = None if inside is None else self.valid.to(low)
        # A layer with a kernel of k rows and dilation d stores k · d rows in d rings of k rows. The rows under a kernel
        # are one ring, side by side, and the position of the newest row in it determines the rotation of the kernel.
        # Rings are (batch, columns and margins, k · channels). The first layer has two channels: the sample, and a one
        # that distinguishes it from the zeros beyond a border.
        widths = [2] + [network.channels] * (len(network.stack) - 1)
        self.rings = [
            [
                like.new_zeros(batch, columns + sum(layer.margins), layer.kernel[0] * width, dtype=low)
                for _ in range(layer.dilation[0])
            ]
            for layer, width in zip(network.stack, widths, strict=True)
        ]
        # The view of each row, modulo k · d.
        self.row_views = [
            [ring[..., turn * width : (turn + 1) * width] for turn in range(layer.kernel[0]) for ring in rings]
            for layer, rings, width in zip(network.stack, self.rings, widths, strict=True)
        ]
        # In low precision, joined inputs of a kernel round the sum of its products once. In high precision it does
        # not pay.
        self.joins = low in (torch.bfloat16, torch.float16)
        self.in_loops = like.device.type == "cpu" and low in PRECISIONS and not torch.compiler.is_compiling()
        self._lay_out(like, low)

    def _turned(self, kernel: Tensor) -> list[Tensor]:
        """Return the kernel for each rotation of the ring, (columns, rows · channels, gates)."""
        turns = range(kernel.shape[2])
        return [kernel.roll(turn + 1, 2).permute(3, 2, 1, 0).flatten(1, 2).contiguous() for turn in turns]

    def _added(self, position: int) -> list[list[Tensor]]:
        """Return terms of context and biases in the gates, by layer and tile: (batch or 1, columns, 2 · channels)."""
        layers = self.network.added(self.folded, self.features, position, self.like)[:, :, 0]
        return [
            [total[b if len(total) > 1 else slice(None), c].contiguous() for b, c in self.tiles] for total in layers
        ]

    def _lay_out(self, like: Tensor, low: torch.dtype) -> None:
        """Cut batch and columns into tiles and make the views of the steps in advance, because that takes time."""
        network = self.network
        batch, _, columns = like.shape
        channels, (down, along) = network.channels, network.stack[0].kernel
        if like.device.type == "cpu":
            each = like.new_empty(0, dtype=low).element_size() * channels * (down * along + 5)
            size = max(64, TILE_BYTES // each)
            pieces = -(-columns // size)
            size = -(-columns // pieces)
            examples = max(1, TILE_BYTES // each // size)
        else:
            size, examples = columns, batch
        self.tiles = [
            (slice(b, min(b + examples, batch)), slice(c, min(c + size, columns)))
            for b, c in product(range(0, batch, examples), range(0, columns, size))
        ]

        rooms = {
            name: like.new_empty(min(examples, batch) * size * width, dtype=low)
            for name, width in (
                ("seen", channels * down * along),
                ("seen_first", 2 * down * along),
                ("gates", 2 * channels),
                ("passed", channels),
                ("mixed", channels),
                ("skipped", 2),
            )
        }

        def part(name: str, tile: tuple[slice, slice], width: int) -> Tensor:
            """Return the view of a buffer for a tile, (examples, columns, width).

            Args:
                name: name of the buffer in ``rooms``.
                tile: slices of the batch and of the columns.
                width: number of values of a column.
            """
            b, c = tile[0].stop - tile[0].start, tile[1].stop - tile[1].start
            return rooms[name][: b * c * width].view(b, c, width)

        self.work: list[dict[str, Any]] = []
        for tile in self.tiles:
            self.work.append(
                {
                    "first": part("seen_first", tile, 2 * down * along),
                    "seen": part("seen", tile, channels * down * along),
                    "gates": part("gates", tile, 2 * channels),
                    "passed": part("passed", tile, channels),
                    "mixed": part("mixed", tile, channels),
                    "skipped": part("skipped", tile, 2),
                }
            )
        # For each layer, ring and tile: the inputs of each column of the kernel; and the samples' own columns.
        self.windows = [
            [
                [
                    [ring[b, c.start + at * layer.dilation[1] : c.stop + at * layer.dilation[1]] for at in range(along)]
                    for b, c in self.tiles
                ]
                for ring in rings
            ]
            for layer, rings in zip(network.stack, self.rings, strict=True)
        ]
        self.own = [
            [
                [row_view[b, layer.margins[0] + c.start : layer.margins[0] + c.stop] for b, c in self.tiles]
                for row_view in row_views
            ]
            for layer, row_views in zip(network.stack, self.row_views, strict=True)
        ]
        self.added_tiles = self._added(0)
        self.mask_tiles = [None if self.mask is None else self.mask[tile] for tile in self.tiles]

    def compute(self, position: int, previous: Tensor | None) -> Float[Tensor, "batch columns 2"]:
        """Return the parameters of the row at ``position``, given the row before it."""
        valid = self.valid
        parameters = torch.empty(*valid.shape[:2], 2, dtype=valid.dtype, device=valid.device).copy_(self.folded.left)
        layers = self.network.stack
        if self.features_of_rows and position:
            self.added_tiles = self._added(position)
        entry, left = self.row_views[0][position % len(self.row_views[0])], layers[0].margins[0]
        own = entry[:, left : left + valid.shape[1]]
        own[..., 1:].copy_(valid)
        if previous is not None:
            torch.mul(previous[..., None], valid, out=own[..., :1]) if own.dtype == valid.dtype else own[..., :1].copy_(
                previous[..., None] * valid
            )
        self._remember(0, position)
        last = len(layers) - 1
        for number, layer in enumerate(layers):
            kept, down = len(self.row_views[number]), layer.dilation[0]
            kernel = self.kernels[number][position // down % layer.kernel[0]]
            weights = [kernel.view(1, -1, kernel.shape[2])] if self.joins else kernel.split(1)
            for tile, work in enumerate(self.work):
                gates, windows = work["gates"], self.windows[number][position % down][tile]
                if self.joins:
                    windows = [torch.cat(windows, -1, out=work["first" if number == 0 else "seen"])]
                added = self.added_tiles[number][tile]
                summed = None if self.in_loops else added
                for seen, weight in zip(windows, weights, strict=True):
                    each = weight.expand(len(seen), -1, -1)
                    summed = (
                        torch.bmm(seen, each, out=gates)
                        if summed is None
                        else torch.baddbmm(summed, seen, each, out=gates)
                    )
                passed = work["passed"]
                if self.in_loops:
                    gated(gates[:, None], added[:, None], passed[:, None], GATED)
                else:
                    signal, gate = gates.tanh_().chunk(2, -1)
                    torch.addcmul(signal, signal, gate, out=passed)  # 2 tanh(a) σ(2b)
                skipped = torch.bmm(passed, self.skips[number].expand(len(gates), -1, -1), out=work["skipped"])
                parameters[self.tiles[tile]].add_(skipped)
                if number < last:
                    weight, bias = self.residuals[number]
                    mixed = torch.baddbmm(bias, passed, weight.expand(len(gates), -1, -1), out=work["mixed"])
                    hidden = self.own[number][position % kept][tile]
                    following = self.own[number + 1][position % len(self.row_views[number + 1])][tile]
                    if number == 0:
                        mixed.baddbmm_(hidden, self.input_proj.expand(len(gates), -1, -1))
                        following.copy_(mixed)
                    else:
                        torch.add(hidden, mixed, out=following)
                    mask = self.mask_tiles[tile]
                    if mask is not None:
                        following.mul_(mask)
            if number < last:
                self._remember(number + 1, position)
        return parameters if self.belongs is None else parameters * self.belongs[:, position]

    def _remember(self, number: int, position: int) -> None:
        """Put the preceding columns of the memory to the left of a row of layer inputs, and store its last columns."""
        left = self.network.stack[number].margins[0]
        if self.memory is None or not left:
            return
        row_view, kept = self.row_views[number][position % len(self.row_views[number])], self.memory[number][position]
        row_view[:, :left] = kept
        kept.copy_(row_view[:, row_view.shape[1] - left :])
