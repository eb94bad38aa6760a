"""The interface of flows over molecular graphs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from rdkit import Chem
from torch import Tensor
from tqdm import tqdm

from arflows.core.flow import Flow
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.pretrained import Pretrained
from arflows.molecules.chemistry import Refused, cleaned, graph_of
from arflows.molecules.decisions import packed, unpack
from arflows.molecules.generation import Grown
from arflows.molecules.graph import Graph
from arflows.molecules.parallel import draw_batches
from arflows.molecules.records import Generated, Molecule, Targets, molecules
from arflows.molecules.representation import MoleculeSpec, decode
from arflows.molecules.workers import Workers

Given = UInt8[Tensor, "batch packed"] | Sequence[str | Chem.Mol | Graph | Molecule]
"""Molecules: a tensor of a datamodule, or a list of SMILES, molecules of RDKit, graphs in the order to be scored, or
samples."""


class GraphFlow(Flow, Pretrained):
    """A flow over molecular graphs, grown atom by atom: `generate` draws graphs, `sample` finishes them by RDKit.

    Args:
        spec: Settings of the data.
        properties: Names of the properties that the flow is conditional on; none for an unconditional flow.
    """

    def __init__(self, spec: MoleculeSpec, properties: Sequence[str] = ()) -> None:
        super().__init__()
        self.spec = spec
        self.properties = list(properties)

    @abstractmethod
    def generate(
        self,
        count: int,
        context: Float[Tensor, "count properties"] | Targets | None = None,
        *,
        masks: bool = True,
        min_atoms: int = 1,
        max_atoms: int | None = None,
        fragment: str | None = None,
        fill_attachments: bool = False,
        temperature: float = 1.0,
        seed: int = 0,
        first: int = 0,
        batch_size: int = 512,
    ) -> Iterator[Generated]:
        """Draws graphs of molecules a batch at a time, so that memory does not grow with their number.

        Molecule number k of a seed is the same however many are drawn, in whichever batches, up to rounding.

        Args:
            count: Number of molecules.
            context: For a conditional model wanted properties, by name a value or a range, or a row of all for each
                molecule; without it those of training molecules.
            masks: Allow only decisions after which a molecule can be finished: see `Masks`. Without them, every
                decision that can be represented.
            min_atoms: The least number of heavy atoms; needs masks.
            max_atoms: The most; needs masks.
            fragment: Beginning of all molecules, see `fragment_of`; needs masks.
            fill_attachments: Require a bond at every attachment point ``*`` of the fragment.
            temperature: Below 1 for likelier molecules.
            seed: Seed of the latents.
            first: Number of the first molecule, to go on where an earlier call ended.
            batch_size: Molecules computed at a time.

        Raises:
            UserError: For settings out of range or that do not fit the model.
        """

    def sample(
        self,
        count: int,
        context: Float[Tensor, "count properties"] | Targets | None = None,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        workers: Workers | None = None,
        **options: Any,
    ) -> list[Molecule]:
        """Draw molecules.

        Args:
            count: Number of molecules.
            context: Wanted properties, for a conditional model.
            seed: Seed of the latents, for the same molecules at every call; by default each call has a new one.
            generator: Source of a new seed; by default PyTorch's global generator.
            workers: Processes in which RDKit finishes the molecules; by default it works in this one.
            **options: masks, temperature and others of `generate`.
        """
        drawn = self.draw(count, context, seed=seed, generator=generator, workers=workers, **options)
        return list(tqdm(drawn, "sampling", count, unit=" molecules", leave=False, disable=None))

    def draw(
        self,
        count: int,
        context: Float[Tensor, "count properties"] | Targets | None = None,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        workers: Workers | None = None,
        **options: Any,
    ) -> Iterator[Molecule]:
        """Draw molecules one after the other, for any number of them; arguments as for `sample`.

        Args:
            count: Number of molecules.
            context: Wanted properties, for a conditional model.
            seed: Seed of the latents; by default a new one.
            generator: Source of a new seed; by default PyTorch's global generator.
            workers: Processes in which RDKit finishes the molecules; by default it works in this one.
            **options: Options of `generate`.
        """
        if seed is None:
            seed = int(torch.randint(2**62, (), generator=generator))
        batches = draw_batches(self, molecules, count, context, workers=workers or Workers(1), seed=seed, **options)
        return (molecule for batch in batches for molecule in batch)

    def objection(self, graph: Graph) -> str | None:
        """Return the reason why the flow cannot score a graph in its order; None if it can."""
        return self.spec.relaxed().objection(graph)

    def _packed(self, x: Given) -> UInt8[Tensor, "batch packed"]:
        return x if isinstance(x, Tensor) else packed(self._graphs(x), self.spec).to(self.device)

    def _graphs(self, x: Given) -> list[Graph]:
        if isinstance(x, Tensor):
            atoms, bonds = unpack(x.cpu(), self.spec.max_atoms)
            return decode(atoms.numpy(), bonds.numpy(), self.spec)
        if isinstance(x, str | Chem.Mol | Graph | Molecule):
            raise UserError("a single molecule was given: give a list of molecules.")
        graphs = []
        for each in x:
            name = Chem.MolToSmiles(each) if isinstance(each, Chem.Mol) else each
            try:
                graph = self._graph(each)
            except Refused as reason:
                raise UserError(f"{name} cannot be represented: {reason}.") from None
            if objection := self.objection(graph):
                raise UserError(f"{name} cannot be represented: {objection}.")
            graphs.append(graph)
        return graphs

    def _graph(self, molecule: str | Chem.Mol | Graph | Molecule) -> Graph:
        if isinstance(molecule, Molecule):
            return molecule.graph
        if isinstance(molecule, Graph):
            return molecule
        if isinstance(molecule, str | Chem.Mol):
            return graph_of(molecule if isinstance(molecule, str) else cleaned(molecule), self.spec.order)
        raise UserError(f"{molecule!r} is no molecule: give SMILES, molecules of RDKit, graphs or samples.")

    def _decoded(self, grown: Grown) -> list[Graph]:
        return decode(grown.atoms.cpu().numpy(), grown.bonds.cpu().numpy(), self.spec)
