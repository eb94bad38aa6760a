"""Metrics of generated molecules, by the definitions of MOSES.

Polykovskiy et al., "Molecular Sets (MOSES): a benchmarking platform for molecular generation models", 2020
(arXiv:1811.12823), section 4, implemented on RDKit. Two metrics differ: MOSES filters by PAINS and by a list of
medicinal-chemistry alerts (MCF) that RDKit lacks, while the filters here are RDKit's catalogues PAINS and BRENK; and
MOSES' program computes IntDiv2 by another equation than its paper, so that both are given. Every share comes with the
set that it is a share of.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from rdkit import Chem, DataStructs, RDConfig
from rdkit.Chem import rdFingerprintGenerator, rdmolops
from rdkit.Chem.FilterCatalog import FilterCatalog, FilterCatalogParams
from rdkit.Chem.Scaffolds import MurckoScaffold
from rdkit.rdBase import BlockLogs
from scipy.stats import wasserstein_distance

from arflows.core.runtime.errors import UserError
from arflows.core.runtime.processes import distributed_map
from arflows.molecules.properties import PROPERTIES, properties_of
from arflows.molecules.workers import Workers, chunked

UNIQUE_AT = {"unique@1k": 1_000, "unique@10k": 10_000}
MEASURES = (*PROPERTIES, "SA", "atoms", "rings")
"""Measures whose distributions are compared: `PROPERTIES`, synthetic accessibility (Ertl and Schuffenhauer 2009), heavy
atoms and rings (the smallest set of smallest rings)."""

FILTER_ELEMENTS = {"C", "N", "S", "O", "F", "Cl", "Br"}
LARGEST_RING = 7


class Description(NamedTuple):
    """Description of a molecule for the metrics.

    Attributes:
        measures: The values of `MEASURES`.
        fingerprint: Morgan, radius 2, 1024 bits.
        fragments: SMILES of the parts into which BRICS' rules cut it.
        scaffold: SMILES of its Murcko scaffold; None with fewer than two rings.
        passes: True if it passes the filters.
    """

    measures: tuple[float, ...]
    fingerprint: DataStructs.ExplicitBitVect
    fragments: tuple[str, ...]
    scaffold: str | None
    passes: bool


def describe(smiles: Iterable[str], workers: Workers) -> list[Description]:
    """Describe molecules, several at a time.

    Args:
        smiles: SMILES that RDKit can read.
        workers: The processes that do it.
    """
    return [each for chunk in workers.map(_describe, chunked(smiles)) for each in chunk]


def _describe(smiles: Sequence[str]) -> list[Description]:
    with BlockLogs():
        return [describe_one(Chem.MolFromSmiles(each)) for each in smiles]


def describe_one(molecule: Chem.Mol) -> Description:
    """Describe one sanitised molecule."""
    rings = molecule.GetRingInfo().NumRings()
    measures = (*properties_of(molecule), synthetic_accessibility(molecule), molecule.GetNumHeavyAtoms(), rings)
    fragments = Chem.MolToSmiles(rdmolops.FragmentOnBRICSBonds(molecule)).split(".")  # dummies say which bond was cut
    return Description(
        measures, _fingerprints().GetFingerprint(molecule), tuple(fragments), scaffold_of(molecule), passes(molecule)
    )


def scaffold_of(molecule: Chem.Mol) -> str | None:
    """Return the SMILES of a molecule's rings and what links them; None with fewer than two rings, as MOSES has it."""
    scaffold = MurckoScaffold.GetScaffoldForMol(molecule)
    if scaffold.GetRingInfo().NumRings() < 2:
        return None
    return Chem.MolToSmiles(scaffold, isomericSmiles=False)


def passes(molecule: Chem.Mol) -> bool:
    """Return True if a molecule has common elements, no charge, no large ring and no alert of PAINS or BRENK."""
    if any(atom.GetSymbol() not in FILTER_ELEMENTS or atom.GetFormalCharge() for atom in molecule.GetAtoms()):
        return False
    if any(len(ring) > LARGEST_RING for ring in molecule.GetRingInfo().AtomRings()):
        return False
    return not _alerts().HasMatch(molecule)


def synthetic_accessibility(molecule: Chem.Mol) -> float:
    """Estimate how hard a molecule is to make, from 1 (easy) to 10, by the program that comes with RDKit."""
    return _sa_score().calculateScore(molecule)


@functools.cache
def _fingerprints() -> Any:
    return rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=1024)


@functools.cache
def _alerts() -> FilterCatalog:
    params = FilterCatalogParams()
    params.AddCatalog(FilterCatalogParams.FilterCatalogs.PAINS)
    params.AddCatalog(FilterCatalogParams.FilterCatalogs.BRENK)
    return FilterCatalog(params)


@functools.cache
def _sa_score() -> ModuleType:
    """RDKit's contributed module, which is installed with it outside of any package."""
    path = Path(RDConfig.RDContribDir) / "SA_Score" / "sascorer.py"
    spec = importlib.util.spec_from_file_location("sascorer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ------------------------------------------------------------------------------------------------------------- shares


def share(count: int, of: int, what: str) -> dict[str, Any]:
    """Share and the counts behind it, for JSON; its value is None for a total of 0.

    Args:
        count: Number of those counted.
        of: Number of all.
        what: Description of all, for reports.
    """
    return {"value": count / of if of else None, "count": count, "of": of, "what": what}


def uniqueness(valid: Sequence[str]) -> dict[str, Any]:
    """The share of different molecules among the first 1,000, the first 10,000, and all valid samples.

    Args:
        valid: Canonical SMILES of the valid samples in the order in which they were drawn.
    """
    first = {name: k for name, k in UNIQUE_AT.items() if len(valid) >= k} | {"unique": len(valid)}
    return {
        name: share(len(set(valid[:k])), k, "different ones of the first valid samples") for name, k in first.items()
    }


def novelty(valid: Iterable[str], training: set[str]) -> dict[str, Any]:
    """The share of different valid samples that are not in the training data.

    Args:
        valid: Canonical SMILES of the valid samples.
        training: Canonical SMILES of the training data, by the same rules.
    """
    different = set(valid)
    return share(len(different - training), len(different), "different valid samples that are no training molecule")


# ------------------------------------------------------------------------------------------------ two sets of molecules


def quality(
    generated: Sequence[str],
    training: set[str],
    reference: Sequence[str],
    workers: Workers,
    fcd: bool,
    wanted: Mapping[str, Float[np.ndarray, " generated"]],
) -> dict[str, Any]:
    """Measure valid samples by all metrics.

    Args:
        generated: Their canonical SMILES, in the order in which they were drawn.
        training: Canonical SMILES of the training data.
        reference: Canonical SMILES of test molecules.
        workers: The processes that do it.
        fcd: Compute the Fréchet ChemNet distance, which takes minutes.
        wanted: Wanted properties of each sample, by name; empty for an unconditional model.
    """
    found = uniqueness(generated) | {"novel": novelty(generated, training)}
    if fcd:
        found["FCD"] = distance(generated, reference)
    descriptions = describe(generated, workers)
    if wanted:
        found["control"] = control(descriptions, wanted)
    return found | compare(descriptions, describe(reference, workers))


def control(
    generated: Sequence[Description], wanted: Mapping[str, Float[np.ndarray, " generated"]]
) -> dict[str, dict[str, Any]]:
    """Compare the properties of samples with the wanted ones.

    Args:
        generated: The samples.
        wanted: Wanted properties of each, by name; those that are not in `MEASURES` are left out.

    Returns:
        For each property the mean absolute error, the error after shuffling the wanted values (``shuffled``: that of a
        model that ignores them), and the correlation; None where all are the same.
    """
    found = {}
    for name in (name for name in wanted if name in MEASURES):
        asked = np.asarray(wanted[name], np.float64)
        had = np.array([each.measures[MEASURES.index(name)] for each in generated])
        found[name] = {
            "mean_absolute_error": float(np.abs(had - asked).mean()),
            "shuffled": float(np.abs(had - np.random.default_rng(0).permutation(asked)).mean()),
            "correlation": float(np.corrcoef(had, asked)[0, 1]) if had.std() and asked.std() else None,
            "molecules": len(generated),
        }
    return found


def compare(generated: Sequence[Description], reference: Sequence[Description]) -> dict[str, Any]:
    """Compare generated molecules with reference ones.

    Returns:
        ``SNN``, ``fragment_similarity``, ``scaffold_similarity`` (1 is best), ``IntDiv`` of both sets, ``IntDiv2`` by
        the equation of MOSES' paper and, as ``IntDiv2_program``, by its program, the share that passes the filters, and
        for each of `MEASURES` its means and the Wasserstein-1 distance between its distributions.
    """
    mine, theirs = ([each.fingerprint for each in group] for group in (generated, reference))
    values, others = (np.array([each.measures for each in group]) for group in (generated, reference))
    return {
        "SNN": nearest_similarity(mine, theirs),
        "fragment_similarity": cosine(_count_fragments(generated), _count_fragments(reference)),
        "scaffold_similarity": cosine(_count_scaffolds(generated), _count_scaffolds(reference)),
        "IntDiv": internal_diversity(mine, 1),
        "IntDiv2": internal_diversity(mine, 2),
        "IntDiv2_program": internal_diversity(mine, 2, program=True),
        "reference_IntDiv": internal_diversity(theirs, 1),
        "filters": share(
            sum(each.passes for each in generated), len(generated), "valid samples without alerts of PAINS and BRENK"
        ),
        "reference_filters": share(sum(each.passes for each in reference), len(reference), "reference molecules"),
        "distributions": {
            name: {
                "wasserstein": float(wasserstein_distance(values[:, at], others[:, at])),
                "generated_mean": float(values[:, at].mean()),
                "reference_mean": float(others[:, at].mean()),
            }
            for at, name in enumerate(MEASURES)
        },
        "generated": len(generated),
        "reference": len(reference),
    }


def nearest_similarity(
    generated: Sequence[DataStructs.ExplicitBitVect], reference: Sequence[DataStructs.ExplicitBitVect]
) -> float:
    """SNN: the mean over generated molecules of the Tanimoto similarity to the nearest reference molecule."""
    reference = list(reference)
    return float(np.mean([max(DataStructs.BulkTanimotoSimilarity(each, reference)) for each in generated]))


def internal_diversity(fingerprints: Sequence[DataStructs.ExplicitBitVect], p: int, program: bool = False) -> float:
    """IntDiv_p: 1 minus the p-th power mean of the similarity of all pairs, each molecule with itself included.

    Args:
        fingerprints: The molecules.
        p: The power.
        program: Take the p-th root before the mean over molecules, as MOSES' program does; False for the equation of
            its paper, which takes it last. Both are the same for p = 1.
    """
    fingerprints = list(fingerprints)
    means = np.array(
        [np.mean(np.power(DataStructs.BulkTanimotoSimilarity(each, fingerprints), p)) for each in fingerprints]
    )
    return float(1 - (np.mean(means ** (1 / p)) if program else np.mean(means) ** (1 / p)))


def _count_fragments(descriptions: Iterable[Description]) -> Counter[str]:
    return Counter(fragment for each in descriptions for fragment in each.fragments)


def _count_scaffolds(descriptions: Iterable[Description]) -> Counter[str]:
    return Counter(each.scaffold for each in descriptions if each.scaffold is not None)


def cosine(first: Mapping[str, int], second: Mapping[str, int]) -> float | None:
    """The cosine of the angle between two vectors of counts; None if one of them is empty."""
    product = sum(count * second.get(name, 0) for name, count in first.items())
    length = math.prod(math.sqrt(sum(count**2 for count in counts.values())) for counts in (first, second))
    return product / length if length else None


def distance(generated: Sequence[str], reference: Sequence[str]) -> dict[str, Any]:
    """Return the Fréchet ChemNet distance with the numbers of molecules, for JSON."""
    value = frechet_chemnet_distance(generated, reference)
    return {"value": value, "generated": len(generated), "reference": len(reference)}


def frechet_chemnet_distance(generated: Sequence[str], reference: Sequence[str]) -> float:
    """FCD: the Fréchet distance between the ChemNet features of two sets of molecules as normal distributions.

    Preuer et al., "Fréchet ChemNet distance", 2018 (arXiv:1803.09518). It falls with the number of molecules, so that
    only figures of equal numbers compare.

    Raises:
        UserError: The package fcd is not installed.
    """
    fcd = chemnet()

    def measure(*_: object) -> float:
        with BlockLogs():
            return float(fcd.get_fcd(list(generated), list(reference), device="cpu"))

    return next(distributed_map([None], measure))  # one of several processes does it for all


def chemnet() -> ModuleType:
    """Return the package fcd, which contains ChemNet and its weights.

    Raises:
        UserError: It is not installed.
    """
    try:
        return importlib.import_module("fcd")  # of the extra [metrics]
    except ModuleNotFoundError as error:
        raise UserError("FCD needs the package fcd: install it by `pip install fcd`.") from error
