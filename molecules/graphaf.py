"""GraphAF as it was published, to be reproduced and compared with.

Shi, Xu, Zhu, Zhang, Zhang & Tang, "GraphAF: a flow-based autoregressive model for molecular graph generation", 2020
(arXiv:2001.09382).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from arflows.core.bijections import LocationScale
from arflows.core.flow import evaluating
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.machine import widest_float
from arflows.core.runtime.noise import Noise
from arflows.molecules.decisions import unpack
from arflows.molecules.generation import Grown
from arflows.molecules.graph import Graph
from arflows.molecules.graph_flow import Given, GraphFlow
from arflows.molecules.records import Generated, Targets
from arflows.molecules.representation import MoleculeSpec
from arflows.molecules.validity import Masks

RELATIONS = 3
STEPS = 1024
"""Steps that are computed at once."""


class RelationalConvolutions(nn.Module):
    """Layers H ← Σ_r ReLU(D_r^{−½} (E_r + I) D_r^{−½} H W_r) over single, double and triple bonds (equation 9).

    Args:
        features: Number of features of an atom.
        width: Size of its embedding.
        layers: Number of layers.
    """

    def __init__(self, features: int, width: int, layers: int) -> None:
        super().__init__()
        sizes = [features] + [width] * layers
        self.weights = nn.ParameterList(
            nn.Parameter(torch.empty(RELATIONS, inside, outside).uniform_(-1, 1) * (6 / (inside + outside)) ** 0.5)
            for inside, outside in itertools.pairwise(sizes)
        )

    def forward(
        self, types: Float[Tensor, "graphs atoms features"], orders: UInt8[Tensor, "graphs atoms atoms"]
    ) -> Float[Tensor, "graphs atoms width"]:
        """Embed the atoms of graphs; absent ones have no features."""
        present = types.sum(-1) > 0
        itself = torch.diag_embed(present.to(types.dtype))
        relations = torch.arange(1, RELATIONS + 1, device=orders.device)[:, None, None]
        edges = (orders[:, None] == relations).to(types.dtype) + itself[:, None]
        scale = edges.sum(-1).clamp_min(1).rsqrt()
        edges = scale[..., None] * edges * scale[..., None, :]
        hidden = types
        for weight in self.weights:
            # One product for all relations and graphs.
            spread = (hidden @ weight.transpose(0, 1).flatten(1)).unflatten(-1, (RELATIONS, -1))
            hidden = (edges @ spread.transpose(1, 2)).relu().sum(1)
        return hidden


class Steps(NamedTuple):
    """Steps of generation; those of an atom of a molecule follow each other in their order.

    Attributes:
        molecule: Index of the molecule.
        atom: Whose type or bonds are decided.
        earlier: The atom to which a bond is decided; −1 where it is the type.
    """

    molecule: Int64[Tensor, " steps"]
    atom: Int64[Tensor, " steps"]
    earlier: Int64[Tensor, " steps"]


class GraphAF(GraphFlow):
    """An affine autoregressive flow over dequantised one-hot vectors of atom types and bonds.

    An atom's type is a one-hot vector plus noise, and so is the bond to each of the earlier atoms within the look-back,
    nearest last: none, single, double or triple. Each is normal, with mean and deviation from a relational graph
    convolution of the graph so far (equations 3-8). Sampling takes the largest entry.

    Properties of the publication: `log_prob` is a density of noisy vectors, neither the probability of
    a molecule nor a bound of it, since noise of [0, 0.9) leaves gaps in which a sample may fall. A molecule is a region
    of latent space and a sample carries no noise, so there is neither `encode` nor `sample_with_log_prob`. Generation
    ends when an atom gets no bond, which training never shows, so that the likelihood is of another model than the one
    that is sampled. Nothing is shared between the graphs so far, some 70 for a molecule.

    Differences: the types have charges, as `MoleculeSpec` has them. There is no batch normalisation, through
    which graphs of a batch would see each other.

    >>> from arflows.molecules.representation import MoleculeSpec
    >>> spec = MoleculeSpec(("C", "N", "O"), (4, 3, 2), max_atoms=9, max_back_bonds=2, look_back=6, order="bfs")
    >>> flow = GraphAF(spec.as_dict(), width=16)
    >>> flow.log_prob(["CCO", "c1ccncc1"]).shape, flow.likelihood
    (torch.Size([2]), 'density')

    Args:
        spec: Settings of the data, in breadth-first order; training takes them from the store.
        width: Size of embeddings.
        layers: Graph convolutions.
        look_back: Number of earlier atoms that may be bound to.
        noise: Upper end of the uniform noise.

    Raises:
        UserError: For settings that do not fit together, or missing ones.
    """

    def __init__(
        self,
        spec: dict[str, Any] | None = None,
        width: int = 128,
        layers: int = 3,
        look_back: int = 12,
        noise: float = 0.9,
    ) -> None:
        if spec is None:
            raise UserError("a flow over molecules needs the settings of its data: give spec, or train on a store.")
        settings = MoleculeSpec.from_dict(spec)
        if settings.look_back > look_back:
            raise UserError(
                f"bonds of the data reach back {settings.look_back} atoms: set look_back={settings.look_back}, or "
                "prepare the data with --order bfs."
            )
        kinds, bonds = len(settings.atom_types), RELATIONS + 1
        super().__init__(settings)
        self.look_back = look_back
        self.noise = noise
        self.map = LocationScale()
        self.convolutions = RelationalConvolutions(kinds, width, layers)
        self.type_head = _perceptron(width, width, 2 * kinds)
        self.bond_head = _perceptron(3 * width, width, 2 * bonds)

    @property
    def likelihood(self) -> Literal["exact", "density", "bound"]:
        """A density of noisy vectors."""
        return "density"

    def log_prob(self, x: Given) -> Float[Tensor, " batch"]:
        """Log-density of each molecule as a noisy vector in nats, with new noise at every call.

        Args:
            x: Molecules; SMILES are taken in the canonical order.
        """
        x = self._packed(x)
        atoms, graph = _dense(x, self.spec.max_atoms)
        steps = self._steps((atoms > 0).sum(1))
        total = torch.zeros(len(x), dtype=self.dtype, device=x.device)
        for chunk in torch.arange(len(steps.molecule), device=x.device).split(STEPS):
            part = Steps(*(values[chunk] for values in steps))
            total = total.index_add(0, part.molecule, self._step_log_prob(atoms, graph, part))
        return total

    def generate(
        self,
        count: int,
        context: Float[Tensor, "count properties"] | Targets | None = None,
        *,
        masks: bool = True,
        min_atoms: int = 1,
        max_atoms: int | None = None,
        fragment: str | None = None,
        fill_attachments: bool = False,
        temperature: float = 0.7,
        seed: int = 0,
        first: int = 0,
        batch_size: int = 512,
    ) -> Iterator[Generated]:
        """Draws graphs; see `GraphFlow.generate`. A sample has no noise, hence no log-density: it is NaN.

        Args:
            count: Number of molecules.
            context: None: there are no conditions.
            masks: Forbid bonds beyond a valence, where the publication draws again.
            min_atoms: 1: generation ends when it ends.
            max_atoms: The most atoms.
            fragment: None.
            fill_attachments: False.
            temperature: Multiplies the deviation of the latents; the publication has 0.7.
            seed: Seed of the latents.
            first: Number of the first molecule.
            batch_size: Molecules computed at a time.
        """
        if context is not None or fragment is not None or fill_attachments or min_atoms != 1:
            raise UserError("GraphAF as published has no conditions, fragments or least size: leave them out.")
        if count < 1 or batch_size < 1 or not temperature > 0:
            raise UserError(
                f"count={count}, batch_size={batch_size} and temperature={temperature} must be positive numbers."
            )
        limits = Masks(self.spec, 1, max_atoms)
        return self._drawn(count, limits, masks, temperature, seed, first, batch_size)

    def objection(self, graph: Graph) -> str | None:
        """Return the reason why the flow cannot score a graph in its order; None if it can."""
        return dataclasses.replace(self.spec.relaxed(), look_back=self.look_back).objection(graph)

    # ------------------------------------------------------------------------------------------ steps

    def _steps(self, sizes: Int64[Tensor, " batch"]) -> Steps:
        """All steps of molecules of these sizes, those of first atoms first: neighbours have graphs of like sizes."""
        size, back = int(sizes.max()), self.look_back
        atom = torch.arange(size, device=sizes.device)[:, None, None]
        earlier = torch.arange(-1, size - 1, device=sizes.device)
        inside = (earlier == -1) | ((earlier < atom) & (earlier >= atom - back))
        i, molecule, j = (inside & (atom < sizes[:, None])).nonzero(as_tuple=True)
        return Steps(molecule, i, j - 1)

    def _predict(
        self, atoms: UInt8[Tensor, "batch atoms"], orders: UInt8[Tensor, "batch atoms atoms"], steps: Steps
    ) -> tuple[Float[Tensor, "types kinds 2"], Float[Tensor, "bonds four 2"]]:
        """Means and log-deviations of the steps, types first and then bonds, each in their order."""
        typed = steps.earlier < 0
        hidden, graph = self._embedded(atoms, orders, steps)
        whole = hidden.sum(1)[graph]
        both = torch.cat([whole, hidden[graph, steps.atom], hidden[graph, steps.earlier.clamp_min(0)]], 1)[~typed]
        return self.type_head(whole[typed]).unflatten(1, (-1, 2)), self.bond_head(both).unflatten(1, (-1, 2))

    def _embedded(
        self, atoms: UInt8[Tensor, "batch atoms"], orders: UInt8[Tensor, "batch atoms atoms"], steps: Steps
    ) -> tuple[Float[Tensor, "graphs atoms width"], Int64[Tensor, " steps"]]:
        """Embeddings of atoms in the graphs so far, and the graph of each step.

        Most decisions on bonds are to have none, which leaves the graph as it is: two in three steps of a molecule see
        the graph of the step before, which is embedded once.
        """
        index = torch.arange(int(steps.atom.max()) + 1, device=atoms.device)
        row = orders[steps.molecule, steps.atom, : len(index)] * (index < steps.earlier[:, None])
        state = torch.where(steps.earlier < 0, -1, (row > 0).sum(1))
        seen = torch.stack([steps.molecule, steps.atom, state], 1)
        new = torch.ones_like(state, dtype=torch.bool)
        new[1:] = (seen[1:] != seen[:-1]).any(1)
        molecule, atom, earlier = (values[new] for values in steps)
        # Atoms before the one decided on, which is there too once its type is known; its bonds as far as decided.
        there = index < (atom + (earlier >= 0))[:, None]
        kinds = nn.functional.one_hot(atoms[molecule, : len(index)].long(), len(self.spec.atom_types) + 1)[..., 1:]
        kinds = kinds.to(self.dtype) * there[..., None]
        later, before = torch.maximum(index[:, None], index), torch.minimum(index[:, None], index)
        last = atom[:, None, None]
        known = (later < last) | ((later == last) & (before < earlier[:, None, None]))
        drawn = orders[molecule, : len(index), : len(index)] * known
        return self.convolutions(kinds, drawn), new.cumsum(0) - 1

    def _step_log_prob(self, atoms: Tensor, orders: Tensor, steps: Steps) -> Float[Tensor, " steps"]:
        typed = steps.earlier < 0
        parameters = self._predict(atoms, orders, steps)
        kinds = atoms[steps.molecule, steps.atom][typed].long() - 1
        bonds = orders[steps.molecule, steps.atom, steps.earlier.clamp_min(0)][~typed].long()
        found = torch.zeros(len(typed), dtype=self.dtype, device=typed.device)
        for where, values, of in zip((typed, ~typed), (kinds, bonds), parameters, strict=True):
            one_hot = nn.functional.one_hot(values, of.shape[1])
            y = one_hot + self.noise * torch.rand(one_hot.shape, dtype=self.dtype, device=one_hot.device)
            z, log_derivative = self.map(y, of.to(self.dtype))
            found[where] = (log_derivative - 0.5 * z.square() - 0.5 * torch.log(torch.tensor(2 * torch.pi))).sum(1)
        return found

    # ------------------------------------------------------------------------------------------ sampling

    @torch.no_grad()
    def _drawn(
        self, count: int, limits: Masks, masks: bool, temperature: float, seed: int, first: int, batch_size: int
    ) -> Iterator[Generated]:
        for start in range(0, count, batch_size):
            size = min(batch_size, count - start)
            shape = (self.spec.max_atoms, len(self.spec.atom_types) + self.look_back * (RELATIONS + 1))
            z = Noise(seed, "latents").normal(first + start, size, shape).to(self.device, self.dtype)
            with evaluating(self):
                grown = self._grow(temperature * z, limits, masks)
            unknown = [torch.nan] * size
            yield Generated(self._decoded(grown), unknown, unknown, None)

    def _grow(self, z: Float[Tensor, "batch atoms latents"], limits: Masks, masks: bool) -> Grown:
        batch, size, device = len(z), self.spec.max_atoms, z.device
        kinds = len(self.spec.atom_types)
        bond_latents = z[:, :, kinds:].unflatten(2, (self.look_back, RELATIONS + 1))  # the nearest atom comes first
        growing = _Growing(
            torch.full((batch, size), kinds, device=device),
            torch.zeros(batch, size, size, dtype=torch.uint8, device=device),
            torch.arange(batch, device=device),
        )
        atoms = torch.zeros(batch, size, dtype=torch.uint8, device=device)

        alive = growing.ids
        for atom in range(limits.max_atoms):
            if not len(alive):
                break
            growing.atom = atom
            parameters = self._predict(atoms[alive], growing.orders[alive], _same_step(alive, atom, -1))[0]
            y = self.map.inverse(z[alive, atom, :kinds], parameters)[0]
            if masks:
                possible = limits.types(growing, alive)[:, :-1]
                y = y.masked_fill(~possible, -torch.inf)
            chosen = y.argmax(1)
            if masks:
                going = possible.any(1)
                alive, chosen = alive[going], chosen[going]
            growing.types[alive, atom] = chosen
            atoms[alive, atom] = (chosen + 1).to(torch.uint8)
            for earlier in range(max(0, atom - self.look_back), atom):
                if not len(alive):
                    break
                step = _same_step(alive, atom, earlier)
                parameters = self._predict(atoms[alive], growing.orders[alive], step)[1]
                y = self.map.inverse(bond_latents[alive, atom, atom - 1 - earlier], parameters)[0]
                if masks:
                    fits = limits.bonds(growing, alive)[:, 1:].unflatten(1, (-1, 3))[:, earlier]
                    y[:, 1:] = y[:, 1:].masked_fill(~fits, -torch.inf)
                order = y.argmax(1).to(torch.uint8)
                growing.orders[alive, atom, earlier] = order
                growing.orders[alive, earlier, atom] = order
            if atom:
                bound = (growing.orders[alive, atom] > 0).any(1)
                atoms[alive[~bound], atom] = 0
                alive = alive[bound]
            growing.used = growing.orders.sum(2, dtype=torch.uint8)
        nan = torch.full((batch,), torch.nan, dtype=widest_float(device), device=device)
        return Grown(atoms, growing.orders, nan, nan)


@dataclass
class _Growing:
    """Growing molecules in the form of `arflows.molecules.validity.Growing`."""

    types: Int64[Tensor, "batch atoms"]
    orders: UInt8[Tensor, "batch atoms atoms"]
    ids: Int64[Tensor, " batch"]
    atom: int = 0

    def __post_init__(self) -> None:
        self.used = torch.zeros_like(self.types, dtype=torch.uint8)

    @property
    def bound(self) -> Bool[Tensor, " batch"]:
        """True if the atom has bonds."""
        return (self.orders[:, self.atom] > 0).any(1)


def _same_step(rows: Tensor, atom: int, earlier: int) -> Steps:
    count = torch.arange(len(rows), device=rows.device)
    return Steps(count, torch.full_like(count, atom), torch.full_like(count, earlier))


def _dense(
    packed: UInt8[Tensor, "batch packed"], max_atoms: int
) -> tuple[UInt8[Tensor, "batch atoms"], UInt8[Tensor, "batch atoms atoms"]]:
    """Atoms, and the orders of the bonds between them, as far as the largest molecule goes."""
    atoms, bonds = unpack(packed, max_atoms)
    atoms = atoms[:, : max(int((atoms > 0).sum(1).max()), 1)]
    orders = atoms.new_zeros(len(atoms), atoms.shape[1], atoms.shape[1])
    molecule, row = (bonds[..., 2] > 0).nonzero(as_tuple=True)
    i, j, order = bonds[molecule, row].long().unbind(1)
    orders[molecule, i, j] = order.to(torch.uint8)
    orders[molecule, j, i] = order.to(torch.uint8)
    return atoms, orders


def _perceptron(inside: int, width: int, outside: int) -> nn.Sequential:
    last = nn.Linear(width, outside)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(inside, width), nn.Tanh(), last)
