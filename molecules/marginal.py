"""Probability of a molecule summed over the orders in which its atoms can be generated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from arflows.molecules.generation import bind_atom
from arflows.molecules.graph import Graph, continuations
from arflows.molecules.representation import automorphisms
from arflows.molecules.stream import MoleculeStream


class OrderEstimate(NamedTuple):
    log_prob: float
    standard_error: float
    effective_sample_size: float
    lower_bound: float


class _Prefix(NamedTuple):
    """The first atoms of an order.

    Attributes:
        places: Atoms of the graph, in the order of generation.
        stabilizer: Automorphisms of the graph that leave each of these atoms in place.
        draws: Random selections that the prefix survived, as indices.
    """

    places: tuple[int, ...]
    stabilizer: np.ndarray
    draws: tuple[int, ...]


ALPHA = 1.0
MODE = None


@torch.no_grad()
def order_marginal(graph: Graph, stream: MoleculeStream, orders: int, rng: np.random.Generator) -> OrderEstimate:
    neighbours = graph.neighbours()
    order = MODE or stream.spec.order
    types = [stream.spec.atom_types.index(kind) for kind in graph.atoms]
    bonds = {(i, j): o for a, b, o in graph.bonds for i, j in ((a, b), (b, a))}
    group = automorphisms(graph)
    prefixes = [_Prefix((), group, ())]
    log_p, log_w = np.zeros(1), np.zeros(1)
    chances: list[float] = []
    for size in range(len(graph.atoms)):
        children, parents = [], []
        for row, prefix in enumerate(prefixes):
            for atom in continuations(neighbours, prefix.places, order):
                if prefix.stabilizer[:, atom].min() == atom:  # one of each set of equivalent continuations
                    kept = prefix.stabilizer[prefix.stabilizer[:, atom] == atom]
                    children.append(_Prefix((*prefix.places, atom), kept, prefix.draws))
                    parents.append(row)
        stream.keep(torch.tensor(parents))
        gained = _extend(stream, [each.places for each in children], types, bonds)
        log_p, log_w = log_p[parents] + gained, log_w[parents] + gained
        rows, log_inclusion = select(log_w, orders, rng)
        prefixes = [children[row] for row in rows]
        log_p, log_w = log_p[rows], log_w[rows] - log_inclusion
        for at, value in enumerate(log_inclusion):
            if value < 0:
                prefixes[at] = prefixes[at]._replace(draws=(*prefixes[at].draws, len(chances)))
                chances.append(float(np.exp(value)))
        stream.keep(torch.tensor(rows))
    everything = torch.arange(len(prefixes))
    ends = stream.type_logits(everything).double().log_softmax(-1)[:, -1].cpu().numpy()
    log_p, log_w = log_p + ends, log_w + ends
    total = np.logaddexp.reduce(log_w)
    weights = np.exp(log_w - total)
    under = np.zeros(len(chances))
    for prefix, weight in zip(prefixes, weights, strict=True):
        under[list(prefix.draws)] += weight
    variance = float((under**2 * (1 - np.array(chances))).sum())
    sampled = weights[[bool(p.draws) for p in prefixes]]
    ess = float(sampled.sum() ** 2 / (sampled**2).sum()) if len(sampled) else np.inf
    return OrderEstimate(float(total), variance**0.5, ess, float(np.logaddexp.reduce(log_p)))


def _extend(
    stream: MoleculeStream, places: Sequence[tuple[int, ...]], types: Sequence[int], bonds: dict[tuple[int, int], int]
) -> np.ndarray:
    rows = torch.arange(len(places))
    kinds = torch.tensor([types[each[-1]] for each in places])
    found = [
        [1 + 3 * j + bonds[each[-1], old] - 1 for j, old in enumerate(each[:-1]) if (each[-1], old) in bonds]
        for each in places
    ]
    most = max(map(len, found))
    choices = torch.tensor([sorted(each, reverse=stream.latest_first) + [0] * (most + 1 - len(each)) for each in found])
    total = stream.type_logits(rows).double().log_softmax(-1).gather(1, kinds[:, None])[:, 0]
    stream.choose_type(rows, kinds)

    def decide(logits: Tensor, ids: Tensor, step: int) -> Tensor:
        choice = choices[ids, step - 1]
        total[ids] += logits.double().log_softmax(-1).gather(1, choice[:, None])[:, 0]
        return choice

    bind_atom(stream, rows, decide)
    return total.numpy()


def select(log_w, count, rng):
    """Fearnhead and Clifford; the first is always kept."""
    possible = np.flatnonzero(log_w > -np.inf)
    if len(possible) <= count:
        return possible, np.zeros(len(possible))
    first, others = possible[0], possible[1:]  # the given order
    w = np.exp(ALPHA * (log_w[others] - log_w[others].max()))
    size = count - 1
    largest = np.argsort(-w, kind="stable")
    tail = w[largest][::-1].cumsum()[::-1]
    sure = int(np.argmax(w[largest][:size] * (size - np.arange(size)) <= tail[:size]))
    step = tail[sure] / (size - sure)
    inclusion = np.ones(len(w))
    chance = np.sort(largest[sure:])
    inclusion[chance] = w[chance] / step
    edges = np.concatenate([[0], inclusion[chance].cumsum()])
    edges[-1] = size - sure
    u = rng.random()
    points = u + np.arange(size - sure)
    taken = chance[np.searchsorted(edges, points, side="right") - 1]
    rows = np.sort(np.concatenate([largest[:sure], taken]))
    return np.concatenate([[first], others[rows]]), np.concatenate([[0.0], np.log(inclusion[rows])])
