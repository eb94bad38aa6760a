"""Causal transformer: parameters of each token from the tokens before it."""

from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from arflows.core.conditioners.attention import attention
from arflows.core.conditioners.autoregressive import AutoregressiveConditioner, Stream, check_context

if TYPE_CHECKING:
    from arflows.core.bijections.elementwise import Elementwise
    from arflows.core.conditioners.transformer_loops import TokenLoops

# Bytes that a step of a part of a batch may read, so that they stay in a core's cache.
_NEAR_BYTES = 12 << 20
# Multiplications of a matrix product up to which OpenBLAS reads matrices in place instead of copying them first.
_SMALL_PRODUCT = 1_000_000
# Smallest part of a batch that pays for reading the weights.
_FEWEST_EXAMPLES = 4


class CausalTransformer(AutoregressiveConditioner):
    """Pre-norm transformer whose parameters for a token depend only on the tokens before it.

    Vaswani et al., "Attention is all you need", 2017 (arXiv:1706.03762), with the choices of TarFlow (Zhai et al. 2024,
    arXiv:2412.06329): causal attention, learned position embeddings, the context added to every token. Sites are tokens
    of ``channels`` values in the order of generation. The input at position i is the token before it; position 0 has
    none, so its position embedding is the start token. Under autocast the network runs in half precision.

    Linear layers next to a normalisation or a position embedding have no biases.

    Args:
        sites: number of tokens.
        channels: number of values of a token.
        parameter_count: number P of parameters of a value.
        width: size of the hidden features.
        layers: number of blocks of attention and perceptron.
        heads: number of attention heads, a divisor of ``width``.
        context_features: size of the context; 0 for none.

    Raises:
        ValueError: if a size is below 1, or ``width`` is not a multiple of ``heads``.

    >>> network = CausalTransformer(sites=4, channels=3, parameter_count=2, width=8, layers=1, heads=2)
    >>> network(torch.randn(5, 4, 3)).shape
    torch.Size([5, 4, 3, 2])
    """

    def __init__(
        self,
        sites: int,
        channels: int,
        parameter_count: int,
        width: int = 128,
        layers: int = 2,
        heads: int = 4,
        context_features: int = 0,
    ) -> None:
        sizes = {"sites": sites, "channels": channels, "width": width, "layers": layers, "heads": heads}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}={size} must be at least 1")
        if width % heads:
            raise ValueError(f"width={width} must be a multiple of heads={heads}")
        super().__init__(parameter_count, context_features)
        self.sites = sites
        self.channels = channels
        self.heads = heads
        self.input_proj = nn.Linear(channels, width, bias=False)
        self.positions = nn.Parameter(0.02 * torch.randn(sites, width))
        self.from_context = nn.Linear(context_features, width, bias=False) if context_features else None
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.output_proj = nn.Linear(width, channels * parameter_count)
        nn.init.zeros_(self.output_proj.weight)
        nn.init.zeros_(self.output_proj.bias)

    def forward(
        self, x: Float[Tensor, "batch sites channels"], context: Float[Tensor, "batch context"] | None = None
    ) -> Float[Tensor, "batch sites channels parameters"]:
        """Compute the parameters of all tokens in one pass.

        Raises:
            ValueError: if the number or size of tokens or the size of the context does not fit the network.
        """
        self._check(x)
        shift = self._context_shift(context)
        return self._parameters_after(F.pad(x[:, :-1], (0, 0, 1, 0)), shift)

    def stream(
        self, like: Float[Tensor, "batch sites channels"], context: Float[Tensor, "batch context"] | None = None
    ) -> Stream:
        """Start a generation, one token or block of tokens at a time."""
        self._check(like)
        if torch.is_autocast_enabled(like.device.type):
            return super().stream(like, context)  # in half precision only whole passes round equally
        return TransformerStream(self, like.shape[0], self._context_shift(context))

    def examples_at_once(self, like: Float[Tensor, "batch sites channels"]) -> int:
        """Return `examples_near`, or the whole batch if these are too few for a matrix product."""
        examples = self.examples_near(like.element_size())
        apart = examples >= _FEWEST_EXAMPLES and not torch.is_autocast_enabled(like.device.type)
        return examples if apart else super().examples_at_once(like)

    def examples_near(self, bytes_each: int) -> int:
        """Return the number of examples whose keys and values fit into a core's cache with the weights; may be 0.

        Args:
            bytes_each: size of a number.
        """
        width = self.positions.shape[1]
        weights = sum(parameter.numel() for parameter in self.parameters())
        room = _NEAR_BYTES // bytes_each - weights
        return max(0, min(room // (2 * len(self.blocks) * self.sites * width), _SMALL_PRODUCT // (4 * width**2)))

    def _check(self, x: Tensor) -> None:
        if x.shape[1:] != (self.sites, self.channels):
            raise ValueError(
                f"expected examples of {self.sites} sites with {self.channels} channels, got shape {tuple(x.shape[1:])}"
            )

    def _context_shift(self, context: Tensor | None) -> Float[Tensor, "batch 1 width"] | None:
        check_context(context, self.context_features)
        return None if self.from_context is None else self.from_context(context)[:, None]

    def _parameters_after(
        self,
        previous: Float[Tensor, "batch tokens channels"],
        shift: Tensor | None,
        start: int = 0,
        cache: Float[Tensor, "2 layers batch heads sites head"] | None = None,
    ) -> Float[Tensor, "batch tokens channels parameters"]:
        """Return the parameters of the tokens from ``start`` on, given the token before each.

        Args:
            previous: the token before each.
            shift: the projected context, (batch, 1, width); None for no context.
            start: position of the first token.
            cache: keys and values; reads those of earlier tokens and writes those of these tokens.
        """
        stop = start + previous.shape[1]
        hidden = self.input_proj(previous) + self.positions[start:stop]
        if shift is not None:
            hidden = hidden + shift
        # Tokens attend to all earlier ones, and causally to each other.
        mask = None
        if start and stop > start + 1:
            mask = torch.ones(stop - start, stop, dtype=torch.bool, device=previous.device).tril(start)
        for number, block in enumerate(self.blocks):
            # The cost of attention grows with the cache it reads, so it gets only the part in use.
            hidden = block(hidden, mask, None if cache is None else cache[:, number, :, :, :stop])
        return self.output_proj(self.norm(hidden)).unflatten(-1, (self.channels, self.parameter_count))


class _Block(nn.Module):
    """Transformer block: attention, then a perceptron of four times the width, both with residual connections."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)
        self.norm_perceptron = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width, bias=False)
        self.fc2 = nn.Linear(4 * width, width, bias=False)

    def forward(
        self,
        hidden: Float[Tensor, "batch tokens width"],
        mask: Tensor | None = None,
        cached: Float[Tensor, "2 batch heads seen head"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """Apply the block; with a cache, write the keys and values of the tokens to its end."""
        tokens = hidden.shape[1]
        joint = self.query_key_value(self.norm_attention(hidden)).unflatten(-1, (3, self.heads, -1))
        query, key, value = joint.permute(2, 0, 3, 1, 4)
        if cached is not None:
            cached[:, :, :, -tokens:] = joint[:, :, 1:].permute(2, 0, 3, 1, 4)
            key, value = cached
        causal = mask is None and tokens > 1
        seen = attention(query, key, value, mask, causal)
        hidden = hidden + self.out_proj(seen.transpose(1, 2).flatten(2))
        return hidden + self.fc2(F.gelu(self.fc1(self.norm_perceptron(hidden))))

    def matrices(self) -> tuple[Tensor, ...]:
        """Return the weights of a step in the order of use; matrices multiply from the right, norms have biases."""
        attention, perceptron = self.norm_attention, self.norm_perceptron
        return (
            attention.weight,
            attention.bias,
            self.query_key_value.weight.t(),
            self.out_proj.weight.t(),
            perceptron.weight,
            perceptron.bias,
            self.fc1.weight.t(),
            self.fc2.weight.t(),
        )


class TransformerStream(Stream):
    """Incremental transformer with a cache of the keys and values of earlier tokens.

    The cache is allocated at full size, so a step writes the entries of its token and copies nothing. All shapes are
    known in advance and nothing waits for the device, so the loop can be captured as a CUDA graph.
    """

    def __init__(self, transformer: CausalTransformer, batch: int, shift: Tensor | None) -> None:
        super().__init__()
        self.transformer = transformer
        self.shift = shift
        sites, width = transformer.positions.shape
        heads = transformer.heads
        self.cache = _on_large_pages(
            transformer.positions, (2, len(transformer.blocks), batch, heads, sites, width // heads)
        )
        blocks: list[_Block] = list(transformer.blocks)  # type: ignore[arg-type]
        self.layers = [(*block.matrices(), *cache) for block, cache in zip(blocks, self.cache.unbind(1), strict=True)]
        self.last = transformer.positions.new_zeros(batch, 1, transformer.channels)
        self.swept: Tensor | None = None
        self.loops: TokenLoops | None = None

    def step(self, previous: Float[Tensor, "batch channels"] | None) -> Float[Tensor, "batch channels parameters"]:
        """Take the value of the previous token (None at the first) and return the parameters of the next one.

        Raises:
            ValueError: after the last token.
        """
        if previous is not None:
            self.last = previous[:, None]
            self.position += 1
        self._count(1)
        network = self.transformer
        if previous is None:
            self.loops = self._compiled_loops() if self._fits_loops() else None
        elif torch.compiler.is_compiling():
            self._leave_loops()
        if self.loops is not None:
            parameters = self.loops.step(self.last[:, 0], self.position)
        else:
            parameters = self._through_network()
        return parameters.view(len(self.last), network.channels, network.parameter_count)

    def generate(self, elementwise: "Elementwise", z: Tensor) -> tuple[Tensor, Tensor]:
        """Map latent → data for all tokens: on a CPU by a compiled loop, for the maps of `elementwise_loops`."""
        if z.dtype != self.cache.dtype or not self._fits_loops():
            return super().generate(elementwise, z)
        from arflows.core.bijections.elementwise_loops import settings_of  # a compiler is slow to import

        if (known := settings_of(elementwise, self.cache.numpy().dtype)) is None:
            return super().generate(elementwise, z)
        self._count(self.transformer.sites)
        self.position = self.transformer.sites
        return self._compiled_loops().generate(z, *known)

    def _fits_loops(self) -> bool:
        """True on a CPU if products are small and nothing is traced; PyTorch's threads share large products."""
        on_cpu = self.cache.device.type == "cpu" and self.cache.dtype in (torch.float32, torch.float64)
        if not on_cpu or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        return 0 < self.cache.shape[2] <= self.transformer.examples_near(self.cache.element_size())

    def _compiled_loops(self) -> "TokenLoops":
        from arflows.core.conditioners.transformer_loops import LANES, TokenLoops  # a compiler is slow to import

        network = self.transformer
        _, layers, batch, heads, sites, head = self.cache.shape
        padded = -(-sites // LANES) * LANES
        shift = self.shift[:, 0] if self.shift is not None else network.positions.new_zeros(1, heads * head)
        blocks = [layer[:8] for layer in self.layers]
        outer, outer_bias, project, out_proj, inner, inner_bias, fc1, fc2 = zip(*blocks, strict=True)
        weights = (
            network.input_proj.weight.t(),
            network.positions,
            shift.expand(batch, -1),
            [torch.stack(each) for each in zip(outer, outer_bias, inner, inner_bias, strict=True)],
            project,
            out_proj,
            fc1,
            fc2,
            torch.stack([network.norm.weight, network.norm.bias]),
            network.output_proj.weight.t(),
            network.output_proj.bias,
        )
        keys = _on_large_pages(self.cache, (layers, batch, heads, head, padded))
        return TokenLoops(weights, keys, self.cache[1])

    def _leave_loops(self) -> None:
        """Continue without compiled loops, with the same cache."""
        if self.loops is not None:
            self.loops.restore(self.cache[0, ..., : self.position, :])
            self.loops = None

    def _through_network(self) -> Float[Tensor, "batch parameters_of_a_token"]:
        # The computation of `_parameters_after` for one token. It is so little work that the overhead of calls counts:
        # hence matrices instead of modules and sequences, and fused sums and products.
        network = self.transformer
        # A slice of length one: compilers treat its bounds as variables, but an index as a constant.
        here, seen = slice(self.position, self.position + 1), self.position + 1
        hidden = torch.addmm(network.positions[here], self.last[:, 0], network.input_proj.weight.t())
        if self.shift is not None:
            hidden += self.shift[:, 0]
        shape = hidden.shape
        for scale, bias, project, out_proj, scale_inner, bias_inner, fc1, fc2, keys, values in self.layers:
            joint = torch.mm(F.layer_norm(hidden, shape[1:], scale, bias), project)
            query, keys[:, :, here], values[:, :, here] = joint.view(
                hidden.shape[0], 3, network.heads, 1, shape[1] // network.heads
            ).unbind(1)
            looked_up = F.scaled_dot_product_attention(query, keys[:, :, :seen], values[:, :, :seen])
            hidden.addmm_(looked_up.view(shape), out_proj)
            inner = torch.mm(F.layer_norm(hidden, shape[1:], scale_inner, bias_inner), fc1)
            hidden.addmm_(F.gelu(inner), fc2)
        return network.output_proj(network.norm(hidden))

    def sweep(self, guess: Float[Tensor, "batch tokens channels"]) -> Float[Tensor, "batch tokens channels parameters"]:
        """Return the parameters of the next tokens for a guess of their values, without advancing the stream.

        Raises:
            ValueError: beyond the last token.
        """
        self._leave_loops()
        self.swept = guess
        self._count(guess.shape[1])
        previous = torch.cat([self.last, guess[:, :-1]], 1)
        return self.transformer._parameters_after(previous, self.shift, self.position, self.cache)

    def commit(self, values: Float[Tensor, "batch tokens channels"]) -> None:
        """Take the values of the next tokens and advance the stream."""
        # The cache of the last sweep is reused if the values are those it was given, which is the rule for a fixed
        # point. The last value has not been an input yet.
        if self.swept is None or not torch.equal(self.swept[:, :-1], values[:, :-1]):
            self.sweep(values)
        self.swept = None
        self.last = values[:, -1:]
        self.position += values.shape[1]

    def _count(self, tokens: int) -> None:
        declared = self.transformer.sites
        if self.position + tokens > declared:
            raise ValueError(f"the generation is longer than declared: token {self.position + tokens} of {declared}")
        self.computed += tokens


def _on_large_pages(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Allocate a tensor like ``like`` without writing it, on CPUs by NumPy, which requests large pages.

    Attention reads short stretches all over a cache, which would need a page lookup each.
    """
    if like.device.type != "cpu" or not prod(shape):
        return like.new_empty(shape)
    return torch.from_numpy(np.empty(prod(shape) * like.element_size(), np.uint8)).view(like.dtype).view(shape)
