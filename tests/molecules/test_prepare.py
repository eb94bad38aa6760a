import csv
from collections import Counter
from functools import partial

import numpy as np
import pytest
from rdkit import Chem

from arflows.core.commands.cli import run
from arflows.core.runtime.errors import UserError
from arflows.data.store import Store
from arflows.molecules.chemistry import canonical_smiles, flat_smiles, mol_of
from arflows.molecules.datamodule import MoleculeDataModule
from arflows.molecules.prepare import prepare
from arflows.molecules.properties import PROPERTIES, properties_of
from arflows.molecules.representation import MoleculeSpec, decode

CHAINS = ["C" * length for length in range(1, 21)]


@pytest.fixture
def smi(tmp_path):
    def write(lines, name="molecules.smi", end="\n"):
        path = tmp_path / name
        path.write_bytes((end.join(lines) + end).encode())
        return path

    return write


def smiles_in(store: Store, split: str) -> list[str]:
    graphs = decode(store.array(split, "atoms"), store.array(split, "bonds"), MoleculeSpec.from_dict(store.spec))
    return [canonical_smiles(flat_smiles(mol_of(graph))) for graph in graphs]


def rejects(out):
    with out.with_suffix(".rejects.csv").open(newline="", encoding="utf-8") as file:
        return [(row["line"], row["molecule"], row["reason"]) for row in csv.DictReader(file)]


def test_every_molecule_lands_in_one_split(smi, tmp_path):
    out = tmp_path / "out.h5"
    prepare(str(smi(CHAINS)), out, val_fraction=0.1, test_fraction=0.2, workers=1)
    store = Store(out, expect_domain="molecules")
    assert store.splits == {"train": 14, "val": 2, "test": 4}
    assert sorted((s for split in store.splits for s in smiles_in(store, split)), key=len) == CHAINS
    store.verify()


def test_the_same_seed_divides_alike(smi, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        prepare(str(smi(CHAINS)), tmp_path / f"{name}.h5", seed=seed, workers=1)
    parts = [smiles_in(Store(tmp_path / f"{name}.h5"), "test") for name in "abc"]
    assert parts[0] == parts[1] != parts[2]


@pytest.mark.report
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("header", [[], ["smiles"]])
def test_bad_lines_are_listed_by_reason_and_the_rest_goes_on(smi, tmp_path, capfd, end, header):
    bad = {
        "C1CC": "not SMILES that RDKit can parse",
        "[Na+].[Cl-]": "several parts: a salt or mixture",
        "CC.O": "several parts: a salt or mixture",
        "C[Sn]C": "the element Sn has no fixed valence",
        "C[CH2]": "a radical",
        "[13CH4]": "an isotope",
        "N->B": "a dative bond",
        "CC(C)(C)(C)(C)C": "an atom with more bonds than its valence allows",
        "c1cccc1": "an aromatic system that cannot be kekulised",
        "OC": "a duplicate",
        "C" * 31: "more than 30 heavy atoms",
    }
    lines = [*header, "CO", *bad, *CHAINS]
    out = tmp_path / "out.h5"
    prepare(str(smi(lines, end=end)), out, max_atoms=30, val_fraction=0, test_fraction=0, workers=1)
    first = len(header) + 2
    texts = [{"OC": "CO"}.get(text, text) for text in bad]  # a duplicate is listed by its canonical SMILES
    assert rejects(out) == [
        (str(first + at), text, reason) for at, (text, reason) in enumerate(zip(texts, bad.values(), strict=True))
    ]
    assert sorted(smiles_in(Store(out), "train"), key=len) == sorted(["CO", *CHAINS], key=len)
    told = capfd.readouterr()
    assert told.err == ""  # RDKit's log stays quiet
    for reason, count in Counter(bad.values()).items():
        assert f"{count} rejected: {reason}" in told.out
    counts = Store(out).provenance["files"]["training"]
    assert counts["read"] == len(bad) + 1 + len(CHAINS)
    assert counts["used"] == 1 + len(CHAINS)
    assert counts["rejected"] == Counter(bad.values())


def test_stereochemistry_is_dropped_and_counted(smi, tmp_path, capsys):
    out = tmp_path / "out.h5"
    lines = ["C[C@H](N)O", "C[C@@H](N)O", "F/C=C/F", *CHAINS]
    prepare(str(smi(lines)), out, val_fraction=0, test_fraction=0, workers=1)
    assert "stereochemistry dropped from 2" in capsys.readouterr().out  # its mirror image is a duplicate
    assert rejects(out) == [("2", "CC(N)O", "a duplicate")]


def test_test_molecules_are_not_trained_on(smi, tmp_path):
    out = tmp_path / "out.h5"
    prepare(str(smi(CHAINS)), out, test=smi(["CCC", "OC", "CC", "CC"], "test.smi"), val_fraction=0.1, workers=1)
    store = Store(out)
    assert smiles_in(store, "test") == ["CCC", "CC"]
    assert not {"CC", "CCC"} & {*smiles_in(store, "train"), *smiles_in(store, "val")}
    assert rejects(out) == [
        ("2", "CO", "the atom type O does not occur in the training data"),
        ("4", "CC", "a duplicate"),
        ("2", "CC", "a duplicate of a test molecule"),
        ("3", "CCC", "a duplicate of a test molecule"),
    ]


@pytest.mark.report
def test_properties_and_columns_are_kept(tmp_path, capsys):
    path, out = tmp_path / "table.csv", tmp_path / "out.h5"
    path.write_text("id,mol_smiles,activity\n1,CCO,5\n2,CCN,-0.5\n3,CCF,\n")
    prepare(str(path), out, values=["activity"], val_fraction=0, test_fraction=0, workers=1)
    store = Store(out)
    assert store.categories["properties"] == [*PROPERTIES, "activity"]
    expected = [[*properties_of(Chem.MolFromSmiles(s)), v] for s, v in (("CCO", 5), ("CCN", -0.5), ("CCF", np.nan))]
    np.testing.assert_allclose(store.array("train", "properties"), expected, rtol=1e-6)
    assert rejects(out) == []
    assert "1 molecules have no number activity" in capsys.readouterr().out
    data = MoleculeDataModule(out, batch_size=1)
    assert len(data.dataset("train")) == 3
    data.properties = ["activity"]  # only a model that is conditional on the value goes without the molecule
    assert [data.dataset("train")[index]["context"].item() for index in range(2)] == [5, -0.5]
    assert len(data.dataset("train")) == 2


def test_sd_files_are_read(tmp_path):
    path, out = tmp_path / "a.sdf", tmp_path / "out.h5"
    with Chem.SDWriter(str(path)) as writer:
        for smiles in ("CCO", "c1ccc2[nH]ccc2c1"):
            writer.write(Chem.AddHs(Chem.MolFromSmiles(smiles)))
    with path.open("a") as file:
        file.write("\n\n\nno counts\nM  END\n$$$$\n")
    prepare(str(path), out, val_fraction=0, test_fraction=0, workers=1)
    assert smiles_in(Store(out), "train") == ["CCO", canonical_smiles("c1ccc2[nH]ccc2c1")]
    assert [(line, reason) for line, _, reason in rejects(out)] == [("3", "not a mol block that RDKit can parse")]


def test_processes_find_what_one_finds(smi, tmp_path):
    lines = [*CHAINS, *(f"N{'C' * length}O" for length in range(1, 40)), "C1CC"] * 20
    for name, workers in (("one", 1), ("two", 2)):
        prepare(str(smi(lines)), tmp_path / f"{name}.h5", workers=workers)
    one, two = (Store(tmp_path / f"{name}.h5") for name in ("one", "two"))
    assert one.spec == two.spec
    assert smiles_in(one, "train") == smiles_in(two, "train")
    assert rejects(tmp_path / "one.h5") == rejects(tmp_path / "two.h5")


def test_the_spec_is_measured_on_training_data(smi, tmp_path):
    out = tmp_path / "out.h5"
    prepare(str(smi(["CCO", "C1CCC1"])), out, order="bfs", val_fraction=0, test_fraction=0, workers=1)
    assert MoleculeSpec.from_dict(Store(out).spec) == MoleculeSpec(("C", "O"), (2, 1), 4, 2, 2, "bfs")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_atoms": 256}, "max_atoms is 256"),
        ({"val_fraction": 0.6, "test_fraction": 0.4}, "val_fraction is 0.6 and test_fraction 0.4"),
        ({"values": ["QED"]}, "name each column once"),
        ({"limit": 1, "val_fraction": 0.5}, "give more"),
    ],
)
def test_settings_out_of_range_are_one_sentence(smi, tmp_path, options, sentence):
    with pytest.raises(UserError, match=sentence):
        prepare(str(smi(CHAINS)), tmp_path / "out.h5", **{"workers": 1, **options})
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("lines", "words", "sentence"),
    [
        (["C1CC", "c1cc"], [], "none of its 2 molecules can be used: not SMILES that RDKit can parse (2)"),
        ([], [], "holds no molecules"),
        (["CC"], ["--column", "smiles"], "is no table"),
    ],
)
def test_files_without_use_end_with_code_2_and_leave_nothing(smi, tmp_path, fails, lines, words, sentence):
    path = smi(lines)
    assert sentence in fails(
        2, partial(run, prepare), ["--source", str(path), "--out", str(tmp_path / "o.h5"), "--workers", "1", *words]
    )
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.report
def test_limit_chooses_at_random(smi, tmp_path):
    out = tmp_path / "out.h5"
    prepare(str(smi(CHAINS)), out, limit=10, test_fraction=0, workers=1)
    store = Store(out)
    assert sum(store.splits.values()) == 10
    assert any(len(smiles) > 10 for split in store.splits for smiles in smiles_in(store, split))


@pytest.mark.report
def test_the_largest_part_of_a_salt_is_kept_on_request(smi, tmp_path):
    lines = ["[Na+].CCC(=O)[O-]", "[Cl-].[H+].CCN", "CC.O", *CHAINS]
    prepare(str(smi(lines)), tmp_path / "s.h5", salts="keep_largest", val_fraction=0, test_fraction=0, workers=1)
    assert {"CCC(=O)[O-]", "CCN"} <= set(smiles_in(Store(tmp_path / "s.h5"), "train"))
