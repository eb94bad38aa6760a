import csv
import json
import shutil

import pytest
from rdkit import Chem

from arflows.core.runtime.errors import UserError
from arflows.molecules import MoleculeFlow, sample
from arflows.molecules.sample import read_targets
from tests.launch import command


def rows(path):
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_table_structures_and_pictures(run, tmp_path, capsys):
    out = tmp_path / "drawn.csv"
    command(sample)(
        ["--model", str(run), "--out", str(out), "--count", "30", "--workers", "1", "--grid", str(tmp_path / "a.svg")]
    )
    assert "30 of 30 molecules drawn with masks are valid" in capsys.readouterr().out
    table = rows(out)
    assert len(table) == 30
    assert list(table[0]) == ["smiles", "log_prob", "log_prob_policy", "logP", "QED", "TPSA", "MW"]
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.svg", "drawn.csv"]
    command(sample)(["--model", str(run), "--out", str(tmp_path / "drawn.sdf"), "--count", "30", "--workers", "1"])
    structures = list(Chem.SDMolSupplier(str(tmp_path / "drawn.sdf")))
    assert [Chem.MolToSmiles(each) for each in structures] == [row["smiles"] for row in table]
    assert structures[3].GetProp("log_prob") == table[3]["log_prob"]
    command(sample)(["--model", str(run), "--out", str(tmp_path / "drawn.smi"), "--count", "30", "--workers", "1"])
    assert [line.split()[0] for line in (tmp_path / "drawn.smi").read_text().splitlines()] == [
        row["smiles"] for row in table
    ]


def test_a_million_would_go_on_after_an_interruption(run, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole.csv", tmp_path / "broken.csv"
    options = {"model": str(run), "count": 60, "workers": 1, "batch_size": 10}
    sample.sample(out=whole, **options)
    written = sample.Part.write

    def full(self, finished):
        if self.drawn >= 30:
            self._file.write(b"CCO,torn")
            raise OSError("no space left on device")
        written(self, finished)

    monkeypatch.setattr(sample.Part, "write", full)
    with pytest.raises(OSError, match="no space"):
        sample.sample(out=broken, **options)
    monkeypatch.undo()
    assert not broken.exists()
    with pytest.raises(UserError, match="--resume"):
        sample.sample(out=broken, **options)
    with pytest.raises(UserError, match="begun with seed=0, not 1"):
        sample.sample(out=broken, **options, resume=True, seed=1)
    sample.sample(out=broken, **options, resume=True)
    assert broken.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.csv", "whole.csv"]


@pytest.mark.report
def test_a_run_of_another_model_is_not_resumed(run, tmp_path, monkeypatch):
    """The path is no proof: another model may have taken its place, and a copy elsewhere is the same model."""
    model, copy, out = tmp_path / "model", tmp_path / "copy", tmp_path / "a.csv"
    shutil.copytree(run / "model", model)
    shutil.copytree(run / "model", copy)
    options = {"out": out, "count": 20, "workers": 1, "batch_size": 10}
    written = sample.Part.write

    def full(self, finished):
        if self.drawn >= 10:
            raise OSError("no space left on device")
        written(self, finished)

    monkeypatch.setattr(sample.Part, "write", full)
    with pytest.raises(OSError, match="no space"):
        sample.sample(model=str(model), **options)
    monkeypatch.undo()
    flow = MoleculeFlow.from_pretrained(model)
    next(flow.parameters()).data += 1
    flow.save_pretrained(model)
    with pytest.raises(UserError, match="begun with another model"):
        sample.sample(model=str(model), **options, resume=True)
    sample.sample(model=str(copy), **options, resume=True)
    assert len(rows(out)) == 20


def test_damaged_state_is_named(run, tmp_path):
    out = tmp_path / "a.csv"
    (tmp_path / "a.csv.part").write_text("smiles\n")
    for content, reason in (("{", "damaged"), (json.dumps({"options": {}}), "damaged")):
        (tmp_path / "a.csv.part.json").write_text(content)
        with pytest.raises(UserError, match=reason):
            sample.sample(model=str(run), out=out, resume=True)


def test_without_masks_what_is_refused_is_a_line_without_smiles(run, tmp_path):
    out = tmp_path / "raw.csv"
    sample.sample(model=str(run), out=out, count=200, masks=False, workers=1)
    table = rows(out)
    assert len(table) == 200
    refused = [row for row in table if not row["smiles"]]
    assert refused
    assert all(row["log_prob"] and not row["logP"] for row in refused)
    assert all(row["log_prob"] == row["log_prob_policy"] for row in table)


def test_from_a_scaffold(run, tmp_path):
    out = tmp_path / "grown.smi"
    sample.sample(model=str(run), out=out, count=20, fragment="*c1ccccc1", max_atoms=8, workers=1)
    benzene = Chem.MolFromSmiles("c1ccccc1")
    for line in out.read_text().splitlines():
        assert Chem.MolFromSmiles(line.split()[0]).HasSubstructMatch(benzene)


def test_wanted_properties_are_read():
    assert read_targets("logP=2..3, QED=0.9") == {"logP": (2.0, 3.0), "QED": 0.9}
    assert read_targets("x y=-1e3..-.5") == {"x y": (-1000.0, -0.5)}
    assert read_targets(None) == {}
    for words in ("logP", "logP=", "logP=a", "logP=1..", "logP=1,logP=2", ","):
        with pytest.raises(UserError):
            read_targets(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "a.txt"], "ends in .csv, .smi, .sdf"),
        (["--out", "a.csv", "--count", "0"], "--count takes a whole number from 1 up, not '0'"),
        (["--out", "a.csv", "--grid", "a.gif"], ".png or .svg"),
        (["--out", "a.csv", "--property", "logP=3"], "not conditional on 'logP'"),
        (["--out", "a.csv", "--fragment", "c1cc"], "no SMILES that RDKit can read"),
        (["--out", "a.csv", "--resume"], "nothing to resume"),
        (["--out", "a.csv", "--max_atoms", "500"], "max_atoms 500"),
    ],
)
def test_bad_input_ends_in_one_sentence_and_leaves_nothing(run, tmp_path, ends, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code, line, _ = ends(command(sample), "--model", run, *words)
    assert code == 2
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_overwritten(run, tmp_path, ends):
    out = tmp_path / "a.csv"
    out.write_text("precious")
    code, line, _ = ends(command(sample), "--model", run, "--out", out)
    assert (code, out.read_text()) == (2, "precious")
    assert "exists already" in line
