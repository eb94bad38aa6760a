"""From files of molecules to a store: ``arflows molecules prepare --source nci --out nci.h5``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from arflows.core.runtime.errors import UserError
from arflows.core.runtime.files import refuse_existing
from arflows.core.runtime.option_types import Fraction, PositiveInt
from arflows.data.molecule_files import read_molecules
from arflows.data.store_writer import StoreWriter
from arflows.molecules.graph import Order
from arflows.molecules.inputs import Example, Reading, Salts, keep, open_molecules, read, write_rejects
from arflows.molecules.properties import PROPERTIES
from arflows.molecules.representation import MoleculeSpec, encode
from arflows.molecules.workers import Workers, chunked

MOST_ATOMS = 255  # atoms are counted in a byte


def prepare(
    source: str,
    out: Path,
    test: Path | None = None,
    column: str | None = None,
    values: list[str] | str | None = None,
    salts: Salts = "reject",
    order: Order = "dfs",
    max_atoms: PositiveInt = 100,
    val_fraction: Fraction = 0.05,
    test_fraction: Fraction = 0.1,
    limit: PositiveInt | None = None,
    workers: PositiveInt | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Make a store of molecules that `train`, `score` and `evaluate` read.

    Molecules are kekulised graphs of heavy atoms; stereochemistry is dropped, and counted. Each molecule is kept once,
    by its canonical SMILES; one that is also a test molecule is not trained on. What cannot be used is listed with the
    reason in a file beside the store, and the others are used. logP, QED, TPSA and MW are computed and stored.

    Args:
        source: nci (built in), or a file: SMILES (.smi, .smiles, .txt), a table (.csv, .tsv) or an SD file (.sdf), also
            as .gz.
        out: The store to write, such as zinc250k.h5; beside it zinc250k.rejects.csv.
        test: Another such file with the test molecules; without it test_fraction of the source.
        column: The column of a table that holds SMILES; without it the one whose name contains "smiles".
        values: Columns of a table, or fields of an SD file, with numbers to keep as further properties. A molecule that
            lacks one is kept; a model that is conditional on it is trained without that molecule.
        salts: What to do with molecules of several parts: reject them, or keep the part with the most heavy atoms
            (keep_largest).
        order: In which atoms are generated: breadth first (bfs) or depth first (dfs).
        max_atoms: Leave out molecules of more heavy atoms.
        val_fraction: The part of the source set aside for validation.
        test_fraction: The part of the source set aside for testing, if there is no test file.
        limit: Maximum number of molecules from the source, chosen at random.
        workers: Processes; one for each core if not given.
        seed: Decides which molecules are set aside or chosen.
        overwrite: Replace the store if it exists already.
    """
    refuse_existing(out, overwrite)
    _check(max_atoms, val_fraction, test_fraction if test is None else 0)
    start = time.perf_counter()
    values = [values] if isinstance(values, str) else values or []
    names = [*PROPERTIES, *values]
    if len(set(names)) < len(names):
        raise UserError(f"values is {', '.join(values)}: name each column once, and none {', '.join(PROPERTIES)}.")
    file = open_molecules(source, column, values)
    files = {"training": file} if test is None else {"test": read_molecules(test, column, values), "training": file}
    readings: dict[str, Reading] = {}
    seen: dict[str, str] = {}
    with Workers(workers) as pool:
        for name, each in files.items():  # those for testing first, so that training goes without them
            readings[name] = read(each, pool, order, max_atoms, salts=salts, require_values=False)
            keep(readings[name], _repeated(readings[name].molecules, seen, name))
    splits = _divided(readings, val_fraction, test_fraction, limit, np.random.default_rng(seed))
    spec = MoleculeSpec.measure((m.graph for split in ("train", "val") for m in splits.get(split, [])), order)
    if "test" in splits:
        splits["test"] = _covered(splits["test"], spec, readings.get("test", readings["training"]))
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
            "available": {"train" if name == "training" else name: each.read for name, each in readings.items()},
            "files": counts,
            "options": options | {"test": None if test is None else test.name, "max_atoms": max_atoms, "salts": salts},
        },
    ) as writer:
        for split, molecules in splits.items():
            _write(writer, split, molecules, spec)
    rejects = out.with_suffix(".rejects.csv")
    write_rejects(rejects, readings.values())
    used = [np.array(molecule.values) for molecules in splits.values() for molecule in molecules]
    lacking = (~np.isfinite(np.stack(used))).sum(0)
    missing = {name: int(number) for name, number in zip(names, lacking, strict=True) if number}
    _report(out, rejects, spec, splits, counts, missing, time.perf_counter() - start)


def _check(max_atoms: int, val: float, test: float) -> None:
    if max_atoms > MOST_ATOMS:
        raise UserError(f"max_atoms is {max_atoms}: give a number from 1 to {MOST_ATOMS}.")
    if val + test >= 1:
        raise UserError(f"val_fraction is {val} and test_fraction {test}: give numbers whose sum is less than 1.")


def _repeated(molecules: list[Example], seen: dict[str, str], file: str) -> Iterator[str | None]:
    """Yield for each molecule the reason to reject it as a duplicate, or None; ``seen`` keeps the file of each."""
    for molecule in molecules:
        if (first := seen.get(molecule.smiles)) is None:
            seen[molecule.smiles] = file
            yield None
        else:
            yield "a duplicate" if first == file else f"a duplicate of a {first} molecule"


def _divided(
    readings: dict[str, Reading], val: float, test: float, limit: int | None, generator: np.random.Generator
) -> dict[str, list[Example]]:
    """Set molecules aside for validation and, if they have no file of their own, for testing."""
    source = readings["training"]
    molecules = source.molecules
    shuffled = generator.permutation(len(molecules))[:limit]
    shares = {"val": val} if "test" in readings else {"val": val, "test": test}
    splits: dict[str, list[Example]] = {}
    for split, share in shares.items():
        count = max(1, round(share * min(len(molecules), limit or len(molecules)))) if share else 0
        if count:
            splits[split] = [molecules[at] for at in np.sort(shuffled[:count])]
        shuffled = shuffled[count:]
    if not len(shuffled):
        raise UserError(f"{source.source.name} has only {len(molecules)} molecules that can be used: give more.")
    splits = {"train": [molecules[at] for at in np.sort(shuffled)]} | splits
    return splits | ({"test": readings["test"].molecules} if "test" in readings else {})


def _covered(molecules: list[Example], spec: MoleculeSpec, reading: Reading) -> list[Example]:
    """Leave out test molecules that the settings of the training data do not cover."""
    objections = {molecule.smiles: spec.objection(molecule.graph) for molecule in molecules}
    keep(reading, (objections.get(molecule.smiles) for molecule in reading.molecules))
    covered = [molecule for molecule in molecules if objections[molecule.smiles] is None]
    if not covered:
        raise UserError(f"{reading.source.name}: no test molecule is like those trained on: {reading.summary()}.")
    return covered


def _write(writer: StoreWriter, split: str, molecules: list[Example], spec: MoleculeSpec) -> None:
    most = max(len(molecule.graph.bonds) for molecule in molecules)
    for chunk in chunked(molecules, 10_000):
        atoms, bonds = encode([molecule.graph for molecule in chunk], spec, max_bonds=most)
        properties = np.array([molecule.values for molecule in chunk], np.float32)
        writer.append(split, {"atoms": atoms, "bonds": bonds, "properties": properties})


def _report(
    out: Path,
    rejects: Path,
    spec: MoleculeSpec,
    splits: dict[str, list[Example]],
    counts: dict[str, dict[str, object]],
    missing: dict[str, int],
    seconds: float,
) -> None:
    total = sum(int(count["read"]) for count in counts.values())  # type: ignore[call-overload]
    print(f"{out}: {total:,} molecules read in {seconds:.0f} s")
    print(f"  at most {spec.max_atoms} atoms, {spec.order}, bonds reach back {spec.look_back} atoms at most")
    print(f"  atom types {' '.join(spec.atom_types)}")
    for split, molecules in splits.items():
        print(f"  {split:<5} {len(molecules):>9,} molecules")
    for name, count in counts.items():
        print(
            f"  {name} file: {count['read']:,} read, stereochemistry dropped from {count['stereochemistry dropped']:,}"
        )
        for reason, number in count["rejected"].items():  # type: ignore[attr-defined]
            print(f"        {number:>9,} rejected: {reason}")
    for name, number in missing.items():
        print(f"  {number:,} molecules have no number {name}")
    print(f"  every rejected molecule with its reason: {rejects}")
