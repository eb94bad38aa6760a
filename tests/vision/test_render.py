import csv

import numpy as np
import pytest
import torch
from PIL import Image

from arflows.core.commands.plots import read_log, score_histogram, training_curve
from arflows.core.runtime.errors import UserError
from arflows.vision.render import grid, save_png


def test_grid_puts_images_in_rows_with_gaps():
    images = torch.arange(1, 6, dtype=torch.uint8)[:, None, None, None].expand(5, 3, 32, 40) * 50
    picture = grid(images, columns=3)
    assert picture.dtype == torch.uint8
    assert picture.shape == (3, 2 * 34 + 2, 3 * 42 + 2)
    assert picture[:, 2:34, 2:42].unique().tolist() == [50]
    assert picture[:, 2:34, 44:84].unique().tolist() == [100]
    assert picture[:, 36:68, 2:42].unique().tolist() == [200]
    assert picture[:, 36:, 84:].unique().tolist() == [0]  # where there is no image
    assert picture[:, :2].unique().tolist() == [0]


def test_small_images_are_enlarged_pixel_by_pixel():
    image = torch.randint(0, 256, (1, 1, 8, 8), dtype=torch.uint8)
    picture = grid(image)
    assert picture.shape == (3, 32, 32)
    torch.testing.assert_close(picture[:1, ::4, ::4], image[0])
    torch.testing.assert_close(picture[:1, 3::4, 3::4], image[0])


@pytest.mark.parametrize("channels", [1, 3])
def test_png_keeps_every_pixel_and_leaves_no_other_file(tmp_path, channels):
    image = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
    save_png(image, tmp_path / "deep" / "x.png")
    pixels = np.asarray(Image.open(tmp_path / "deep" / "x.png")).reshape(5, 7, channels)
    np.testing.assert_array_equal(pixels, image.permute(1, 2, 0).numpy())
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x.png"]


def write_log(run, version, rows):
    folder = run / "logs" / f"version_{version}"
    folder.mkdir(parents=True)
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", "step", "train/bits_per_dim", "val/bits_per_dim"])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def run(tmp_path):
    first = [{"step": step, "epoch": 0, "train/bits_per_dim": 8.0 / (1 + step)} for step in range(0, 50, 10)]
    write_log(tmp_path, 0, [*first, {"step": 49, "epoch": 0, "val/bits_per_dim": 1.0}])
    resumed = {"train/bits_per_dim": 0.25}
    for version in range(1, 11):  # version_10 comes after version_9
        write_log(tmp_path, version, [{"step": 40, "epoch": 1, **resumed, "val/bits_per_dim": 0.0 - version}])
    return tmp_path


def test_the_log_of_a_resumed_run_is_one_log(run):
    log = read_log(run)
    np.testing.assert_array_equal(log["train/bits_per_dim"][:, 0], [0, 10, 20, 30, 40])
    assert log["train/bits_per_dim"][-1, 1] == 0.25
    np.testing.assert_array_equal(log["val/bits_per_dim"], [[40, -10], [49, 1]])


def test_the_log_of_a_real_run_is_read(run_folder):
    log = read_log(run_folder)
    np.testing.assert_array_equal(log["val/bits_per_dim"][:, 0], [4, 9])
    assert "train/gradient_norm" in log


def test_a_folder_without_log_is_named(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        read_log(tmp_path)


def test_training_curve_shows_both_losses(run):
    axes = training_curve(run).axes[0]
    assert axes.get_ylabel() == "bits/dim"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["training batches", "validation"]
    np.testing.assert_array_equal(axes.lines[1].get_xydata(), [[40, -10], [49, 1]])


def test_histogram_shows_shares_of_each_set_on_common_bins():
    figure = score_histogram({"test": np.linspace(2, 4, 500), "noise": [7.0, 8.0, np.inf]})
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["test (500)", "noise (2)"]
    heights = [sum(bar.get_height() for bar in container) for container in axes.containers]
    assert heights == pytest.approx([1, 1])
    figure.savefig("/dev/null", format="png")
