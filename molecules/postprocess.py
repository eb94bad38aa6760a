"""Repair of invalid samples, so that validity can be reported before and after.

Published figures of validity are often those after such a step ("MoFlow" by Zang and Wang 2020, arXiv:2006.10137,
removes bonds and keeps the largest part). It changes molecules, so that it is reported separately.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from arflows.molecules.chemistry import largest_valence, smiles_of_all
from arflows.molecules.graph import Graph
from arflows.molecules.metrics import share
from arflows.molecules.workers import Workers


def validities(raw: Sequence[Graph], masked: Sequence[Graph], workers: Workers) -> dict[str, dict[str, Any]]:
    """Return the three figures of validity, each with the counts behind it.

    A graph is valid if RDKit sanitises it; all samples are connected, since every atom is bound to an earlier one.

    Args:
        raw: Samples without masks.
        masked: Samples with masks.
        workers: The processes that sanitise them.
    """
    count = sum(smiles is not None for smiles in smiles_of_all(masked, workers))
    found = smiles_of_all(raw, workers)
    invalid = [graph for graph, smiles in zip(raw, found, strict=True) if smiles is None]
    mended = sum(smiles is not None for smiles in smiles_of_all(map(repaired, invalid), workers))
    valid = len(raw) - len(invalid)
    return {
        "raw": share(valid, len(raw), "samples without masks that RDKit sanitises as they are"),
        "masked": share(count, len(masked), "samples with masks that RDKit sanitises as they are"),
        "postprocessed": {
            **share(valid + mended, len(raw), "samples without masks that RDKit sanitises, mended where it does not"),
            "mended": mended,
        },
    }


def repaired(graph: Graph) -> Graph:
    """Return a graph in which no atom has more bonds than its valence allows.

    Bonds in order of generation keep as much of their order as the valences of both atoms allow. If parts lose
    their last bond to each other, the largest part is kept (of several, that of the earliest atom).
    """
    left = [largest_valence(kind) for kind in graph.atoms]
    bonds = []
    for i, j, wanted in graph.bonds:
        order = min(wanted, left[i], left[j])
        if order:
            left[i] -= order
            left[j] -= order
            bonds.append((i, j, order))
    return _largest_part(Graph(graph.atoms, tuple(bonds)))


def _largest_part(graph: Graph) -> Graph:
    neighbours = graph.neighbours()
    parts: list[list[int]] = []
    seen: set[int] = set()
    for first in range(len(graph.atoms)):
        if first in seen:
            continue
        part = [first]
        seen.add(first)
        for at in part:  # grows while it is read
            found = [n for n in neighbours[at] if n not in seen]
            seen.update(found)
            part += found
        parts.append(part)
    largest = max(parts, key=len)
    best = sorted(largest)
    new = {old: k for k, old in enumerate(best)}
    return Graph(
        tuple(graph.atoms[old] for old in best),
        tuple((new[i], new[j], order) for i, j, order in graph.bonds if i in new),
    )
