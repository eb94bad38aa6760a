import re

import h5py
import numpy as np
import pytest

from arflows.data.densities import DENSITIES
from arflows.data.store import Store
from arflows.tabular import prepare as preparing
from arflows.tabular.prepare import prepare
from tests.launch import command

ROWS = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)


@pytest.mark.parametrize("name", DENSITIES)
def test_densities_of_the_plane(name, tmp_path, ends):
    out = tmp_path / "deep" / "plane.h5"
    code, _, printed = ends(command(preparing), "--source", name, "--out", out, "--size", 500, "--seed", 3)
    assert code == 0
    store = Store(out, expect_domain="tabular")
    store.verify()
    assert store.spec == {"features": 2, "context": 0}
    assert store.splits == {"train": 400, "val": 50, "test": 50}
    assert store.provenance["options"] == {
        "context": None,
        "columns": None,
        "drop": None,
        "size": 500,
        "seed": 3,
    }
    assert "2 columns" in printed
    drawn = np.concatenate([store.array(split, "x") for split in store.splits])
    expected = DENSITIES[name].draw(500, np.random.default_rng(3)).astype(np.float32)
    np.testing.assert_array_equal(np.sort(drawn, 0), np.sort(expected, 0))


def test_the_layout_of_the_published_sets(tmp_path):
    with h5py.File(tmp_path / "BSDS300.hdf5", "w") as file:
        file.update({"train": ROWS, "validation": ROWS[:10], "test": ROWS[:20]})
    prepare(str(tmp_path / "BSDS300.hdf5"), tmp_path / "out.h5")
    store = Store(tmp_path / "out.h5")
    assert store.splits == {"train": 60, "val": 10, "test": 20}
    np.testing.assert_array_equal(store.array("train", "x"), ROWS)  # in their order and their own units


def test_context_columns(houses, houses_csv):
    store = Store(houses)
    assert store.spec == {"features": 2, "context": 1}
    assert store.provenance["columns"] == {"x": ["price", "area"], "context": ["year"]}
    rows = np.loadtxt(houses_csv, skiprows=1, delimiter=",").astype(np.float32)
    by_price = {row[0]: row for row in rows}
    for x, context in zip(store.array("test", "x"), store.array("test", "context"), strict=True):
        np.testing.assert_array_equal(by_price[x[0]][[0, 2, 1]], [*x, *context])


def test_columns_without_names_are_numbered(tmp_path):
    np.save(tmp_path / "x.npy", ROWS)
    prepare(str(tmp_path / "x.npy"), tmp_path / "out.h5", context=["x3", "x0"])
    assert Store(tmp_path / "out.h5").provenance["columns"] == {"x": ["x1", "x2"], "context": ["x3", "x0"]}


def saved(array):
    def make(tmp_path):
        np.save(tmp_path / "x.npy", array)
        return tmp_path / "x.npy"

    return make


@pytest.mark.report
@pytest.mark.parametrize(
    ("make", "words", "sentence"),
    [
        (
            lambda p: "three_moons",
            [],
            "there is no source 'three_moons': give the path of a table, or one of two_moons",
        ),
        (lambda p: "two_moons", ["--size", 5], "size is 5"),
        (lambda p: "two_moons", ["--context", "[x0, x1]"], "no column left beside the context"),
        (lambda p: "two_moons", ["--context", "x7"], "has no column 'x7'"),
        (saved(np.c_[ROWS, np.full(60, 0.1)]), [], "one value alone .* of x4: .* --drop x4"),
        (saved(np.c_[ROWS, 2 - 3 * ROWS[:, 1].astype(float)]), [], "column 'x4' of .* repeats column 'x1'.* --drop x4"),
        (
            saved(np.r_[ROWS[:, :1].astype(float), ROWS[:, :1].astype(float) + 1e12]),
            [],
            r"the \d+ distinct values of column 'x0' become \d+ in float32",
        ),
        (saved(ROWS), ["--drop", "x7"], "has no column 'x7'"),
        (saved(ROWS), ["--drop", "x1", "--context", "x1"], "'x1' is in --drop and in --columns or --context"),
        (saved(ROWS), ["--delimiter", ";"], "is no CSV file: leave out --delimiter"),
        (saved(np.where(ROWS > 2, np.nan, ROWS)), [], r"missing \(NaN\), infinite or too large values"),
        (saved(ROWS[:4]), [], "too few for three splits"),
        (saved(ROWS[0]), [], "give two axes"),
        (lambda p: p, [], "is a folder"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(make, words, sentence, tmp_path, ends):
    out = tmp_path / "out.h5"
    code, message, printed = ends(command(preparing), "--source", make(tmp_path), "--out", out, *words)
    assert code == 2
    assert re.search(sentence, message)
    assert printed == ""
    assert not out.exists()


def test_a_constant_context_is_allowed(tmp_path):
    np.save(tmp_path / "x.npy", np.c_[ROWS, np.ones(60)])
    prepare(str(tmp_path / "x.npy"), tmp_path / "out.h5", context=["x4"])
    assert Store(tmp_path / "out.h5").spec == {"features": 4, "context": 1}


@pytest.mark.report
def test_times_in_seconds_keep_their_fractions(tmp_path, ends):
    generator = np.random.default_rng(0)
    times = 1.7e9 + generator.uniform(0, 3600, 4000)
    np.savetxt(tmp_path / "t.csv", np.c_[times, generator.normal(size=4000)], "%.3f", ",", header="t,a", comments="")
    code, _, printed = ends(command(preparing), "--source", tmp_path / "t.csv", "--out", tmp_path / "t.h5")
    assert code == 0
    assert "'t' is stored minus 1700002000" in printed
    store = Store(tmp_path / "t.h5")
    stored = np.concatenate([store.array(split, "x")[:, 0] for split in store.splits]).astype(float)
    restored = np.sort(stored + store.provenance["offsets"]["x"][0])
    np.testing.assert_allclose(restored, np.sort(np.round(times, 3)), rtol=0, atol=1e-4)
    assert len(np.unique(stored)) == len(np.unique(np.round(times, 3)))


@pytest.mark.report
def test_columns_are_chosen_and_printed(tmp_path, ends):
    path = tmp_path / "s.csv"
    path.write_text(
        "name;a;b;n;y\n"
        + "".join(f"r{i};{i / 7:.3f};{(i * i) % 11 / 3:.3f};{i};{i % 5}\n" for i in range(40)).replace(".", ",")
    )
    words = ["--source", path, "--out", tmp_path / "s.h5", "--drop", "name", "--context", "y"]
    code, _, printed = ends(command(preparing), *words)
    assert code == 0
    assert "columns: a, b, n\n  context: y" in printed
    assert "warning: 'n' holds whole numbers only" in printed
    assert ends(command(preparing), *words[:4], "--columns", "a,b", "--overwrite", "true")[0] == 0
    assert Store(tmp_path / "s.h5").provenance["columns"] == {"x": ["a", "b"]}
