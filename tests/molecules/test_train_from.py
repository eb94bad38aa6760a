"""Training on from a trained model: ``--from``."""

import pytest
import torch

from arflows.data.store import Store
from arflows.molecules import train
from arflows.molecules.datamodule import MoleculeDataModule
from arflows.molecules.model import MoleculeFlow
from arflows.molecules.prepare import prepare
from arflows.molecules.representation import MoleculeSpec
from tests.launch import command
from tests.train_from import starts_where_it_ended

pytestmark = pytest.mark.report

SMALL = ["C", "CC", "CCC", "CCCC", "CO", "CCO", "CCCO", "OCCO", "CCCCO", "COC", "CCOC", "OCC(O)C"]


def test_training_on_starts_from_the_density_of_the_model(recipe, run, tmp_path):
    starts_where_it_ended(train, recipe, run, tmp_path / "on")


def test_molecules_of_fewer_kinds_are_read_with_the_vocabulary_of_the_model(recipe, run, tmp_path):
    (tmp_path / "small.smi").write_text("\n".join(SMALL))
    prepare(str(tmp_path / "small.smi"), tmp_path / "small.h5", val_fraction=0.3, test_fraction=0.0, workers=1)
    flow = MoleculeFlow.from_pretrained(run / "model")
    assert flow.spec.differences(MoleculeSpec.from_dict(Store(tmp_path / "small.h5").spec))
    words = ["--config", recipe, "--from", run, "--data.store", tmp_path / "small.h5", "--out", tmp_path / "on"]
    command(train)([str(word) for word in [*words, "--data.batch_size", 4, "--trainer.max_steps", 2]])
    on = MoleculeFlow.from_pretrained(tmp_path / "on/model")
    assert on.spec == flow.spec
    data = MoleculeDataModule(tmp_path / "small.h5")
    data.model_spec = flow.spec
    batch = data.dataset("train").__getitems__(list(range(8)))
    molecules = flow.decode(flow.encode(batch["x"]))
    with torch.no_grad():
        torch.testing.assert_close(flow.log_prob(batch["x"]), flow.log_prob(molecules))


def test_molecules_beyond_the_vocabulary_are_refused(recipe, run, tmp_path, ends):
    (tmp_path / "more.smi").write_text("\n".join([*SMALL, "C[Si](C)(C)C", "CC[Si](C)(C)C", "C[Se]C", "CC[Se]C"]))
    prepare(str(tmp_path / "more.smi"), tmp_path / "more.h5", val_fraction=0.0, test_fraction=0.0, workers=1)
    words = ["--config", recipe, "--from", run, "--data.store", tmp_path / "more.h5", "--out", tmp_path / "on"]
    code, message, _ = ends(command(train), *words)
    assert code == 2
    assert "the model does not know the atom type" in message
