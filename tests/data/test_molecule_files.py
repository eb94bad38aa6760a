import gzip
import math

import pytest

from arflows.core.runtime.errors import UserError
from arflows.data import archives
from arflows.data.molecule_files import nci, read_molecules

BLOCK = "\n  name\n\n  1  0  0  0  0  0  0  0  0  0999 V2000\n    0.0    0.0    0.0 C   0  0\nM  END\n"


def written(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("name", ["a.smi", "a.smiles", "a.txt", "a.smi.gz"])
@pytest.mark.parametrize("header", ["", "smiles\tid\n"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_smiles_are_the_first_word_of_a_line(tmp_path, name, header, end):
    path = written(tmp_path, name, (header + "CCO ethanol\n\nC\tmethane\nN").replace("\n", end))
    first = 2 if header else 1
    assert [(entry.number - first, entry.text) for entry in read_molecules(path)] == [(0, "CCO"), (2, "C"), (3, "N")]


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tables_are_read_by_their_line_of_names(tmp_path, name, end):
    text = f"id,canonical_smiles,logP{end}1,CCO,-0.3{end}2,C,{end}"
    path = written(tmp_path, name, text.replace(",", "\t") if ".tsv" in name else text)
    entries = list(read_molecules(path, values=["logP"]))
    assert [entry.text for entry in entries] == ["CCO", "C"]
    assert entries[0].values == (-0.3,)
    assert math.isnan(entries[1].values[0])


def test_a_table_without_names_begins_with_smiles(tmp_path):
    path = written(tmp_path, "a.csv", "CCO,1\nC,2\n")
    assert [entry.text for entry in read_molecules(path)] == ["CCO", "C"]


def test_a_column_named_smiles_goes_before_others_that_contain_it(tmp_path):
    path = written(tmp_path, "a.csv", "raw_smiles,SMILES\nC,CC\n")
    assert [entry.text for entry in read_molecules(path)] == ["CC"]
    assert [entry.text for entry in read_molecules(path, column="raw_smiles")] == ["C"]


def test_rows_that_are_too_short_have_empty_cells(tmp_path):
    path = written(tmp_path, "a.csv", "id,smiles\n1\n2,C\n")
    assert [entry.text for entry in read_molecules(path)] == ["", "C"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["a.sdf", "a.sd.gz"])
def test_sd_files_give_blocks_and_fields(tmp_path, name, end):
    text = BLOCK + ">  <logP>\n1.5\n\n>  <QED>  (2)\n0.5\n\n$$$$\n" + BLOCK + "$$$$\n"
    entries = list(read_molecules(written(tmp_path, name, text.replace("\n", end)), values=["QED", "logP"]))
    assert [entry.number for entry in entries] == [1, 2]
    assert entries[0].values == (0.5, 1.5)
    assert all(math.isnan(value) for value in entries[1].values)
    assert [entry.text for entry in entries] == [BLOCK, BLOCK]


def test_a_last_record_needs_no_separator(tmp_path):
    assert [entry.text for entry in read_molecules(written(tmp_path, "a.sdf", BLOCK))] == [BLOCK]


@pytest.mark.parametrize(
    ("name", "text", "options", "sentence"),
    [
        ("a.smi", "", {}, "holds no molecules"),
        ("a.smi", "smiles\n", {}, "holds no molecules"),
        ("a.csv", "", {}, "holds no molecules"),
        ("a.sdf", "\n", {}, "holds no molecules"),
        ("a.pdb", "C", {}, "cannot be read as molecules"),
        ("a.smi", "C", {"column": "smiles"}, "is no table"),
        ("a.smi", "C", {"values": ["logP"]}, "has no columns"),
        ("a.csv", "smiles,logP\nC,1\n", {"column": "smile"}, "Did you mean smiles?"),
        ("a.csv", "smiles,logP\nC,1\n", {"values": ["logp"]}, "has no column 'logp'. Did you mean logP?"),
        ("a.csv", "structure,logP\nC,1\n", {"values": ["logP"]}, "no column called smiles"),
        ("a.smi.gz", None, {}, "is damaged"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path, name, text, options, sentence):
    path = tmp_path / name
    path.write_bytes(b"no gzip") if text is None else path.write_text(text)
    with pytest.raises(UserError, match=r".") as error:
        read_molecules(path, **options)
    assert sentence in str(error.value)
    assert str(path) in str(error.value)


def test_missing_files_and_folders_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_molecules(tmp_path / "none.smi")
    with pytest.raises(UserError, match="is a folder"):
        read_molecules(tmp_path)


def test_what_is_no_text_is_refused(tmp_path):
    path = tmp_path / "a.smi"
    path.write_bytes(b"\x80\x00\x00C\x01\x00\x00")
    with pytest.raises(UserError, match="is not a text file"):
        read_molecules(path)


def test_the_built_in_set_has_five_thousand_molecules():
    entries = list(nci())
    assert len(entries) == 4999
    assert entries[0].text == "CC1=CC(=O)C=CC1=O"


@pytest.mark.parametrize("name", ["a.smi.gz", "a.csv.gz", "a.sdf.gz"])
@pytest.mark.parametrize("line", [b"C" * 10_000, b"C\n" * 5_000], ids=["one line", "many lines"])
def test_a_gzip_bomb_is_refused(tmp_path, monkeypatch, name, line):
    """Twenty megabytes in some twenty kilobytes, of which two are unpacked."""
    monkeypatch.setattr(archives, "ALWAYS_ALLOWED", 1 << 20)
    with gzip.open(tmp_path / name, "wb") as file:
        file.write(b"smiles\n")
        for _ in range(2000):
            file.write(line)
    assert (tmp_path / name).stat().st_size < 1 << 16
    with pytest.raises(UserError, match="unpacks to more than 100 times its size") as error:
        list(read_molecules(tmp_path / name))
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize("name", ["a.smi.gz", "a.csv.gz", "a.sdf.gz"])
def test_a_truncated_gzip_is_one_sentence(tmp_path, name):
    text = "smiles\n" + "CCO\n" * 10_000 if "sdf" not in name else (BLOCK + "$$$$\n") * 1000
    (tmp_path / name).write_bytes(gzip.compress(text.encode())[:-20])
    with pytest.raises(UserError, match=r"gz is damaged"):
        list(read_molecules(tmp_path / name))


@pytest.mark.report
@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.csv", '"ChEMBL ID";"Name";"Smiles"\n"C1";"X";"CCO"\n"C2";"";"CCN"\n', ["CCO", "CCN"]),
        ("a.csv", "smiles\tid\nCCO\t1\nCCN\t2\n", ["CCO", "CCN"]),
        ("a.csv", 'smiles,id\n"CCO |$a;;$|",1\nCCN,2\n', ["CCO", "CCN"]),
        ("a.txt", "id\tsmiles\n1\tCCO\n2\tCCN\n", ["CCO", "CCN"]),
    ],
)
def test_tables_with_any_delimiter(tmp_path, name, text, expected):
    assert [entry.text for entry in read_molecules(written(tmp_path, name, text))] == expected


@pytest.mark.report
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-8-sig"])
def test_names_in_any_encoding(tmp_path, encoding):
    (tmp_path / "a.smi").write_bytes("CCO µ\nCCN\n".encode(encoding))
    assert [entry.text for entry in read_molecules(tmp_path / "a.smi")] == ["CCO", "CCN"]


@pytest.mark.report
def test_a_table_without_smiles_asks_for_the_column(tmp_path):
    with pytest.raises(UserError, match=r"say with --column which of price, area holds SMILES"):
        read_molecules(written(tmp_path, "a.csv", "price,area\n1,2\n"))


@pytest.mark.report
def test_a_misspelt_field_of_an_sd_file(tmp_path):
    path = written(tmp_path, "a.sdf", BLOCK + ">  <logP>\n1.5\n\n$$$$\n")
    with pytest.raises(UserError, match=r"no field 'logp'\. Did you mean logP\? Its fields are: logP"):
        read_molecules(path, values=["logp"])
