import hashlib
import pickle

import numpy as np
import pytest
import requests
from PIL import Image
from torchvision import datasets

from arflows.core.runtime.errors import UserError
from arflows.data import downloads
from arflows.data.image_sources import ReadStats, uniform_batches
from arflows.data.torchvision_sets import TORCHVISION_SETS, torchvision_set


@pytest.mark.parametrize("name", TORCHVISION_SETS)
def test_not_there(tmp_path, name):
    with pytest.raises(UserError, match=rf"{name} is not.*--download true.*--root"):
        torchvision_set(name, tmp_path / "root")
    assert not (tmp_path / "root").exists() or not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("name", ["cifar10", "mnist", "svhn"])
def test_no_network(tmp_path, name, monkeypatch):
    def offline(*args, **kwargs):
        raise requests.ConnectionError("no route to host")

    monkeypatch.setattr(requests, "get", offline)
    monkeypatch.setattr(downloads.time, "sleep", lambda seconds: None)
    with pytest.raises(
        UserError, match=r"could not be downloaded \(there is no connection\): check the network"
    ) as error:
        torchvision_set(name, tmp_path, download=True)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_celeba_is_left_to_torchvision(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(datasets.CelebA, "download", offline)
    with pytest.raises(UserError, match=r"celeba could not be downloaded.*check the network"):
        torchvision_set("celeba", tmp_path, download=True)


def test_cifar_as_torchvision_reads_it(tmp_path, monkeypatch):
    """A tiny CIFAR-10 in the original file format, with checksums to match."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    generator = np.random.default_rng(0)
    batches = {}

    def save(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    for name in ("train", "test"):
        pixels = generator.integers(0, 256, (4, 3 * 32 * 32), dtype=np.uint8)
        batches[name] = pixels.reshape(4, 3, 32, 32), [3, 1, 0, 9]
        checksum = save(name, {"data": pixels, "labels": batches[name][1]})
        monkeypatch.setattr(datasets.CIFAR10, f"{name}_list", [checksum])
    names = [f"class {index}" for index in range(10)]
    meta, checksum = save("batches.meta", {"label_names": names})
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": meta, "key": "label_names", "md5": checksum})

    source = torchvision_set("cifar10", tmp_path)
    assert source.classes == tuple(names)
    for name, (pixels, labels) in batches.items():
        ((images, numbers),) = uniform_batches(source.splits[name], range(4), 32, 3, ReadStats())
        np.testing.assert_array_equal(images, pixels)
        assert numbers.tolist() == labels


def test_celeba_is_cropped(tmp_path, monkeypatch):
    """Six faces in the layout torchvision expects: the central 148×148 is what remains."""
    folder = tmp_path / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    names = [f"{index:06}.png" for index in range(6)]
    pixels = np.random.default_rng(0).integers(0, 256, (218, 178, 3), dtype=np.uint8)
    for name in names:
        Image.fromarray(pixels).save(folder / name)
    lines = {
        "list_eval_partition.txt": [f"{name} {index // 2}" for index, name in enumerate(names)],
        "identity_CelebA.txt": [f"{name} 1" for name in names],
        "list_bbox_celeba.txt": ["6", "image_id x y w h", *(f"{name} 0 0 1 1" for name in names)],
        "list_landmarks_align_celeba.txt": ["6", "x y", *(f"{name} 1 1" for name in names)],
        "list_attr_celeba.txt": ["6", "a b", *(f"{name} 1 -1" for name in names)],
    }
    for name, content in lines.items():
        (folder.parent / name).write_text("\n".join(content) + "\n")
    monkeypatch.setattr(datasets.CelebA, "_check_integrity", lambda self: True)

    source = torchvision_set("celeba", tmp_path)
    assert list(source.splits) == ["train", "val", "test"]
    assert source.classes is None
    for index, examples in enumerate(source.splits.values()):
        assert examples.paths == names[2 * index : 2 * index + 2]
        ((images, labels),) = uniform_batches(examples, [0], 148, 3, ReadStats())
        np.testing.assert_array_equal(images[0].transpose(1, 2, 0), pixels[40:188, 15:163])
        assert labels is None
        ((images, _),) = uniform_batches(examples, [0], 64, 3, ReadStats())
        assert images.shape == (1, 3, 64, 64)
