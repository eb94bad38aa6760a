"""Files of molecules as input, read in several processes, with the reasons for entries that cannot be used."""

from __future__ import annotations

import csv
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from arflows.core.runtime.errors import UserError
from arflows.core.runtime.files import replacing
from arflows.data.molecule_files import Entry, MoleculeFile, nci, read_molecules
from arflows.molecules.chemistry import Refused, graph_and_smiles, has_stereochemistry, largest_part, parse, parse_block
from arflows.molecules.graph import Graph, Order
from arflows.molecules.properties import properties_of
from arflows.molecules.workers import Workers, chunked

Salts = Literal["reject", "keep_largest"]

BUILTIN = {"nci": nci}


def open_molecules(source: str, column: str | None = None, values: Sequence[str] = ()) -> MoleculeFile:
    """Open a built-in set by its name, or a file; see `read_molecules`."""
    if source in BUILTIN:
        if column is not None or values:
            raise UserError(f"{source} is no table: leave out --column and --values.")
        return BUILTIN[source]()
    if not Path(source).exists():
        raise UserError(f"there is no source {source!r}: give the path of a file, or {', '.join(BUILTIN)}.")
    return read_molecules(Path(source), column, values)


class Example(NamedTuple):
    """A molecule of a file that can be represented.

    Attributes:
        number: Its line, or place in an SD file.
        smiles: Canonical, without stereochemistry.
        graph: Its graph in the order of generation.
        values: `PROPERTIES` if they were asked for, then the numbers that its file gave.
        flattened: Whether stereochemistry was dropped.
        entry: The entry of the file it was read from, if it was asked for.
        canonical: Whether the graph is in the canonical order.
    """

    number: int
    smiles: str
    graph: Graph
    values: tuple[float, ...]
    flattened: bool
    entry: Entry | None = None
    canonical: bool = True


@dataclass
class Reading:
    """The content of a file: molecules and rejected entries.

    Attributes:
        source: The file.
        molecules: Those that can be used.
        read: Entries read.
        rejects: The line, text and reason of each entry that is not used.
    """

    source: MoleculeFile
    molecules: list[Example] = field(default_factory=list)
    read: int = 0
    rejects: list[tuple[int, str, str]] = field(default_factory=list)

    def reasons(self) -> dict[str, int]:
        """Return the number of rejected entries for each reason, the most frequent first."""
        return dict(Counter(reason for _, _, reason in self.rejects).most_common())

    def summary(self) -> str:
        """The reasons in words."""
        return ", ".join(f"{reason} ({count:,})" for reason, count in self.reasons().items())


def read(
    source: MoleculeFile,
    workers: Workers,
    order: Order,
    max_atoms: int,
    properties: bool = True,
    salts: Salts = "reject",
    require_values: bool = True,
    entries: bool = False,
) -> Reading:
    """Read all molecules of a file, repeated ones as often as they are there.

    Args:
        source: The file.
        workers: The processes that do it.
        order: Order of generation.
        max_atoms: Reject molecules of more heavy atoms.
        properties: Compute `PROPERTIES`, which takes most of the time.
        salts: Reject molecules of several parts, or keep their largest part.
        require_values: Reject molecules that lack a number in a column of values.
        entries: Keep the entry of each molecule.
    """
    reading = Reading(source)
    chunks, kept = itertools.tee(chunked(source))
    needed = ([entry._replace(given={}) for entry in chunk] for chunk in chunks)
    results = workers.map(represent, needed, source.form, order, max_atoms, properties, salts, require_values)
    with tqdm(desc=f"reading {Path(source.name).name}", unit=" molecules", leave=False, disable=None) as progress:
        for chunk, found in zip(kept, results, strict=False):  # the results end first
            reading.read += len(chunk)
            for entry, molecule in zip(chunk, found, strict=True):
                if isinstance(molecule, Example):
                    reading.molecules.append(molecule._replace(entry=entry) if entries else molecule)
                else:
                    reading.rejects.append((entry.number, entry.text, molecule))
            progress.update(len(chunk))
    return reading


def represent(
    entries: Sequence[Entry],
    form: str,
    order: Order,
    max_atoms: int,
    properties: bool,
    salts: Salts = "reject",
    require_values: bool = True,
) -> list[Example | str]:
    """Return each entry's molecule, or the reason why it has none; runs in a process of its own.

    Args:
        entries: The entries.
        form: Form of their text, "smiles" or "mol block".
        order: Order of the atoms of the graphs.
        max_atoms: Reject molecules of more heavy atoms.
        properties: Whether to compute `PROPERTIES`.
        salts: Reject molecules of several parts, or keep their largest part.
        require_values: Reject molecules that lack a number in a column of values.
    """
    found: list[Example | str] = []
    for number, text, values, _ in entries:
        try:
            molecule = parse(text) if form == "smiles" else parse_block(text)
            if salts == "keep_largest":
                molecule = largest_part(molecule)
            if molecule.GetNumHeavyAtoms() > max_atoms:
                raise Refused(f"more than {max_atoms} heavy atoms")
            if require_values and not np.isfinite(values).all():
                raise Refused("no number in a column of values")
            graph, smiles = graph_and_smiles(molecule, order)
            if properties:
                values = (*properties_of(molecule), *values)
            found.append(Example(number, smiles, graph, values, has_stereochemistry(molecule)))
        except Refused as refused:
            found.append(str(refused))
    return found


def keep(reading: Reading, reasons: Iterable[str | None]) -> None:
    """Move molecules to the rejects.

    Args:
        reading: Changed in place.
        reasons: For each molecule why it is rejected, or None.

    Raises:
        UserError: None is left.
    """
    kept = []
    for molecule, reason in zip(reading.molecules, reasons, strict=True):
        if reason is None:
            kept.append(molecule)
        else:
            text = molecule.smiles if molecule.entry is None else molecule.entry.text
            reading.rejects.append((molecule.number, text, reason))
    reading.molecules = kept
    if not kept:
        raise UserError(
            f"{reading.source.name}: none of its {reading.read:,} molecules can be used: {reading.summary()}."
        )


def write_rejects(path: Path, readings: Iterable[Reading]) -> None:
    """Write a CSV file with each entry that is not used: file, line, molecule, reason.

    Args:
        path: The file; replaced if it exists.
        readings: The files as read.
    """
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file", "line", "molecule", "reason"])
        for reading in readings:
            name = Path(reading.source.name).name
            for number, text, reason in sorted(reading.rejects):
                table.writerow([name, number, text.partition("\n")[0], reason])
