import numpy as np

from arflows.data.builtin import digits, patches


def views(image, size):
    """Every part of an image of a size, as one row of bytes each."""
    windows = np.lib.stride_tricks.sliding_window_view(image, (size, size, 3)).reshape(-1, size * size * 3)
    return {row.tobytes() for row in windows}


class TestDigits:
    def test_all_there_once(self):
        from sklearn.datasets import load_digits

        source = digits()
        images = np.concatenate([examples.images for examples in source.splits.values()])[..., 0]
        restored = np.sort(np.rint(images * (16 / 255)).reshape(len(images), -1), axis=0)
        np.testing.assert_array_equal(restored, np.sort(load_digits().data, axis=0))
        assert len(np.unique(images)) == 17
        assert images.max() == 255

    def test_always_the_same(self):
        for split in ("train", "val", "test"):
            first, second = digits().splits[split], digits().splits[split]
            np.testing.assert_array_equal(first.images, second.images)
            np.testing.assert_array_equal(first.labels, second.labels)
            assert np.unique(first.labels).tolist() == list(range(10))

    def test_labels_belong_to_images(self):
        from sklearn.datasets import load_digits

        bunch = load_digits()
        known = {image.tobytes(): label for image, label in zip(bunch.images, bunch.target, strict=True)}
        examples = digits().splits["test"]
        for image, label in zip(examples.images[..., 0], examples.labels, strict=True):
            assert known[np.rint(image * (16 / 255)).tobytes()] == label


class TestPatches:
    def test_form(self):
        source = patches()
        assert {split: examples.images.shape for split, examples in source.splits.items()} == {
            "train": (4096, 32, 32, 3),
            "val": (512, 32, 32, 3),
            "test": (512, 32, 32, 3),
        }
        np.testing.assert_array_equal(patches().splits["test"].images, source.splits["test"].images)

    def test_splits_share_no_pixels(self):
        """No textured 8×8 part of a test or validation patch is in a training patch; smooth sky may repeat itself."""
        splits = {split: examples.images for split, examples in patches().splits.items()}
        train = set().union(*(views(image, 8) for image in splits["train"][::4]))
        for split in ("val", "test"):
            corners = splits[split][:, 12:20, 12:20]
            textured = corners[corners.reshape(len(corners), -1).std(1) > 25]
            assert len(textured) > 100
            assert not any(part.tobytes() in train for part in textured)
