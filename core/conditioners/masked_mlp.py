"""Masked multilayer perceptron, MADE: the output for a variable depends only on the variables before it."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from arflows.core.bijections.base import full_precision
from arflows.core.bijections.elementwise import Elementwise
from arflows.core.conditioners.activations import Activation, activation_function
from arflows.core.conditioners.autoregressive import AutoregressiveConditioner, Stream, check_context

# Number of rows of a masked layer in one matrix product. All rows of a block take the inputs that its last row sees:
# smaller blocks skip more of the masked part of the matrix, larger ones are faster products. Names and shapes of saved
# weights depend on it.
_BLOCK_ROWS = 256

# Number of sites that a stream computes between two products with all earlier sites. Within a block each site adds
# small products, which include the zeros of the block's masked half; longer blocks have more of these and are entered
# less often.
_STREAM_BLOCK = 32

# The same for the compiled loop, whose small products are slower, and the number of examples that it computes at a time
# so that its data stay in the second-level cache.
_LOOP_BLOCK, _LOOP_BATCH = 16, 256


class MaskedLinear(nn.Module):
    """Linear layer in which each output depends on a prefix of the inputs.

    The units are sorted by the length of their prefix, so the unmasked part of the matrix is a staircase. It is cut
    into blocks of rows, each with weights only for the inputs of its last row. Large layers need about half of the
    arithmetic and half of the parameters of a dense layer with a mask.

    Args:
        seen: number of inputs that each output depends on, never decreasing, (out_features,).
        in_features: number of inputs.

    >>> layer = MaskedLinear(seen=[0, 1, 2], in_features=2)
    >>> layer.masked_weight().bool()
    tensor([[False, False],
            [ True, False],
            [ True,  True]])
    """

    def __init__(self, seen: Sequence[int], in_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, len(seen)
        count = max(1, min(len(seen), in_features) // _BLOCK_ROWS)
        edges = [len(seen) * i // count for i in range(count + 1)]
        self.blocks = nn.ModuleList(_RowBlock(seen[start:stop]) for start, stop in pairwise(edges))

    def masked_weight(self) -> Float[Tensor, "out in"]:
        """Return the weights as one matrix, with zeros where an output must not depend on an input."""
        rows = self._rows
        if len(rows) == 1 and rows[0].width == self.in_features:
            return rows[0].weight()
        return torch.cat([F.pad(part.weight(), (0, self.in_features - part.width)) for part in rows])

    def full_bias(self) -> Float[Tensor, " out"]:
        """Return the biases as one vector."""
        return torch.cat([rows.bias for rows in self._rows])

    @property
    def _rows(self) -> "list[_RowBlock]":
        return list(self.blocks)  # type: ignore[arg-type]

    def zero_(self) -> None:
        """Set all weights and biases to zero."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, "batch in"]) -> Float[Tensor, "batch out"]:
        """Apply the layer, block by block."""
        parts = [rows(x) for rows in self._rows]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


class _RowBlock(nn.Module):
    """Block of rows of a `MaskedLinear`: a dense matrix for inputs common to all rows, a masked one for the rest."""

    mask: Tensor

    def __init__(self, seen: Sequence[int]) -> None:
        super().__init__()
        # A narrower dense part does not pay for a product of its own.
        self.shared = seen[0] if seen[0] >= _BLOCK_ROWS else 0
        self.width = seen[-1]
        bounds = (
            torch.as_tensor(seen).clamp_min(1)[:, None].rsqrt()
        )  # as in nn.Linear, for the number of inputs of a row
        self.dense = nn.Parameter(bounds * (2 * torch.rand(len(seen), self.shared) - 1)) if self.shared else None
        self.steps = nn.Parameter(bounds * (2 * torch.rand(len(seen), self.width - self.shared) - 1))
        self.bias = nn.Parameter(bounds[:, 0] * (2 * torch.rand(len(seen)) - 1))
        mask = torch.arange(self.shared, self.width) < torch.as_tensor(seen)[:, None]
        self.register_buffer("mask", mask.to(self.steps.dtype), persistent=False)

    def weight(self) -> Float[Tensor, "rows width"]:
        steps = self.steps * self.mask
        return steps if self.dense is None else torch.cat([self.dense, steps], 1)

    def forward(self, x: Tensor) -> Tensor:
        rows = F.linear(x[:, self.shared : self.width], self.steps * self.mask, self.bias)
        return rows if self.dense is None else torch.addmm(rows, x[:, : self.shared], self.dense.T)


class MaskedMLP(AutoregressiveConditioner):
    """Masked autoencoder for distribution estimation: parameters of each variable from the variables before it.

    Germain, Gregor, Murray & Larochelle, "MADE", 2015 (arXiv:1502.03509), equations 12–13. A hidden unit of degree d
    depends on the first d variables, and the parameters of variable i (counted from 0) on the units of degree at most
    i. Degrees are evenly spaced from 1 to ``features`` − 1 (from 0 if there is a context, so that the parameters of the
    first variable are a nonlinear function of it) and *sorted*: a new variable completes a slice of each layer, which a
    stream computes once.

    Variables are in the order of generation; `Autoregressive` permutes them for other orders.

    Args:
        features: number D of variables.
        parameter_count: number P of parameters of a variable.
        hidden_features: widths of the hidden layers; with ``residual`` the width of a first layer and of each residual
            block (two layers) after it, all equal.
        context_features: size of the context, which is added to the first layer; 0 for none.
        residual: use pre-activation residual blocks, as in Durkan et al. 2019 (arXiv:1906.04032), appendix B.
        activation: nonlinearity between the layers.

    Raises:
        ValueError: if a size is below 1, the widths of residual blocks differ, or there is no such activation.

    >>> network = MaskedMLP(features=3, parameter_count=2, hidden_features=(16,))
    >>> network(torch.randn(5, 3)).shape
    torch.Size([5, 3, 2])
    """

    def __init__(
        self,
        features: int,
        parameter_count: int,
        hidden_features: Sequence[int] = (256, 256),
        context_features: int = 0,
        residual: bool = False,
        activation: Activation = "relu",
    ) -> None:
        if features < 1 or not hidden_features or min(hidden_features) < 1:
            raise ValueError(f"features={features} and hidden_features={hidden_features} must be positive")
        if residual and len(set(hidden_features)) > 1:
            raise ValueError(f"residual blocks need hidden_features of one width, got {tuple(hidden_features)}")
        super().__init__(parameter_count, context_features)
        self.features = features
        self.activation = activation
        self.activate = activation_function(activation)
        lowest = 0 if context_features or features == 1 else 1
        widths = [hidden_features[0], *(w for width in hidden_features[1:] for w in [width] * (2 if residual else 1))]
        degrees = [lowest + torch.arange(width) * (features - lowest) // width for width in widths]

        # How many units of each hidden layer have a degree below 0, 1, …, features.
        revealed = [torch.searchsorted(layer, torch.arange(features + 1)) for layer in degrees]
        seen = [degrees[0], *(before[layer + 1] for before, layer in zip(revealed, degrees[1:], strict=False))]
        seen.append(revealed[-1][1:].repeat_interleave(parameter_count))
        layers = [MaskedLinear(each.tolist(), size) for each, size in zip(seen, [features, *widths], strict=True)]
        self.revealed: list[list[int]] = [each.tolist() for each in revealed]
        layers[-1].zero_()
        self.layers = nn.ModuleList(layers)
        # The second layer of a residual block adds what entered the block: the output two layers before.
        self.skips = [residual and number > 0 and number % 2 == 0 for number in range(len(widths))] + [False]
        self.from_context = nn.Linear(context_features, widths[0], bias=False) if context_features else None

    @property
    def masked_layers(self) -> list[MaskedLinear]:
        """Layers from the variables to the parameters."""
        return list(self.layers)  # type: ignore[arg-type]

    def forward(
        self, x: Float[Tensor, "batch features"], context: Float[Tensor, "batch context"] | None = None
    ) -> Float[Tensor, "batch features parameters"]:
        """Compute the parameters of all variables in one pass."""
        if x.shape[1:] != (self.features,):
            raise ValueError(f"expected examples of {self.features} features, got shape {tuple(x.shape[1:])}")
        check_context(context, self.context_features)
        with full_precision(x):
            return self._computed(x, context)

    def _computed(self, x: Tensor, context: Tensor | None) -> Tensor:
        outputs: list[Tensor] = []
        for layer, skip in zip(self.layers, self.skips, strict=True):
            x = layer(x)
            if not outputs and self.from_context is not None:
                x = x + self.from_context(context)
            if skip:
                x = x + outputs[-2]
            outputs.append(x)
            if len(outputs) < len(self.layers):
                x = self._activated(x)
        return x.unflatten(1, (self.features, self.parameter_count))

    def _activated(self, x: Tensor) -> Tensor:
        if any(self.skips):  # the sum before the activation is needed again
            x = x.clone()
        return self.activate(x)

    def stream(self, like: Tensor, context: Tensor | None = None) -> "MaskedMLPStream":
        """Start a generation, one variable at a time."""
        check_context(context, self.context_features)
        return MaskedMLPStream(self, like.shape[0], context)


class MaskedMLPStream(Stream):
    """Incremental `MaskedMLP`: each site completes a slice of every layer, in total the arithmetic of one pass.

    The units' sums are buffers (units, batch) sorted by degree. They are completed in blocks of sites: entering a block
    adds the contributions of all earlier sites by one product for each layer, and each step adds those of the block's
    own units. A step is so little work that the overhead of calls counts, so slices are taken for a whole block.
    """

    def __init__(self, network: MaskedMLP, batch: int, context: Tensor | None) -> None:
        super().__init__()
        self.network = network
        self.activate = network.activate
        self.weights = [layer.masked_weight() for layer in network.masked_layers]
        self.sums = [layer.full_bias()[:, None].repeat(1, batch) for layer in network.masked_layers]
        if network.from_context is not None:
            with full_precision(self.sums[0]):
                self.sums[0] += network.from_context(context).T
        # Without residual blocks sums are activated in place.
        self.hidden = [torch.zeros_like(s) if any(network.skips) else s for s in self.sums[:-1]]
        self.values = self.sums[0].new_zeros(network.features, batch)
        self.rows = self.values.unbind(0)
        # For each remaining site of the block, last first, and each layer with units that it completes: their sums, the
        # weights and inputs of the missing terms, the skip connection, and the memory for activated sums.
        self.block: list[list[tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]]] = []
        # Start and end of a block, and for each layer the sums of the block's units over all earlier sites.
        self.past: tuple[int, int, list[Tensor]] | None = None

    def step(self, previous: Float[Tensor, " batch"] | None) -> Float[Tensor, "batch parameters"]:
        """Take the value of the previous site (None at the first) and return the parameters of the next one."""
        if previous is not None:
            self.rows[self.position].copy_(previous)
            self.position += 1
        if not self.block:
            self._enter_block(self.position, min(self.position + _STREAM_BLOCK, self.network.features))
        self.computed += 1
        completed = self.block.pop()
        parameters, weight, inputs, _, _ = completed.pop()
        for sums, hidden_weight, hidden_inputs, skipped, hidden in completed:
            sums.addmm_(hidden_weight, hidden_inputs)
            if skipped is not None:
                sums += skipped
            if hidden is not sums:
                hidden.copy_(sums)
            self.activate(hidden)
        return parameters.addmm_(weight, inputs).T

    def generate(self, elementwise: Elementwise, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map latent → data for all sites: on a CPU by a compiled loop, for the maps of `elementwise_loops`."""
        if z.device.type != "cpu" or z.dtype != self.values.dtype or z.dtype not in (torch.float32, torch.float64):
            return super().generate(elementwise, z)
        from arflows.core.bijections.elementwise_loops import settings_of  # a compiler is slow to import
        from arflows.core.conditioners import masked_mlp_loops

        if (known := settings_of(elementwise, self.values.numpy().dtype)) is None:
            return super().generate(elementwise, z)

        def arrays(tensors: list[Tensor]) -> tuple[np.ndarray, ...]:
            return tuple(tensor.detach().contiguous().numpy() for tensor in tensors)

        log_derivative = torch.empty_like(self.values)
        shared: tuple[Any, ...] = (
            *arrays([z.T, self.values, log_derivative]),
            *(arrays(tensors) for tensors in (self.weights, self.sums, self.hidden)),
            np.array(self.network.revealed),
            np.array(self.network.skips),
            masked_mlp_loops.ACTIVATION_CODES[self.network.activation],
            *known,
        )
        for start in range(0, self.network.features, _LOOP_BLOCK):
            stop = min(start + _LOOP_BLOCK, self.network.features)
            self._add_past(start, stop)
            for left in range(0, len(z), _LOOP_BATCH):
                masked_mlp_loops.generate_block(start, stop, left, min(left + _LOOP_BATCH, len(z)), *shared)
        self.position = self.computed = self.network.features
        return self.values.T, log_derivative.T

    def _add_past(self, start: int, stop: int) -> None:
        """Add the contributions of all earlier sites to the sums of a block of sites."""
        for number, (weight, sums) in enumerate(zip(self.weights, self.sums, strict=True)):
            own, past, _ = self._edges(number, start, stop)
            if start:
                sums[own].addmm_(weight[own, past], self._inputs(number)[past])

    def _enter_block(self, start: int, stop: int) -> None:
        sites = range(stop - start)
        self.block = [[] for _ in sites]
        self._add_past(start, stop)
        for number, (weight, sums) in enumerate(zip(self.weights, self.sums, strict=True)):
            own, _, block = self._edges(number, start, stop)
            inputs = self._inputs(number)
            sizes = [b - a for a, b in pairwise(self._revealed(number, site) for site in range(start, stop + 1))]
            own_sums, own_weights, own_inputs = sums[own].split(sizes), weight[own, block].split(sizes), inputs[block]
            hidden, skipped = own_sums, [None] * len(sizes)
            if any(self.network.skips) and number < len(self.hidden):
                hidden = self.hidden[number][own].split(sizes)
                if self.network.skips[number]:
                    skipped = self.sums[number - 2][own].split(sizes)
            for site in sites:
                if sizes[site]:
                    slices = own_sums[site], own_weights[site], own_inputs, skipped[site], hidden[site]
                    self.block[-1 - site].append(slices)

    def _revealed(self, number: int, site: int) -> int:
        """Return the number of complete units of a layer (−1 for the variables) when ``site`` comes next."""
        if number < 0:
            return site
        if number == len(self.hidden):
            return site * self.network.parameter_count
        return self.network.revealed[number][site]

    def _edges(self, number: int, start: int, stop: int) -> tuple[slice, slice, slice]:
        """Return slices for a block of sites: own units of a layer, earlier units and own units of the layer below."""
        past = self._revealed(number - 1, start)
        return (
            slice(self._revealed(number, start), self._revealed(number, stop)),
            slice(past),
            slice(past, self._revealed(number - 1, stop)),
        )

    def _inputs(self, number: int) -> Tensor:
        return self.values if number == 0 else self.hidden[number - 1]

    def sweep(self, guess: Float[Tensor, "batch sites"]) -> Float[Tensor, "batch sites parameters"]:
        """Return the parameters of the next sites for a guess of their values, without advancing the stream."""
        self.computed += guess.shape[1]
        sums, _ = self._block_sums(guess)
        return sums[-1].T.unflatten(1, (-1, self.network.parameter_count))

    def commit(self, values: Float[Tensor, "batch sites"]) -> None:
        """Take the values of the next sites and advance the stream."""
        self.computed += values.shape[1]
        sums, hidden = self._block_sums(values)
        start, stop = self.position, self.position + values.shape[1]
        self.values[start:stop] = values.T
        for number, (new_sums, new_hidden) in enumerate(zip(sums[:-1], hidden, strict=True)):
            own, _, _ = self._edges(number, start, stop)
            self.sums[number][own] = new_sums
            self.hidden[number][own] = new_hidden
        self.position = stop
        self.past = None

    def _block_sums(self, values: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        start, stop = self.position, self.position + values.shape[1]
        if self.past is None or self.past[:2] != (start, stop):
            past_sums = []
            for number, (weight, complete) in enumerate(zip(self.weights, self.sums, strict=True)):
                own, past, _ = self._edges(number, start, stop)
                past_sums.append(complete[own].clone().addmm_(weight[own, past], self._inputs(number)[past]))
            self.past = start, stop, past_sums
        inputs = values.T
        sums: list[Tensor] = []
        hidden: list[Tensor] = []
        for number, layer_sums in enumerate(self.past[2]):
            own, _, block = self._edges(number, start, stop)
            new = layer_sums.clone().addmm_(self.weights[number][own, block], inputs)
            if self.network.skips[number]:
                new += sums[number - 2]
            sums.append(new)
            if number < len(self.hidden):
                inputs = self.activate(new.clone())
                hidden.append(inputs)
        return sums, hidden
