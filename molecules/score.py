"""Give molecules their exact log-probability under a trained flow, and rank them: ``arflows molecules score``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from arflows.core.likelihood import Batch, Estimate, Reference, log_probs, write_scores
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.noise import seed_of
from arflows.core.runtime.option_types import NonNegativeInt, PositiveInt
from arflows.core.runtime.pretrained import load_model, model_folder
from arflows.core.runtime.processes import distributed_map
from arflows.data.molecule_files import MoleculeFile
from arflows.molecules.decisions import pack
from arflows.molecules.inputs import Example, Reading, keep, open_molecules, read, write_rejects
from arflows.molecules.model import GraphFlow, MoleculeFlow
from arflows.molecules.properties import PROPERTIES
from arflows.molecules.representation import MoleculeSpec, encode
from arflows.molecules.workers import Workers

MOST_ATOMS = 255
LISTED = 5


def score(
    model: str,
    molecules: str,
    out: Path,
    column: str | None = None,
    values: list[str] | None = None,
    orders: NonNegativeInt = 0,
    seed: int = 0,
    batch_size: PositiveInt = 256,
    workers: PositiveInt | None = None,
    device: str = "auto",
) -> None:
    """Score molecules by a trained flow and write a CSV file, the likeliest first.

    Columns: rank, line, smiles (canonical, without stereochemistry), log_prob (nats; the exact log-probability of the
    molecule's graph in the canonical order in which the model was trained), with --orders also log_prob_all_orders (an
    estimate of the log-probability in any order) and its standard_error, percentile (the share in percent of training
    molecules that are likelier; near 100: unlike the training data) and typicality (distance of -log_prob from its mean
    over training molecules).

    What the model cannot represent is listed with the reason in a file beside it, scores.rejects.csv.

    Args:
        model: Folder of a model or of a training run, or a model's name on the Hugging Face Hub.
        molecules: A file: SMILES (.smi, .smiles, .txt), a table (.csv, .tsv) or an SD file (.sdf), also as .gz; or nci.
        out: The CSV file to write; replaced if it exists.
        column: The column of a table that holds SMILES; without it the one whose name contains "smiles".
        values: Columns or fields with numbers that the model is conditional on, beside logP, QED, TPSA and MW.
        orders: Random orders of each molecule by which to estimate its probability over all orders; 0 for none.
        seed: Seed of the orders.
        batch_size: Molecules computed at a time.
        workers: Processes that read molecules; one for each core if not given.
        device: Where to compute: cpu, cuda, …; auto takes a GPU if there is one.
    """
    if orders == 1:
        raise UserError(f"orders is {orders}: give 2 or more for an estimate with its standard error, or 0.")
    flow = load_model(GraphFlow, model, device)
    if orders and not isinstance(flow, MoleculeFlow):
        raise UserError(f"{type(flow).__name__} has no probabilities to sum over orders: leave --orders out.")
    reference = Reference.load(Path(model_folder(model)) / "training.json")
    source = open_molecules(molecules, column, values or [])
    given = covered(source, flow.spec, workers, properties=bool(flow.properties))
    names = [*PROPERTIES, *(values or [])]
    if missing := [name for name in flow.properties if name not in names]:
        raise UserError(f"the model is conditional on {', '.join(missing)}: name such columns of numbers by --values.")
    wanted = [names.index(name) for name in flow.properties]
    log_prob = log_probs(flow, batches(given.molecules, flow.spec, batch_size, wanted, progress="scoring"))
    ranked = np.argsort(-log_prob.numpy(), kind="stable")
    columns: dict[str, Sequence[str]] = {
        "rank": [str(rank + 1) for rank in range(len(ranked))],
        "line": [str(given.molecules[at].number) for at in ranked],
        "smiles": [given.molecules[at].smiles for at in ranked],
        "log_prob": [f"{log_prob[at]:.6f}" for at in ranked],
    }
    if orders:
        assert isinstance(flow, MoleculeFlow)
        estimates, errors = marginals(flow, given.molecules, wanted, orders, seed)
        columns["log_prob_all_orders"] = [f"{estimates[at]:.6f}" for at in ranked]
        columns["standard_error"] = [f"{errors[at]:.6f}" for at in ranked]
    write_scores(out, columns, -log_prob.numpy()[ranked], reference)
    rejects = out.with_suffix(".rejects.csv")
    write_rejects(rejects, [given])
    print(f"{out}: {Estimate.of(log_prob, None, flow.likelihood)}")
    best = list(zip(columns["smiles"], columns["log_prob"], strict=True))[:LISTED]
    print("likeliest: " + ", ".join(f"{smiles} ({value})" for smiles, value in best))
    if given.rejects:
        print(f"{len(given.rejects):,} of {given.read:,} not scored, see {rejects}: {given.summary()}")


def covered(source: MoleculeFile, spec: MoleculeSpec, workers: int | None, properties: bool) -> Reading:
    """Read the molecules of a file that a model can represent.

    Args:
        source: The file.
        spec: The model's settings.
        workers: Processes; None for one for each core.
        properties: Whether to compute properties.

    Raises:
        UserError: It can represent none.
    """
    with Workers(workers) as pool:
        reading = read(source, pool, spec.order, MOST_ATOMS, properties)
    keep(reading, (spec.objection(molecule.graph) for molecule in reading.molecules))
    return reading


def marginals(
    flow: MoleculeFlow, molecules: Sequence[Example], properties: Sequence[int], orders: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Estimate log-probabilities over all orders, a molecule at a time: the estimates in nats, and standard errors.

    Args:
        flow: The model.
        molecules: The molecules.
        properties: Which of their values the model is conditional on.
        orders: Random orders of each.
        seed: Seed of the orders.
    """

    def estimate(at: int, molecule: Example) -> list[float]:
        context = torch.tensor([[molecule.values[each] for each in properties]]) if properties else None
        estimates, errors = flow.order_marginal([molecule.graph], orders, seed_of(seed, "orders", at), context)
        return [float(estimates), float(errors)]

    found = distributed_map(tqdm(molecules, "orders", unit=" molecules", disable=None), estimate)
    estimates, errors = np.array(list(found)).T
    return estimates, errors


def batches(
    molecules: Sequence[Example], spec: MoleculeSpec, batch_size: int, properties: Sequence[int], progress: str
) -> Iterator[Batch]:
    """Yield molecules as a flow takes them.

    Args:
        molecules: The molecules.
        spec: The model's settings.
        batch_size: Molecules in a batch.
        properties: Which of their values the model is conditional on.
        progress: What the progress bar says.
    """
    with tqdm(total=len(molecules), desc=progress, unit=" molecules", disable=None) as bar:
        for start in range(0, len(molecules), batch_size):
            chosen = molecules[start : start + batch_size]
            atoms, bonds = encode([molecule.graph for molecule in chosen], spec)
            batch = {"x": pack(torch.from_numpy(atoms), torch.from_numpy(bonds))}
            if properties:
                values = [[molecule.values[at] for at in properties] for molecule in chosen]
                batch["context"] = torch.tensor(values, dtype=torch.float32)
            yield batch
            bar.update(len(chosen))
