"""The autoregressive flow whose decisions are categories."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from arflows.core.flow import evaluating
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.noise import Noise
from arflows.molecules.bijection import DecisionCDFs
from arflows.molecules.conditioner import GraphTransformer
from arflows.molecules.decisions import packed, unpack
from arflows.molecules.fragments import Fragment, fragment_of
from arflows.molecules.generation import Begun, FromLatents, Known, Source, grow, latent_shape
from arflows.molecules.graph import Graph
from arflows.molecules.graph_flow import Given, GraphFlow
from arflows.molecules.known_properties import KnownProperties
from arflows.molecules.marginal import OrderEstimate, order_marginal
from arflows.molecules.records import Generated, Molecule, Targets, targets_from
from arflows.molecules.representation import MoleculeSpec, decode
from arflows.molecules.stream import MoleculeStream
from arflows.molecules.validity import Masks

TOKENS = 1536
"""Atoms, padding included, of molecules of similar size that are computed at once: for a processor's cache."""


class MoleculeFlow(GraphFlow):
    """A flow over molecules, as sequences of decisions: atom types, bonds to earlier atoms, and to stop.

    Every decision is a category with a piecewise-linear CDF, whose logits a graph transformer computes from the
    decisions before. The likelihood is exact, of a molecule's kekulised graph with its atoms in the order of generation
    (`arflows.molecules.representation`), and the flow maps molecules to points of the unit cube and back. It follows
    GraphAF (Shi et al. 2020, arXiv:2001.09382) in growing graphs by an autoregressive flow, and GraphDF (Luo et al.
    2021, arXiv:2102.01189) in that decisions stay discrete.

    >>> from arflows.molecules.chemistry import graph_of
    >>> spec = MoleculeSpec(("C", "N", "O"), (4, 3, 2), max_atoms=9, max_back_bonds=2, look_back=8, order="dfs")
    >>> flow = MoleculeFlow(spec.as_dict(), width=16, layers=1, heads=2)
    >>> flow.log_prob(["CCO", "c1ccncc1"]).shape
    torch.Size([2])
    >>> all(molecule.valid_raw for molecule in flow.sample(4, fragment="*c1ccncc1"))
    True
    >>> flow.decode(flow.encode(["CCO"])) == [graph_of("CCO", "dfs")]
    True
    >>> exact, error = flow.order_marginal(["CCO"])
    >>> bool(exact > flow.log_prob(["CCO"])), error.item()
    (True, 0.0)

    Args:
        spec: Settings of the data, `MoleculeSpec.as_dict`; training takes them from the store.
        width: Size of the transformer's hidden features.
        layers: Its blocks.
        heads: Heads of its attention.
        properties: Names of the properties to condition on, as the store has them; none by default.

    Raises:
        UserError: For settings that do not fit together, or missing ones.
    """

    def __init__(
        self,
        spec: dict[str, Any] | None = None,
        width: int = 128,
        layers: int = 5,
        heads: int = 8,
        properties: list[str] | None = None,
    ) -> None:
        if spec is None:
            raise UserError("a flow over molecules needs the settings of its data: give spec, or train on a store.")
        if min(width, layers, heads) < 1 or width % heads:
            raise UserError(f"width={width}, layers={layers}, heads={heads}: heads must divide width, all at least 1.")
        settings = MoleculeSpec.from_dict(spec)
        names = list(properties or [])
        conditioner = GraphTransformer(
            len(settings.atom_types), settings.max_atoms, width, layers, heads, context_features=len(names)
        )
        super().__init__(settings, names)
        self.bijection = DecisionCDFs(settings, conditioner)
        self.context_encoder = KnownProperties(len(names)) if names else None

    @property
    def likelihood(self) -> Literal["exact", "density", "bound"]:
        """Exact: the probability of a graph in its order."""
        return "exact"

    def log_prob(
        self, x: Given, context: Float[Tensor, "batch properties"] | None = None, orders: int | None = None
    ) -> Float[Tensor, " batch"]:
        """Exact log-probability of each molecule in its order, in nats.

        Args:
            x: Molecules; SMILES are taken in the canonical order.
            context: Their properties, for a conditional model.
            orders: Number of orders by which to estimate the log-probability over all orders; None for that of one
                order. See `order_marginal`.

        Raises:
            UserError: If a molecule cannot be represented, or properties are missing or superfluous.
        """
        if orders is not None:
            return self.order_marginal(x, orders, context=context)[0]
        x = self._packed(x)
        encoded = self._encoded(context, len(x))
        sizes, by_size = (x[:, : self.spec.max_atoms] > 0).sum(1).sort(descending=True, stable=True)
        parts, start, largest_first = [], 0, sizes.tolist()
        while start < len(x):
            rows = by_size[start : start + max(1, TOKENS // (largest_first[start] + 1))]
            parts.append(self.bijection.log_det(x[rows], None if encoded is None else encoded[rows]))
            start += len(rows)
        return torch.cat(parts)[by_size.argsort()] if parts else torch.zeros(0, dtype=self.dtype, device=self.device)

    @torch.no_grad()
    def order_marginal(
        self,
        x: Given,
        orders: int = 64,
        seed: int = 0,
        context: Float[Tensor, "batch properties"] | None = None,
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Log-probability of each molecule, summed over all orders in which the flow can generate it.

        The orders are found by a search that the model guides, see `arflows.molecules.marginal.order_marginal`. The sum
        is exact for molecules of up to 7 atoms and for those of at most ``orders`` orders; otherwise its exponential is
        an unbiased estimate of the probability.

        Of an aromatic molecule it is that of its canonical Kekulé form; its other forms are graphs of their own.

        Args:
            x: Molecules; the order of graphs, and the canonical order of others, is always among those summed.
            orders: Number of orders that are kept, at least 2.
            seed: Seed of the random ones among them.
            context: Their properties, for a conditional model.

        Returns:
            Estimates in nats, and their standard errors: 0 for exact sums, infinite where the orders found do not
            support one. See `order_estimates` for effective sample sizes and lower bounds.
        """
        found = self.order_estimates(x, orders, seed, context)
        estimates = torch.tensor([each.log_prob for each in found], dtype=torch.float64)
        errors = torch.tensor([each.standard_error for each in found], dtype=torch.float64)
        return estimates, errors

    @torch.no_grad()
    def order_estimates(
        self,
        x: Given,
        orders: int = 64,
        seed: int = 0,
        context: Float[Tensor, "batch properties"] | None = None,
    ) -> list[OrderEstimate]:
        """Estimates of `order_marginal` with their effective sample sizes and lower bounds; arguments are the same."""
        if orders < 2:
            raise UserError(f"orders is {orders}: give 2 or more.")
        graphs = self._graphs(x)
        encoded = self._encoded(context, len(graphs))
        found = []
        with evaluating(self):
            for row, graph in enumerate(graphs):
                own = None if encoded is None else encoded[row : row + 1]
                small = dataclasses.replace(self.spec, max_atoms=min(self.spec.max_atoms, len(graph.atoms) + 1))
                stream = MoleculeStream(self.bijection.conditioner, small, 1, own)
                found.append(order_marginal(graph, stream, orders, np.random.default_rng((seed, row))))
        return found

    def sample_with_log_prob(
        self,
        count: int,
        context: Float[Tensor, "count properties"] | Targets | None = None,
        **options: Any,
    ) -> tuple[list[Molecule], Float[Tensor, " count"]]:
        """Draws molecules, and gives the log-probability of each in the order in which it was generated, in nats.

        It is that of the model at temperature 1 and without masks; see `Molecule.log_prob`.

        Args:
            count: Number of molecules.
            context: Wanted properties, for a conditional model.
            **options: Options of `sample`.
        """
        drawn = self.sample(count, context, **options)
        return drawn, torch.tensor([each.log_prob for each in drawn], dtype=self.dtype, device=self.device)

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
        temperature: float = 1.0,
        seed: int = 0,
        first: int = 0,
        batch_size: int = 512,
    ) -> Iterator[Generated]:
        """Draws graphs of molecules a batch at a time, see `GraphFlow.generate`; temperature divides all logits."""
        if count < 1 or batch_size < 1 or not temperature > 0:
            raise UserError(
                f"count={count}, batch_size={batch_size} and temperature={temperature} must be positive numbers."
            )
        limited = min_atoms > 1 or max_atoms is not None or fragment is not None or fill_attachments
        if limited and not masks:
            raise UserError("limits of size and fragments are held by masks: leave masks on, or leave the limits out.")
        begun = None if fragment is None else self._likeliest_order(fragment_of(fragment, self.spec))
        if begun is not None:
            min_atoms = max(min_atoms, len(begun.graph.atoms) + 1)
        attachments = None if begun is None else begun.attachments
        if fill_attachments and attachments is None:
            raise UserError("fill_attachments needs a fragment with attachment points: mark them by *.")
        rules = Masks(self.spec, min_atoms, max_atoms, attachments, fill_attachments) if masks else None
        self._targets(context, seed, first, 1)  # raises before anything is drawn
        return self._batches(count, context, rules, begun, temperature, seed, first, batch_size)

    def _batches(
        self,
        count: int,
        context: Tensor | Targets | None,
        rules: Masks | None,
        begun: Fragment | None,
        temperature: float,
        seed: int,
        first: int,
        batch_size: int,
    ) -> Iterator[Generated]:
        for start in range(0, count, batch_size):
            size = min(batch_size, count - start)
            z = Noise(seed, "latents").uniform(first + start, size, latent_shape(self.spec)).to(self.device)
            rows = context[start : start + size] if isinstance(context, Tensor) else context
            targets = self._targets(rows, seed, first + start, size)
            source: Source = FromLatents(z)
            if begun is not None:
                known = Known(packed([begun.graph], self.spec).to(self.device), self.spec)
                source = Begun(known, len(begun.graph.atoms), source)
            with evaluating(self), torch.no_grad():
                stream = self.bijection.stream(size, self._encode_context(targets))
                grown = grow(stream, source, rules, temperature, 0 if begun is None else len(begun.graph.atoms))
            yield Generated(
                self._decoded(grown),
                grown.log_prob.tolist(),
                grown.log_prob_policy.tolist(),
                None if targets is None else targets.tolist(),
            )

    @torch.no_grad()
    def encode(
        self, x: Given, context: Float[Tensor, "batch properties"] | None = None, *, masks: bool = False
    ) -> Float64[Tensor, "batch atoms steps"]:
        """Molecules → latents in [0, 1]; decisions enter as the middles of their bins.

        Args:
            x: Molecules; SMILES are taken in the canonical order.
            context: Their properties, for a conditional model.
            masks: Encode by the flow with masks, whose bins are wider.
        """
        return self._latents_of(self._packed(x), context, masks).nan_to_num(0.5)

    @torch.no_grad()
    def decode(
        self,
        z: Float[Tensor, "batch atoms steps"],
        context: Float[Tensor, "batch properties"] | None = None,
        *,
        masks: bool = False,
    ) -> list[Graph]:
        """Latents → molecules, by the flow without or with masks.

        Args:
            z: Latents in [0, 1].
            context: Properties of the molecules, for a conditional model.
            masks: Decode by the flow with masks, whose bins are wider.
        """
        with evaluating(self):
            stream = self.bijection.stream(len(z), self._encoded(context, len(z)))
            return self._decoded(grow(stream, FromLatents(z), Masks(self.spec) if masks else None))

    @torch.no_grad()
    def round_trip_error(
        self, x: UInt8[Tensor, "batch packed"], context: Float[Tensor, "batch properties"] | None = None
    ) -> Float[Tensor, " batch"]:
        """1 for each molecule that its latents do not give back as it was, otherwise 0."""
        atoms, bonds = unpack(x.cpu(), self.spec.max_atoms)
        given = decode(atoms.numpy(), bonds.numpy(), self.spec)
        back = self.decode(self.encode(x, context), context)
        return torch.tensor([float(one != other) for one, other in zip(given, back, strict=True)])

    def interpolate(
        self, start: str | Graph, end: str | Graph, steps: int = 8, context: Float[Tensor, "1 properties"] | None = None
    ) -> list[Graph]:
        """Interpolate between two molecules, both included, by the flow with masks.

        Latents are interpolated linearly as quantiles of the normal distribution. A decision that only one end has
        keeps the latent of that end.

        Args:
            start: A molecule.
            end: Another.
            steps: Number of molecules, at least 2.
            context: Properties of all of them, for a conditional model.
        """
        if steps < 2:
            raise UserError(f"steps is {steps}: give 2 or more, for both ends.")
        one, other = (self._latents_of(self._packed([each]), context, masks=True) for each in (start, end))
        ends = torch.cat([one.where(~one.isnan(), other), other.where(~other.isnan(), one)]).nan_to_num(0.5)
        first, last = torch.special.ndtri(ends.clamp(1e-12, 1 - 1e-12))
        weights = torch.linspace(0, 1, steps, dtype=ends.dtype, device=ends.device)[:, None, None]
        way = torch.special.ndtr(first + weights * (last - first))
        way[0], way[-1] = ends  # exactly, where rounding could leave the bin
        return self.decode(way, None if context is None else context.expand(steps, -1), masks=True)

    # ------------------------------------------------------------------------------------------ between forms

    @torch.no_grad()
    def _latents_of(self, x: UInt8[Tensor, "batch packed"], context: Tensor | None, masks: bool) -> Tensor:
        """Latents of molecules, NaN where they have no decision."""
        known = Known(x, self.spec)
        with evaluating(self):
            stream = self.bijection.stream(len(x), self._encoded(context, len(x)))
            grown = grow(stream, known, Masks(self.spec) if masks else None)
        if not grown.log_prob_policy.isfinite().all():
            raise UserError("a molecule has an atom of a valence that the training data lack: leave out masks.")
        return known.latents

    # ------------------------------------------------------------------------------------------ conditions

    def _encoded(self, context: Tensor | None, count: int) -> Tensor | None:
        if context is None and self.properties:
            raise UserError(f"the model is conditional on {', '.join(self.properties)}: give them for each molecule.")
        if context is not None and context.shape != (count, len(self.properties)):
            known = ", ".join(self.properties) or "nothing"
            raise UserError(
                f"expected properties of shape ({count}, {len(self.properties)}), for the model is conditional on "
                f"{known}; got {tuple(context.shape)}."
            )
        return self._encode_context(context)

    def _encode_context(self, context: Tensor | None) -> Tensor | None:
        return context if self.context_encoder is None or context is None else self.context_encoder(context)

    def _targets(
        self, context: Tensor | Targets | None, seed: int, first: int, count: int
    ) -> Float[Tensor, "count properties"] | None:
        if isinstance(context, Tensor):
            if context.ndim != 2 or context.shape[1] != len(self.properties):
                self._encoded(context, len(context))
            return context.to(self.device)
        if not self.properties and not context:
            return None
        known = self.context_encoder or KnownProperties(0)
        chosen = targets_from(
            known.rows.cpu(), self.properties, context or {}, seed, first, count, extremes=known.extremes.cpu()
        )
        return chosen.to(self.device)

    @torch.no_grad()
    def _likeliest_order(self, fragment: Fragment) -> Fragment:
        """The fragment in the order that the model finds likeliest as a beginning."""
        wide = [each for each in fragment.orders(self.spec, 0) if self._possible(each.graph)]
        if not wide:
            raise UserError("the fragment has an atom that closes more rings than any the model has seen.")
        x = packed([each.graph for each in wide], self.spec).to(self.device)
        context = self._targets(None, 0, 0, 1)
        encoded = self._encode_context(context)
        with evaluating(self):
            scores = self.bijection.prefix_log_prob(x, None if encoded is None else encoded.expand(len(x), -1))
        return wide[int(scores.argmax())]

    def _possible(self, graph: Graph) -> bool:
        try:
            packed([graph], self.spec)
        except UserError:
            return False
        return True
