import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from arflows.core.runtime.errors import UserError
from arflows.data.csv_tables import CsvFormat
from arflows.data.store_writer import write_store
from arflows.data.tables import WHOLE, Table, read_table

ROWS = np.random.default_rng(0).normal(size=(50, 3))


@pytest.mark.parametrize("names", [("train", "val", "test"), ("trn", "val", "tst"), ("train", "validation", "test")])
@pytest.mark.parametrize("suffix", [".npz", ".h5", ".hdf5"])
def test_files_with_splits(tmp_path, names, suffix):
    path = tmp_path / f"power{suffix}"
    arrays = {name: ROWS[: 10 * (index + 1)] for index, name in enumerate(names)}
    if suffix == ".npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            file.update(arrays)
    table = read_table(path)
    assert table.columns == ("x0", "x1", "x2")
    assert {split: len(rows) for split, rows in table.splits.items()} == {"train": 10, "val": 20, "test": 30}
    np.testing.assert_array_equal(table.splits["test"], ROWS[:30])
    assert table.divided(0) is table


def test_csv_with_names_and_without(tmp_path):
    np.savetxt(tmp_path / "plain.csv", ROWS, delimiter=",")
    (tmp_path / "named.csv").write_text("\ufeffa, b,c\n" + (tmp_path / "plain.csv").read_text(), encoding="utf-8")
    plain, named = (read_table(tmp_path / name) for name in ("plain.csv", "named.csv"))
    assert plain.columns == ("x0", "x1", "x2")
    assert named.columns == ("a", "b", "c")
    for table in (plain, named):
        np.testing.assert_allclose(table.splits[WHOLE], ROWS, rtol=1e-15)
    assert named.find(["c", "a"]) == [2, 0]


def test_division_holds_every_row_once_and_follows_from_the_seed(tmp_path):
    np.save(tmp_path / "x.npy", ROWS.astype(np.float32))
    table = read_table(tmp_path / "x.npy")
    divided = table.divided(0)
    assert {split: len(rows) for split, rows in divided.splits.items()} == {"train": 40, "val": 5, "test": 5}
    together = np.concatenate(list(divided.splits.values()))
    np.testing.assert_array_equal(np.sort(together, 0), np.sort(ROWS.astype(np.float32), 0))
    np.testing.assert_array_equal(divided.splits["test"], table.divided(0).splits["test"])
    assert not np.array_equal(divided.splits["test"], table.divided(1).splits["test"])


def whole(tmp_path, array):
    np.save(tmp_path / "x.npy", array)
    return tmp_path / "x.npy"


def text(tmp_path, content, name="x.csv"):
    (tmp_path / name).write_text(content)
    return tmp_path / name


def arrays(tmp_path, **named):
    np.savez(tmp_path / "x.npz", **named)
    return tmp_path / "x.npz"


def store(tmp_path):
    write_store(tmp_path / "s.h5", domain="tabular", spec={}, splits={"train": {"x": ROWS}})
    return tmp_path / "s.h5"


def cut(tmp_path):
    path = arrays(tmp_path, train=ROWS)
    path.write_bytes(path.read_bytes()[:-100])
    return path


@pytest.mark.report
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda p: p / "missing.csv", "does not exist: give a .csv"),
        (lambda p: p, "is a folder"),
        (lambda p: text(p, "hello", "x.doc"), "cannot be read as a table"),
        (lambda p: text(p, ""), "has no rows: give at least one"),
        (lambda p: text(p, "a,b\n"), "give at least one of both"),
        (lambda p: text(p, "a,b\n1,2\n3,x\n"), "column 'b', but 'x' in line 3: leave the column out with --drop b"),
        (lambda p: text(p, "1,2\n3\n"), "line 2: the number of cells changed from 2 to 1"),
        (lambda p: text(p, "a,a\n1,2\n"), "two columns of .* have the same name"),
        (lambda p: text(p, "1,2\n3,nan\n"), "in 1 of 2 rows, the first in line 2, column 'x1'"),
        (lambda p: whole(p, np.array([[1.0, 1e300]])), "too large values in 1 of 1 rows"),
        (lambda p: whole(p, ROWS[0]), "has the shape 3: give two axes"),
        (lambda p: whole(p, np.array([["a"]])), "holds <U1, not numbers"),
        (lambda p: whole(p, np.array([[object()]])), "holds arrays of Python objects"),
        (lambda p: arrays(p, x=ROWS), r"no array train \(it has x\): name its arrays"),
        (lambda p: arrays(p, train=ROWS, test=ROWS[:, :2]), r"number of columns \(train 3, test 2\)"),
        (lambda p: arrays(p, train=ROWS, val=ROWS[:0]), "val in .* has 0 rows"),
        (lambda p: arrays(p, train=ROWS, val=np.full((4, 3), np.inf)), "val in .* has missing .NaN., infinite"),
        (store, "is a store already"),
        (cut, "is damaged"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path, make, sentence):
    path = make(tmp_path)
    with pytest.raises(UserError, match=sentence) as error:
        read_table(path)
    assert path.name in str(error.value)


def test_columns_that_are_not_there():
    table = Table.of("x.csv", {WHOLE: ROWS}, ["price", "area", "year"])
    with pytest.raises(UserError, match=r"no column 'prise'. Did you mean price\? It has price, area, year"):
        table.find(["prise"])
    with pytest.raises(UserError, match="named twice"):
        table.find(["area", "area"])


def test_too_few_rows_to_divide():
    with pytest.raises(UserError, match="has 3 rows, too few"):
        Table.of("x.csv", {WHOLE: ROWS[:3]}).divided(0)


NUMBERS = "0.5,1.5,3\n2.5,3.5,4\n"


@pytest.mark.report
@pytest.mark.parametrize(
    ("content", "columns", "first"),
    [
        ("a;b\n1,5;2\n2,5;3\n", ("a", "b"), [1.5, 2]),
        ("a\tb\r\n1\t2.5\r\n3\t4\r\n", ("a", "b"), [1, 2.5]),
        ("1.0 2.0\n3.0  4.5\n", ("x0", "x1"), [1, 2]),
        ("# t,a\n1,2\n3,4.5\n", ("t", "a"), [1, 2]),
        ("0,1,2\n" + NUMBERS, ("0", "1", "2"), [0.5, 1.5, 3]),
        (",a,b\n0,1,2.5\n1,2,3\n", ("a", "b"), [1, 2.5]),
        ('"a","b"\n"1",1.5,2\n"2",2.5,3\n', ("a", "b"), [1.5, 2]),
        ('a,"b ""x"", y"\n1,"2.5"\n\n3,4\n', ("a", 'b "x", y'), [1, 2.5]),
        ("day,v\n2020-01-01,1.5\n2020-01-02 12:00:00,2.5\n", ("day", "v"), [18262, 1.5]),
        ("a,b,\n1,2,\n3,4.5,\n", ("a", "b"), [1, 2]),
        ("+1.5,2\n3,4\n", ("x0", "x1"), [1.5, 2]),
    ],
)
def test_the_format_of_a_csv_file_is_found_out(tmp_path, content, columns, first):
    (tmp_path / "x.csv").write_bytes(content.encode())
    table = read_table(tmp_path / "x.csv")
    assert table.columns == columns
    assert table.splits[WHOLE][0].tolist() == first
    assert len(table.splits[WHOLE]) == 2


@pytest.mark.report
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16", "utf-16-le"])
def test_names_in_any_encoding(tmp_path, encoding):
    (tmp_path / "x.csv").write_bytes("Größe,b\n1,2\n3,4.5\n".encode(encoding))
    assert read_table(tmp_path / "x.csv").columns == ("Größe", "b")


@pytest.mark.report
@pytest.mark.parametrize("spelling", ["", "NA", "NaN", "null", "?", "n/a"])
@pytest.mark.parametrize("header", ["", "a,b,c\n"])
def test_a_missing_number_is_named_by_line_and_column(tmp_path, spelling, header):
    (tmp_path / "x.csv").write_text(f"{header}1.0,{spelling},3\n{NUMBERS}")
    line, column = (2, "b") if header else (1, "x1")
    with pytest.raises(UserError, match=f"1 of 3 rows, the first in line {line}, column '{column}' .*--drop {column}"):
        read_table(tmp_path / "x.csv")


@pytest.mark.report
def test_a_line_of_numbers_that_may_be_names_is_asked_about(tmp_path):
    (tmp_path / "x.csv").write_text("0,1,2\n3,4,5\n5,6,8\n")
    with pytest.raises(UserError, match="say --header true or --header false"):
        read_table(tmp_path / "x.csv")
    assert len(read_table(tmp_path / "x.csv", CsvFormat(header=False)).splits[WHOLE]) == 3
    assert read_table(tmp_path / "x.csv", CsvFormat(header=True)).columns == ("0", "1", "2")


@pytest.mark.report
def test_parquet(tmp_path):
    columns = {"a": [1, 2], "b": [1.5, 2.5], "c": ["x", "y"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"no number in its column 'c', but values of type string.*--drop c"):
        read_table(tmp_path / "x.parquet")
    table = read_table(tmp_path / "x.parquet", pick=lambda names, named: [1, 0])
    assert table.columns == ("b", "a")
    assert table.splits[WHOLE].tolist() == [[1.5, 1], [2.5, 2]]
