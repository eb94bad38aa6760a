import csv

import numpy as np
import pytest
import torch
from PIL import Image

from arflows.core.flows import MAF, VectorFlow
from arflows.tabular import sample as sampling
from arflows.tabular.sample import draw
from tests.launch import command


def rows(path):
    with path.open(newline="") as file:
        header, *lines = csv.reader(file)
        return header, np.array(lines, float)


def test_writes_arrays_a_table_and_a_picture(moons_run, tmp_path, ends):
    out = tmp_path / "deep" / "samples"
    words = ["--model", moons_run, "--out", out, "--count", 70, "--batch_size", 30, "--temperature", 0.8, "--seed", 4]
    code, _, printed = ends(command(sampling), *words)
    assert code == 0
    assert "70 rows" in printed
    arrays = np.load(out / "samples.npz")
    assert arrays["x"].shape == (70, 2)
    assert arrays["temperature"] == 0.8
    header, values = rows(out / "samples.csv")
    assert header == ["x0", "x1", "log_density"]
    np.testing.assert_array_equal(values[:, :2].astype(np.float32), arrays["x"])
    flow = VectorFlow.from_pretrained(moons_run / "model")
    with torch.no_grad():
        expected = flow.log_prob(torch.from_numpy(arrays["x"]))
    np.testing.assert_allclose(arrays["log_density"], expected, atol=1e-3)
    with Image.open(out / "density.png") as picture:
        assert min(picture.size) > 300


def test_samples_follow_from_the_seed_alone(moons_run, tmp_path):
    flow = VectorFlow.from_pretrained(moons_run / "model")
    first, again, other = (
        draw(flow, 50, seed=seed, batch_size=size)["x"] for seed, size in ((0, 50), (0, 50), (1, 50))
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("solver", ["jacobi", "gauss-seidel-jacobi"])
def test_solvers_draw_the_same_rows(solver, moons_run, tmp_path, ends):
    for name in ("sequential", solver):
        words = ["--model", moons_run, "--out", tmp_path / name, "--count", 20, "--solver", name]
        assert ends(command(sampling), *words)[0] == 0
    drawn = [np.load(tmp_path / name / "samples.npz")["x"] for name in ("sequential", solver)]
    np.testing.assert_allclose(*drawn, atol=1e-3)


def test_a_conditional_model_takes_its_context(houses_run, tmp_path, ends):
    means = []
    for year in (1960, 2010):
        words = ["--model", houses_run, "--out", tmp_path / str(year), "--context", year, "--count", 300]
        assert ends(command(sampling), *words)[0] == 0
        header, values = rows(tmp_path / str(year) / "samples.csv")
        assert header == ["price", "area", "year", "log_density"]
        assert set(values[:, 2]) == {year}
        means.append(values[:, 0].mean())
        assert (tmp_path / str(year) / "density.png").is_file()
    assert means[1] - means[0] > 1000  # 2.5 · SCALE apart by the data


def test_rows_of_more_columns_have_no_picture(tmp_path, ends):
    MAF(5, hidden_features=(8,)).save_pretrained(tmp_path / "model")
    assert ends(command(sampling), "--model", tmp_path / "model", "--out", tmp_path / "out")[0] == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"samples.csv", "samples.npz"}


@pytest.mark.report
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--count", 0], "--count takes a whole number from 1 up, not '0'"),
        (["--batch_size", 0], "--batch_size takes a whole number from 1 up, not '0'"),
        (["--temperature", 0], "temperature must be greater than 0"),
        (["--context", "[1.0]"], "without context"),
        (["--solver", "newton"], "newton"),
        (["--device", "abacus"], "no device 'abacus'"),
        (["--model", "nowhere"], "no model folder nowhere"),
    ],
)
def test_bad_options_are_one_sentence_and_leave_nothing(words, sentence, moons_run, tmp_path, ends):
    code, message, _ = ends(command(sampling), "--model", moons_run, "--out", tmp_path / "out", *words)
    assert code == 2
    assert sentence in message
    assert list(tmp_path.iterdir()) == []


def test_a_context_must_be_whole(houses_run, tmp_path, ends):
    words = ["--model", houses_run, "--out", tmp_path / "out"]
    assert "is conditioned on year: give --context, 1 number." in ends(command(sampling), *words)[1]
    assert (
        "has 2 numbers, the model is conditioned on year: give 1"
        in ends(command(sampling), *words, "--context", "[1, 2]")[1]
    )


def test_a_folder_with_content_is_not_overwritten(moons_run, tmp_path, ends):
    (tmp_path / "mine.txt").write_text("keep")
    code, message, _ = ends(command(sampling), "--model", moons_run, "--out", tmp_path)
    assert code == 2
    assert "exists already" in message
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
