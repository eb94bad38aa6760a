"""Measure a trained flow over molecules: ``arflows molecules evaluate``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from arflows.core.commands.evaluation import provenance, write_result
from arflows.core.likelihood import Batch, Estimate, log_probs
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.option_types import PositiveInt
from arflows.core.runtime.pretrained import load_model
from arflows.data.molecule_files import Entry, MoleculeFile
from arflows.data.store import Store
from arflows.molecules.chemistry import smiles_of_all
from arflows.molecules.datamodule import MoleculeDataModule
from arflows.molecules.inputs import open_molecules
from arflows.molecules.metrics import chemnet, compare, describe, distance, quality, share
from arflows.molecules.model import GraphFlow
from arflows.molecules.postprocess import validities
from arflows.molecules.properties import PROPERTIES
from arflows.molecules.representation import MoleculeSpec, decode
from arflows.molecules.score import batches, covered
from arflows.molecules.workers import Workers

ROUND_TRIP_MOLECULES = 256
NAMES = {
    "SNN": "SNN",
    "fragment similarity": "fragment_similarity",
    "scaffold similarity": "scaffold_similarity",
    "IntDiv": "IntDiv",
    "IntDiv2 (the paper's equation)": "IntDiv2",
    "IntDiv2 (MOSES' program)": "IntDiv2_program",
}
"""Rows of the table, and their keys in the result."""


def evaluate(
    model: str,
    store: Path,
    out: Path,
    split: str = "test",
    tests: list[str] | None = None,
    samples: PositiveInt = 10_000,
    fcd: bool = True,
    seed: int = 0,
    batch_size: PositiveInt = 1024,
    workers: PositiveInt | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure a trained flow on test molecules: exact likelihood, three validities, and the metrics of MOSES.

    The test molecules are a split of the store, or those of one or several files or stores, such as MOSES' Test and
    TestSF; of several, the first one gives all metrics, and the others are added to the table by their names.

    Validity is given raw (samples of the model as it is, without masks), masked (decisions that break valences are
    excluded while sampling; all other metrics are of these samples), and after post-processing (raw samples,
    bonds beyond a valence removed and the largest part kept), each with the counts behind it.

    From a conditional model each sample is drawn for the properties of a random test molecule, and the distance of its
    properties from these is measured.

    Writes a JSON file with the figures and everything that is needed to repeat them: options, model, data, software,
    hardware. A model trained by `arflows molecules train` holds the moving average of its weights, which is measured.

    Args:
        model: Folder of a model or of a training run, or a model's name on the Hugging Face Hub.
        store: The store that holds the split, and the training molecules for novelty.
        out: JSON file to write; replaced if it exists.
        split: Part of a store that holds the test molecules.
        tests: Files or stores of test molecules, several at once, to take instead of the store's split.
        samples: Molecules to draw, with masks and without; published figures mostly take 10,000.
        fcd: Compute the Fréchet ChemNet distance to the test molecules. Needs `pip install fcd`.
        seed: Seed of the samples.
        batch_size: Molecules computed at a time when scoring.
        workers: Processes that work with RDKit; by default one for each core.
        device: Device: cpu, cuda, …; auto uses a GPU if available.

    Returns:
        The content of the JSON file.
    """
    options = {
        "model": model,
        "store": str(store),
        "split": split,
        "tests": tests,
        "samples": samples,
        "fcd": fcd,
        "seed": seed,
        "batch_size": batch_size,
    }
    start = time.perf_counter()
    flow = load_model(GraphFlow, model, device)
    data = MoleculeDataModule(store, eval_batch_size=batch_size)
    if differences := flow.spec.differences(data.spec):
        raise UserError(f"{store} does not fit the model, model ≠ store: {', '.join(differences)}; give its own store.")
    if fcd:
        chemnet()  # fails early, before minutes of work
    data.properties = flow.properties
    with Workers(workers) as pool:
        if tests is None:
            sets = [stored(data, split, pool)]
        else:
            sets = [opened(path, flow, split, batch_size, pool) for path in tests]
        figures = [Estimate.of(log_probs(flow, each.batches), None, flow.likelihood) for each in sets]
        first = sets[0]
        wanted = asked_of(first, samples, seed) if flow.properties else None
        began = time.perf_counter()
        masked = flow.sample(samples, wanted, seed=seed, workers=pool)
        seconds = time.perf_counter() - began
        raw = flow.sample(samples, wanted, seed=seed, masks=False, workers=pool)
        at = [index for index, each in enumerate(masked) if each.smiles is not None]
        valid = [smiles for each in masked if (smiles := each.smiles) is not None]
        asked = {} if wanted is None else dict(zip(flow.properties, wanted[at].T.numpy(), strict=True))
        training = set(stored_smiles(data.store, "train", pool))
        measured = {
            "validity": validities([each.graph for each in raw], [each.graph for each in masked], pool),
            **quality(valid, training, first.smiles, pool, fcd, asked),
        }
        generated = describe(valid, pool)
        further = {
            each.name: {
                "nats_per_molecule": figure.as_dict(),
                "left_out": each.left_out,
                **({"FCD": distance(valid, each.smiles)} if fcd else {}),
                **compare(generated, describe(each.smiles, pool)),
            }
            for each, figure in zip(sets[1:], figures[1:], strict=True)
        }
    result: dict[str, Any] = {
        "nats_per_molecule": figures[0].as_dict(),
        "test_molecules": first.name,
        "left_out": first.left_out,
        **({"round_trip": round_trip(flow, first.batches[0])} if flow.has_latents else {}),
        **measured,
        **({"further": further} if further else {}),
        "samples_per_second": {"value": samples / seconds, "samples": samples, "what": "valid SMILES, with masks"},
        **provenance(flow, model, options, data.store.facts()),
        "seconds": round(time.perf_counter() - start, 1),
    }
    rows = _rows(result, figures[0])
    for each, figure in zip(sets[1:], figures[1:], strict=True):
        rows |= {f"{name}, {each.name}": value for name, value in _comparison(further[each.name], figure).items()}
    write_result(out, result, rows)
    return result


def round_trip(flow: GraphFlow, batch: Batch) -> dict[str, Any]:
    """Return the share of molecules that their latents give back unchanged.

    Args:
        flow: The model.
        batch: Molecules; at most `ROUND_TRIP_MOLECULES` are used.
    """
    x = batch["x"][:ROUND_TRIP_MOLECULES].to(flow.device)
    context = batch["context"][:ROUND_TRIP_MOLECULES].to(flow.device) if "context" in batch else None
    same = int((flow.round_trip_error(x, context) == 0).sum())
    return share(same, len(x), "molecules that their latents give back")


class HeldOut(NamedTuple):
    """Molecules that a model is measured on.

    Attributes:
        name: The split, or the name of the file.
        smiles: Their canonical SMILES.
        batches: The same molecules as a flow takes them.
        left_out: Number of molecules of a file for each reason why the model cannot score them.
    """

    name: str
    smiles: list[str]
    batches: Sequence[Batch]
    left_out: dict[str, int]


def stored(data: MoleculeDataModule, split: str, workers: Workers) -> HeldOut:
    """Return the molecules of a split of a store, whose settings are those of the model.

    Args:
        data: The store, opened with the properties of the model.
        split: The split.
        workers: The processes that write SMILES.
    """
    return HeldOut(split, stored_smiles(data.store, split, workers), list(data.loader(split)), {})


def opened(path: str, flow: GraphFlow, split: str, batch_size: int, workers: Workers) -> HeldOut:
    """Return the molecules of a file, or of a split of a store, that a flow can score.

    Args:
        path: The file or store.
        flow: The model, which decides the form of the molecules.
        split: The split of a store.
        batch_size: Molecules in a batch.
        workers: The processes that read them.

    Raises:
        UserError: There are none, or the flow needs properties that neither RDKit nor the store knows.
    """
    if h5py.is_hdf5(path):
        data = MoleculeDataModule(Path(path), eval_batch_size=batch_size)
        if not flow.spec.differences(data.spec):
            data.properties = flow.properties
            return stored(data, split, workers)._replace(name=Path(path).name)
        source = listed(path, stored_smiles(data.store, split, workers))
    else:
        source = open_molecules(path)
    if unknown := [name for name in flow.properties if name not in PROPERTIES]:
        raise UserError(
            f"{path} has no property {unknown[0]}, which the model is conditional on: give a store with it."
        )
    reading = covered(source, flow, workers, properties=bool(flow.properties))
    wanted = [[*PROPERTIES].index(name) for name in flow.properties]
    return HeldOut(
        Path(path).name,
        [molecule.smiles for molecule in reading.molecules],
        list(batches(reading.molecules, flow.spec, batch_size, wanted, progress="packing")),
        reading.reasons(),
    )


def listed(name: str, smiles: Sequence[str]) -> MoleculeFile:
    """Return a list of SMILES as a file of molecules."""
    return MoleculeFile(name, "smiles", lambda: (Entry(at, each) for at, each in enumerate(smiles, start=1)))


def asked_of(molecules: HeldOut, count: int, seed: int) -> Float[Tensor, "count properties"]:
    """Return the properties of random test molecules, repeated if there are too few, for a conditional model to meet.

    Args:
        molecules: The test molecules.
        count: Number of rows.
        seed: Seed of the choice.
    """
    known = torch.cat([batch["context"] for batch in molecules.batches])
    return known[np.resize(np.random.default_rng(seed).permutation(len(known)), count)]


def stored_smiles(store: Store, split: str, workers: Workers) -> list[str]:
    """Return the canonical SMILES of the molecules of a store.

    Args:
        store: The store.
        split: The split.
        workers: The processes that write SMILES.
    """
    graphs = decode(store.array(split, "atoms"), store.array(split, "bonds"), MoleculeSpec.from_dict(store.spec))
    return [smiles for smiles in smiles_of_all(graphs, workers) if smiles is not None]


def _share(value: dict[str, Any]) -> str:
    percent = "" if value["value"] is None else f"{100 * value['value']:.2f} %, "
    return f"{percent}{value['count']:,} of {value['of']:,} {value['what']}"


def _comparison(result: dict[str, Any], figure: Estimate) -> dict[str, str]:
    """Return the rows of the table that hold samples against one set of test molecules."""
    rows = {"a molecule": str(figure)}
    if left_out := sum(result["left_out"].values()):
        rows["left out"] = f"{left_out:,} molecules that the model cannot score"
    if "FCD" in result:
        rows["FCD"] = "{value:.2f}, {generated:,} samples, {reference:,} reference molecules".format(**result["FCD"])
    numbers = {name: result[key] for name, key in NAMES.items()}
    rows |= {name: "none to compare" if value is None else f"{value:.4f}" for name, value in numbers.items()}
    reference = 100 * result["reference_filters"]["value"]
    rows["filters (PAINS and BRENK, not MOSES' MCF)"] = (
        f"{_share(result['filters'])} ({reference:.2f} % of the reference)"
    )
    return rows


def _rows(result: dict[str, Any], figure: Estimate) -> dict[str, str]:
    """Return the rows of the table."""
    rows = {"a molecule": str(figure)}
    if "round_trip" in result:
        rows["round trip"] = _share(result["round_trip"])
    rows |= {f"valid, {name}": _share(value) for name, value in result["validity"].items()}
    rows |= {name: _share(result[name]) for name in ("unique@1k", "unique@10k", "unique", "novel") if name in result}
    rows |= {name: value for name, value in _comparison(result, figure).items() if name != "a molecule"}
    for name, value in result.get("control", {}).items():
        told_error = "off by {mean_absolute_error:.3f} on average ({shuffled:.3f} asked in another order)"
        correlation = "none" if value["correlation"] is None else f"{value['correlation']:.3f}"
        rows[f"{name} as asked"] = f"{told_error.format(**value)}, correlation {correlation}"
    for name, value in result["distributions"].items():
        means = f"means {value['generated_mean']:.3f} and {value['reference_mean']:.3f}"
        rows[name] = f"Wasserstein-1 {value['wasserstein']:.4f}, {means}"
    rows["samples"] = f"{result['samples_per_second']['value']:,.0f} a second"
    return rows
