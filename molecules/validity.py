"""Which decisions keep a molecule possible: valences, one connected whole, limits of size, a fragment left as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from arflows.core.runtime.errors import UserError
from arflows.molecules.representation import MoleculeSpec


class Growing(Protocol):
    """Molecules in step, as far as rules look at them; see `arflows.molecules.stream.MoleculeStream`."""

    atom: int
    types: Int64[Tensor, "batch atoms"]
    orders: UInt8[Tensor, "batch atoms atoms"]
    used: UInt8[Tensor, "batch atoms"]

    @property
    def bound(self) -> Tensor:
        """How many bonds the next atom has so far."""


class Masks:
    """Allows the decisions after which a molecule can still be finished, and no others.

    The valence of an atom is at most that of its type in the spec: what RDKit allows its element and charge, and the
    training data show. Every atom but the first is bound to an earlier one. A molecule whose atoms are all saturated
    stops.

    Args:
        spec: The settings of the molecules.
        min_atoms: The least number of atoms.
        max_atoms: The most; None for those of the spec.
        most_used: Of the first atoms, the largest sum of the orders of their bonds: a fragment's, which is complete but
            for its attachment points.

    Raises:
        UserError: For sizes that no molecule of the spec has.
    """

    def __init__(
        self,
        spec: MoleculeSpec,
        min_atoms: int = 1,
        max_atoms: int | None = None,
        most_used: Sequence[int] = (),
    ) -> None:
        most = spec.max_atoms if max_atoms is None else max_atoms
        if not 1 <= min_atoms <= most <= spec.max_atoms:
            raise UserError(
                f"min_atoms is {min_atoms} and max_atoms {most}: give numbers from 1 up to the model's "
                f"{spec.max_atoms}, the second not below the first."
            )
        self.min_atoms = min_atoms
        self.max_atoms = most
        self.valences = torch.tensor([*spec.valences, 0])
        self.most_used = torch.full((spec.max_atoms,), max(spec.valences))
        self.most_used[: len(most_used)] = torch.tensor(most_used, dtype=torch.long)

    def types(self, stream: Growing, rows: Int64[Tensor, " rows"]) -> Bool[Tensor, "rows types"]:
        """Which types the next atom of some of the molecules may have; the last entry is to stop."""
        atom = stream.atom
        valences = self.valences.to(rows.device)
        open_ends = self._open(stream, rows).sum(1, keepdim=True)
        # A new atom takes one open end and brings its own, less one.
        needed = 2 if atom + 1 < self.min_atoms else 0
        if atom == 0:
            grow = (valences[:-1] >= min(needed, 1)).expand(len(rows), -1)
        else:
            grow = (open_ends > 0) & (valences[:-1] > 0) & (open_ends + valences[:-1] > needed)
        if atom >= self.max_atoms:
            grow = torch.zeros_like(grow)
        stop = torch.full_like(open_ends, atom >= self.min_atoms, dtype=torch.bool) | ~grow.any(1, keepdim=True)
        return torch.cat([grow, stop], 1)

    def bonds(self, stream: Growing, rows: Int64[Tensor, " rows"]) -> Bool[Tensor, "rows choices"]:
        """Which bonds the next atom of some of the molecules may have; the first entry is to have no more."""
        atom = stream.atom
        own = self.valences.to(rows.device)[stream.types[rows, atom]]
        own = own - stream.orders[rows, atom].sum(1, dtype=torch.long)
        open_earlier = self._open(stream, rows)
        taken = stream.orders[rows, atom, :atom].long()
        orders = torch.arange(1, 4, device=rows.device)
        fits = orders <= torch.minimum(open_earlier - taken, own[:, None])[..., None]
        if atom + 1 < self.min_atoms:
            left = (open_earlier - taken).sum(1) + own
            fits &= (left[:, None] - 2 * orders > 0)[:, None]
        done = stream.bound[rows, None] > 0
        return torch.cat([done, fits.flatten(1)], 1)

    def _open(self, stream: Growing, rows: Tensor) -> Int64[Tensor, "batch atoms"]:
        """How many more bonds each complete atom may have."""
        atom = stream.atom
        types, used = stream.types[rows, :atom], stream.used[rows, :atom]
        most = self.valences.to(types.device)[types].minimum(self.most_used[:atom].to(types.device))
        return most - used
