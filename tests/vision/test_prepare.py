import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arflows.core.runtime.errors import UserError
from arflows.data.store import Store
from arflows.vision import prepare as preparing
from arflows.vision.prepare import prepare
from tests.launch import command

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out" / "data.h5"


@pytest.fixture
def npz(tmp_path):
    np.savez(tmp_path / "images.npz", images=PIXELS, labels=np.arange(40) % 4)
    return tmp_path / "images.npz"


def rows(store, *splits):
    return sorted(image.tobytes() for split in splits for image in store.array(split, "images"))


@pytest.mark.parametrize(
    ("name", "spec", "counts"),
    [
        ("digits", {"height": 8, "width": 8, "channels": 1, "bits": 8}, [1437, 180, 180]),
        ("patches", {"height": 32, "width": 32, "channels": 3, "bits": 8}, [4096, 512, 512]),
    ],
)
def test_builtin(out, name, spec, counts, capsys):
    prepare(name, out)
    store = Store(out, expect_domain="vision")
    store.verify()
    assert store.spec == spec
    assert list(store.splits.items()) == list(zip(("train", "val", "test"), counts, strict=True))
    assert store.provenance["source"] == name
    assert f"{counts[0]:,}" in capsys.readouterr().out


def test_npz_with_validation_set_aside(npz, out):
    prepare(str(npz), out, test=npz, val_fraction=0.25)
    store = Store(out)
    assert store.splits == {"train": 30, "val": 10, "test": 40}
    assert store.categories == {"labels": ["0", "1", "2", "3"]}
    everything = sorted(image.tobytes() for image in PIXELS.transpose(0, 3, 1, 2))
    assert rows(store, "train", "val") == everything
    assert rows(store, "test") == everything
    np.testing.assert_array_equal(store.array("test", "labels"), np.arange(40) % 4)
    by_image = {image.transpose(2, 0, 1).tobytes(): index % 4 for index, image in enumerate(PIXELS)}
    for split in ("train", "val"):
        for image, label in zip(store.array(split, "images"), store.array(split, "labels"), strict=True):
            assert by_image[image.tobytes()] == label


def test_seed_decides_what_is_set_aside(npz, out):
    def validation(seed):
        prepare(str(npz), out, seed=seed, val_fraction=0.25, overwrite=True)
        return rows(Store(out), "val")

    assert validation(0) == validation(0)
    assert validation(0) != validation(1)


def test_without_validation(npz, out):
    prepare(str(npz), out, val_fraction=0)
    assert Store(out).splits == {"train": 40}


def test_own_validation_split_is_kept(tmp_path, out):
    for name, count in (("train", 20), ("val", 5), ("test", 7)):
        np.savez(tmp_path / f"{name}.npz", images=PIXELS[:count])
    prepare(str(tmp_path), out, val_fraction=0.5)
    assert Store(out).splits == {"train": 20, "val": 5, "test": 7}


def test_limit(npz, out):
    prepare(str(npz), out, test=npz, limit=20, val_fraction=0.1)
    store = Store(out)
    assert store.splits == {"train": 18, "val": 2, "test": 20}
    assert store.provenance["available"] == {"train": 40, "test": 40}
    assert len(np.unique(store.array("test", "labels"))) == 4


def test_size_and_channels(npz, out, capsys):
    prepare(str(npz), out, image_size=4, channels=1)
    store = Store(out)
    assert store.spec == {"height": 4, "width": 4, "channels": 1, "bits": 8}
    assert store.array("train", "images").shape == (38, 1, 4, 4)
    assert store.provenance["splits"]["train"]["converted"] == {"reduced": 38, "colour to grey": 38}
    assert "38 of them converted: reduced" in capsys.readouterr().out


def test_folder_with_all_kinds_of_files(tmp_path, out, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(5):
        Image.fromarray(PIXELS[index]).resize((20 + index, 30)).save(folder / f"{index}.png")
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:100])
    (folder / "notes.txt").write_text("no image")
    Image.new("RGB", (4, 4)).save(folder / "small.png")
    prepare(str(folder), out, image_size=16, val_fraction=0)
    store = Store(out)
    assert store.splits == {"train": 5}
    stats = store.provenance["splits"]["train"]
    assert stats["read"] == 8
    assert stats["skipped"] == {
        "broken or truncated": ["broken.png"],
        "not an image": ["notes.txt"],
        "smaller than 16×16": ["small.png"],
    }
    printed = capsys.readouterr().out
    assert "3 skipped" in printed
    for name in ("broken.png", "notes.txt", "small.png"):
        assert name in printed


def test_grey_folder_gives_grey_store(tmp_path, out):
    folder = tmp_path / "grey"
    folder.mkdir()
    for index in range(3):
        Image.fromarray(PIXELS[index, ..., 0]).save(folder / f"{index}.png")
    prepare(str(folder), out, val_fraction=0)
    assert Store(out).spec["channels"] == 1


@pytest.mark.parametrize(
    ("name", "spec", "available"),
    [
        ("cifar10", {"height": 32, "width": 32, "channels": 3, "bits": 8}, {"train": 49920, "test": 9977}),
        ("mnist", {"height": 28, "width": 28, "channels": 1, "bits": 8}, {"train": 60000, "test": 10000}),
    ],
)
def test_real_sets(out, name, spec, available):
    folder = Path(os.environ.get("ARFLOWS_DATA", "")) / name
    if not (folder / "train.npz").is_file():
        pytest.skip("set ARFLOWS_DATA to a folder with cifar10 and mnist, each as train.npz and test.npz")
    prepare(str(folder), out, limit=2000)
    store = Store(out)
    store.verify()
    assert store.spec == spec
    assert store.provenance["available"] == available
    assert store.splits == {"train": 1900, "val": 100, "test": 2000}
    assert len(store.categories["labels"]) == 10
    images, labels = (np.load(folder / "test.npz")[field] for field in ("images", "labels"))
    known = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    for image, label in zip(store.array("test", "images"), store.array("test", "labels"), strict=True):
        assert known[image.transpose(1, 2, 0).tobytes()] == label


def test_interrupt_leaves_nothing(tmp_path, out):
    """Ctrl-C in the middle: exit code 130, no store and no scratch folder."""
    np.savez(tmp_path / "many.npz", images=np.zeros((300_000, 4, 4), np.uint8))
    command = [
        sys.executable,
        "-m",
        "arflows.core.commands.cli",
        "vision",
        "prepare",
        "--source",
        str(tmp_path / "many.npz"),
        "--out",
        str(out),
    ]
    process = subprocess.Popen([*command, "--image_size", "2"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not any(tmp_path.rglob("train.images")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert not any(out.parent.iterdir())


class TestBadInput:
    def refused(self, out, message, source, error=UserError, **options):
        with pytest.raises(error, match=message):
            prepare(str(source), out, **options)
        assert not out.exists()
        assert not out.parent.exists() or not any(out.parent.iterdir())

    def test_wrong_path(self, tmp_path, out):
        self.refused(out, "no source '.*missing'.*digits, patches, cifar10", tmp_path / "missing")

    def test_empty_folder(self, tmp_path, out):
        (tmp_path / "empty").mkdir()
        self.refused(out, "holds no files", tmp_path / "empty", UserError)

    def test_folder_without_images(self, tmp_path, out):
        (tmp_path / "texts").mkdir()
        (tmp_path / "texts" / "a.txt").write_text("x")
        self.refused(out, "holds no image that can be read", tmp_path / "texts")
        self.refused(out, r"1 not an image \(a.txt\)", tmp_path / "texts", image_size=8, channels=3, val_fraction=0)

    def test_all_too_small(self, npz, out):
        self.refused(out, r"none of the images .* 38 smaller than 16×16 \(image 0, image 1", npz, image_size=16)

    def test_sizes_differ(self, tmp_path, out):
        (tmp_path / "mixed").mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / "mixed" / "a.png")
        Image.new("RGB", (9, 12)).save(tmp_path / "mixed" / "b.png")
        self.refused(out, "8×8 to 12×9, not of one size: add --image_size", tmp_path / "mixed")

    @pytest.mark.report
    def test_a_class_without_training_images(self, npz, tmp_path, out):
        np.savez(tmp_path / "train.npz", images=PIXELS, labels=np.arange(40) % 3)
        np.savez(tmp_path / "test.npz", images=PIXELS, labels=np.arange(40) % 2)
        prepare(str(tmp_path / "train.npz"), out, test=tmp_path / "test.npz")
        with pytest.raises(UserError, match="has the class '3', which the split 'train' has not"):
            prepare(str(tmp_path / "train.npz"), out, test=npz, overwrite=True)

    @pytest.mark.parametrize("size", ["0", "8,0", "8,9,10", "wide"])
    def test_sizes_that_are_none(self, npz, out, size):
        self.refused(out, f"image_size is {size}: give", npz, image_size=size)

    @pytest.mark.parametrize("pixels", [np.nan, np.inf, -1.0, 300.0])
    def test_pixels_out_of_range(self, tmp_path, out, pixels):
        np.savez(tmp_path / "a.npz", images=np.full((5, 8, 8), pixels))
        self.refused(out, "NaN or infinite|outside 0…1", tmp_path / "a.npz", UserError)

    @pytest.mark.parametrize(
        ("option", "value"), [("val_fraction", 1.0), ("val_fraction", -0.1), ("image_size", 0), ("limit", 0)]
    )
    def test_settings_out_of_range(self, npz, out, fails, option, value):
        words = ["--source", str(npz), "--out", str(out), f"--{option}", str(value)]
        message = fails(2, command(preparing), words)
        assert option in message
        assert str(value) in message
        assert not out.exists()

    @pytest.mark.parametrize("options", [{"val_fraction": 1.0}, {"val_fraction": -0.1}, {"limit": 0}], ids=str)
    def test_settings_out_of_range_from_python(self, npz, out, options):
        self.refused(out, f"{next(iter(options))} is .*: give a number", npz, **options)

    def test_one_image_cannot_be_split(self, npz, out):
        self.refused(out, "only 1 training image", npz, limit=1)

    def test_test_images_twice(self, npz, out):
        self.refused(out, "leave out --test", "digits", test=npz)

    def test_set_that_is_not_there(self, tmp_path, out):
        self.refused(out, "cifar10 is not.*--download", "cifar10", UserError, root=tmp_path / "cache")

    @pytest.mark.report
    def test_source_is_not_overwritten(self, npz):
        before = npz.read_bytes()
        with pytest.raises(UserError, match=r"images\.npz"):
            prepare(str(npz), npz)
        assert npz.read_bytes() == before

    def test_failure_leaves_the_old_store(self, npz, out):
        prepare(str(npz), out)
        before = out.read_bytes()
        with pytest.raises(UserError, match="none of the images"):
            prepare(str(npz), out, image_size=16, overwrite=True)
        assert out.read_bytes() == before


@pytest.mark.report
def test_images_that_are_no_squares(tmp_path, out):
    np.savez(tmp_path / "a.npz", images=np.arange(5 * 8 * 10, dtype=np.uint8).reshape(5, 8, 10))
    prepare(str(tmp_path / "a.npz"), out, val_fraction=0)
    assert Store(out).spec == {"height": 8, "width": 10, "channels": 1, "bits": 8}
    (tmp_path / "files").mkdir()
    Image.fromarray(PIXELS.reshape(64, 120)[:40, :120]).save(tmp_path / "files" / "wide.png")
    prepare(str(tmp_path / "files"), out, image_size="12,20", val_fraction=0, overwrite=True)
    assert Store(out).spec == {"height": 12, "width": 20, "channels": 1, "bits": 8}
    assert Store(out).provenance["splits"]["train"]["converted"] == {"cropped to its central part": 1, "reduced": 1}


@pytest.mark.report
def test_twelve_bits_in_files_of_sixteen(tmp_path, out):
    (tmp_path / "files").mkdir()
    Image.fromarray(np.full((8, 8), 4095, np.uint16)).save(tmp_path / "files" / "white.png")
    Image.fromarray(np.full((8, 8), 2048, np.uint16)).save(tmp_path / "files" / "grey.png")
    prepare(str(tmp_path / "files"), out, white=4095, val_fraction=0)
    assert sorted(Store(out).array("train", "images")[:, 0, 0, 0]) == [128, 255]


@pytest.mark.report
def test_a_stray_file_keeps_the_labels_and_numbers_sort_by_value(tmp_path, out, capsys):
    for index, name in enumerate(("10", "9", "b")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for copy in range(index + 2):
            Image.fromarray(PIXELS[index]).save(tmp_path / "images" / name / f"{copy}.png")
    (tmp_path / "images" / "README.txt").write_text("no image")
    prepare(str(tmp_path / "images"), out, val_fraction=0)
    store = Store(out)
    assert store.categories == {"labels": ["9", "10", "b"]}
    assert np.bincount(store.array("train", "labels")).tolist() == [3, 2, 4]
    assert store.provenance["splits"]["train"]["skipped"] == {"not an image": ["README.txt"]}
    assert "class 9: train 3\n  class 10: train 2" in capsys.readouterr().out


@pytest.mark.report
def test_labels_from_one_keep_their_names(tmp_path, out, capsys):
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=1 + np.arange(40) % 2)
    prepare(str(tmp_path / "a.npz"), out)
    store = Store(out)
    assert store.categories == {"labels": ["1", "2"]}
    assert set(store.array("train", "labels")) == {0, 1}
    assert "left out, as they have no training images: the classes 0" in capsys.readouterr().out
