"""Fields whose examples differ in length."""

import pickle

import h5py
import numpy as np
import pytest

from arflows.core.runtime.errors import UserError
from arflows.data.store import Store
from arflows.data.store_writer import StoreWriter, write_store


def utterances(lengths=(5, 0, 700, 3), seed=0):
    rng = np.random.default_rng(seed)
    return {
        "waveforms": [rng.integers(-32_768, 32_768, length, dtype=np.int16) for length in lengths],
        "mels": [rng.standard_normal((length // 2, 4)).astype(np.float16) for length in lengths],
        "speakers": rng.integers(0, 3, len(lengths)),
    }


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "speech.h5"
    splits = {"train": utterances(), "test": utterances((9, 2), seed=1)}
    write_store(path, domain="audio", spec={}, splits=splits)
    return path


def equal(store, split, expected):
    assert store.splits[split] == len(expected["speakers"])
    np.testing.assert_array_equal(store.array(split, "speakers"), expected["speakers"])
    for name in ("waveforms", "mels"):
        field = store.ragged(split, name)
        assert len(field) == len(expected[name])
        np.testing.assert_array_equal(field.lengths, [len(array) for array in expected[name]])
        for index, array in enumerate(expected[name]):
            assert field[index].dtype == array.dtype
            np.testing.assert_array_equal(field[index], array)


def test_examples_come_back(path):
    store = Store(path, expect_domain="audio")
    equal(store, "train", utterances())
    equal(store, "test", utterances((9, 2), seed=1))
    np.testing.assert_array_equal(store.ragged("train", "waveforms")[-1], utterances()["waveforms"][3])
    store.verify()
    for index in (4, -5):
        with pytest.raises(IndexError, match="of 4"):
            store.ragged("train", "waveforms")[index]


def test_streamed_equals_whole(tmp_path):
    whole = utterances(tuple(range(40)))
    with StoreWriter(tmp_path / "s.h5", domain="audio", spec={}) as writer:
        for start in range(0, 40, 7):
            writer.append("train", {name: values[start : start + 7] for name, values in whole.items()})
    store = Store(tmp_path / "s.h5")
    equal(store, "train", whole)
    store.verify()


def test_a_segment_is_read_without_its_example(path):
    segment = Store(path).ragged("train", "waveforms")[2][100:110]
    assert isinstance(segment.base, np.ndarray)
    assert not segment.flags.owndata
    np.testing.assert_array_equal(segment, utterances()["waveforms"][2][100:110])


def test_survives_a_pickle_without_the_values(path):
    store = Store(path)
    store.ragged("train", "waveforms")
    pickled = pickle.dumps(store)
    assert len(pickled) < 4000
    equal(pickle.loads(pickled), "train", utterances())


def test_only_stores_with_ragged_fields_need_the_newer_version(path, tmp_path):
    write_store(tmp_path / "plain.h5", domain="audio", spec={}, splits={"train": {"x": np.zeros((2, 3))}})
    for name, version in ((path, 2), (tmp_path / "plain.h5", 1)):
        with h5py.File(name) as file:
            assert file.attrs["format_version"] == version
        Store(name)


@pytest.mark.parametrize(
    "change",
    [
        {"waveforms": [np.zeros(3, np.int16)]},
        {"waveforms": [np.zeros(3, np.int32), np.zeros(2, np.int32)]},
        {"mels": [np.zeros((3, 5), np.float16), np.zeros((1, 5), np.float16)]},
        {"mels": np.zeros((2, 4), np.float16)},
    ],
    ids=["count", "dtype", "shape", "not ragged"],
)
def test_batches_must_fit(tmp_path, change):
    with StoreWriter(tmp_path / "s.h5", domain="audio", spec={}) as writer:
        writer.append("train", utterances())
        with pytest.raises(ValueError, match=r"cannot follow|differ"):
            writer.append("train", utterances((1, 2)) | change)
    equal(Store(tmp_path / "s.h5"), "train", utterances())


@pytest.mark.parametrize("offsets", [[0, 5, 5, 705, 900], [1, 5, 5, 705, 708], [0, 705, 5, 705, 708]])
def test_damaged_offsets_are_refused(path, offsets):
    with h5py.File(path, "r+") as file:
        file["train/waveforms.offsets"][:] = offsets
    store = Store(path)
    with pytest.raises(UserError, match=r"damaged in train/waveforms\.offsets"):
        store.ragged("train", "waveforms")
    with pytest.raises(UserError, match=r"damaged in train/waveforms\.offsets"):
        store.verify()


def test_fields_that_are_not_ragged_say_so(path):
    with pytest.raises(UserError, match=r"no field 'speakers\.offsets'"):
        Store(path).ragged("train", "speakers")
