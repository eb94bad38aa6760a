"""From files of molecules to a store: ``arflows molecules prepare --source nci --out nci.h5``."""

from __future__ import annotations

import csv
import itertools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from arflows.core.errors import UserError
from arflows.core.files import replacing
from arflows.data.molecule_files import Entry, MoleculeFile, nci, read_molecules
from arflows.data.store_writer import StoreWriter
from arflows.molecules.properties import PROPERTIES, properties_of
from arflows.molecules.representation import (
    Graph,
    MoleculeSpec,
    Order,
    Refused,
    encode,
    graph_and_smiles,
    has_stereochemistry,
    parse,
    parse_block,
)
from arflows.molecules.workers import CHUNK, Workers, chunked

BUILTIN = {"nci": nci}
MOST_ATOMS = 255  # what a byte can count


class Molecule(NamedTuple):
    """A molecule that can be represented.

    Attributes:
        smiles: Canonical, without stereochemistry.
        graph: Its graph in the order of generation.
        values: `PROPERTIES`, then the numbers that its file gave.
        flattened: Whether stereochemistry was dropped.
    """

    smiles: str
    graph: Graph
    values: tuple[float, ...]
    flattened: bool


@dataclass
class Reading:
    """What became of a file.

    Attributes:
        source: The file.
        molecules: The molecules that can be used, each once.
        read: Entries read.
        rejects: The line, text and reason of each entry that is not used.
    """

    source: MoleculeFile
    molecules: list[Molecule] = field(default_factory=list)
    read: int = 0
    rejects: list[tuple[int, str, str]] = field(default_factory=list)

    def reasons(self) -> dict[str, int]:
        """How many entries were rejected for each reason, the most frequent first."""
        return dict(Counter(reason for _, _, reason in self.rejects).most_common())

    def told(self) -> str:
        """The reasons in words."""
        return ", ".join(f"{reason} ({count:,})" for reason, count in self.reasons().items())


def prepare(
    source: str,
    out: Path,
    test: Path | None = None,
    column: str | None = None,
    values: list[str] | None = None,
    order: Order = "dfs",
    max_atoms: int = 100,
    val_fraction: float = 0.05,
    test_fraction: float = 0.1,
    limit: int | None = None,
    workers: int | None = None,
    seed: int = 0,
) -> None:
    """Make a store of molecules that `train`, `score` and `evaluate` read.

    Molecules are kekulised graphs of heavy atoms; stereochemistry is dropped, and counted. Each molecule is kept once,
    by its canonical SMILES; one that is also a test molecule is not trained on. What cannot be used is listed with the
    reason in a file beside the store, and the rest goes on. logP, QED, TPSA and MW are computed and stored.

    Args:
        source: nci (built in), or a file: SMILES (.smi, .smiles, .txt), a table (.csv, .tsv) or an SD file (.sdf), also
            as .gz.
        out: The store to write, such as zinc250k.h5; beside it zinc250k.rejects.csv.
        test: Another such file with the test molecules; without it test_fraction of the source.
        column: The column of a table that holds SMILES; without it the one whose name contains "smiles".
        values: Columns of a table, or fields of an SD file, with numbers to keep as further properties.
        order: In which atoms are generated: breadth first (bfs) or depth first (dfs).
        max_atoms: Leave out molecules of more heavy atoms.
        val_fraction: The part of the source set aside for validation.
        test_fraction: The part of the source set aside for testing, if there is no test file.
        limit: Use at most so many molecules of the source, chosen at random.
        workers: Processes; one for each core if not given.
        seed: Decides which molecules are set aside or chosen.
    """
    _check(max_atoms, val_fraction, test_fraction if test is None else 0, limit, workers)
    start = time.perf_counter()
    values = values or []
    names = [*PROPERTIES, *values]
    if len(set(names)) < len(names):
        raise UserError(f"values is {', '.join(values)}: name each column once, and none {', '.join(PROPERTIES)}.")
    file = BUILTIN[source]() if source in BUILTIN else read_molecules(Path(source), column, values)
    readings = {"train": Reading(file)}
    if test is not None:
        readings = {"test": Reading(read_molecules(test, column, values))} | readings
    seen: dict[str, str] = {}
    with Workers(workers) as pool:
        for name, reading in readings.items():
            _read(reading, seen, name, pool, order, max_atoms, len(values))
    splits = _divided(readings, val_fraction, test_fraction, limit, np.random.default_rng(seed))
    spec = MoleculeSpec.measure((m.graph for split in ("train", "val") for m in splits.get(split, [])), order)
    if "test" in splits:
        splits["test"] = _covered(splits["test"], spec, readings.get("test", readings["train"]))
    counts = {
        name: {
            "read": reading.read,
            "used": len(reading.molecules),
            "stereochemistry dropped": sum(molecule.flattened for molecule in reading.molecules),
            "rejected": reading.reasons(),
        }
        for name, reading in readings.items()
    }
    options = {"val_fraction": val_fraction, "test_fraction": test_fraction, "limit": limit, "seed": seed}
    with StoreWriter(
        out,
        domain="molecules",
        spec=spec.as_dict(),
        categories={"properties": names},
        provenance={
            "source": file.name,
            **file.notes,
            "available": {name: reading.read for name, reading in readings.items()},
            "files": counts,
            "options": options | {"test": None if test is None else test.name, "max_atoms": max_atoms},
        },
    ) as writer:
        for split, molecules in splits.items():
            _write(writer, split, molecules, spec)
    rejects = out.with_suffix(".rejects.csv")
    _write_rejects(rejects, readings)
    _report(out, rejects, spec, splits, counts, time.perf_counter() - start)


def _check(max_atoms: int, val: float, test: float, limit: int | None, workers: int | None) -> None:
    if not 1 <= max_atoms <= MOST_ATOMS:
        raise UserError(f"max_atoms is {max_atoms}: give a number from 1 to {MOST_ATOMS}.")
    for name, value in (("limit", limit), ("workers", workers)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}: give a number from 1 up.")
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise UserError(
            f"val_fraction is {val} and test_fraction {test}: give numbers from 0 up whose sum is less than 1."
        )


def _read(
    reading: Reading, seen: dict[str, str], name: str, pool: Workers, order: Order, max_atoms: int, values: int
) -> None:
    """Fill a reading; ``seen`` says of each canonical SMILES in which file it was found first."""
    source = reading.source
    chunks, kept = itertools.tee(chunked(source, CHUNK))
    results = pool.map(represent, chunks, source.form, order, max_atoms)
    with tqdm(desc=f"reading {Path(source.name).name}", unit=" molecules", leave=False, disable=None) as progress:
        for entries, found in zip(kept, results, strict=False):  # the results end first
            for entry, molecule in zip(entries, found, strict=True):
                reading.read += 1
                reason = molecule if isinstance(molecule, str) else None
                if reason is None and not np.isfinite(entry.values).all():
                    reason = "no number in a column of values"
                if reason is None and (first := seen.get(molecule.smiles)):  # type: ignore[union-attr]
                    reason = "a duplicate" if first == name else f"a duplicate of a {first} molecule"
                if reason is not None:
                    reading.rejects.append((entry.number, entry.text, reason))
                    continue
                assert not isinstance(molecule, str)
                seen[molecule.smiles] = name
                reading.molecules.append(molecule._replace(values=(*molecule.values, *entry.values)))
            progress.update(len(entries))
    if not reading.molecules:
        raise UserError(f"{source.name}: none of its {reading.read:,} molecules can be used: {reading.told()}.")


def represent(entries: Sequence[Entry], form: str, order: Order, max_atoms: int) -> list[Molecule | str]:
    """Return each entry's molecule, or the reason why it has none; runs in a process of its own."""
    found: list[Molecule | str] = []
    for entry in entries:
        try:
            molecule = parse(entry.text) if form == "smiles" else parse_block(entry.text)
            if molecule.GetNumHeavyAtoms() > max_atoms:
                raise Refused(f"more than {max_atoms} heavy atoms")
            graph, smiles = graph_and_smiles(molecule, order)
            found.append(Molecule(smiles, graph, properties_of(molecule), has_stereochemistry(molecule)))
        except Refused as refused:
            found.append(str(refused))
    return found


def _divided(
    readings: dict[str, Reading], val: float, test: float, limit: int | None, generator: np.random.Generator
) -> dict[str, list[Molecule]]:
    """Set molecules aside for validation and, if they have no file of their own, for testing."""
    source = readings["train"]
    molecules = source.molecules
    shuffled = generator.permutation(len(molecules))[:limit]
    shares = {"val": val} if "test" in readings else {"val": val, "test": test}
    splits: dict[str, list[Molecule]] = {}
    for split, share in shares.items():
        count = max(1, round(share * min(len(molecules), limit or len(molecules)))) if share else 0
        if count:
            splits[split] = [molecules[at] for at in np.sort(shuffled[:count])]
        shuffled = shuffled[count:]
    if not len(shuffled):
        raise UserError(f"{source.source.name} has only {len(molecules)} molecules that can be used: give more.")
    splits = {"train": [molecules[at] for at in np.sort(shuffled)]} | splits
    return splits | ({"test": readings["test"].molecules} if "test" in readings else {})


def _covered(molecules: list[Molecule], spec: MoleculeSpec, reading: Reading) -> list[Molecule]:
    """Leave out test molecules for which the training data have no place."""
    kept = []
    for molecule in molecules:
        if objection := spec.objection(molecule.graph):
            reading.rejects.append((0, molecule.smiles, objection))
        else:
            kept.append(molecule)
    if not kept:
        raise UserError(f"{reading.source.name}: no test molecule is like the training data: {reading.told()}.")
    return kept


def _write(writer: StoreWriter, split: str, molecules: list[Molecule], spec: MoleculeSpec) -> None:
    most = max(len(molecule.graph.bonds) for molecule in molecules)
    for chunk in chunked(molecules, 10_000):
        atoms, bonds = encode([molecule.graph for molecule in chunk], spec, max_bonds=most)
        properties = np.array([molecule.values for molecule in chunk], np.float32)
        writer.append(split, {"atoms": atoms, "bonds": bonds, "properties": properties})


def _write_rejects(path: Path, readings: dict[str, Reading]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file", "line", "molecule", "reason"])
        for reading in readings.values():
            name = Path(reading.source.name).name
            for number, text, reason in reading.rejects:
                table.writerow([name, number or "", text.partition("\n")[0], reason])


def _report(
    out: Path,
    rejects: Path,
    spec: MoleculeSpec,
    splits: dict[str, list[Molecule]],
    counts: dict[str, dict[str, object]],
    seconds: float,
) -> None:
    read = sum(int(count["read"]) for count in counts.values())  # type: ignore[call-overload]
    print(f"{out}: {read:,} molecules read in {seconds:.0f} s")
    print(f"  at most {spec.max_atoms} atoms, {spec.order}, bonds reach back {spec.look_back} atoms at most")
    print(f"  atom types {' '.join(spec.atom_types)}")
    for split, molecules in splits.items():
        print(f"  {split:<5} {len(molecules):>9,} molecules")
    for name, count in counts.items():
        print(f"  {name} file: stereochemistry dropped from {count['stereochemistry dropped']:,}")
        for reason, number in count["rejected"].items():  # type: ignore[attr-defined]
            print(f"        {number:>9,} rejected: {reason}")
    print(f"  every rejected molecule with its reason: {rejects}")


def main(args: list[str] | None = None) -> None:
    """Run from the command line."""
    from arflows.core.cli import run

    run(prepare, args, prog="arflows molecules prepare")


if __name__ == "__main__":
    main()
