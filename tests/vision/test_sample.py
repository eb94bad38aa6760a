import numpy as np
import pytest
import torch
from PIL import Image

from arflows.vision import sample as sampling
from arflows.vision.model import Glow, ImageFlow
from arflows.vision.sample import interpolate, spherical
from tests.launch import command


def samples(capsys, *words):
    """Runs the command; returns its exit code, the last line on standard error, and standard output."""
    try:
        command(sampling)([str(word) for word in words])
    except SystemExit as ending:
        captured = capsys.readouterr()
        return ending.code, captured.err.strip().splitlines()[-1], captured.out
    return 0, "", capsys.readouterr().out


def shaken(flow):
    """Not the identity, so that mistakes show."""
    torch.manual_seed(0)
    for parameter in flow.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return flow.eval()


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    """The folder of a class-conditional model."""
    folder = tmp_path_factory.mktemp("conditional")
    shaken(Glow(8, 1, levels=1, steps=1, width=4, classes=3)).save_pretrained(folder)
    return folder


def test_writes_grid_single_images_and_arrays(run_folder, tmp_path, capsys):
    out = tmp_path / "deep" / "samples"
    words = ["--model", run_folder, "--out", out, "--count", 7, "--batch_size", 3, "--temperature", 0.8, "--seed", 4]
    assert samples(capsys, *words)[0] == 0
    arrays = np.load(out / "samples.npz")
    assert arrays["images"].shape == (7, 1, 8, 8)
    assert arrays["images"].dtype == np.uint8
    assert arrays["log_probs"].shape == (7,)
    assert (arrays["seed"], arrays["temperature"]) == (4, 0.8)
    assert "labels" not in arrays
    files = sorted((out / "images").iterdir())
    assert [file.name for file in files] == [f"{index:04d}.png" for index in range(7)]
    for file, image in zip(files, arrays["images"], strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(file)), image[0])
    assert Image.open(out / "grid.png").size == (3 * 34 + 2, 3 * 34 + 2)


def test_the_seed_decides_and_the_batch_size_does_not(run_folder, tmp_path, capsys):
    def images(name, *words):
        assert samples(capsys, "--model", run_folder, "--out", tmp_path / name, "--count", 6, *words)[0] == 0
        return np.load(tmp_path / name / "samples.npz")["images"]

    first = images("first")
    np.testing.assert_array_equal(images("again"), first)
    np.testing.assert_array_equal(images("by_twos", "--batch_size", 2), first)
    assert (images("other", "--seed", 1) != first).any()


def test_log_probs_are_those_of_the_images(run_folder, tmp_path, capsys):
    assert samples(capsys, "--model", run_folder, "--out", tmp_path / "s", "--count", 20)[0] == 0
    arrays = np.load(tmp_path / "s" / "samples.npz")
    flow = ImageFlow.from_pretrained(run_folder / "model")
    images = torch.from_numpy(arrays["images"])
    with torch.no_grad():
        draws = torch.stack([flow.log_prob(images) for _ in range(50)])
    spread = draws.std(0).clamp_min(0.5)
    assert ((torch.from_numpy(arrays["log_probs"]) - draws.mean(0)).abs() < 6 * spread).all()


def test_labels_are_kept_with_the_images(conditional, tmp_path, capsys):
    assert samples(capsys, "--model", conditional, "--out", tmp_path / "all", "--count", 30)[0] == 0
    assert set(np.load(tmp_path / "all/samples.npz")["labels"]) == {0, 1, 2}
    assert samples(capsys, "--model", conditional, "--out", tmp_path / "one", "--count", 3, "--label", 2)[0] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "one/samples.npz")["labels"], [2, 2, 2])


def test_reconstruction_of_a_store_is_exact(run_folder, digits, tmp_path, capsys):
    out = tmp_path / "r"
    code, _, printed = samples(capsys, "--model", run_folder, "--out", out, "--reconstruct", digits, "--count", 9)
    assert code == 0
    arrays = np.load(out / "samples.npz")
    np.testing.assert_array_equal(arrays["images"], arrays["originals"])
    assert arrays["errors"].max() < 1e-5
    assert "9 of 9 images come back exactly" in printed


def test_reconstruction_reads_image_files_of_any_size_and_names_those_it_cannot(run_folder, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (40, 20), "orange").save(folder / "large.jpg")
    Image.new("L", (4, 4)).save(folder / "small.png")
    (folder / "notes.txt").write_text("no image")
    out = tmp_path / "r"
    code, _, printed = samples(capsys, "--model", run_folder, "--out", out, "--reconstruct", folder)
    assert code == 0
    assert len(np.load(out / "samples.npz")["images"]) == 1
    assert "small.png" in printed
    assert "notes.txt" in printed


def test_interpolation_starts_and_ends_at_the_given_images(run_folder, digits, tmp_path, capsys):
    assert (
        samples(capsys, "--model", run_folder, "--out", tmp_path / "r", "--reconstruct", digits, "--count", 2)[0] == 0
    )
    first, last = (tmp_path / "r/images" / f"000{index}.png" for index in (0, 1))
    words = ["--interpolate_from", first, "--interpolate_to", last, "--count", 5, "--batch_size", 2]
    assert samples(capsys, "--model", run_folder, "--out", tmp_path / "i", *words)[0] == 0
    images = np.load(tmp_path / "i/samples.npz")["images"]
    assert images.shape == (5, 1, 8, 8)
    np.testing.assert_array_equal(images[0, 0], np.asarray(Image.open(first)))
    np.testing.assert_array_equal(images[-1, 0], np.asarray(Image.open(last)))
    assert (images[2] != images[0]).any()
    assert (images[2] != images[-1]).any()


def test_interpolation_of_a_conditional_model_keeps_the_class(conditional):
    flow = ImageFlow.from_pretrained(conditional)
    ends = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    images = interpolate(flow, *ends, count=4, label=1)
    torch.testing.assert_close(images[[0, -1]], ends, rtol=0, atol=0)


def test_spherical_interpolation_keeps_the_distance_from_the_mean():
    first, last = torch.randn(2, 3000, dtype=torch.float64)
    path = spherical(first, last, 9)
    lengths = torch.linspace(first.norm(), last.norm(), 9, dtype=torch.float64)
    torch.testing.assert_close(path.norm(dim=1), lengths)
    torch.testing.assert_close(path[[0, -1]], torch.stack([first, last]))
    cosines = torch.nn.functional.cosine_similarity(path[:-1], path[1:])
    torch.testing.assert_close(cosines, cosines[:1].expand(8))  # evenly spaced in angle


def test_spherical_interpolation_of_parallel_vectors_is_straight():
    first = torch.randn(5)
    torch.testing.assert_close(spherical(first, 3 * first, 3), torch.stack([first, 2 * first, 3 * first]))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--count", "0"], "--count takes a whole number from 1 up, not '0'"),
        (["--batch_size", "0"], "--batch_size takes a whole number from 1 up, not '0'"),
        (["--temperature", "0"], "temperature must be greater than 0"),
        (["--label", "1"], "trained without classes"),
        (["--device", "cuda:77"], "no device 'cuda:77'"),
        (["--interpolate_from", "a.png"], "two ends"),
        (["--interpolate_from", "a.png", "--interpolate_to", "b.png"], "no image file a.png"),
        (["--reconstruct", "missing"], "there is no missing"),
        (["--interpolate_from", "a.png", "--interpolate_to", "b.png", "--reconstruct", "c.png"], "not both"),
    ],
)
def test_bad_options_are_one_sentence_and_leave_nothing(run_folder, tmp_path, capsys, words, sentence):
    code, message, _ = samples(capsys, "--model", run_folder, "--out", tmp_path / "s", *words)
    assert code == 2
    assert sentence in message
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_left_alone(run_folder, tmp_path, capsys):
    (tmp_path / "precious").write_text("mine")
    code, message, _ = samples(capsys, "--model", run_folder, "--out", tmp_path)
    assert code == 2
    assert "exists already" in message
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize("damage", ["truncated", "missing", "newer", "folder"])
def test_a_damaged_model_is_one_sentence(run_folder, tmp_path, capsys, damage):
    model = tmp_path / "model"
    model.mkdir()
    for file in (run_folder / "model").iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    if damage == "truncated":
        (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-100])
    elif damage == "missing":
        (model / "model.safetensors").unlink()
    elif damage == "newer":
        config = (model / "config.json").read_text().replace('"format_version": 2', '"format_version": 99')
        (model / "config.json").write_text(config)
    else:
        model = tmp_path / "elsewhere"
    code, message, _ = samples(capsys, "--model", model, "--out", tmp_path / "s")
    assert code == 2
    assert str(model) in message
    assert not (tmp_path / "s").exists()
