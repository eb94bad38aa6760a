"""Graph transformer: logits of the next decision for every beginning of a molecule, in one pass.

A causal transformer reads the atoms in the order of generation. It sees the graph through biases of its attention, as
Graphormer does (Ying et al. 2021, arXiv:2106.05234), but through the graph of that step: an atom attends to an earlier
one with a bias for the bond or the distance between them, and for the valence that the earlier one has used, both after
the attending atom was bound. Bonds are chosen by pointers to the earlier atoms (Vinyals et al.
2015, arXiv:1506.03134), which see what has changed around these atoms since they were read.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from arflows.molecules.decisions import FAR, NEARNESS, Decisions

MOST_USED = 7
"""The highest used valence that has an embedding of its own."""
RELATIONS = FAR + 4
"""Number of relations of an atom to an earlier one: itself, three bonds, distances 2 … FAR, and the start."""
START = RELATIONS - 1


class GraphTransformer(nn.Module):
    """Logits of every decision of molecules, each computed from the decisions before it.

    Args:
        types: Number of atom types.
        max_atoms: The most atoms of a molecule.
        width: Size of the hidden features.
        layers: Blocks of attention and perceptron.
        heads: Heads of the attention, which share ``width``.
        pointer: Size of the vectors by which bonds point to atoms.
        context_features: Size of what molecules are conditioned on; 0 for nothing.

    Raises:
        ValueError: If ``width`` is not a multiple of ``heads``.
    """

    def __init__(
        self,
        types: int,
        max_atoms: int,
        width: int = 128,
        layers: int = 5,
        heads: int = 8,
        pointer: int = 32,
        context_features: int = 0,
    ) -> None:
        if width % heads:
            raise ValueError(f"width={width} must be a multiple of heads={heads}")
        super().__init__()
        self.types = types
        self.heads = heads
        self.pointer = pointer
        # Embeddings of the tokens: type, position, and for each bond its order, the partner's type and its nearness.
        self.type_embedding = _embedding(types + 1, width)
        self.position_embedding = _embedding(max_atoms + 1, width)
        self.order_embedding = _embedding(4, width)
        self.partner_embedding = _embedding(types + 1, width)
        self.nearness_embedding = _embedding(NEARNESS, width)
        self.from_context = nn.Linear(context_features, width) if context_features else None
        self.attention_bias = nn.Parameter(torch.zeros(RELATIONS * (MOST_USED + 1), layers * heads))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.to_type = nn.Linear(width, types + 1)
        # Embeddings of the rows: type of the atom that is being bound, and the bonds chosen for it.
        self.bound_embedding = _embedding(types + 1, width)
        self.chosen = nn.Linear(width, width, bias=False)
        self.norm_row = nn.LayerNorm(width)
        self.row_hidden = nn.Linear(width, 2 * width)
        self.key = nn.Linear(width, pointer)
        self.states = types * (MOST_USED + 1)
        self.row_output_proj = nn.Linear(2 * width, 1 + 3 * (pointer + self.states + NEARNESS))
        for head in (self.to_type, self.row_output_proj):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(
        self, given: Decisions, context: Float[Tensor, "batch context"] | None = None
    ) -> tuple[Float[Tensor, "batch types categories"], Float[Tensor, "batch rows choices"]]:
        """Computes the logits of all decisions: of the types, atoms + 1 of them, and of the rows."""
        every = torch.arange(len(given.types), device=given.types.device)[:, None]
        near = given.nearness.gather(2, given.row_partner[..., None])[..., 0]
        bonds = self.bonds(given.row_order, given.types.gather(1, given.row_partner), near)
        bonds = bonds * (given.row_order > 0)[..., None]
        owners = F.one_hot(given.row_atom, given.types.shape[1]).to(bonds.dtype).mT
        tokens = self.tokens(given.types, owners @ bonds)
        hidden = torch.cat([self.start(len(tokens), context), tokens + self.shift(context)], 1)
        biases = self.biases(given)
        for block, bias in zip(self.blocks, biases, strict=True):
            hidden = block(hidden, bias)
        hidden = self.norm(hidden)
        chosen = self.chosen(hidden[:, 1:])[every, given.row_partner] * (given.row_order > 0)[..., None] + bonds
        so_far = given.row_before.to(chosen.dtype) @ chosen
        types = given.types.gather(1, given.row_atom)
        used = given.used[every, (given.row_atom - 1).clamp_min(0)]
        rows = self.rows(
            hidden[every, given.row_atom], types, so_far, self.key(hidden[:, 1:]), given.types, used, given.nearness
        )
        return self.to_type(hidden), rows

    def start(self, batch: int, context: Tensor | None) -> Float[Tensor, "batch 1 width"]:
        """The token before all atoms."""
        return (self.position_embedding.weight[0] + self.shift(context)).expand(batch, 1, -1)

    def shift(self, context: Tensor | None) -> Tensor | float:
        """Projection of the context that is added to every token."""
        return 0.0 if self.from_context is None else self.from_context(context)[:, None]

    def bonds(
        self, order: Int64[Tensor, "*rows"], partner: Int64[Tensor, "*rows"], nearness: UInt8[Tensor, "*rows"]
    ) -> Float[Tensor, "*rows width"]:
        """Embedding of a bond to an earlier atom.

        Args:
            order: Of the bond.
            partner: Type of the earlier atom.
            nearness: Of the earlier atom when it was chosen.
        """
        return self.order_embedding(order) + self.partner_embedding(partner) + self.nearness_embedding(nearness.long())

    def tokens(
        self, types: Int64[Tensor, "batch atoms"], bonds: Float[Tensor, "batch atoms width"], first: int = 0
    ) -> Float[Tensor, "batch atoms width"]:
        """Atoms, from number ``first`` on, as the transformer reads them; ``bonds`` sums those to earlier atoms.

        Args:
            types: Types of the atoms.
            bonds: Sums of the embeddings of each atom's bonds to earlier atoms.
            first: Index of the first atom.
        """
        positions = self.position_embedding.weight[first + 1 : first + 1 + types.shape[1]]
        return self.type_embedding(types) + bonds + positions

    def biases(self, given: Decisions) -> Float[Tensor, "layers batch heads tokens tokens"]:
        """Biases of the attention of all tokens to all: −∞ to later ones."""
        after_itself = given.distances.diagonal(0, 1, 2).permute(0, 2, 1)
        seen = F.pad(relation(after_itself, given.orders), (1, 0, 1, 0), value=START)
        used = F.pad(given.used.clamp_max(MOST_USED), (1, 0, 1, 0))
        tokens = seen.shape[1]
        future = torch.ones(tokens, tokens, dtype=torch.bool, device=seen.device).triu(1)
        forbidden = self.attention_bias.new_full((1, self.attention_bias.shape[1]), -torch.inf)
        index = (seen.int() * (MOST_USED + 1) + used).masked_fill(future, len(self.attention_bias))
        bias = F.embedding(index, torch.cat([self.attention_bias, forbidden]))
        return bias.unflatten(-1, (len(self.blocks), self.heads)).permute(3, 0, 4, 1, 2).contiguous()

    def rows(
        self,
        hidden: Float[Tensor, "batch rows width"],
        types: Int64[Tensor, "batch rows"],
        so_far: Float[Tensor, "batch rows width"],
        keys: Float[Tensor, "batch atoms pointer"],
        key_types: Int64[Tensor, "batch atoms"],
        used: UInt8[Tensor, "batch rows atoms"],
        nearness: UInt8[Tensor, "batch rows atoms"],
    ) -> Float[Tensor, "batch rows choices"]:
        """Logits of decisions on bonds.

        Args:
            hidden: The transformer's view before the atom that is being bound.
            types: Type of that atom.
            so_far: Sum over the bonds that were chosen for it.
            keys: Of the earlier atoms.
            key_types: Their types.
            used: Their used valences.
            nearness: Their nearness, see `Decisions`.
        """
        state = self.norm_row(hidden + self.bound_embedding(types) + so_far)
        outputs = self.row_output_proj(F.relu(self.row_hidden(state)))
        done, query, by_state, by_nearness = outputs.split([1, 3 * self.pointer, 3 * self.states, 3 * NEARNESS], -1)
        pointed = (query.unflatten(-1, (3, self.pointer)).flatten(1, 2) @ keys.mT).unflatten(1, (-1, 3))
        index = key_types.clamp_max(self.types - 1)[:, None] * (MOST_USED + 1) + used.clamp_max(MOST_USED)
        shape = pointed.shape
        states = by_state.unflatten(-1, (3, -1)).gather(3, index[:, :, None].expand(shape))
        near = by_nearness.unflatten(-1, (3, -1)).gather(3, nearness.long()[:, :, None].expand(shape))
        return torch.cat([done, (pointed + states + near).mT.flatten(2)], -1)


class _Block(nn.Module):
    """Attention with biases, then a perceptron of four times the width, each as a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        self.norm_perceptron = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(
        self,
        hidden: Float[Tensor, "batch tokens width"],
        bias: Float[Tensor, "batch heads tokens seen"],
        cache: Float[Tensor, "2 batch heads seen head"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """Lets tokens attend to each other; with a cache, whose last entries are theirs, to all in it."""
        joint = self.query_key_value(self.norm_attention(hidden)).unflatten(-1, (3, self.heads, -1))
        query, key, value = joint.permute(2, 0, 3, 1, 4)
        if cache is None:
            # The bias has a gradient, for which PyTorch has no fused attention.
            scores = (query * key.shape[-1] ** -0.5) @ key.mT + bias
            seen = scores.softmax(-1).to(value.dtype) @ value
        else:
            cache[0, :, :, -hidden.shape[1] :] = key
            cache[1, :, :, -hidden.shape[1] :] = value
            seen = F.scaled_dot_product_attention(query, cache[0], cache[1], attn_mask=bias)
        hidden = hidden + self.out_proj(seen.transpose(1, 2).flatten(2))
        return hidden + self.fc2(F.relu(self.fc1(self.norm_perceptron(hidden))))


def relation(distances: UInt8[Tensor, "*shape"], orders: UInt8[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Relations of atoms: 0 the same, 1 … 3 bound by that order, then by distances from 2 on."""
    return torch.where(orders > 0, orders, torch.where(distances > 0, distances + 2, distances))


def _embedding(count: int, width: int) -> nn.Embedding:
    embedding = nn.Embedding(count, width)
    nn.init.normal_(embedding.weight, std=0.1)
    return embedding
