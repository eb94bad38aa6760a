"""Masks of decisions: valences, connectedness, limits of size, and fragments that are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from arflows.core.runtime.errors import UserError
from arflows.molecules.representation import MoleculeSpec

ORDERS = (1, 2, 3)
"""Orders of bonds."""
NO_ORDER = 99
"""An order above every valence."""


class Growing(Protocol):
    """A batch of growing molecules of equal size, as masks see it; see `arflows.molecules.stream.MoleculeStream`."""

    atom: int
    types: Int64[Tensor, "batch atoms"]
    orders: UInt8[Tensor, "batch atoms atoms"]
    used: UInt8[Tensor, "batch atoms"]

    @property
    def bound(self) -> Tensor:
        """Number of bonds of the next atom so far."""


class Masks:
    """Masks of the decisions after which a molecule can still be finished.

    The valence of an atom is at most the one of its type in the spec: what RDKit allows its element and charge, and the
    training data show. Every atom but the first is bound to an earlier one. A molecule whose atoms are all saturated
    stops.

    The first atoms may be those of a fragment with attachment points. Each point takes one bond, of its order, and the
    fragment's atoms get no other bonds to later atoms.

    Args:
        spec: The settings of the molecules.
        min_atoms: The least number of atoms.
        max_atoms: The most; None for those of the spec.
        attachments: For each atom of a fragment the orders of its attachment points; None if every atom may get bonds
            up to its valence.
        fill: Require a bond at every attachment point.

    Raises:
        UserError: For sizes that no molecule of the spec has, or too few atoms for the attachment points.
    """

    def __init__(
        self,
        spec: MoleculeSpec,
        min_atoms: int = 1,
        max_atoms: int | None = None,
        attachments: Sequence[Sequence[int]] | None = None,
        fill: bool = False,
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
        self.fill = fill
        # Number of attachment points of each atom for a bond of order 1, 2 and 3.
        self.points = torch.tensor([[points.count(order) for order in ORDERS] for points in attachments or ()])
        self.points = self.points.reshape(-1, len(ORDERS))
        if fill and int(self.points.sum()) > most - len(self.points):
            raise UserError(
                f"the fragment has {int(self.points.sum())} attachment points and {len(self.points)} atoms, too many "
                f"to fill all within {most} atoms: raise max_atoms, or do not require every attachment point."
            )

    def types(self, stream: Growing, rows: Int64[Tensor, " rows"]) -> Bool[Tensor, "rows types"]:
        """Return the types that the next atom of some of the molecules may have; the last entry is to stop."""
        atom = stream.atom
        valences = self.valences.to(rows.device)[:-1]
        vacant, fits = self._room(stream, rows)
        if atom == 0:
            grow = (valences >= min(self.min_atoms - 1, 1)).expand(len(rows), -1)
        else:
            orders = torch.tensor(ORDERS, device=rows.device)
            lowest = torch.where(fits, orders, NO_ORDER).flatten(1).amin(1, keepdim=True)
            grow = valences >= lowest
            if atom + 1 < self.min_atoms:
                # A new atom takes a vacancy and brings as many as its valence, less the order of its bond.
                grow &= vacant.sum(1, keepdim=True) - 1 + valences - lowest > 0
        if atom >= self.max_atoms:
            grow = torch.zeros_like(grow)
        finished = torch.full_like(grow[:, :1], atom >= self.min_atoms)
        if self.fill:
            finished &= self._points_left(stream, rows).sum((1, 2))[:, None] == 0
        return torch.cat([grow, finished | ~grow.any(1, keepdim=True)], 1)

    def bonds(self, stream: Growing, rows: Int64[Tensor, " rows"]) -> Bool[Tensor, "rows choices"]:
        """Return the bonds that the next atom of some of the molecules may have; the first entry is to have no more."""
        atom = stream.atom
        own = self.valences.to(rows.device)[stream.types[rows, atom]]
        own = own - stream.orders[rows, atom].sum(1, dtype=torch.long)
        vacant, fits = self._room(stream, rows)
        orders = torch.tensor(ORDERS, device=rows.device)
        fits = fits & (orders <= own[:, None])[:, None]
        if atom + 1 < self.min_atoms:
            # A bond takes as many vacancies of both atoms as its order, but only one of an attachment point.
            taken = orders.repeat(atom, 1)
            taken[: len(self.points)] = 1
            fits &= (vacant.sum(1) + own)[:, None, None] - taken - orders > 0
        done = stream.bound[rows, None] > 0
        return torch.cat([done, fits.flatten(1)], 1)

    def _room(
        self, stream: Growing, rows: Tensor
    ) -> tuple[Int64[Tensor, "rows atoms"], Bool[Tensor, "rows atoms orders"]]:
        """Return the number of further atoms that each earlier atom may be bound to, and the bonds it may get now.

        Bonds of the next atom so far are counted.
        """
        atom, points = stream.atom, len(self.points)
        types = stream.types[rows, :atom]
        used = stream.used[rows, :atom] + stream.orders[rows, :atom, atom : atom + 1].sum(2, dtype=torch.long)
        vacant = self.valences.to(types.device)[types] - used
        fits = vacant[..., None] >= torch.tensor(ORDERS, device=rows.device)
        if points:
            left = self._points_left(stream, rows)
            vacant[:, :points] = left.sum(-1)
            fits[:, :points] = left > 0
            if self.fill:
                # Each of the atoms to come, the next one included, fills at least one of the points that are left.
                unbound = (stream.orders[rows, atom : atom + 1] == 0).all(2).all(1)
                pressed = unbound & (left.sum((1, 2)) >= self.max_atoms - atom)
                fits[:, points:] &= ~pressed[:, None, None]
        return vacant, fits

    def _points_left(self, stream: Growing, rows: Tensor) -> Int64[Tensor, "rows atoms orders"]:
        """Return the number of attachment points left at each atom for a bond of each order."""
        size = len(self.points)
        added = stream.orders[rows, size:, :size]
        return self.points.to(rows.device) - torch.stack([(added == order).sum(1) for order in ORDERS], -1)
