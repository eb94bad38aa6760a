"""Molecular graphs, and the orders in which their atoms are generated; without chemistry."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

Order = Literal["bfs", "dfs"]
"""How atoms are generated: breadth first or depth first."""


class Graph(NamedTuple):
    """A molecule's heavy atoms and bonds in an order of generation.

    Attributes:
        atoms: Types of the atoms: element and formal charge, such as ``"C"``, ``"N+"``, ``"O-"``.
        bonds: ``(i, j, order)`` with j < i and the order 1, 2 or 3, sorted. Every atom but the first has a bond to an
            earlier one.
    """

    atoms: tuple[str, ...]
    bonds: tuple[tuple[int, int, int], ...]

    def neighbours(self) -> list[list[int]]:
        """The atoms that each is bound to, in order."""
        found: list[list[int]] = [[] for _ in self.atoms]
        for i, j, _ in self.bonds:
            found[i].append(j)
            found[j].append(i)
        return [sorted(each) for each in found]

    def valences(self) -> list[int]:
        """The sum of the orders of each atom's bonds."""
        sums = [0] * len(self.atoms)
        for i, j, order in self.bonds:
            sums[i] += order
            sums[j] += order
        return sums


def permuted(graph: Graph, places: Sequence[int]) -> Graph:
    """Return the graph with its atoms in another order: the new atom k is the old one ``places[k]``."""
    new = [0] * len(places)
    for k, old in enumerate(places):
        new[old] = k
    return Graph(
        tuple(graph.atoms[old] for old in places), sorted_bonds((new[i], new[j], order) for i, j, order in graph.bonds)
    )


def sorted_bonds(bonds: Iterable[tuple[int, int, int]]) -> tuple[tuple[int, int, int], ...]:
    """Return bonds as a graph has them: the later atom of each first, and all in order."""
    return tuple(sorted((max(i, j), min(i, j), order) for i, j, order in bonds))


def reorder(graph: Graph, order: Order, rng: np.random.Generator | None = None) -> Graph:
    """Return the graph with its atoms in a breadth- or depth-first order.

    Args:
        graph: The graph.
        order: Which of both.
        rng: Chooses the first atom and all turns; without it the first atom stays the first, and of several neighbours
            the earlier comes first: the canonical order, if the atoms are in the canonical order of either kind.
    """
    return permuted(graph, walk(graph, order, rng)[0])


def walk(graph: Graph, order: Order, rng: np.random.Generator | None = None) -> tuple[list[int], float]:
    """Return a breadth- or depth-first order of a graph's atoms, and the log-probability with which it was chosen.

    The first atom is drawn uniformly, and so is each next one among those that the order allows; see `reorder` for what
    happens without ``rng``, where the log-probability is 0. Every order has one way of being chosen, so that the
    probabilities of all orders sum to 1.
    """
    neighbours = graph.neighbours()
    log_prob = 0.0

    def choose(options: Sequence[int]) -> int:
        nonlocal log_prob
        if rng is None or len(options) == 1:
            return min(options)
        log_prob -= math.log(len(options))
        return options[int(rng.integers(len(options)))]

    places = [choose(range(len(graph.atoms)))]
    seen = set(places)
    frontier = list(places)  # a queue for breadth first, a stack for depth first
    while frontier:
        at = frontier[0 if order == "bfs" else -1]
        if options := [n for n in neighbours[at] if n not in seen]:
            chosen = choose(options)
            seen.add(chosen)
            places.append(chosen)
            frontier.append(chosen)
        else:
            frontier.pop(0 if order == "bfs" else -1)
    return places, log_prob


def walks(graph: Graph, order: Order) -> list[list[int]]:
    """Return every breadth- or depth-first order of a graph's atoms; for small graphs, since there are many."""
    neighbours = graph.neighbours()

    def extend(places: list[int], frontier: list[int]) -> Iterable[list[int]]:
        while frontier:
            at = frontier[0 if order == "bfs" else -1]
            if options := [n for n in neighbours[at] if n not in places]:
                for chosen in options:
                    yield from extend([*places, chosen], [*frontier, chosen])
                return
            frontier = frontier[1:] if order == "bfs" else frontier[:-1]
        yield places

    return [places for first in range(len(graph.atoms)) for places in extend([first], [first])]
