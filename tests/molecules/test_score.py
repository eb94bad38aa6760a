import csv
import json
from collections import Counter

import numpy as np
import pytest
import torch
from rdkit import Chem
from rdkit.Chem.rdMolDescriptors import CalcNumRings

from arflows.molecules import MoleculeFlow, score
from arflows.molecules.chemistry import graph_of
from arflows.molecules.decisions import pack
from arflows.molecules.graph import random_orders
from arflows.molecules.inputs import Example
from arflows.molecules.representation import encode
from tests.launch import command


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def library(tmp_path):
    """Two molecules that the model knows, one of them twice, and some that it cannot represent."""
    path = tmp_path / "library.smi"
    path.write_text("smiles\nOCC\nC1CC\nCc1ccccc1\nCC.O\nC[Sn]C\nCCCCCCCCCC\nC(C)O\n")
    return path


def test_scores_are_exact_and_ranked(run, library, tmp_path, ends):
    out = tmp_path / "scores.csv"
    code, _, printed = ends(command(score), "--model", run, "--molecules", library, "--out", out, "--workers", 1)
    assert code == 0
    table = rows(out)
    flow = MoleculeFlow.from_pretrained(run / "model")
    for row in table:
        atoms, bonds = encode([graph_of(row["smiles"], flow.spec.order)], flow.spec)
        with torch.no_grad():
            expected = flow.log_prob(pack(torch.from_numpy(atoms), torch.from_numpy(bonds))).item()
        assert float(row["log_prob"]) == pytest.approx(expected, abs=1e-4)
    assert sorted((row["smiles"], row["line"]) for row in table) == [("CCO", "2"), ("CCO", "8"), ("Cc1ccccc1", "4")]
    assert [row["line"] for row in table] == ["2", "4", "8"]
    scores = [float(row["log_prob"]) for row in sorted(table, key=lambda row: int(row["rank"]))]
    assert scores == sorted(scores, reverse=True)
    words = ["--model", run, "--molecules", library, "--out", out, "--workers", 1, "--ranked", "true"]
    assert ends(command(score), *words)[0] == 0
    assert [row["rank"] for row in rows(out)] == ["1", "2", "3"]
    assert "nats, exact" in printed


def test_percentiles_compare_with_training_molecules(run, library, tmp_path):
    score.score(str(run), str(library), tmp_path / "s.csv", workers=1)
    sample = json.loads((run / "model/training.json").read_text())["train_scores"]["sample"]
    for row in rows(tmp_path / "s.csv"):
        likelier = 100 * np.mean(np.array(sample) < -float(row["log_prob"]))
        assert float(row["percentile"]) == pytest.approx(likelier, abs=100 / len(sample) + 0.01)


def test_what_cannot_be_represented_is_flagged(run, library, tmp_path, ends):
    out = tmp_path / "scores.csv"
    _, _, printed = ends(command(score), "--model", run, "--molecules", library, "--out", out, "--workers", 1)
    flagged = {row["line"]: row["reason"] for row in rows(tmp_path / "scores.rejects.csv")}
    assert flagged == {
        "3": "not SMILES that RDKit can parse",
        "5": "several parts: a salt or mixture",
        "6": "the element Sn has no fixed valence",
        "7": "more than 8 heavy atoms, the most in the training data",
    }
    assert "4 of 7 not scored" in printed


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--batch_size", "0"], "--batch_size takes a whole number from 1 up, not '0'"),
        (["--orders", "1"], "orders is 1"),
        (["--molecules", "none.smi"], "there is no source 'none.smi'"),
        (["--column", "smiles"], "is no table"),
    ],
)
def test_mistakes_are_one_sentence(run, library, tmp_path, ends, words, sentence):
    first = ["--model", run, "--molecules", library, "--out", tmp_path / "s.csv", "--workers", 1]
    code, message, _ = ends(command(score), *first, *words)
    assert code == 2
    assert sentence in message
    assert not (tmp_path / "s.csv").exists()


def test_a_library_without_use_is_refused(run, tmp_path, ends):
    (tmp_path / "bad.smi").write_text("CC.O\n")
    words = ["--model", run, "--molecules", tmp_path / "bad.smi", "--out", tmp_path / "s.csv", "--workers", 1]
    code, message, _ = ends(command(score), *words)
    assert code == 2
    assert "none of its 1 molecules can be used: several parts" in message
    assert not (tmp_path / "s.csv").exists()


def test_orders_estimate_the_probability_in_any_order(run, library, tmp_path):
    out = tmp_path / "s.csv"
    score.score(str(run), str(library), out, orders=4, workers=1)
    for row in rows(out):
        assert float(row["log_prob_all_orders"]) >= float(row["log_prob"]) - 1e-4
        assert float(row["standard_error"]) >= 0


@pytest.mark.report
def test_the_columns_of_the_input_are_kept(run, tmp_path):
    table = tmp_path / "library.csv"
    table.write_text('id,smiles,log_prob,note\nA-1,OCC,7,first\nA-2,C1CC,8,broken\nA-3,Cc1ccccc1,9,"a, b"\n')
    score.score(str(run), str(table), tmp_path / "s.csv", workers=1)
    found = rows(tmp_path / "s.csv")
    assert [row["id"] for row in found] == ["A-1", "A-3"]
    assert [row["smiles_given"] for row in found] == ["OCC", "Cc1ccccc1"]
    assert [row["smiles"] for row in found] == ["CCO", "Cc1ccccc1"]
    assert [row["log_prob_given"] for row in found] == ["7", "9"]
    assert [row["note"] for row in found] == ["first", "a, b"]
    (tmp_path / "named.smi").write_text("OCC ethyl alcohol\nC\n")
    score.score(str(run), str(tmp_path / "named.smi"), tmp_path / "s.csv", workers=1)
    assert [row["name"] for row in rows(tmp_path / "s.csv")] == ["ethyl alcohol", ""]
    block = Chem.MolToMolBlock(Chem.MolFromSmiles("OCC")).replace("\n", "ethanol\n", 1)
    (tmp_path / "a.sdf").write_text(f"{block}>  <batch>\n12\n\n$$$$\n")
    score.score(str(run), str(tmp_path / "a.sdf"), tmp_path / "s.csv", workers=1)
    (row,) = rows(tmp_path / "s.csv")
    assert (row["name"], row["batch"], row["smiles"]) == ("ethanol", "12", "CCO")


@pytest.mark.report
def test_a_model_scores_what_it_has_drawn(run, tmp_path, capsys):
    """Canonical orders may need more bonds of an atom than the model has decisions for; then another order is taken."""
    flow = MoleculeFlow.from_pretrained(run / "model")
    narrow = flow.config()["arguments"] | {"spec": flow.spec.as_dict() | {"max_back_bonds": 1}}
    MoleculeFlow(**narrow).save_pretrained(tmp_path / "trees")
    (tmp_path / "rings.smi").write_text("C1CC1\nCCO\n")
    score.score(str(tmp_path / "trees"), str(tmp_path / "rings.smi"), tmp_path / "s.csv", workers=1)
    assert [row["smiles"] for row in rows(tmp_path / "s.csv")] == ["CCO"]  # no order of a ring has decisions
    # Bicyclobutane: in an order that ends at a bridgehead this atom has three bonds to earlier ones, in others two.
    spec = flow.spec.as_dict() | {"max_back_bonds": 2}
    narrow = MoleculeFlow(**(flow.config()["arguments"] | {"spec": spec}))
    bridged = next(
        graph for graph in random_orders(graph_of("C12CC1C2", flow.spec.order), "bfs", 200) if narrow.objection(graph)
    )
    example = Example(1, "C1C2CC12", bridged, (), False)
    found = score.in_possible_order(example, narrow)
    assert not found.canonical
    assert narrow.objection(found.graph) is None
    flow.save_pretrained(tmp_path / "model")
    drawn = flow.sample(64, seed=1)
    (tmp_path / "drawn.smi").write_text("".join(f"{each.smiles}\n" for each in drawn))
    score.score(str(tmp_path / "model"), str(tmp_path / "drawn.smi"), tmp_path / "s.csv", workers=1)
    assert len(rows(tmp_path / "s.csv")) == 64


@pytest.mark.report
def test_no_estimate_over_all_orders_lies_below_a_proven_bound(run):
    """The canonical order and that of the sample are both among the orders that are summed."""
    flow = MoleculeFlow.from_pretrained(run / "model")
    low = tried = 0
    for drawn in flow.sample(200, seed=11):
        graph = graph_of(drawn.smiles, flow.spec.order)
        if Counter(graph.atoms) != Counter(drawn.graph.atoms) or graph == drawn.graph or flow.objection(graph):
            continue
        if not CalcNumRings(Chem.MolFromSmiles(drawn.smiles)):  # one Kekulé form
            bound = np.logaddexp(flow.log_prob([graph]).item(), drawn.log_prob)
            estimate, error = flow.order_marginal([graph], 16)
            low += bound - estimate.item() > 3 * max(error.item(), 1e-3)
            tried += 1
    assert tried > 20
    assert low == 0
