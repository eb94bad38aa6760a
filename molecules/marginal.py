"""Probability of a molecule, summed over all orders in which a flow can generate its atoms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from arflows.molecules.chemistry import automorphisms
from arflows.molecules.generation import bind_atom
from arflows.molecules.graph import Graph, abandoned
from arflows.molecules.stream import MoleculeStream

ENUMERATED_ATOMS = 7
"""The most atoms of a molecule whose orders, at most 5,040, are always summed exactly."""

ENOUGH = 10
"""The effective number of orders from which on a standard error is given."""

ABANDONING = 5.0
"""Nats by which the selection of beginnings lowers a weight for each incomplete atom that is left behind. A model that
is trained on depth-first or breadth-first orders rarely takes up such an atom later, which the probability of the
beginning does not show. The number changes the variance of the estimate, not its mean."""


class OrderEstimate(NamedTuple):
    """An estimate of a log-probability over all orders.

    Attributes:
        log_prob: The estimate in nats: the logarithm of an unbiased estimate of the probability.
        standard_error: Its standard error; 0 if all orders are summed, infinite if the effective number of orders does
            not support one.
        effective_sample_size: The effective number of orders by Kish, (Σ w)² / Σ w² of their weights: near 1 if a
            single order dominates.
        lower_bound: Logarithm of the sum over the orders that were found, which is exact: the log-probability over all
            orders is at least this.
    """

    log_prob: float
    standard_error: float
    effective_sample_size: float
    lower_bound: float


class _Prefix(NamedTuple):
    """The first atoms of an order.

    Attributes:
        atoms: Atoms of the graph, in the order of generation.
        stabilizer: Automorphisms of the graph that leave each of these atoms in place.
        draws: Indices of the random selections that the prefix has survived.
    """

    atoms: tuple[int, ...]
    stabilizer: Int[np.ndarray, "automorphisms atoms"]
    draws: tuple[int, ...]


@torch.no_grad()
def order_marginal(graph: Graph, stream: MoleculeStream, orders: int, rng: np.random.Generator) -> OrderEstimate:
    """Estimate the log-probability of a graph, summed over all orders of its atoms that can be generated.

    Every atom but the first has a bond to an earlier one. Orders that automorphisms of the graph carry into each other
    are the same sequence of decisions, and are counted once.

    The orders are grown atom by atom, weighted by the model's probability of their beginnings. Of more than ``orders``
    beginnings those of large weight are kept, and others drawn without bias, by the optimal resampling of Fearnhead and
    Clifford ("On-line inference for hidden Markov models via particle filters", 2003, section 3.3). The beginnings of
    the given order are always kept. The sum is exact if there are at most ``orders`` orders, and for molecules of up
    to `ENUMERATED_ATOMS` atoms.

    Args:
        graph: The molecule, in an order that the model has decisions for.
        stream: One molecule at its beginning; it is used up.
        orders: Number of orders that are kept, at least 2.
        rng: Source of randomness.
    """
    if len(graph.atoms) <= ENUMERATED_ATOMS:
        orders = max(orders, math.factorial(ENUMERATED_ATOMS))
    neighbours = graph.neighbours()
    types = [stream.spec.atom_types.index(kind) for kind in graph.atoms]
    bonds = {(a, b): order for i, j, order in graph.bonds for a, b in ((i, j), (j, i))}
    prefixes = [_Prefix((), automorphisms(graph), ())]
    log_p, log_w = np.zeros(1), np.zeros(1)  # probabilities, and probabilities divided by those of the selection
    chances: list[float] = []
    for _ in graph.atoms:
        parents, children = _children(prefixes, neighbours)
        stream.keep(torch.tensor(parents, device=stream.ids.device))
        gained = _extend(stream, [child.atoms for child in children], types, bonds)
        log_p, log_w = log_p[parents] + gained, log_w[parents] + gained
        left_behind = [abandoned(neighbours, child.atoms, stream.spec.order) for child in children]
        rows, log_inclusion = select(log_w - ABANDONING * np.array(left_behind), orders, rng, log_p > -np.inf)
        log_p, log_w = log_p[rows], log_w[rows] - log_inclusion
        prefixes = [children[row] for row in rows]
        for at in np.flatnonzero(log_inclusion < 0):
            prefixes[at] = prefixes[at]._replace(draws=(*prefixes[at].draws, len(chances)))
            chances.append(math.exp(log_inclusion[at]))
        stream.keep(torch.tensor(rows, device=stream.ids.device))
    stops = stream.type_logits(torch.arange(len(prefixes), device=stream.ids.device)).double().log_softmax(-1)[:, -1]
    log_p, log_w = log_p + stops.cpu().numpy(), log_w + stops.cpu().numpy()
    total = float(np.logaddexp.reduce(log_w))
    weights = np.exp(log_w - total)
    effective = float(1 / (weights**2).sum())
    error = 0.0
    if chances:
        # A selection with probability q adds (1 − q) (contribution of what was selected)² to the variance.
        contributions = np.zeros(len(chances))
        for prefix, weight in zip(prefixes, weights, strict=True):
            contributions[list(prefix.draws)] += weight
        error = math.sqrt(float((contributions**2 * (1 - np.array(chances))).sum()))
        if effective < ENOUGH or error > 0.5:
            error = math.inf
    return OrderEstimate(total, error, effective, float(np.logaddexp.reduce(log_p)))


def _children(prefixes: Sequence[_Prefix], neighbours: Sequence[Sequence[int]]) -> tuple[list[int], list[_Prefix]]:
    """Return all prefixes of one more atom, one of each equivalence class, and their parents' indices."""
    parents, children = [], []
    for row, prefix in enumerate(prefixes):
        seen = set(prefix.atoms)
        around = {n for atom in prefix.atoms for n in neighbours[atom]} - seen if seen else range(len(neighbours))
        for atom in sorted(around):
            if prefix.stabilizer[:, atom].min() == atom:  # the first of those that automorphisms exchange
                kept = prefix.stabilizer[prefix.stabilizer[:, atom] == atom]
                children.append(_Prefix((*prefix.atoms, atom), kept, prefix.draws))
                parents.append(row)
    return parents, children


def _extend(
    stream: MoleculeStream, prefixes: Sequence[tuple[int, ...]], types: Sequence[int], bonds: dict[tuple[int, int], int]
) -> Float[np.ndarray, " prefixes"]:
    """Add the last atom of each prefix to the stream, and return the log-probabilities of its decisions.

    Args:
        stream: The prefixes without their last atoms.
        prefixes: The prefixes.
        types: Index of the type of each atom of the graph.
        bonds: Order of the bond between two atoms of the graph.
    """
    device = stream.ids.device
    rows = torch.arange(len(prefixes), device=device)
    kinds = torch.tensor([types[each[-1]] for each in prefixes], device=device)
    decisions = [
        sorted(
            (3 * at + bonds[each[-1], old] for at, old in enumerate(each[:-1]) if (each[-1], old) in bonds),
            reverse=stream.latest_first,
        )
        for each in prefixes
    ]
    most = max(map(len, decisions))
    choices = torch.tensor([each + [0] * (most + 1 - len(each)) for each in decisions], device=device)
    total = _log_prob(stream.type_logits(rows), kinds)
    stream.choose_type(rows, kinds)

    def decide(logits: Tensor, ids: Tensor, step: int) -> Tensor:
        """Return the known decisions on a bond, and add their log-probabilities to ``total``.

        Args:
            logits: Of the choices, (rows, choices).
            ids: Indices of the prefixes, (rows,).
            step: Number of the decision on the atom, from 1 on.
        """
        choice = choices[ids, step - 1]
        total[ids] += _log_prob(logits, choice)
        return choice

    bind_atom(stream, rows, decide)
    return total.cpu().numpy()


def _log_prob(logits: Float[Tensor, "rows choices"], choice: Int64[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    return logits.double().log_softmax(-1).gather(1, choice[:, None])[:, 0]


def select(
    log_weights: Float[np.ndarray, " candidates"],
    count: int,
    rng: np.random.Generator,
    possible: np.ndarray,
) -> tuple[Int[np.ndarray, " selected"], Float[np.ndarray, " selected"]]:
    """Select candidates without bias: the first one, those of large weight, and others at random.

    Candidate i is selected with probability min(1, w_i / c), where c is such that ``count`` are selected; those below 1
    by systematic sampling (Fearnhead and Clifford 2003).

    Args:
        log_weights: Logarithms of the weights.
        count: Number of candidates to select; all are selected if there are no more.
        rng: Source of randomness.
        possible: Candidates to consider; the first of them is always selected.

    Returns:
        Indices in ascending order, and the logarithms of the probabilities with which they were selected.
    """
    rows = np.flatnonzero(possible)
    if len(rows) <= count:
        return rows, np.zeros(len(rows))
    weights = np.exp(log_weights[rows[1:]] - log_weights[rows[1:]].max())
    size = count - 1
    largest = np.argsort(-weights, kind="stable")
    tails = weights[largest][::-1].cumsum()[::-1]
    # c is the mean weight of those at random, none of which exceeds it.
    sure = int(np.argmax(weights[largest[:size]] * (size - np.arange(size)) <= tails[:size]))
    at_random = np.sort(largest[sure:])
    log_inclusion = np.zeros(len(weights))
    inclusion = weights[at_random] * ((size - sure) / tails[sure])
    log_inclusion[at_random] = np.log(np.minimum(inclusion, 1))
    edges = np.concatenate([[0], inclusion.cumsum()])
    points = (rng.random() + np.arange(size - sure)) * (edges[-1] / (size - sure))
    drawn = at_random[np.searchsorted(edges, points, side="right") - 1]
    chosen = np.sort(np.concatenate([largest[:sure], drawn]))
    return np.concatenate([rows[:1], rows[1:][chosen]]), np.concatenate([[0.0], log_inclusion[chosen]])
