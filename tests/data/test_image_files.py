import numpy as np
import pytest
from PIL import Image

from arflows.core.runtime.errors import UserError
from arflows.data.image_files import read_folder, read_npz, read_path
from arflows.data.image_sources import ReadStats, uniform_batches

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


def write_images(folder, count=3, size=8, mode="RGB"):
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.fromarray(PIXELS[index]).convert(mode).resize((size, size)).save(folder / f"{index}.png")


def all_images(examples, size=8, channels=3):
    stats = ReadStats()
    batches = list(uniform_batches(examples, range(len(examples)), size, channels, stats))
    return np.concatenate([images for images, _ in batches]), [labels for _, labels in batches], stats


class TestNpz:
    @pytest.mark.parametrize(
        ("images", "expected"),
        [
            (PIXELS, PIXELS),
            (PIXELS.transpose(0, 3, 1, 2), PIXELS),
            (PIXELS[..., 0], PIXELS[..., :1]),
            (PIXELS[..., :1], PIXELS[..., :1]),
            (PIXELS[..., :1].transpose(0, 3, 1, 2), PIXELS[..., :1]),
            (PIXELS.astype(np.int64), PIXELS),
            (PIXELS / 255, PIXELS),
            (PIXELS.astype(np.float32) / 255, PIXELS),
        ],
        ids=["NHWC", "NCHW", "NHW", "NHW1", "N1HW", "int64", "float64", "float32"],
    )
    def test_layouts_and_types(self, tmp_path, images, expected):
        np.savez(tmp_path / "a.npz", images=images, labels=np.arange(6, dtype=np.uint8), index=np.arange(6))
        examples = read_npz(tmp_path / "a.npz")
        assert examples.images.dtype == np.uint8
        np.testing.assert_array_equal(examples.images, expected)
        np.testing.assert_array_equal(examples.labels, range(6))
        assert examples.classes == ("0", "1", "2", "3", "4", "5")

    def test_labels_are_optional(self, tmp_path):
        np.savez_compressed(tmp_path / "a.npz", images=PIXELS)
        assert read_npz(tmp_path / "a.npz").labels is None

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"pictures": PIXELS}, "no array 'images' .*pictures"),
            ({"images": PIXELS[0, 0]}, r"shape \(8, 3\) cannot be used"),
            ({"images": np.zeros((2, 8, 8, 4), np.uint8)}, "1 or 3 channels"),
            ({"images": np.zeros((0, 8, 8, 3), np.uint8)}, "no images"),
            ({"images": np.array([None])}, "Python objects"),
            ({"images": np.full((2, 8, 8), "a")}, "save them as uint8"),
            ({"images": np.full((2, 8, 8), np.nan)}, "128 of 128 pixels are NaN or infinite"),
            ({"images": np.where(np.eye(8) > 0, np.inf, 0)[None]}, "8 of 64 pixels are NaN or infinite"),
            ({"images": np.full((2, 8, 8), 255.0)}, "run from 255 to 255, outside 0…1"),
            ({"images": np.full((2, 8, 8), -0.5)}, "run from -0.5"),
            ({"images": np.full((2, 8, 8), 256)}, "outside 0…255"),
            ({"images": PIXELS, "labels": np.arange(5)}, "one whole number for each of the 6 images"),
            ({"images": PIXELS, "labels": np.ones(6)}, "labels are float64"),
            ({"images": PIXELS, "labels": np.arange(6) - 1}, "labels run from -1 to 4"),
            ({"images": PIXELS, "labels": np.arange(6) * 10**9}, "number the classes from 0"),
        ],
    )
    def test_refused(self, tmp_path, arrays, message):
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(UserError, match=message) as error:
            read_npz(tmp_path / "a.npz")
        assert "a.npz" in str(error.value)

    @pytest.mark.parametrize("damage", ["truncated", "noise", "empty", "text", "npy", "pickle"])
    def test_damaged(self, tmp_path, damage):
        path = tmp_path / "a.npz"
        np.savez_compressed(path, images=PIXELS)
        content = path.read_bytes()
        if damage == "truncated":
            path.write_bytes(content[: len(content) // 2])
        elif damage == "noise":
            path.write_bytes(content[:200] + bytes(100) + content[300:])
        elif damage == "npy":
            with path.open("wb") as file:
                np.save(file, PIXELS)
        elif damage == "pickle":
            path.write_bytes(b"cos\nsystem\n(S'echo never'\ntR.")
        else:
            path.write_bytes(b"" if damage == "empty" else b"no archive")
        with pytest.raises(UserError, match=r"a\.npz"):
            read_npz(path)


class TestFolder:
    def test_flat(self, tmp_path):
        write_images(tmp_path)
        examples = read_folder(tmp_path)
        images, labels, stats = all_images(examples)
        np.testing.assert_array_equal(images, PIXELS[:3].transpose(0, 3, 1, 2))
        assert labels == [None]
        assert (stats.read, stats.written) == (3, 3)

    def test_subfolders_are_classes(self, tmp_path):
        write_images(tmp_path / "dog" / "brown", 1)
        write_images(tmp_path / "cat", 2)
        examples = read_folder(tmp_path)
        assert examples.paths == ["cat/0.png", "cat/1.png", "dog/brown/0.png"]
        assert examples.classes == ("cat", "dog")
        assert examples.labels.tolist() == [0, 0, 1]

    def test_one_subfolder_or_a_mixture_is_no_classes(self, tmp_path):
        write_images(tmp_path / "a")
        assert read_folder(tmp_path).labels is None
        write_images(tmp_path / "b")
        assert read_folder(tmp_path).labels is not None
        write_images(tmp_path)
        assert read_folder(tmp_path).labels is None

    def test_hidden_files_and_loops(self, tmp_path):
        write_images(tmp_path / "a")
        (tmp_path / "a" / ".DS_Store").write_text("x")
        (tmp_path / ".cache").mkdir()
        (tmp_path / ".cache" / "x.png").write_text("x")
        (tmp_path / "a" / "loop").symlink_to(tmp_path)
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
        assert read_folder(tmp_path).paths == ["a/0.png", "a/1.png", "a/2.png"]

    def test_form(self, tmp_path):
        write_images(tmp_path / "a", mode="L")
        assert read_folder(tmp_path / "a").form().channels == 1
        write_images(tmp_path / "b", size=12)
        (tmp_path / "a" / "notes.txt").write_text("no image")
        form = read_folder(tmp_path).form()
        assert form.sizes == {(8, 8), (12, 12)}
        assert form.channels == 3

    def test_skipped_are_named_under_their_reason(self, tmp_path):
        write_images(tmp_path)
        (tmp_path / "broken.png").write_bytes((tmp_path / "0.png").read_bytes()[:80])
        (tmp_path / "notes.txt").write_text("no image")
        Image.new("RGB", (5, 9)).save(tmp_path / "small.png")
        images, _, stats = all_images(read_folder(tmp_path))
        assert len(images) == 3
        assert stats.read == 6
        assert stats.skipped == {
            "broken or truncated": ["broken.png"],
            "not an image": ["notes.txt"],
            "smaller than 8×8": ["small.png"],
        }

    def test_name_that_is_no_text(self, tmp_path):
        write_images(tmp_path)
        with open(bytes(tmp_path) + b"/\xff.png", "wb") as file:
            file.write(b"no image")
        _, _, stats = all_images(read_folder(tmp_path))
        (name,) = stats.skipped["not an image"]
        name.encode()
        assert name.endswith(".png")

    def test_empty(self, tmp_path):
        with pytest.raises(UserError, match="holds no files"):
            read_folder(tmp_path)

    def test_more_than_a_batch_stays_in_order(self, tmp_path):
        images = np.arange(600, dtype=np.uint16).view(np.uint8).reshape(600, 1, 2).repeat(2, 1)
        np.savez(tmp_path / "a.npz", images=images, labels=np.arange(600))
        converted, labels, _ = all_images(read_npz(tmp_path / "a.npz"), 2, 1)
        np.testing.assert_array_equal(converted[:, 0], images)
        np.testing.assert_array_equal(np.concatenate(labels), range(600))


class TestSplits:
    def test_folders(self, tmp_path):
        for split in ("train", "valid", "test"):
            write_images(tmp_path / split / "cat", 2)
            write_images(tmp_path / split / "dog", 1)
        source = read_path(tmp_path)
        assert {split: len(examples) for split, examples in source.splits.items()} == {"train": 3, "val": 3, "test": 3}
        assert source.classes == ("cat", "dog")

    def test_npz_files(self, tmp_path):
        np.savez(tmp_path / "train.npz", images=PIXELS, labels=np.arange(6))
        np.savez(tmp_path / "test.npz", images=PIXELS[:2], labels=np.arange(2))
        source = read_path(tmp_path)
        assert list(source.splits) == ["train", "test"]
        assert len(source.classes) == 6

    def test_test_images_from_elsewhere(self, tmp_path):
        write_images(tmp_path / "a")
        np.savez(tmp_path / "b.npz", images=PIXELS)
        source = read_path(tmp_path / "a", test=tmp_path / "b.npz")
        assert {split: len(examples) for split, examples in source.splits.items()} == {"train": 3, "test": 6}
        with pytest.raises(UserError, match=r"there is no .*missing"):
            read_path(tmp_path / "a", test=tmp_path / "missing")

    def test_two_sets_of_test_images(self, tmp_path):
        for split in ("train", "test"):
            write_images(tmp_path / split)
        with pytest.raises(UserError, match="test images of its own"):
            read_path(tmp_path, test=tmp_path / "test")

    def test_class_numbers_are_those_of_train(self, tmp_path):
        for name in ("ant", "bee", "cat"):
            write_images(tmp_path / "train" / name, 1)
        for name in ("bee", "cat"):
            write_images(tmp_path / "test" / name, 1)
        source = read_path(tmp_path)
        assert source.splits["test"].labels.tolist() == [1, 2]
        write_images(tmp_path / "test" / "dog", 1)
        with pytest.raises(UserError, match="'test' has the class 'dog'"):
            read_path(tmp_path)

    def test_labels_in_one_split_alone_are_left_out(self, tmp_path):
        np.savez(tmp_path / "train.npz", images=PIXELS, labels=np.arange(6))
        np.savez(tmp_path / "test.npz", images=PIXELS)
        source = read_path(tmp_path)
        assert source.classes is None
        assert all(examples.labels is None for examples in source.splits.values())
        assert "only train" in source.notes["labels"]

    def test_neither_folder_nor_npz(self, tmp_path):
        (tmp_path / "a.txt").write_text("x")
        with pytest.raises(UserError, match=r"a\.txt is neither"):
            read_path(tmp_path / "a.txt")
        with pytest.raises(UserError, match="there is no"):
            read_path(tmp_path / "missing")
