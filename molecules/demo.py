"""The molecules chapter of ``arflows demo``: a flow on the molecules that come with RDKit, from data to figures."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from arflows.core.commands.report import Chapter, Picture, Setup, Table
from arflows.core.runtime.pretrained import load_model
from arflows.data.store import Store
from arflows.molecules.evaluate import evaluate, stored_smiles
from arflows.molecules.metrics import MEASURES, describe
from arflows.molecules.model import MoleculeFlow
from arflows.molecules.prepare import prepare
from arflows.molecules.render import grid_png, property_histograms
from arflows.molecules.train import train
from arflows.molecules.workers import Workers

MAX_ATOMS = 24
SAMPLES = 1000
DRAWN = 20
SHOWN = ("logP", "QED", "MW", "SA", "TPSA", "atoms", "rings")


def chapter(out: Path, seed: int = 0) -> Chapter:
    """Prepares, trains, samples and evaluates on the built-in molecules.

    Args:
        out: Folder for the store, the run and figures; what an earlier demo left there is replaced.
        seed: Of weights, the order of the data, and samples.
    """
    store, run = out / "nci.h5", out / "nci"
    shutil.rmtree(run, ignore_errors=True)
    prepare("nci", store, max_atoms=MAX_ATOMS, seed=seed, overwrite=True, workers=1)
    words = ["--config", "demo", "--data.store", str(store), "--out", str(run), "--seed", str(seed)]
    train(*words)
    result = evaluate(str(run), store, out / "nci.json", samples=SAMPLES, fcd=False, seed=seed, workers=1)
    return Chapter(
        "Molecules",
        "An autoregressive flow learns molecular graphs atom by atom: each decision (which atom, bound to which, or "
        "stop) is a category made continuous, so that the flow's likelihood is the exact probability of a molecule in "
        "its order. Rules of valence are masks that renormalise each decision; without them the model is on its own.",
        [
            *_pictures(load_model(MoleculeFlow, str(run), "cpu"), store, seed),
            _validity(result),
            _figures(result),
            Setup(
                {
                    "data": f"{result['data']['available']['train']:,} molecules of the NCI's open database that come "
                    f"with RDKit, of which {sum(result['data']['counts'].values()):,} with at most {MAX_ATOMS} heavy "
                    "atoms, each once, without salts, metals and radicals: 85 % to train on, 5 % to validate, 10 % to "
                    "test; stereochemistry dropped",
                    "likelihood": "exact log-probability of a graph in canonical depth-first order",
                    "metrics": "the definitions of MOSES (Polykovskiy et al. 2020), of samples with masks, against the "
                    "test molecules; filters are RDKit's catalogues PAINS and BRENK",
                    "budget": "a minute on a CPU core and a few thousand molecules: these figures show that everything "
                    "works, not what the model can reach",
                    "seed": seed,
                }
            ),
        ],
    )


def _pictures(flow: MoleculeFlow, store: Path, seed: int) -> list[Picture]:
    workers = Workers(1)
    samples = [
        (each.smiles, each.log_prob)
        for each in flow.sample(SAMPLES, seed=seed, workers=workers)
        if each.smiles is not None
    ]
    drawn = samples[:DRAWN]
    test = stored_smiles(Store(store, expect_domain="molecules"), "test", workers)
    sets: dict[str, list[str]] = {"test data": test, "samples": [smiles for smiles, _ in samples]}
    measures = {name: np.array([each.measures for each in describe(smiles, workers)]) for name, smiles in sets.items()}
    values = {name: {label: array[:, MEASURES.index(name)] for label, array in measures.items()} for name in SHOWN}
    return [
        Picture(
            grid_png([smiles for smiles, _ in drawn], [f"log p = {value:.1f}" for _, value in drawn], columns=5),
            f"The first {len(drawn)} samples with masks, seed {seed}; none was selected. Below each its exact "
            "log-probability in nats under the model it was drawn from.",
            f"{len(drawn)} drawn structures of small organic molecules",
        ),
        Picture(
            property_histograms(values),
            "Properties of test molecules and of samples: lipophilicity (logP), drug-likeness (QED), weight, synthetic "
            "accessibility (SA, low is easy), polar surface, heavy atoms, rings.",
            f"{len(SHOWN)} panels, each with two histograms that should overlap",
        ),
    ]


def _validity(result: dict[str, Any]) -> Table:
    names = {"raw": "raw: no masks", "masked": "with masks", "postprocessed": "raw, then post-processed"}
    return Table(
        ["validity", "valid", "samples", "share"],
        [
            [names[name], f"{each['count']:,}", f"{each['of']:,}", f"{100 * each['value']:.1f} %"]
            for name, each in result["validity"].items()
        ],
        "Valid: RDKit sanitises the graph as it is. Post-processing removes bonds beyond an atom's valence and "
        f"keeps the largest part; it mended {result['validity']['postprocessed']['mended']:,} samples.",
    )


def _figures(result: dict[str, Any]) -> Table:
    nats = result["nats_per_molecule"]
    shares = {
        "different ones among the first 1,000 valid": result.get("unique@1k", result["unique"]),
        "novel among the different ones": result["novel"],
        "without structural alerts": result["filters"],
    }
    return Table(
        ["figure", "value"],
        [
            ["test log-likelihood, nats a molecule", f"{-nats['value']:.2f} ± {nats['standard_error']:.2f}"],
            *([name, f"{100 * each['value']:.1f} %"] for name, each in shares.items()),
            ["similarity to the nearest test molecule (SNN)", f"{result['SNN']:.3f}"],
            ["fragments alike (cosine)", f"{result['fragment_similarity']:.3f}"],
            ["internal diversity", f"{result['IntDiv']:.3f}"],
            ["samples a second", f"{result['samples_per_second']['value']:,.0f}"],
            ["parameters", f"{result['model']['parameters']:,}"],
        ],
        "Measured on the test molecules and on samples with masks, on this machine.",
    )
