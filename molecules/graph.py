"""Molecular graphs, and the orders in which their atoms are generated; without chemistry."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

Order = Literal["bfs", "dfs"]
"""Order of generation: breadth first or depth first."""


class Graph(NamedTuple):
    """A molecule's heavy atoms and bonds in an order of generation.

    >>> acetaldehyde = Graph(("C", "C", "O"), ((1, 0, 1), (2, 1, 2)))
    >>> acetaldehyde.neighbours(), acetaldehyde.valences()
    ([[1], [0, 2], [1]], [1, 3, 2])

    Attributes:
        atoms: Types of the atoms: element and formal charge, such as ``"C"``, ``"N+"``, ``"O-"``.
        bonds: ``(i, j, order)`` with j < i and the order 1, 2 or 3, sorted. Every atom but the first has a bond to an
            earlier one.
    """

    atoms: tuple[str, ...]
    bonds: tuple[tuple[int, int, int], ...]

    def neighbours(self) -> list[list[int]]:
        """Return the atoms that each is bound to, in order."""
        found: list[list[int]] = [[] for _ in self.atoms]
        for i, j, _ in self.bonds:
            found[i].append(j)
            found[j].append(i)
        return [sorted(each) for each in found]

    def valences(self) -> list[int]:
        """Return the sum of the orders of each atom's bonds."""
        sums = [0] * len(self.atoms)
        for i, j, order in self.bonds:
            sums[i] += order
            sums[j] += order
        return sums


def permuted(graph: Graph, permutation: Sequence[int]) -> Graph:
    """Return the graph with its atoms in another order: the new atom k is the old one ``permutation[k]``."""
    new = [0] * len(permutation)
    for k, old in enumerate(permutation):
        new[old] = k
    return Graph(
        tuple(graph.atoms[old] for old in permutation),
        sorted_bonds((new[i], new[j], order) for i, j, order in graph.bonds),
    )


def sorted_bonds(bonds: Iterable[tuple[int, int, int]]) -> tuple[tuple[int, int, int], ...]:
    """Return bonds as a graph has them: the later atom of each first, and all in order."""
    return tuple(sorted((max(i, j), min(i, j), order) for i, j, order in bonds))


def reorder(graph: Graph, order: Order, rng: np.random.Generator | None = None) -> Graph:
    """Return the graph with its atoms in a breadth- or depth-first order.

    Args:
        graph: The graph.
        order: Breadth or depth first.
        rng: Chooses the first atom and all turns; without it the first atom stays the first, and of several neighbours
            the earlier comes first: the canonical order, if the atoms are in the canonical order of either kind.
    """
    return permuted(graph, walk(graph, order, rng))


def walk(graph: Graph, order: Order, rng: np.random.Generator | None = None) -> list[int]:
    """Return a breadth- or depth-first order of a graph's atoms.

    With ``rng`` the first atom is drawn uniformly, and so is each next one among those that the order allows; see
    `reorder` for the order without it.

    Args:
        graph: The graph.
        order: Breadth or depth first.
        rng: Source of randomness; None for the first atom and the earliest neighbours.
    """
    neighbours = graph.neighbours()
    visited: list[int] = []
    while options := continuations(neighbours, visited, order):
        visited.append(min(options) if rng is None else options[int(rng.integers(len(options)))])
    return visited


def random_orders(graph: Graph, order: Order, count: int, seed: int = 0) -> list[Graph]:
    """Return the graph in different breadth- or depth-first orders, at most ``count`` of them, drawn at random.

    Args:
        graph: The graph.
        order: Breadth or depth first.
        count: Number of draws.
        seed: Seed of the draws.
    """
    rng = np.random.default_rng(seed)
    drawn = dict.fromkeys(tuple(walk(graph, order, rng)) for _ in range(count))
    return [permuted(graph, visited) for visited in drawn]


def walks(graph: Graph, order: Order) -> list[list[int]]:
    """Return every breadth- or depth-first order of a graph's atoms; for small graphs, since there are many."""
    neighbours = graph.neighbours()

    def extend(visited: list[int]) -> Iterable[list[int]]:
        if not (options := continuations(neighbours, visited, order)):
            yield visited
        for chosen in options:
            yield from extend([*visited, chosen])

    return list(extend([]))


def continuations(neighbours: Sequence[Sequence[int]], visited: Sequence[int], order: Order) -> list[int]:
    """Return the atoms that may come next in a breadth- or depth-first order.

    They are the unvisited neighbours of the first atom (breadth first) or the last atom (depth first) that has any.

    Args:
        neighbours: The neighbours of each atom.
        visited: The atoms visited so far, in their order; none yet for all atoms as continuations.
        order: Breadth or depth first.
    """
    if not visited:
        return list(range(len(neighbours)))
    for at in visited if order == "bfs" else reversed(visited):
        if options := [n for n in neighbours[at] if n not in visited]:
            return options
    return []


def abandoned(neighbours: Sequence[Sequence[int]], visited: Sequence[int], order: Order) -> int:
    """Count the atoms that a breadth- or depth-first order would have completed before it went on as this one does.

    Such an atom has unvisited neighbours though a later atom continues from one that comes after it in the order of
    completion. The count is 0 for the beginnings of breadth-first or depth-first orders, respectively.

    Args:
        neighbours: The neighbours of each atom.
        visited: The atoms visited so far, in their order.
        order: Breadth or depth first.
    """
    at = {atom: k for k, atom in enumerate(visited)}
    incomplete = [any(n not in at for n in neighbours[atom]) for atom in visited]
    count = 0
    reach = len(visited) if order == "dfs" else -1  # of the atoms after k, the parent that is completed last
    for k in reversed(range(len(visited))):
        if incomplete[k] and (reach < k if order == "dfs" else reach > k):
            count += 1
        if k:
            earlier = [at[n] for n in neighbours[visited[k]] if at.get(n, k) < k]
            reach = min(reach, max(earlier)) if order == "dfs" else max(reach, min(earlier))
    return count
