"""Measure a trained flow over molecules: ``arflows molecules evaluate``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from arflows.core.commands.evaluation import protocol, write_result
from arflows.core.likelihood import Batch, Estimate, log_probs
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.option_types import PositiveInt
from arflows.core.runtime.pretrained import load_model
from arflows.data.store import Store
from arflows.molecules.datamodule import MoleculeDataModule
from arflows.molecules.metrics import chemnet, quality, share
from arflows.molecules.model import GraphFlow
from arflows.molecules.postprocess import validities
from arflows.molecules.representation import MoleculeSpec, decode, smiles_of_all
from arflows.molecules.workers import Workers

ROUND_TRIP_MOLECULES = 256


def evaluate(
    model: str,
    store: Path,
    out: Path,
    split: str = "test",
    samples: PositiveInt = 10_000,
    fcd: bool = True,
    seed: int = 0,
    batch_size: PositiveInt = 1024,
    workers: PositiveInt | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure a trained flow on a split of a store: exact likelihood, three validities, and the metrics of MOSES.

    Validity is given raw (samples of the model as it is, without masks), masked (decisions that break valences are
    excluded while sampling; all other metrics are of these samples), and after post-processing (raw samples,
    bonds beyond a valence removed and the largest part kept), each with the counts behind it.

    Of a conditional model each sample is asked for the properties of a molecule of the split, chosen by the seed, and
    it is measured how near it comes to them.

    Writes a JSON file with the figures and all that is needed to repeat them: options, model, data, software, hardware.
    A model trained by `arflows molecules train` holds the moving average of its weights; that is what is measured.

    Args:
        model: Folder of a model or of a training run, or a model's name on the Hugging Face Hub.
        store: The store that holds the split, and the training molecules for novelty.
        out: The JSON file to write; replaced if it exists.
        split: Which part of the store.
        samples: Molecules to draw, with masks and without; published figures mostly take 10,000.
        fcd: Whether to compute the Fréchet ChemNet distance to the split. Needs `pip install arflows[metrics]`.
        seed: Seed of the samples.
        batch_size: Molecules computed at a time when scoring.
        workers: Processes that work with RDKit; one for each core if not given.
        device: Where to compute: cpu, cuda, …; auto takes a GPU if there is one.

    Returns:
        What was written.
    """
    options = {
        "model": model,
        "store": str(store),
        "split": split,
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
        chemnet()  # or says what is missing, before minutes of work
    data.properties = flow.properties
    figure = Estimate.of(log_probs(flow, data.loader(split)), None, flow.likelihood)
    with Workers(workers) as pool:
        wanted = asked_of(data, split, samples, seed) if flow.properties else None
        began = time.perf_counter()
        masked = flow.sample(samples, wanted, seed=seed, workers=pool)
        seconds = time.perf_counter() - began
        raw = flow.sample(samples, wanted, seed=seed, masks=False, workers=pool)
        at = [place for place, each in enumerate(masked) if each.smiles is not None]
        valid = [smiles for each in masked if (smiles := each.smiles) is not None]
        asked = {} if wanted is None else dict(zip(flow.properties, wanted[at].T.numpy(), strict=True))
        training, reference = (stored_smiles(data.store, name, pool) for name in ("train", split))
        measured = {
            "validity": validities([each.graph for each in raw], [each.graph for each in masked], pool),
            **quality(valid, set(training), reference, pool, fcd, asked),
        }
    result: dict[str, Any] = {
        "nats_per_molecule": figure.as_dict(),
        **({"round_trip": round_trip(flow, next(iter(data.loader(split))))} if flow.has_latents else {}),
        **measured,
        "samples_per_second": {"value": samples / seconds, "samples": samples, "what": "valid SMILES, with masks"},
        **protocol(flow, model, options, data.store.facts()),
        "seconds": round(time.perf_counter() - start, 1),
    }
    write_result(out, result, _rows(result, figure))
    return result


def round_trip(flow: GraphFlow, batch: Batch) -> dict[str, Any]:
    """Say how many molecules come back from their latents as they were.

    Args:
        flow: The model.
        batch: Molecules, at most `ROUND_TRIP_MOLECULES` of which are taken.
    """
    x = batch["x"][:ROUND_TRIP_MOLECULES].to(flow.device)
    context = batch["context"][:ROUND_TRIP_MOLECULES].to(flow.device) if "context" in batch else None
    same = int((flow.round_trip_error(x, context) == 0).sum())
    return share(same, len(x), "molecules that their latents give back")


def asked_of(data: MoleculeDataModule, split: str, count: int, seed: int) -> Float[Tensor, "count properties"]:
    """Return the properties of random molecules of a split, as often as it takes, for a conditional model to meet."""
    dataset = data.dataset(split)
    rows = np.resize(np.random.default_rng(seed).permutation(len(dataset)), count)
    return dataset.__getitems__(rows.tolist())["context"]


def stored_smiles(store: Store, split: str, workers: Workers) -> list[str]:
    """Return the canonical SMILES of the molecules of a store."""
    graphs = decode(store.array(split, "atoms"), store.array(split, "bonds"), MoleculeSpec.from_dict(store.spec))
    return [smiles for smiles in smiles_of_all(graphs, workers) if smiles is not None]


def _rows(result: dict[str, Any], figure: Estimate) -> dict[str, str]:
    """The figures as the table has them."""

    def told(value: dict[str, Any]) -> str:
        percent = "" if value["value"] is None else f"{100 * value['value']:.2f} %, "
        return f"{percent}{value['count']:,} of {value['of']:,} {value['what']}"

    rows = {"nats/molecule": str(figure)}
    if "round_trip" in result:
        rows["round trip"] = told(result["round_trip"])
    rows |= {f"valid, {name}": told(value) for name, value in result["validity"].items()}
    rows |= {name: told(result[name]) for name in ("unique@1k", "unique@10k", "unique", "novel") if name in result}
    if "FCD" in result:
        rows["FCD"] = "{value:.2f}, {generated:,} samples, {reference:,} reference molecules".format(**result["FCD"])
    numbers = {name: result[name] for name in ("SNN", "fragment_similarity", "scaffold_similarity", "IntDiv")}
    rows |= {name: "none to compare" if value is None else f"{value:.4f}" for name, value in numbers.items()}
    rows["filters"] = f"{told(result['filters'])} ({100 * result['reference_filters']['value']:.2f} % of the reference)"
    for name, value in result.get("control", {}).items():
        told_error = "off by {mean_absolute_error:.3f} on average ({shuffled:.3f} asked in another order)"
        correlation = "none" if value["correlation"] is None else f"{value['correlation']:.3f}"
        rows[f"{name} as asked"] = f"{told_error.format(**value)}, correlation {correlation}"
    for name, value in result["distributions"].items():
        means = f"means {value['generated_mean']:.3f} and {value['reference_mean']:.3f}"
        rows[name] = f"Wasserstein-1 {value['wasserstein']:.4f}, {means}"
    rows["samples"] = f"{result['samples_per_second']['value']:,.0f} a second"
    return rows
