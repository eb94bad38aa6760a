"""Probabilities of molecules whatever the order of their atoms."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from arflows.molecules.graph import Graph, permuted, walk
from arflows.molecules.representation import MoleculeSpec, automorphisms, encode


def order_marginal(
    graph: Graph,
    spec: MoleculeSpec,
    orders: int,
    rng: np.random.Generator,
    log_prob: Callable[[Sequence[Graph]], Float[Tensor, " graphs"]],
) -> tuple[float, float]:
    """Estimates the log-probability of a graph, summed over all its depth-first (or breadth-first) orders.

    The canonical order, which carries most of it, is counted exactly. The others are drawn at random from a proposal q,
    and weighted: E_q[p(order) / q(order)], without the canonical one. Orders that automorphisms of the graph carry into
    each other are the same sequence of decisions, and are counted once.

    Args:
        graph: In the canonical order.
        spec: The model's settings.
        orders: Random orders, at least 2.
        rng: Draws them.
        log_prob: Log-probabilities of graphs in their orders, in nats.

    Returns:
        The estimate in nats, and its standard error.
    """
    drawn = [walk(graph, spec.order, rng) for _ in range(orders)]
    candidates = [permuted(graph, places) for places, _ in drawn]
    wide = dataclasses.replace(spec, look_back=spec.max_atoms)
    possible = [candidate != graph and wide.objection(candidate) is None for candidate in candidates]
    scores = log_prob([graph, *(candidate for candidate, fits in zip(candidates, possible, strict=True) if fits)])
    exact, others = scores[0].item(), iter(scores[1:].tolist())
    symmetric = math.log(automorphisms(graph))
    weights = np.array(
        [
            math.exp(next(others) - symmetric - log_q - exact) if fits else 0.0
            for (_, log_q), fits in zip(drawn, possible, strict=True)
        ]
    )
    total = 1 + weights.mean()
    return exact + math.log(total), float(weights.std(ddof=1) / math.sqrt(orders) / total)


def packed(graphs: Sequence[Graph], spec: MoleculeSpec) -> Tensor:
    """Graphs in any order as a model takes them."""
    from arflows.molecules.decisions import pack

    atoms, bonds = encode(graphs, dataclasses.replace(spec, look_back=spec.max_atoms))
    return pack(torch.from_numpy(atoms), torch.from_numpy(bonds))
