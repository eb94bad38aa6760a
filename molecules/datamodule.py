"""From a prepared store of molecules to batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from arflows.core.runtime.errors import UserError
from arflows.data.batches import Batch, StoreDataModule, StoreDataset
from arflows.data.store import Store
from arflows.molecules.decisions import pack
from arflows.molecules.representation import MoleculeSpec

INITIAL_MOLECULES = 32_768
"""Training molecules, at most, from which a model takes means and standard deviations of properties."""


class MoleculeDataModule(StoreDataModule):
    """Batches of molecules for training, validation and testing; see `StoreDataModule`.

    A batch is ``{"x": uint8 (batch, packed), "context": float32 (batch, properties)}``, packed as
    `arflows.molecules.decisions.pack` does it; the context is there if ``properties`` names some.

    Attributes:
        spec: The settings of its molecules.
        model_spec: The settings in which batches give molecules, which must cover those of the store.
        properties: Names of the properties to condition on.
    """

    def __init__(
        self,
        store: Path,
        batch_size: int = 256,
        eval_batch_size: int = 1024,
        **options: Any,
    ) -> None:
        """Open the store.

        Args:
            store: The file that `arflows molecules prepare` wrote.
            batch_size: Molecules in a training batch, on each device.
            eval_batch_size: Molecules in a validation or test batch, on each device.
            **options: Options of `StoreDataModule`: workers, limit and seed.

        Raises:
            UserError: The file is no store of molecules or of another version, or a setting is out of range.
        """
        super().__init__(store, "molecules", batch_size, eval_batch_size, **options)
        self.spec = MoleculeSpec.from_dict(self.store.spec)
        self.model_spec = self.spec
        self.properties: list[str] = []

    def dataset(self, split: str, training: bool = False) -> MoleculeDataset:
        """Return the molecules of a split in order.

        Raises:
            UserError: The store has no such split, or lacks a property.
        """
        known = self.store.categories.get("properties", [])
        if missing := [name for name in self.properties if name not in known]:
            raise UserError(
                f"{self.store.path} has no property {missing[0]!r}: it has {', '.join(known) or 'none'}; name others, "
                "or prepare the store again with that column among --values."
            )
        columns = [known.index(name) for name in self.properties]
        return MoleculeDataset(self.store, split, columns, self.limit, self.seed, self.model_spec)

    def property_extremes(self) -> tuple[Float[Tensor, " properties"], Float[Tensor, " properties"]]:
        """Return the lowest and the highest value of each property over all training molecules in use."""
        dataset = self.dataset("train")
        values = self.store.array("train", "properties")
        if dataset.kept is not None:
            values = values[dataset.kept]
        low, high = (extreme(values[:, dataset.columns], axis=0) for extreme in (np.nanmin, np.nanmax))
        return torch.from_numpy(low).float(), torch.from_numpy(high).float()

    def initialization_batch(self) -> Batch:
        """Return training molecules, the same in every process and run, by which a model standardises properties."""
        return self._training_examples(INITIAL_MOLECULES if self.properties else 1)


class MoleculeDataset(StoreDataset):
    """The molecules of one split that have all properties asked for, fetched a batch at a time; see `StoreDataset`."""

    def __init__(
        self, store: Store, split: str, columns: list[int], limit: int | None, seed: int, spec: MoleculeSpec
    ) -> None:
        fields = {"atoms": "atoms", "bonds": "bonds"} | ({"properties": "properties"} if columns else {})
        super().__init__(store, split, fields, limit, seed)
        self.columns = columns
        own = MoleculeSpec.from_dict(store.spec)
        self._numbers = torch.tensor([0, *(spec.atom_types.index(kind) + 1 for kind in own.atom_types)]).byte()
        self._padding = spec.max_atoms - own.max_atoms
        if columns:  # a molecule may lack a number that the model is to know
            complete = np.isfinite(store.array(split, "properties")[:, columns]).all(1)
            rows = np.arange(len(complete)) if self.kept is None else self.kept
            self.kept = rows[complete[rows]]
            self.count = len(self.kept)

    def __getitems__(self, indices: list[int]) -> Batch:
        """Fetch a batch: one gather from the memory map for each field."""
        fetched = super().__getitems__(indices)
        atoms = F.pad(self._numbers[fetched["atoms"].long()], (0, self._padding))
        batch = {"x": pack(atoms, fetched["bonds"])}
        if self.columns:
            batch["context"] = fetched["properties"][:, self.columns].to(torch.float32)
        return batch
