"""Random input: an error message or a result, never a traceback, a hang or a partial output.

In the default suite 200 cases of each, with ``-m nightly`` 10,000.
"""

import functools
import io
import json
import os
import tempfile
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from hypothesis import strategies as st
from PIL import Image

from arflows.core.flows import VectorFlow
from arflows.data.arrays import read_npz
from arflows.data.image_files import read_npz as read_images
from arflows.data.images import SkippedImage, convert, open_image
from arflows.data.store import Store
from arflows.data.store_writer import write_store
from arflows.data.tables import read_table
from arflows.tabular.train import TableExperiment
from tests.faults.fuzzing import REFUSALS, damaged, fuzzed
from tests.faults.hostile import npy_header

numbers = st.one_of(
    st.integers(-3, 40), st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=8), st.just(10**30)
)
values = st.recursive(
    numbers,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def store_bytes():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.h5"
        rows = {"train": {"x": np.zeros((5, 2), np.float32)}}
        write_store(path, domain="tabular", spec={"features": 2, "context": 0}, splits=rows)
        return path.read_bytes()


# ------------------------------------------------------------------------------------------------------- configs

PLACES = [
    *(f"model.{name}" for name in ("learning_rate", "betas", "weight_decay", "warmup_steps", "schedule", "ema_decay",
                                   "patience", "compile", "recompute", "optimizer", "round_trip_examples", "flow")),
    *(f"model.flow.init_args.{name}" for name in ("features", "context", "transforms", "bins", "bound",
                                                  "hidden_features")),
    "model.flow.class_path",
    *(f"data.{name}" for name in ("batch_size", "eval_batch_size", "workers", "limit", "store")),
    *(f"trainer.{name}" for name in ("max_epochs", "max_steps", "accelerator", "devices", "precision", "callbacks",
                                     "gradient_clip_val", "accumulate_grad_batches", "val_check_interval")),
    "seed", "keep", "save_every", "resume", "out", "nonsense", "model", "data", "trainer",
]  # fmt: skip


@functools.cache
def parser():
    """The parser of ``arflows tabular train``, which takes long to make."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "s.h5"
        store.write_bytes(store_bytes())
        words = ["--model.flow", "NSF", "--model.flow.features", "2", "--data.batch_size", "2"]
        experiment = TableExperiment([*words, "--data.store", str(store), "--out", str(Path(folder) / "run")])
    return experiment.parser


@fuzzed(st.dictionaries(st.sampled_from(PLACES), values, min_size=1, max_size=3))
def test_configs(folder, changes):
    """A training config with some values replaced is parsed, or refused in one sentence; nothing is written."""
    config = {
        "out": str(folder / "run"),
        "model": {"flow": {"class_path": "arflows.core.flows.NSF", "init_args": {"features": 2}}},
        "data": {"store": str(folder / "missing.h5")},
        "trainer": {"accelerator": "cpu", "devices": 1},
    }
    for place, value in changes.items():
        *way, last = place.split(".")
        at = config
        for key in way:
            at = at.setdefault(key, {}) if isinstance(at, dict) else {}
        if isinstance(at, dict):
            at[last] = value
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    try:
        options = parser().parse_path(str(path))
        if not any(isinstance(part, int | float) and abs(part) > 64 for part in flat(list(changes.values()))):
            parser().instantiate_classes(options)
    except (REFUSALS, OSError) as error:  # of an OSError the command line makes a sentence
        assert str(error).strip()
    assert sorted(entry.name for entry in folder.iterdir()) == ["config.yaml"]


@fuzzed(st.one_of(st.text(max_size=300), st.binary(max_size=300)))
def test_text_as_a_config(folder, content):
    """Any text, or no text, given as a config."""
    path = folder / "config.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    with pytest.raises(REFUSALS):
        parser().parse_path(str(path))
    assert sorted(entry.name for entry in folder.iterdir()) == ["config.yaml"]


@pytest.mark.report
@fuzzed(
    st.dictionaries(st.sampled_from(["features", "context", "transforms", "bins", "bound", "hidden_features"]), values)
)
def test_configs_of_models(folder, arguments):
    """The config of a model folder with made-up arguments."""
    (folder / "config.json").write_text(
        json.dumps({"format_version": 1, "class": "NSF", "arguments": {"features": 2, **small(arguments)}})
    )
    with pytest.raises(REFUSALS):  # at the latest because there are no weights
        VectorFlow.from_pretrained(folder)


def small(arguments):
    """The arguments without sizes of which a model would rightly take all memory."""
    return {
        name: value
        for name, value in arguments.items()
        if not any(isinstance(part, int | float) and abs(part) > 64 for part in flat(value))
    }


def flat(value):
    if isinstance(value, list):
        return [part for item in value for part in flat(item)]
    if isinstance(value, dict):
        return [part for item in value.values() for part in flat(item)]
    return [value]


# -------------------------------------------------------------------------------------------------------- images


def encoded(kind, size, mode):
    stream = io.BytesIO()
    image = Image.effect_noise(size, 60).convert(mode)
    image.save(stream, kind)
    return stream.getvalue()


IMAGES = [
    encoded(kind, (9, 12), mode)
    for kind, mode in (("PNG", "RGB"), ("PNG", "LA"), ("JPEG", "L"), ("GIF", "P"), ("BMP", "RGB"), ("TIFF", "CMYK"),
                       ("WEBP", "RGB"), ("PPM", "L"))
]  # fmt: skip


@fuzzed(st.one_of(damaged(IMAGES), st.binary(max_size=200)), st.sampled_from([1, 3]))
def test_images(folder, content, channels):
    """A damaged image is converted, or skipped for a reason."""
    path = folder / "image"
    path.write_bytes(content)
    try:
        with open_image(path) as image:
            pixels, _ = convert(image, 8, channels)
    except SkippedImage as reason:
        assert str(reason)
    else:
        assert pixels.shape == (8, 8, channels)
        assert pixels.dtype == np.uint8


# ------------------------------------------------------------------------------------------------ arrays in files


@st.composite
def npy(draw):
    """An .npy file, whose description may be anything."""
    dtype = draw(st.sampled_from(["|u1", "<f4", "<f8", "|O", "<i8", ">f2", "|S3", "<U2", "|V8", "nonsense"]))
    shape = draw(
        st.one_of(
            st.lists(st.integers(0, 5), max_size=4).map(tuple),
            st.lists(st.integers(-2, 2**62), max_size=3).map(tuple),
            st.text(max_size=5),
        )
    )
    content = npy_header(shape, dtype) + draw(st.binary(max_size=600))
    if draw(st.booleans()):
        content = content[: draw(st.integers(0, len(content)))]
    return content


@fuzzed(
    st.dictionaries(st.sampled_from(["images", "labels", "train", "val", "../x", ""]), npy(), max_size=3), st.booleans()
)
def test_npz_structures(folder, parts, deflate):
    """Archives of made-up arrays are read as images, as tables and as they are."""
    path = folder / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED) as archive:
        for name, content in parts.items():
            archive.writestr(f"{name}.npy", content)
    readers_refuse_or_read(path, read_images, read_table, read_npz)
    assert os.listdir(folder) == ["a.npz"]


def archive_of_arrays():
    stream = io.BytesIO()
    np.savez_compressed(stream, images=np.zeros((3, 4, 4), np.uint8), labels=np.arange(3), train=np.zeros((4, 2)))
    return stream.getvalue()


@fuzzed(damaged([archive_of_arrays()]))
def test_damaged_npz(folder, content):
    """Archives with bytes changed."""
    path = folder / "a.npz"
    path.write_bytes(content)
    readers_refuse_or_read(path, read_images, read_table, read_npz)


def readers_refuse_or_read(path, *readers):
    for read in readers:
        try:
            read(path)
        except REFUSALS as error:
            assert str(path) in str(error)
            assert "\n" not in str(error)


@fuzzed(damaged([store_bytes()]))
def test_damaged_stores(folder, content):
    """Stores with bytes changed."""
    path = folder / "s.h5"
    path.write_bytes(content)
    try:
        store = Store(path)
        store.verify()
        store.array("train", "x")
    except REFUSALS as error:
        assert str(path) in str(error)


attributes = st.dictionaries(
    st.sampled_from(["format", "format_version", "domain", "spec", "fingerprint", "categories", "provenance"]),
    st.one_of(st.just("arflows-store"), st.integers(-2, 2**40), st.text(max_size=9).filter(lambda t: "\x00" not in t),
              st.sampled_from(["{}", "[]", "{", "null", '{"a":1}']), st.floats(),
              st.lists(st.integers(0, 9), max_size=3)),
)  # fmt: skip


@st.composite
def hdf5(draw):
    """Content of an HDF5 file: attributes, and datasets of any shape and type by path."""
    return draw(attributes), draw(
        st.dictionaries(
            st.sampled_from(["train", "train/x", "val/x", "test/images", "train/x/y", "x"]),
            st.tuples(
                st.lists(st.integers(0, 4), max_size=3),
                st.sampled_from(["u1", "<f4", ">f8", "S3", "O", "i8"]),
                st.sampled_from(["contiguous", "chunked", "soft link", "external link"]),
            ),
            max_size=3,
        )
    )


@fuzzed(hdf5())
def test_hdf5_structures(folder, content):
    """HDF5 files of made-up content, read as stores and as tables."""
    given_attributes, datasets = content
    path = folder / "a.h5"
    with h5py.File(path, "w") as file:
        for name, value in given_attributes.items():
            file.attrs[name] = value
        if "format" not in given_attributes:
            file.attrs["format"] = "arflows-store"
        for name, (shape, dtype, kind) in datasets.items():
            try:
                if kind == "soft link":
                    file[name] = h5py.SoftLink("/elsewhere")
                elif kind == "external link":
                    file[name] = h5py.ExternalLink("elsewhere.h5", "/x")
                else:
                    dtype = h5py.string_dtype() if dtype == "O" else dtype
                    chunks = True if kind == "chunked" and shape and all(shape) else None
                    file.create_dataset(name, shape, dtype, chunks=chunks).attrs["sha256"] = "0" * 64
            except (ValueError, KeyError, TypeError, OSError, RuntimeError):
                pass  # a name below another that is no group
    readers_refuse_or_read(path, Store, read_table)


@pytest.mark.report
@fuzzed(st.lists(st.lists(st.one_of(st.floats(), st.text(max_size=5), st.just("")), max_size=4), max_size=6),
        st.sampled_from([",", ";", "\t"]), st.sampled_from(["utf-8", "utf-16", "latin-1"]))  # fmt: skip
def test_csv_tables(folder, rows, delimiter, encoding):
    """Tables of made-up cells."""
    path = folder / "a.csv"
    text = "\n".join(delimiter.join(str(cell) for cell in row) for row in rows)
    path.write_bytes(text.encode(encoding, "replace"))
    readers_refuse_or_read(path, read_table)
