"""Log-densities of rows under a trained flow: ``arflows tabular score``."""

from pathlib import Path

import numpy as np
import torch

from arflows.core.commands.scores import write_scores
from arflows.core.flows import VectorFlow
from arflows.core.likelihood import Estimate, Reference, log_probs
from arflows.core.runtime.option_types import PositiveInt
from arflows.core.runtime.pretrained import load_model
from arflows.tabular.columns import Columns
from arflows.tabular.inputs import Rows

LISTED = 5


def score(
    model: str,
    rows: Path,
    out: Path,
    split: str = "test",
    batch_size: PositiveInt = 4096,
    device: str = "auto",
) -> None:
    """Score rows by a trained flow and write a CSV file, one line a row.

    Columns: row (counted from 0), log_density (nats, in the data's own units), percentile (the share in percent of
    training rows that are likelier; near 100: unlike the training data) and typicality (distance of log_density from
    its mean over training rows, Nalisnick et al. 2019).

    Args:
        model: Folder of a model or of a training run, or a model's name on the Hugging Face Hub.
        rows: A store, or a .csv, .npy, .npz or HDF5 file. Columns are found by the names they had in training where
            the file has names, else by their order, those conditioned on last.
        out: CSV file to write; replaced if it exists.
        split: Split of a store, or of an .npz or HDF5 file.
        batch_size: Rows computed at a time.
        device: Device: cpu, cuda, …; auto uses a GPU if available.
    """
    flow = load_model(VectorFlow, model, device)
    reference = Reference.load(model)
    given = Rows.read(rows, split, flow, Columns.of(model, flow))
    log_density = log_probs(flow, given.batches(batch_size, progress="scoring")).numpy()
    columns = {
        "row": [str(index) for index in range(len(given))],
        "log_density": [f"{value:.6f}" for value in log_density],
    }
    write_scores(out, columns, -log_density, reference)
    print(f"{out}: {Estimate.of(torch.from_numpy(log_density), None, flow.likelihood)}")
    if reference is not None:
        print(f"training rows: log-likelihood {-reference.mean:.4f} nats")
    order = np.argsort(log_density, kind="stable")[:LISTED]
    print("least likely: " + ", ".join(f"row {i} ({log_density[i]:.3f})" for i in order))
