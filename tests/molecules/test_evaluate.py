import json
import math

import pytest

from arflows.data.store import Store
from arflows.molecules import MoleculeFlow, evaluate, train
from arflows.molecules.chemistry import canonical_smiles, graph_of
from arflows.molecules.evaluate import stored_smiles
from arflows.molecules.graph import Graph
from arflows.molecules.metrics import MEASURES
from arflows.molecules.postprocess import validities
from arflows.molecules.workers import Workers
from tests.launch import command

SAMPLES = 200


@pytest.fixture(scope="module")
def result(run, store, tmp_path_factory):
    out = tmp_path_factory.mktemp("result") / "small.json"
    found = evaluate.evaluate(str(run), store, out, samples=SAMPLES, fcd=False, workers=1)
    assert json.loads(out.read_text()) == found
    return found


def test_likelihood_is_exact_and_of_all_test_molecules(result, run, store):
    figure = result["nats_per_molecule"]
    assert (figure["kind"], figure["unit"]) == ("exact", "nats")
    assert figure["count"] == Store(store).splits["test"]
    flow = MoleculeFlow.from_pretrained(run / "model")
    scores = flow.log_prob(stored_smiles(Store(store), "test", Workers(1)))
    assert figure["value"] == pytest.approx(-scores.mean().item(), rel=1e-4)


def test_three_validities_have_their_counts(result):
    validity = result["validity"]
    assert all(each["of"] == SAMPLES for each in validity.values())
    assert validity["masked"]["count"] == SAMPLES
    assert validity["raw"]["count"] + validity["postprocessed"]["mended"] == validity["postprocessed"]["count"]
    assert validity["raw"]["value"] < 1  # so small a model errs


def test_validity_by_hand():
    impossible = Graph(("F", "C"), ((1, 0, 2),))
    workers = Workers(1)
    found = validities([graph_of("CO"), impossible, impossible], [graph_of("C")], workers)
    counts = {name: (each["count"], each["of"]) for name, each in found.items()}
    assert counts == {"raw": (1, 3), "masked": (1, 1), "postprocessed": (3, 3)}
    assert found["postprocessed"]["mended"] == 2


@pytest.mark.report
def test_metrics_agree_with_what_the_model_draws(result, run, store):
    flow = MoleculeFlow.from_pretrained(run / "model")
    smiles = [each.smiles for each in flow.sample(SAMPLES, seed=0)]
    training = set(stored_smiles(Store(store), "train", Workers(1)))
    assert result["unique"]["count"] == len(set(smiles))
    assert result["novel"]["count"] == len(set(smiles) - training)
    assert all(canonical_smiles(each) == each for each in smiles)
    assert set(result["distributions"]) == set(MEASURES)
    assert all(math.isfinite(each["wasserstein"]) for each in result["distributions"].values())


def test_latents_give_molecules_back(result):
    assert result["round_trip"]["count"] == result["round_trip"]["of"] > 0


def test_what_it_takes_to_repeat_is_written(result, store):
    assert result["options"]["samples"] == SAMPLES
    assert result["data"]["counts"] == Store(store).splits
    assert result["training"]["steps"] == 40


@pytest.mark.filterwarnings("ignore")
def test_fcd_is_measured_on_request(run, store, tmp_path, ends):
    pytest.importorskip("fcd")
    words = ["--model", run, "--store", store, "--out", tmp_path / "r.json", "--samples", 50, "--workers", 1]
    code, _, printed = ends(command(evaluate), *words)
    assert code == 0
    fcd = json.loads((tmp_path / "r.json").read_text())["FCD"]
    assert fcd["value"] > 0
    assert (fcd["generated"], fcd["reference"]) == (50, Store(store).splits["test"])
    assert "valid, raw" in printed


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--samples", 0], "--samples takes a whole number from 1 up, not '0'"),
        (["--split", "none"], "has no split 'none'"),
    ],
)
def test_mistakes_are_one_sentence(run, store, tmp_path, ends, words, sentence):
    first = ["--model", run, "--store", store, "--out", tmp_path / "r.json", "--fcd", "false", "--workers", 1]
    code, message, _ = ends(command(evaluate), *first, *words)
    assert code == 2
    assert sentence in message
    assert not (tmp_path / "r.json").exists()


def test_a_store_of_other_molecules_is_refused(run, tmp_path, ends):
    from arflows.molecules.prepare import prepare

    prepare("nci", tmp_path / "other.h5", max_atoms=6, workers=1)
    words = ["--model", run, "--store", tmp_path / "other.h5", "--out", tmp_path / "r.json", "--fcd", "false"]
    code, message, _ = ends(command(evaluate), *words)
    assert code == 2
    assert "does not fit the model" in message


def test_fcd_without_its_package_is_one_sentence(run, store, tmp_path, ends, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "fcd", None)
    words = ["--model", run, "--store", store, "--out", tmp_path / "r.json"]
    code, message, _ = ends(command(evaluate), *words)
    assert code == 2
    assert "pip install fcd" in message


def test_a_conditional_model_is_held_to_what_it_is_asked(recipe, store, tmp_path, ends):
    out = tmp_path / "conditional"
    words = ["--config", recipe, "--out", out, "--model.flow.init_args.properties", "[logP, MW]"]
    command(train)([*map(str, words), "--trainer.max_steps", "300"])
    code, _, printed = ends(
        command(evaluate), "--model", out, "--store", store, "--out", tmp_path / "r.json",
        "--samples", SAMPLES, "--fcd", "false", "--workers", 1,
    )  # fmt: skip
    assert code == 0
    assert "MW as asked" in printed
    control = json.loads((tmp_path / "r.json").read_text())["control"]
    assert set(control) == {"logP", "MW"}
    assert control["MW"]["mean_absolute_error"] < 0.8 * control["MW"]["shuffled"]
    assert control["MW"]["correlation"] > 0.5


@pytest.mark.report
def test_several_sets_of_test_molecules(run, store, tmp_path, ends):
    (tmp_path / "Test.smi").write_text("CCO\nCc1ccccc1\nC[Sn]C\nCCN\nCC(=O)O\n")
    (tmp_path / "TestSF.csv").write_text("id,SMILES\n1,CCCl\n2,c1ccncc1\n3,CCCO\n")
    words = ["--model", run, "--store", store, "--out", tmp_path / "r.json", "--samples", 50, "--fcd", "false"]
    tests = [str(tmp_path / "Test.smi"), str(tmp_path / "TestSF.csv"), str(store)]
    code, _, printed = ends(command(evaluate), *words, "--workers", 1, "--tests", json.dumps(tests))
    assert code == 0
    found = json.loads((tmp_path / "r.json").read_text())
    flow = MoleculeFlow.from_pretrained(run / "model")
    expected = -flow.log_prob(["CCO", "Cc1ccccc1", "CCN", "CC(=O)O"]).mean().item()
    assert found["nats_per_molecule"]["value"] == pytest.approx(expected, abs=1e-4)
    assert found["left_out"] == {"the element Sn has no fixed valence": 1}
    assert list(found["further"]) == ["TestSF.csv", store.name]
    assert found["further"]["TestSF.csv"]["nats_per_molecule"]["count"] == 3
    assert found["further"][store.name]["nats_per_molecule"]["count"] == Store(store).splits["test"]
    for row in ("SNN, TestSF.csv", "filters (PAINS and BRENK, not MOSES' MCF)", "IntDiv2 (MOSES' program)"):
        assert row in printed
