import multiprocessing
import os
import pickle
from operator import methodcaller

import h5py
import numpy as np
import pytest

from arflows.core.runtime.errors import UserError
from arflows.data.fingerprint import fingerprint
from arflows.data.store import Store
from arflows.data.store_writer import StoreWriter, write_store
from tests.data.small_stores import SPEC, arrays, only


class TestWriteAndRead:
    def test_arrays_come_back(self, path):
        store = Store(path, expect_domain="vision")
        for split, expected in {"train": arrays(), "test": arrays(4, seed=1)}.items():
            for name, array in expected.items():
                stored = store.array(split, name)
                assert stored.dtype == array.dtype
                np.testing.assert_array_equal(stored, array)
        store.verify()
        assert only(path)

    def test_description_comes_back(self, tmp_path):
        skipped = [f"folder/broken-{index}.png" for index in range(20_000)]  # past HDF5's usual 64 KiB an attribute
        write_store(
            tmp_path / "s.h5",
            domain="vision",
            spec=SPEC,
            splits={name: arrays(2) for name in ("train", "val", "test")},
            categories={"labels": ["café", "cat"]},
            provenance={"source": "somewhere", "skipped": skipped},
        )
        store = Store(tmp_path / "s.h5")
        assert store.domain == "vision"
        assert store.spec == SPEC
        assert store.fingerprint == fingerprint(SPEC)
        assert store.categories == {"labels": ["café", "cat"]}
        assert store.provenance["source"] == "somewhere"
        assert store.provenance["skipped"] == skipped
        assert {"arflows", "created"} <= store.provenance.keys()
        assert list(store.splits.items()) == [("train", 2), ("val", 2), ("test", 2)]

    @pytest.mark.parametrize("dtype", ["?", "u1", "<i8", ">i4", ">u2", "<f4", ">f8", "<c8"])
    def test_every_number_type(self, tmp_path, dtype):
        array = (np.arange(24).reshape(6, 4) % 2).astype(dtype)[:, ::2]  # not contiguous
        write_store(tmp_path / "s.h5", domain="audio", spec={}, splits={"train": {"x": array}})
        stored = Store(tmp_path / "s.h5").array("train", "x")
        np.testing.assert_array_equal(stored, array)
        assert stored.flags.aligned

    def test_streamed_equals_whole(self, tmp_path):
        whole = arrays(50)
        with StoreWriter(tmp_path / "s.h5", domain="vision", spec=SPEC) as writer:
            for start in range(0, 50, 7):
                writer.append("train", {name: array[start : start + 7] for name, array in whole.items()})
                writer.append("other", {"images": whole["images"][:1]})
            writer.provenance["note"] = "added at the end"
        store = Store(tmp_path / "s.h5")
        assert store.splits == {"train": 50, "other": 8}
        assert store.provenance["note"] == "added at the end"
        np.testing.assert_array_equal(store.array("train", "images"), whole["images"])
        store.verify()

    def test_any_hdf5_tool_can_read_it(self, path):
        with h5py.File(path) as file:
            np.testing.assert_array_equal(file["train/images"][:], arrays()["images"])
            assert file["train/images"].chunks is None

    def test_read_only(self, path):
        with pytest.raises(ValueError, match="read-only"):
            Store(path).array("train", "images")[0] = 0

    def test_fingerprint_depends_on_values_alone(self):
        assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
        assert fingerprint({"a": 1}) != fingerprint({"a": 2})
        with pytest.raises(ValueError, match="JSON"):
            fingerprint({"a": float("nan")})


def foreign(path, **attributes):
    """An HDF5 file with a store's attributes, changed as said, and no splits yet; returned open."""
    file = h5py.File(path, "w")
    file.attrs.update(
        {
            "format": "arflows-store",
            "format_version": 1,
            "domain": "vision",
            "spec": "{}",
            "fingerprint": fingerprint({}),
            "categories": "{}",
            "provenance": "{}",
        }
        | attributes
    )
    return file


class TestReadingFails:
    def test_no_file(self, tmp_path):
        with pytest.raises(UserError, match=r"no store at .*missing\.h5"):
            Store(tmp_path / "missing.h5")

    def test_folder(self, tmp_path):
        with pytest.raises(UserError, match="is a folder"):
            Store(tmp_path)

    def test_empty(self, tmp_path):
        (tmp_path / "s.h5").touch()
        with pytest.raises(UserError, match="is empty"):
            Store(tmp_path / "s.h5")

    def test_not_hdf5(self, tmp_path):
        (tmp_path / "s.h5").write_text("hello" * 1000)
        with pytest.raises(UserError, match="not an HDF5 file"):
            Store(tmp_path / "s.h5")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_not_permitted(self, path):
        path.chmod(0)
        with pytest.raises(UserError, match="permission denied"):
            Store(path)

    @pytest.mark.parametrize("part", [0.05, 0.5, 0.99])
    def test_truncated(self, path, part):
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * part)])
        with pytest.raises(UserError, match=r"data\.h5 is truncated"):
            Store(path)

    def test_foreign_hdf5(self, tmp_path):
        with h5py.File(tmp_path / "s.h5", "w") as file:
            file["x"] = np.zeros(3)
        with pytest.raises(UserError, match="not an arflows store"):
            Store(tmp_path / "s.h5")

    def test_newer_format(self, tmp_path):
        foreign(tmp_path / "s.h5", format_version=99).close()
        with pytest.raises(UserError, match=r"version 99.*update arflows"):
            Store(tmp_path / "s.h5")

    def test_other_domain(self, path):
        with pytest.raises(UserError, match=r"'vision', not 'audio'.*arflows audio prepare"):
            Store(path, expect_domain="audio")

    def test_missing_split_or_field(self, path):
        store = Store(path)
        with pytest.raises(UserError, match="no split 'val': it has train, test"):
            store.array("val", "images")
        with pytest.raises(UserError, match="no field 'x' in 'train': it has images, labels"):
            store.array("train", "x")

    def test_links_are_not_followed(self, tmp_path):
        with h5py.File(tmp_path / "secret.h5", "w") as file:
            file["train/x"] = np.zeros(3)
        with foreign(tmp_path / "s.h5") as file:
            file["train"] = h5py.ExternalLink("secret.h5", "/train")
        with pytest.raises(UserError, match="damaged"):
            Store(tmp_path / "s.h5")

    def test_external_storage_is_not_read(self, tmp_path):
        (tmp_path / "secret").write_bytes(bytes(100))
        with foreign(tmp_path / "s.h5") as file:
            file.create_dataset("train/x", (100,), "u1", external=[(str(tmp_path / "secret"), 0, 100)])
        with pytest.raises(UserError, match="damaged"):
            Store(tmp_path / "s.h5")

    @pytest.mark.parametrize(
        "kind", ["chunked", "objects", "scalar", "lengths differ", "no fields", "no checksum", "not a group"]
    )
    def test_unexpected_content(self, tmp_path, kind):
        with foreign(tmp_path / "s.h5") as file:
            if kind == "chunked":
                file.create_dataset("train/x", data=np.zeros((10, 10)), chunks=(5, 5)).attrs["sha256"] = ""
            elif kind == "objects":
                file.create_dataset("train/x", data=["a", "b"], dtype=h5py.string_dtype()).attrs["sha256"] = ""
            elif kind == "scalar":
                file.create_dataset("train/x", data=1.0).attrs["sha256"] = ""
            elif kind == "lengths differ":
                for name, length in (("x", 3), ("y", 4)):
                    file.create_dataset(f"train/{name}", data=np.zeros(length)).attrs["sha256"] = ""
            elif kind == "no fields":
                file.create_group("train")
            elif kind == "no checksum":
                file["train/x"] = np.zeros(3)
            else:
                file["train"] = np.zeros(3)
        with pytest.raises(UserError, match="damaged"):
            Store(tmp_path / "s.h5")

    def test_replaced_while_open(self, path):
        store = Store(path)
        write_store(path, domain="vision", spec=SPEC, splits={"train": arrays(30)})
        with pytest.raises(UserError, match="replaced"):
            store.array("train", "images")


class TestVerify:
    def flip(self, path, offset):
        with path.open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1]))

    def test_damaged_dataset_is_named(self, path):
        layout = Store(path).fields("train")["labels"]
        self.flip(path, layout.offset + layout.nbytes - 1)
        with pytest.raises(UserError, match=r"data\.h5 is damaged in train/labels:"):
            Store(path).verify()

    def test_all_damage_is_named(self, path):
        store = Store(path)
        self.flip(path, store.fields("train")["images"].offset)
        self.flip(path, store.fields("test")["images"].offset)
        with pytest.raises(UserError, match="train/images, test/images"):
            Store(path).verify()

    def test_changed_settings_are_named(self, path):
        with h5py.File(path, "r+") as file:
            file.attrs["spec"] = '{"height":8}'
        with pytest.raises(UserError, match="damaged in spec"):
            Store(path).verify()

    def test_no_damage_goes_unnoticed(self, path):
        """Wherever a byte of the file is flipped: an error of ours, or all arrays are right."""
        content = path.read_bytes()
        found = 0
        for offset in np.random.default_rng(0).integers(0, len(content), 300):
            path.write_bytes(content)
            self.flip(path, int(offset))
            try:
                store = Store(path)
                store.verify()
            except UserError:
                found += 1
            else:
                for name, array in arrays().items():
                    np.testing.assert_array_equal(store.array("train", name), array)
        assert found > 30


def _total(store):
    return int(store.array("train", "images").sum(dtype=np.int64))


class TestProcesses:
    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_workers_share_an_open_store(self, path, method):
        store = Store(path)
        expected = store.array("train", "images")  # mapped here already, so that fork inherits the map
        read = methodcaller("array", "train", "images")  # a spawned process can import this, and not what tests define
        with multiprocessing.get_context(method).Pool(2) as pool:
            results = pool.map_async(read, [store] * 4).get(timeout=60)
        assert all(np.array_equal(result, expected) for result in results)

    def test_pickle_carries_no_data(self, tmp_path):
        write_store(tmp_path / "s.h5", domain="vision", spec=SPEC, splits={"train": arrays(5000)})
        store = Store(tmp_path / "s.h5")
        store.array("train", "images")
        pickled = pickle.dumps(store)
        assert len(pickled) < 4000
        assert _total(pickle.loads(pickled)) == _total(store)
