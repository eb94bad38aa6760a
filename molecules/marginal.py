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
PASSES = 1
PENALTY = 5.0

@torch.no_grad()
def order_marginal(
    graph: Graph, stream: Callable[[], MoleculeStream], orders: int, rng: np.random.Generator
) -> OrderEstimate:
    group = automorphisms(graph)
    costs = np.zeros(len(graph.atoms))
    _, costs = search(graph, group, stream(), 1, costs, rng)
    for k in range(PASSES):
        result, costs = search(graph, group, stream(), orders, costs, rng)
    return result


def search(graph, group, stream, width, costs, rng):
    neighbours = graph.neighbours()
    types = [stream.spec.atom_types.index(kind) for kind in graph.atoms]
    bonds = {(i, j): o for a, b, o in graph.bonds for i, j in ((a, b), (b, a))}
    prefixes = [_Prefix((), group, ())]
    log_p, log_w, left = np.zeros(1), np.zeros(1), np.zeros(1)
    gains = np.zeros((1, len(graph.atoms)))
    chances: list[float] = []
    for _ in graph.atoms:
        children, parents = [], []
        for row, prefix in enumerate(prefixes):
            for atom in continuations(neighbours, prefix.places, "all"):
                if prefix.stabilizer[:, atom].min() == atom:  # one of each set of equivalent continuations
                    kept = prefix.stabilizer[prefix.stabilizer[:, atom] == atom]
                    children.append(_Prefix((*prefix.places, atom), kept, prefix.draws))
                    parents.append(row)
        stream.keep(torch.tensor(parents))
        gained = _extend(stream, [each.places for each in children], types, bonds)
        log_p, log_w = log_p[parents] + gained, log_w[parents] + gained
        last = np.array([each.places[-1] for each in children])
        left = left[parents] - costs[last]
        gains = gains[parents]
        gains[np.arange(len(last)), last] = gained
        lost = np.array([abandoned(neighbours, each.places, stream.spec.order) for each in children])
        rows, log_inclusion = select(log_w, ALPHA * (log_w + left - PENALTY * lost), width, rng)
        prefixes = [children[row] for row in rows]
        log_p, log_w, left, gains = log_p[rows], log_w[rows] - log_inclusion, left[rows], gains[rows]
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
    share = np.exp(log_p - np.logaddexp.reduce(log_p))
    return OrderEstimate(float(total), variance**0.5, ess, float(np.logaddexp.reduce(log_p))), share @ gains


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


def abandoned(neighbours, places, order):
    new = {atom: k for k, atom in enumerate(places)}
    open_ = [any(n not in new for n in neighbours[atom]) for atom in places]
    parents = [[new[n] for n in neighbours[atom] if n in new and new[n] < k] for k, atom in enumerate(places)]
    count = 0
    latest = len(places)
    for k in range(len(places) - 1, 0, -1):
        parent = max(parents[k]) if order == "dfs" else min(parents[k])
        latest = min(latest, parent) if k else latest
        # atoms between a later atom's parent and that atom are left behind
        if order == "dfs" and open_[k - 1] and k - 1 > min(max(parents[i]) for i in range(k, len(places))):
            count += 1
        if order == "bfs" and open_[k - 1] and k - 1 < max(min(parents[i]) for i in range(k, len(places))):
            count += 1
    return count


def select(log_w, score, count, rng):
    """Fearnhead and Clifford; the first is always kept."""
    possible = np.flatnonzero(log_w > -np.inf)
    if len(possible) <= count:
        return possible, np.zeros(len(possible))
    first, others = possible[0], possible[1:]  # the given order
    w = np.exp(score[others] - score[others].max())
    size = count - 1
    if not size:
        return possible[:1], np.zeros(1)
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
