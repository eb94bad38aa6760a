import errno
import subprocess
import sys

import h5py
import numpy as np
import pytest

from arflows.core.runtime.errors import UserError
from arflows.data import store_writer
from arflows.data.arrays import read_hdf5
from arflows.data.store import Store
from arflows.data.store_writer import StoreWriter, write_store
from tests.data.small_stores import SPEC, arrays, only

FULL = """
import os, resource, signal, sys
import numpy as np
from arflows.core.runtime.errors import UserError
from arflows.data.store_writer import write_store

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
splits = {split: {"a": np.zeros((10, 40)), "b": np.zeros(10)} for split in ("train", "val", "test")}
for nbytes in range(0, os.path.getsize(sys.argv[1]) + 8192, 1000):
    if (process := os.fork()) == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, nbytes))
        try:
            write_store(sys.argv[1], domain="vision", spec={}, splits=splits)
        except UserError:
            sys.exit()
        sys.exit("written")
    if os.waitpid(process, 0)[1]:
        sys.exit(f"{nbytes} bytes of room")
"""


class TestWritingFails:
    @pytest.mark.parametrize(
        "batch",
        [
            {"images": np.zeros((2, 3, 5, 4), np.uint8), "labels": np.zeros(2, np.int64)},
            {"images": np.zeros((2, 3, 4, 4), np.float32), "labels": np.zeros(2, np.int64)},
            {"images": np.zeros((2, 3, 4, 4), np.uint8), "labels": np.zeros(3, np.int64)},
            {"images": np.zeros((2, 3, 4, 4), np.uint8)},
            {"images": np.array([object()]), "labels": np.zeros(1, np.int64)},
        ],
        ids=["shape", "dtype", "count", "field", "object"],
    )
    def test_batches_must_fit(self, path, batch):
        with StoreWriter(path, domain="vision", spec=SPEC) as writer:
            writer.append("train", arrays())
            with pytest.raises(ValueError, match=r"cannot follow|differ|array of numbers"):
                writer.append("train", batch)
        np.testing.assert_array_equal(Store(path).array("train", "images"), arrays()["images"])
        Store(path).verify()

    @pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
    def test_interrupted_leaves_the_old_store(self, path, error):
        def interrupted():
            with StoreWriter(path, domain="vision", spec=SPEC) as writer:
                writer.append("train", arrays(1000))
                raise error

        before = path.read_bytes()
        with pytest.raises(type(error)):
            interrupted()
        assert path.read_bytes() == before
        assert only(path)

    def test_disk_full_at_the_end(self, path, monkeypatch):
        def full(descriptor):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(store_writer.os, "fsync", full)
        before = path.read_bytes()
        with pytest.raises(UserError, match=r"data\.h5 .*No space left.*make room"):
            write_store(path, domain="vision", spec=SPEC, splits={"train": arrays(20)})
        assert path.read_bytes() == before
        assert only(path)

    @pytest.mark.parametrize("megabytes", [5, 9], ids=["while spooling", "while assembling"])
    def test_disk_really_full(self, tmp_path, megabytes):
        mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(tmp_path)]
        try:
            subprocess.run(mount, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("a small file system cannot be mounted here")
        try:
            path = tmp_path / "data.h5"
            write_store(path, domain="vision", spec=SPEC, splits={"train": arrays()})
            before = path.read_bytes()
            big = {"images": np.ones((6, 1024, 1024), np.uint8)}
            with pytest.raises(UserError, match="No space left"):
                write_store(path, domain="vision", spec=SPEC, splits={"train": big})
            assert path.read_bytes() == before
            assert only(path)
        finally:
            subprocess.run(["umount", str(tmp_path)], check=True)

    def test_disk_full_at_any_byte(self, path):
        """In a process of its own, which HDF5 would bring down when it ends."""
        before = path.read_bytes()
        done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert path.read_bytes() == before
        assert only(path)

    def test_no_examples(self, tmp_path):
        with pytest.raises(UserError, match="no examples"), StoreWriter(tmp_path / "s.h5", domain="vision", spec={}):
            pass
        with pytest.raises(UserError, match="no examples"):
            write_store(tmp_path / "s.h5", domain="vision", spec={}, splits={"train": {"x": np.zeros((0, 3))}})
        assert not any(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("name", "value"),
        [("format_version", np.inf), ("spec", b'{"\x80": 1}'), ("provenance", '{"a": "\\udc80"}'), ("domain", b"\xff")],
    )
    def test_damaged_descriptions(self, path, name, value):
        with h5py.File(path, "r+") as file:
            file.attrs[name] = value if isinstance(value, float) else np.array(value, h5py.string_dtype())
        with pytest.raises(UserError, match=r"data\.h5 is damaged and cannot be read"):
            Store(path)

    def test_text_that_hdf5_would_read_for_ever(self, path):
        """Of a heap whose free space has no size."""
        content = bytearray(path.read_bytes())
        at = heap = content.index(b"GCOL") + 16
        while content[at : at + 2] != b"\0\0":
            at += 16 + (int.from_bytes(content[at + 8 : at + 16], "little") + 7) // 8 * 8
        assert at > heap
        content[at + 8 : at + 16] = bytes(8)
        path.write_bytes(content)
        for read in (Store, read_hdf5):
            with pytest.raises(UserError, match=r"data\.h5 is damaged"):
                read(path)

    def test_bad_places(self, tmp_path):
        splits = {"train": arrays()}
        with pytest.raises(UserError, match="is a folder"):
            write_store(tmp_path, domain="vision", spec=SPEC, splits=splits)
        thesis = tmp_path / "thesis.txt"
        thesis.write_text("years of work")
        with pytest.raises(UserError, match=r"thesis\.txt.*not a store"):
            write_store(thesis, domain="vision", spec=SPEC, splits=splits)
        assert thesis.read_text() == "years of work"
        with pytest.raises(UserError, match=r"Not a directory|File exists"):
            write_store(thesis / "s.h5", domain="vision", spec=SPEC, splits=splits)
        write_store(tmp_path / "new" / "folder" / "s.h5", domain="vision", spec=SPEC, splits=splits)
        Store(tmp_path / "new" / "folder" / "s.h5").verify()

    @pytest.mark.parametrize("name", ["", "a/b", "../up", ".hidden"])
    def test_bad_names(self, tmp_path, name):
        for split, field in ((name, "x"), ("train", name)):
            with pytest.raises(ValueError, match="not a name"):
                write_store(tmp_path / "s.h5", domain="vision", spec={}, splits={split: {field: np.zeros(3)}})
