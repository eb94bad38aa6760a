import csv

import h5py
import numpy as np
import pytest
import torch

from arflows.core.flows import VectorFlow
from arflows.core.likelihood import Reference
from arflows.data.store import Store
from arflows.tabular import score as scoring
from tests.launch import command


def column(path, name):
    with path.open(newline="") as file:
        return np.array([float(row[name]) for row in csv.DictReader(file)])


def test_every_row_of_a_split_is_scored(moons_run, moons, tmp_path, ends):
    out = tmp_path / "scores.csv"
    code, _, printed = ends(command(scoring), "--model", moons_run, "--rows", moons, "--out", out, "--batch_size", 30)
    assert code == 0
    assert "over 100 examples" in printed
    flow = VectorFlow.from_pretrained(moons_run / "model")
    with torch.no_grad():
        expected = flow.log_prob(torch.from_numpy(np.array(Store(moons).array("test", "x"))))
    np.testing.assert_allclose(column(out, "log_density"), expected, atol=1e-4)
    np.testing.assert_array_equal(column(out, "row"), np.arange(100))
    reference = Reference.load(moons_run)
    np.testing.assert_allclose(column(out, "percentile"), reference.percentile(-expected.numpy()), atol=0.5)


def test_training_rows_lie_in_the_middle_and_strange_ones_at_the_end(moons_run, moons, tmp_path, ends):
    out = tmp_path / "scores.csv"
    assert ends(command(scoring), "--model", moons_run, "--rows", moons, "--out", out, "--split", "train")[0] == 0
    assert column(out, "percentile").mean() == pytest.approx(50, abs=1)
    np.save(tmp_path / "far.npy", np.full((3, 2), 30.0))
    assert ends(command(scoring), "--model", moons_run, "--rows", tmp_path / "far.npy", "--out", out)[0] == 0
    assert (column(out, "percentile") == 100).all()


def test_columns_are_found_by_their_names_and_else_by_order(houses_run, houses_csv, tmp_path, ends):
    rows = np.loadtxt(houses_csv, skiprows=1, delimiter=",")[:20]
    header = "id,area,year,price"
    named = np.column_stack([np.arange(20), rows[:, 2], rows[:, 1], rows[:, 0]])
    np.savetxt(tmp_path / "named.csv", named, delimiter=",", header=header, comments="", fmt="%.8g")
    np.save(tmp_path / "plain.npy", rows[:, [0, 2, 1]])  # what is conditioned on comes last
    scores = []
    for source in (houses_csv, tmp_path / "named.csv", tmp_path / "plain.npy"):
        assert ends(command(scoring), "--model", houses_run, "--rows", source, "--out", tmp_path / "s.csv")[0] == 0
        scores.append(column(tmp_path / "s.csv", "log_density")[:20])
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-4)
    np.testing.assert_allclose(scores[2], scores[0], atol=1e-4)


def test_samples_can_be_scored(houses_run, tmp_path, ends):
    from arflows.tabular import sample

    words = ["--model", houses_run, "--out", tmp_path / "drawn", "--context", "[2000]", "--count", 30]
    assert ends(command(sample), *words)[0] == 0
    source = tmp_path / "drawn/samples.csv"
    assert ends(command(scoring), "--model", houses_run, "--rows", source, "--out", tmp_path / "s.csv")[0] == 0
    np.testing.assert_allclose(column(tmp_path / "s.csv", "log_density"), column(source, "log_density"), atol=1e-2)


def test_without_training_facts_the_rest_stays_empty(moons_run, moons, tmp_path, ends):
    VectorFlow.from_pretrained(moons_run / "model").save_pretrained(tmp_path / "bare")
    words = ["--model", tmp_path / "bare", "--rows", moons, "--out", tmp_path / "s.csv"]
    code, _, printed = ends(command(scoring), *words)
    assert code == 0
    assert "no training.json" in printed
    assert (tmp_path / "s.csv").read_text().splitlines()[1].endswith(",,")


def npy(array):
    def make(tmp_path):
        np.save(tmp_path / "x.npy", array)
        return tmp_path / "x.npy"

    return make


def broken_store(tmp_path):
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file.attrs["format"] = "other"
    return tmp_path / "s.h5"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (npy(np.zeros((4, 3))), "has 3 columns, the model takes 2 (x0, x1)"),
        (npy(np.full((4, 2), np.nan)), "missing (NaN), infinite"),
        (lambda p: p / "missing.csv", "does not exist"),
        (broken_store, "has no array train"),
    ],
)
def test_rows_that_do_not_fit_are_one_sentence(make, sentence, moons_run, tmp_path, ends):
    out = tmp_path / "s.csv"
    code, message, _ = ends(command(scoring), "--model", moons_run, "--rows", make(tmp_path), "--out", out)
    assert code == 2
    assert sentence in message
    assert not out.exists()


def test_a_missing_column_split_or_context_is_named(houses_run, houses, moons, moons_run, tmp_path, ends):
    (tmp_path / "x.csv").write_text("price,years,area\n1,2,3\n")
    np.savez(tmp_path / "x.npz", train=np.zeros((3, 3)))
    out = ["--out", tmp_path / "s.csv"]
    for words, sentence in [
        (["--model", houses_run, "--rows", tmp_path / "x.csv"], "no column 'year'. Did you mean years?"),
        (["--model", houses_run, "--rows", tmp_path / "x.npz"], "has no split 'test': it has train"),
        (
            ["--model", houses_run, "--rows", houses, "--split", "holdout"],
            "no split 'holdout': it has train, val, test",
        ),
        (["--model", houses_run, "--rows", moons], "model ≠ store: context 1 ≠ 0"),
        (
            ["--model", moons_run, "--rows", moons, "--batch_size", 0],
            "--batch_size takes a whole number from 1 up",
        ),
    ]:
        code, message, _ = ends(command(scoring), *words, *out)
        assert code == 2
        assert sentence in message
