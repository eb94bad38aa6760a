import csv

import numpy as np
import pytest
import torch
from PIL import Image

from arflows.core.likelihood import Reference, bits_per_dim
from arflows.data.store import Store
from arflows.vision import score as scoring
from arflows.vision.model import Glow, ImageFlow
from tests.launch import command


def scores(capsys, *words):
    """Runs the command; returns its exit code, the last line on standard error, and standard output."""
    try:
        command(scoring)([str(word) for word in words])
    except SystemExit as ending:
        captured = capsys.readouterr()
        return ending.code, captured.err.strip().splitlines()[-1], captured.out
    return 0, "", capsys.readouterr().out


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def column(path, name):
    return np.array([float(row[name]) for row in rows(path)])


@pytest.fixture(scope="module")
def test_images(digits):
    return np.array(Store(digits).array("test", "images"))


@pytest.fixture
def folder(tmp_path, test_images):
    """Five digits as files, in two folders that do not look like classes, and two files that are no use."""
    folder = tmp_path / "images"
    for index, image in enumerate(test_images[:5]):
        (folder / "sub").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(folder / ("sub" if index % 2 else ".") / f"{index}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_every_image_of_a_split_is_scored(run_folder, digits, test_images, tmp_path, capsys):
    out = tmp_path / "scores.csv"
    code, _, printed = scores(capsys, "--model", run_folder, "--images", digits, "--out", out, "--draws", 8)
    assert code == 0
    assert [row["image"] for row in rows(out)] == [str(index) for index in range(len(test_images))]
    flow = ImageFlow.from_pretrained(run_folder / "model")
    torch.manual_seed(0)
    with torch.no_grad():
        expected = [bits_per_dim(flow.log_prob(torch.from_numpy(test_images)), 64) for _ in range(8)]
    np.testing.assert_allclose(column(out, "bits_per_dim"), torch.stack(expected).mean(0), atol=0.1)
    assert "upper bound by uniform dequantisation, 8 draws, over 160 examples" in printed


def test_percentile_and_typicality_compare_with_the_training_images(run_folder, digits, tmp_path, capsys):
    out = tmp_path / "scores.csv"
    assert scores(capsys, "--model", run_folder, "--images", digits, "--out", out, "--split", "train")[0] == 0
    bits = column(out, "bits_per_dim")
    reference = Reference.load(run_folder)
    np.testing.assert_allclose(column(out, "percentile"), reference.percentile(bits), atol=1.5)
    np.testing.assert_allclose(column(out, "typicality"), np.abs(bits - reference.mean), atol=1e-5)
    assert column(out, "percentile").mean() == pytest.approx(50, abs=3)  # being the training images themselves


def test_noise_is_out_of_distribution(run_folder, digits, tmp_path, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (30, 8, 8), np.uint8)
    np.savez(tmp_path / "noise.npz", images=noise)
    assert (
        scores(capsys, "--model", run_folder, "--images", tmp_path / "noise.npz", "--out", tmp_path / "n.csv")[0] == 0
    )
    assert scores(capsys, "--model", run_folder, "--images", digits, "--out", tmp_path / "d.csv")[0] == 0
    noise_typicality, digits_typicality = (column(tmp_path / name, "typicality") for name in ("n.csv", "d.csv"))
    assert np.median(noise_typicality) > np.median(digits_typicality)


def test_a_folder_is_scored_by_file_and_what_is_skipped_is_listed(run_folder, folder, tmp_path, capsys):
    out = tmp_path / "scores.csv"
    code, _, printed = scores(capsys, "--model", run_folder, "--images", folder, "--out", out, "--batch_size", 2)
    assert code == 0
    assert {row["image"] for row in rows(out)} == {"0.png", "sub/1.png", "2.png", "sub/3.png", "4.png"}
    assert "broken.png" in printed
    assert "notes.txt" in printed


def test_the_same_image_gets_the_same_score_from_every_kind_of_source(
    run_folder, test_images, folder, tmp_path, capsys
):
    np.savez(tmp_path / "one.npz", images=test_images[:1, 0])
    values = []
    for source in (tmp_path / "one.npz", folder / "0.png"):
        assert scores(capsys, "--model", run_folder, "--images", source, "--out", tmp_path / "s.csv")[0] == 0
        values.append(column(tmp_path / "s.csv", "bits_per_dim"))
    np.testing.assert_array_equal(*values)


def test_scores_repeat_with_the_seed_and_change_with_it(run_folder, digits, tmp_path, capsys):
    texts = []
    for seed in (0, 0, 1):
        out = tmp_path / "s.csv"
        assert scores(capsys, "--model", run_folder, "--images", digits, "--out", out, "--seed", seed)[0] == 0
        texts.append(out.read_text())
    assert texts[0] == texts[1] != texts[2]


def test_without_training_facts_only_bits_per_dim_are_given(run_folder, digits, tmp_path, capsys):
    ImageFlow.from_pretrained(run_folder / "model").save_pretrained(tmp_path / "bare")
    out = tmp_path / "s.csv"
    code, _, printed = scores(capsys, "--model", tmp_path / "bare", "--images", digits, "--out", out)
    assert code == 0
    assert rows(out)[0]["percentile"] == rows(out)[0]["typicality"] == ""
    assert "no training.json" in printed


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditional")
    flow = Glow(8, 1, levels=1, steps=1, width=4, classes=10)
    torch.manual_seed(0)
    for parameter in flow.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    flow.save_pretrained(folder)
    return folder


def test_a_conditional_model_takes_the_labels_of_the_store(conditional, digits, tmp_path, capsys):
    assert scores(capsys, "--model", conditional, "--images", digits, "--out", tmp_path / "own.csv")[0] == 0
    assert scores(capsys, "--model", conditional, "--images", digits, "--out", tmp_path / "3.csv", "--label", 3)[0] == 0
    labels = Store(digits).array("test", "labels")
    own, threes = (column(tmp_path / name, "bits_per_dim") for name in ("own.csv", "3.csv"))
    np.testing.assert_array_equal(own[labels == 3], threes[labels == 3])
    assert (own[labels != 3] != threes[labels != 3]).all()


def test_a_conditional_model_needs_a_label_for_images_without(conditional, test_images, tmp_path, capsys):
    np.savez(tmp_path / "plain.npz", images=test_images)
    code, message, _ = scores(
        capsys, "--model", conditional, "--images", tmp_path / "plain.npz", "--out", tmp_path / "s.csv"
    )
    assert code == 2
    assert "--label" in message


def test_labels_beyond_the_classes_are_refused(conditional, test_images, tmp_path, capsys):
    np.savez(tmp_path / "many.npz", images=test_images[:3], labels=np.array([0, 5, 12]))
    code, message, _ = scores(
        capsys, "--model", conditional, "--images", tmp_path / "many.npz", "--out", tmp_path / "s.csv"
    )
    assert code == 2
    assert "has 13 classes, the model 10 whose names are not known" in message


def save_other_size(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.zeros((4, 16, 16, 3), np.uint8))
    return tmp_path / "x.npz"


def save_other_file(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "x.png")
    return tmp_path / "x.png"


def save_out_of_range(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.full((4, 8, 8), 300))
    return tmp_path / "x.npz"


def save_nan(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.full((4, 8, 8), np.nan))
    return tmp_path / "x.npz"


def make_empty(tmp_path):
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (save_other_size, "height 8 ≠ 16, width 8 ≠ 16, channels 1 ≠ 3"),
        (save_other_file, "height 8 ≠ 20, width 8 ≠ 30, channels 1 ≠ 3"),
        (save_out_of_range, "outside"),
        (save_nan, "NaN"),
        (make_empty, "holds no files"),
        (lambda tmp_path: tmp_path / "missing", "there is no"),
    ],
)
def test_images_that_do_not_fit_are_one_sentence(run_folder, tmp_path, capsys, source, sentence):
    out = tmp_path / "s.csv"
    code, message, _ = scores(capsys, "--model", run_folder, "--images", source(tmp_path), "--out", out)
    assert code == 2
    assert sentence in message
    assert not out.exists()


def test_a_file_of_another_size_is_scored_when_asked_to_convert(run_folder, tmp_path, capsys):
    source = save_other_file(tmp_path)
    words = ["--model", run_folder, "--images", source, "--out", tmp_path / "s.csv", "--convert", "true"]
    assert scores(capsys, *words)[0] == 0
    assert rows(tmp_path / "s.csv")[0]["image"] == "x.png"


def test_a_missing_split_names_those_there_are(run_folder, digits, tmp_path, capsys):
    words = ["--model", run_folder, "--images", digits, "--out", tmp_path / "s.csv", "--split", "holdout"]
    code, message, _ = scores(capsys, *words)
    assert code == 2
    assert "train, val, test" in message
