"""Samples as records, and the target properties of conditional samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxtyping import Float
from rdkit import Chem
from torch import Tensor

from arflows.core.runtime.errors import UserError
from arflows.core.runtime.noise import Noise
from arflows.molecules.chemistry import mol_of, smiles_of
from arflows.molecules.graph import Graph

Targets = Mapping[str, "float | tuple[float, float]"]
"""Wanted properties: for the name of each a value, or the two ends of a range."""


class Molecule(NamedTuple):
    """A sample.

    Attributes:
        smiles: Canonical, without stereochemistry; None if RDKit refuses the graph.
        graph: As it was generated, in that order.
        log_prob: Log-probability of the graph in that order under the model, in nats.
        log_prob_policy: The same under the policy: with masks, limits and temperature, given a fragment.
    """

    smiles: str | None
    graph: Graph
    log_prob: float
    log_prob_policy: float

    @property
    def mol(self) -> Chem.Mol | None:
        """The sample as a molecule of RDKit, sanitised; None if RDKit refuses the graph."""
        return mol_of(self.graph)

    @property
    def valid_raw(self) -> bool:
        """True if RDKit sanitises the graph as it was generated."""
        return self.smiles is not None


class Generated(NamedTuple):
    """A batch of graphs as they were generated.

    Attributes:
        graphs: The graphs.
        log_prob: Log-probabilities under the model, see `Molecule`.
        log_prob_policy: Log-probabilities under the policy.
        targets: Properties that were wanted of each, for a conditional model.
    """

    graphs: list[Graph]
    log_prob: list[float]
    log_prob_policy: list[float]
    targets: list[list[float]] | None


def molecules(batch: Generated) -> list[Molecule]:
    """Finish graphs by RDKit and return them as records."""
    return [
        Molecule(smiles_of(graph), graph, *values)
        for graph, *values in zip(batch.graphs, batch.log_prob, batch.log_prob_policy, strict=True)
    ]


def targets_from(
    rows: Float[Tensor, "rows properties"],
    names: Sequence[str],
    wanted: Targets,
    seed: int,
    first: int,
    count: int,
    extremes: Float[Tensor, "2 properties"],
) -> Float[Tensor, "count properties"]:
    """Draw properties to condition on from those of training molecules that agree with the wanted ones.

    For a range the rows within it are kept. For a value the nearest tenth of the rows is kept, and their
    values are replaced, so that the other properties are typical of it.

    Args:
        rows: Properties of training molecules.
        names: Their names.
        wanted: Values or ranges of some of them.
        seed: Seed of the choice of rows.
        first: Number of the first molecule.
        count: Number of molecules.
        extremes: The lowest and highest values of all training molecules; NaN if the model does not know them.

    Raises:
        UserError: A name is unknown, or no training molecule agrees.
    """
    kept = rows
    fixed: dict[int, float] = {}
    for name, want in wanted.items():
        if name not in names:
            known = f"it knows {', '.join(names)}" if names else "it was trained without any"
            raise UserError(f"the model is not conditional on {name!r}: {known}.")
        at = list(names).index(name)
        low, high = want if isinstance(want, tuple) else (want, want)
        least, most = extremes[:, at].tolist()
        if math.isnan(least):
            least, most = float(rows[:, at].min()), float(rows[:, at].max())
        if not low <= high:
            raise UserError(f"the range {low:g}..{high:g} of {name} is empty: give the lower end first.")
        if high < least or low > most:
            known = "training molecules have"
            if extremes[:, at].isnan().any():
                known = (
                    "it was saved without the extremes of its training data, and the training molecules that it keeps "
                    "have"
                )
            raise UserError(
                f"{name} of {low:g}{'' if low == high else f'..{high:g}'} is impossible for this model: {known} "
                f"{least:.4g} to {most:.4g}."
            )
        if low == high:
            fixed[at] = low
            kept = kept[(kept[:, at] - low).abs().argsort(stable=True)[: max(1, len(kept) // 10)]]
        else:
            kept = kept[(kept[:, at] >= low) & (kept[:, at] <= high)]
        if not len(kept):
            raise UserError(
                f"none of the {len(rows):,} training molecules that the model keeps has all of {', '.join(wanted)} as "
                "wanted: widen a range, or give a value instead."
            )
    pick = (Noise(seed, "targets").uniform(first, count) * len(kept)).long()
    chosen = kept[pick].clone()
    for at, value in fixed.items():
        chosen[:, at] = value
    return chosen
