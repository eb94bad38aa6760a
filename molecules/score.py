"""Exact log-probabilities of molecules under a trained flow: ``arflows molecules score``."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from arflows.core.commands.scores import write_scores
from arflows.core.likelihood import Batch, Estimate, Reference, log_probs
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.noise import seed_of
from arflows.core.runtime.option_types import NonNegativeInt, PositiveInt
from arflows.core.runtime.pretrained import load_model
from arflows.core.runtime.processes import distributed_map
from arflows.data.molecule_files import MoleculeFile
from arflows.molecules.decisions import packed
from arflows.molecules.graph import random_orders
from arflows.molecules.inputs import Example, Reading, keep, open_molecules, read, write_rejects
from arflows.molecules.marginal import OrderEstimate
from arflows.molecules.model import GraphFlow, MoleculeFlow
from arflows.molecules.properties import PROPERTIES
from arflows.molecules.representation import MoleculeSpec
from arflows.molecules.workers import Workers

MOST_ATOMS = 255
LISTED = 5
TRIED = 64
"""Orders of a molecule that are tried if a model has no decisions for the canonical one."""


def score(
    model: str,
    molecules: str,
    out: Path,
    column: str | None = None,
    values: list[str] | None = None,
    orders: NonNegativeInt = 0,
    ranked: bool = False,
    seed: int = 0,
    batch_size: PositiveInt = 256,
    workers: PositiveInt | None = None,
    device: str = "auto",
) -> None:
    """Score molecules by a trained flow and write a CSV file, in the order of the input.

    Columns: line, smiles_given (as in the input), the input's other columns or fields (of a file of SMILES what follows
    them, as name), smiles (canonical, without stereochemistry), log_prob (nats; the exact log-probability of the
    molecule's graph in its order), order (canonical, the order in which the model was trained; or other, where the
    model has no decisions for the canonical one), rank (1 is the likeliest), with --orders also log_prob_all_orders (an
    estimate of the log-probability in any order), its standard_error (empty where the samples do not support one) and
    effective_orders (the effective sample size of the estimate), percentile (the share in percent of
    training molecules that are likelier; near 100: unlike the training data) and typicality (distance of -log_prob from
    its mean over training molecules). An input column of one of these names is written as NAME_given.

    Molecules that the model cannot represent are listed with the reason in a file beside it, scores.rejects.csv.

    Args:
        model: Folder of a model or of a training run, or a model's name on the Hugging Face Hub.
        molecules: A file: SMILES (.smi, .smiles, .txt), a table (.csv, .tsv) or an SD file (.sdf), also as .gz; or nci.
        out: CSV file to write; replaced if it exists.
        column: The column of a table that holds SMILES; by default the one whose name contains "smiles".
        values: Columns or fields with numbers that the model is conditional on, beside logP, QED, TPSA and MW.
        orders: Number of orders of each molecule by which to estimate its probability over all orders; 0 for none.
        ranked: Write the likeliest molecule first, instead of the order of the input.
        seed: Seed of the orders.
        batch_size: Molecules computed at a time.
        workers: Processes that read molecules; by default one for each core.
        device: Device: cpu, cuda, …; auto uses a GPU if available.
    """
    if orders == 1:
        raise UserError(f"orders is {orders}: give 2 or more for an estimate with its standard error, or 0.")
    flow = load_model(GraphFlow, model, device)
    if orders and not isinstance(flow, MoleculeFlow):
        raise UserError(f"{type(flow).__name__} has no probabilities to sum over orders: leave out --orders.")
    reference = Reference.load(model)
    source = open_molecules(molecules, column, values or [])
    with Workers(workers) as pool:
        given = covered(source, flow, pool, properties=bool(flow.properties))
    names = [*PROPERTIES, *(values or [])]
    if missing := [name for name in flow.properties if name not in names]:
        raise UserError(f"the model is conditional on {', '.join(missing)}: name such columns of numbers by --values.")
    wanted = [names.index(name) for name in flow.properties]
    log_prob = log_probs(flow, batches(given.molecules, flow.spec, batch_size, wanted, progress="scoring")).numpy()
    likeliest = np.argsort(-log_prob, kind="stable")
    rank = np.empty(len(likeliest), int)
    rank[likeliest] = np.arange(1, len(likeliest) + 1)
    rows = likeliest if ranked else np.arange(len(likeliest))
    others = [not molecule.canonical for molecule in given.molecules]
    columns: dict[str, Sequence[str]] = {
        "smiles": [molecule.smiles for molecule in given.molecules],
        "log_prob": [f"{value:.6f}" for value in log_prob],
        "order": ["other" if other else "canonical" for other in others],
        "rank": [str(value) for value in rank],
    }
    if orders:
        assert isinstance(flow, MoleculeFlow)
        found = marginals(flow, given.molecules, wanted, orders, seed)
        columns["log_prob_all_orders"] = [f"{each.log_prob:.6f}" for each in found]
        columns["standard_error"] = [
            "" if not math.isfinite(each.standard_error) else f"{each.standard_error:.6f}" for each in found
        ]
        columns["effective_orders"] = [f"{each.effective_sample_size:.1f}" for each in found]
    columns = input_columns(given.molecules, {*columns, "percentile", "typicality"}) | columns
    chosen = {name: [cells[row] for row in rows] for name, cells in columns.items()}
    write_scores(out, chosen, -log_prob[rows], reference)
    rejects = out.with_suffix(".rejects.csv")
    write_rejects(rejects, [given])
    print(f"{out}: {Estimate.of(torch.from_numpy(log_prob), None, flow.likelihood)}")
    print(
        "likeliest: " + ", ".join(f"{columns['smiles'][at]} ({columns['log_prob'][at]})" for at in likeliest[:LISTED])
    )
    if any(others):
        print(
            f"{sum(others):,} of {len(others):,} scored in another order, since the model has no decisions for their "
            "canonical one"
        )
    if given.rejects:
        print(f"{len(given.rejects):,} of {given.read:,} not scored, see {rejects}: {given.summary()}")


def input_columns(molecules: Sequence[Example], taken: Collection[str]) -> dict[str, list[str]]:
    """Return the input as columns: line, smiles_given and all other columns of the file.

    Args:
        molecules: Molecules with their entries.
        taken: Names of columns that will follow; a column of the file with such a name gets the suffix ``_given``.
    """
    entries = [molecule.entry for molecule in molecules if molecule.entry is not None]
    columns = {
        "line": [str(entry.number) for entry in entries],
        "smiles_given": [entry.text if "\n" not in entry.text else "" for entry in entries],
    }
    for name in dict.fromkeys(name for entry in entries for name in entry.given):
        free = name
        while free in columns or free in taken:
            free += "_given"
        columns[free] = [entry.given.get(name, "") for entry in entries]
    return columns


def covered(source: MoleculeFile, flow: GraphFlow, workers: Workers, properties: bool) -> Reading:
    """Read the molecules of a file that a model can score, each in the canonical order or else in another one.

    Args:
        source: The file.
        flow: The model.
        workers: The processes that read them.
        properties: Compute properties.

    Raises:
        UserError: The model can score none.
    """
    reading = read(source, workers, flow.spec.order, MOST_ATOMS, properties, entries=True)
    reading.molecules = [in_possible_order(molecule, flow) for molecule in reading.molecules]
    keep(reading, (flow.objection(molecule.graph) for molecule in reading.molecules))
    return reading


def in_possible_order(molecule: Example, flow: GraphFlow) -> Example:
    """Return a molecule in an order that a flow can score: the canonical one, or one of `TRIED` drawn at random.

    A molecule without such an order is returned as it is.
    """
    if flow.objection(molecule.graph) is None:
        return molecule
    for graph in random_orders(molecule.graph, flow.spec.order, TRIED):
        if flow.objection(graph) is None:
            return molecule._replace(graph=graph, canonical=False)
    return molecule


def marginals(
    flow: MoleculeFlow, molecules: Sequence[Example], properties: Sequence[int], orders: int, seed: int
) -> list[OrderEstimate]:
    """Estimate log-probabilities over all orders, a molecule at a time.

    Args:
        flow: The model.
        molecules: The molecules.
        properties: Indices of their values that the model is conditional on.
        orders: Number of orders of each.
        seed: Seed of the orders.
    """

    def estimate(at: int, molecule: Example) -> OrderEstimate:
        context = torch.tensor([[molecule.values[each] for each in properties]]) if properties else None
        return flow.order_estimates([molecule.graph], orders, seed_of(seed, "orders", at), context)[0]

    return list(distributed_map(tqdm(molecules, "orders", unit=" molecules", disable=None), estimate))


def batches(
    molecules: Sequence[Example], spec: MoleculeSpec, batch_size: int, properties: Sequence[int], progress: str
) -> Iterator[Batch]:
    """Yield batches of molecules.

    Args:
        molecules: The molecules.
        spec: The model's settings.
        batch_size: Molecules in a batch.
        properties: Indices of their values that the model is conditional on.
        progress: Text of the progress bar.
    """
    with tqdm(total=len(molecules), desc=progress, unit=" molecules", disable=None) as bar:
        for start in range(0, len(molecules), batch_size):
            chosen = molecules[start : start + batch_size]
            batch = {"x": packed([molecule.graph for molecule in chosen], spec)}
            if properties:
                values = [[molecule.values[at] for at in properties] for molecule in chosen]
                batch["context"] = torch.tensor(values, dtype=torch.float32)
            yield batch
            bar.update(len(chosen))
