"""Malicious files of arrays."""

import pickle
import zipfile

import h5py
import numpy as np
import pytest

from arflows.core.runtime.errors import UserError
from arflows.data.arrays import read_hdf5, read_npy, read_npz
from arflows.data.image_files import read_npz as read_images
from arflows.data.tables import read_table
from tests.faults.hostile import Harm, npy_header, npz_bomb


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["?", "u1", "<i8", ">i4", "<f4", "<c8"])
def test_arrays_come_back_as_numpy_reads_them(order, dtype, tmp_path):
    array = np.asarray(np.arange(24).reshape(2, 3, 4) % 2, dtype, order=order)
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "a.npz", first=array, second=array[:0])
    np.testing.assert_array_equal(read_npy(tmp_path / "a.npy"), array)
    arrays = read_npz(tmp_path / "a.npz")
    np.testing.assert_array_equal(arrays["first"], array)
    assert arrays["second"].shape == (0, 3, 4)
    assert arrays["first"].dtype == array.dtype


def test_python_objects_are_refused_and_not_unpickled(tmp_path):
    objects = np.array([Harm(tmp_path / "harm")], object)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "a.npz", images=objects, train=objects)
    for read in (read_table, read_images):
        with pytest.raises(UserError, match="Python objects, which are refused"):
            read(tmp_path / "a.npz")
    with pytest.raises(UserError, match="Python objects, which are refused"):
        read_npy(tmp_path / "a.npy")
    assert not (tmp_path / "harm").exists()


def test_a_pickle_by_the_name_of_an_array_is_refused(tmp_path):
    for name in ("a.npy", "a.npz"):
        (tmp_path / name).write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
        with pytest.raises(UserError, match="damaged"):
            read_table(tmp_path / name)
    assert not (tmp_path / "harm").exists()


def test_a_zip_bomb_is_refused_before_it_unfolds(tmp_path):
    npz_bomb(tmp_path / "bomb.npz", "images")
    for read in (read_images, read_npz):
        with pytest.raises(UserError, match="claims 10,000,000,000,000 bytes"):
            read(tmp_path / "bomb.npz")


def test_many_arrays_that_together_take_more_than_all_memory_are_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", **{str(index): np.zeros(10_000) for index in range(20)})
    monkeypatch.setattr("os.sysconf", lambda name: 1000 if name == "SC_PHYS_PAGES" else 1024)
    with pytest.raises(UserError, match=r"unfolds to 0\.0 GiB, and this machine has"):
        read_npz(tmp_path / "a.npz")


def test_an_array_that_claims_more_than_there_is_is_refused(tmp_path):
    (tmp_path / "a.npy").write_bytes(npy_header((10**12,), "<f8") + bytes(80))
    with pytest.raises(UserError, match="claims 8,000,000,000,000 bytes, and there are"):
        read_npy(tmp_path / "a.npy")


def test_an_over_long_header_is_refused(tmp_path):
    array = np.zeros(3, np.dtype([(f"field{index}", "f4") for index in range(2000)]))
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(UserError, match="damaged, or holds no arrays"):
        read_npy(tmp_path / "a.npy")


def test_names_that_lead_out_of_an_archive_write_nothing(tmp_path):
    inside = tmp_path / "some" / "where"
    inside.mkdir(parents=True)
    with zipfile.ZipFile(inside / "a.npz", "w") as archive:
        archive.writestr("../../escaped.npy", npy_header((3,)) + b"abc")
        archive.writestr("train.npy", npy_header((3,)) + b"abc")
    arrays = read_npz(inside / "a.npz")
    assert arrays["train"].tolist() == [97, 98, 99]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [inside / "a.npz"]


class TestHDF5:
    def test_arrays_come_back(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("train", data=np.arange(6.0).reshape(3, 2), compression="gzip", shuffle=True)
            file.create_group("more")
        assert read_hdf5(tmp_path / "a.h5")["train"].tolist() == [[0, 1], [2, 3], [4, 5]]

    def test_links_are_not_followed(self, tmp_path):
        with h5py.File(tmp_path / "secret.h5", "w") as file:
            file["train"] = np.zeros((3, 2))
        for name, link in (
            ("external", h5py.ExternalLink("secret.h5", "/train")),
            ("soft", h5py.SoftLink("/elsewhere")),
        ):
            with h5py.File(tmp_path / f"{name}.h5", "w") as file:
                file["train"] = link
            with pytest.raises(UserError, match="'train' leads elsewhere, which is refused"):
                read_table(tmp_path / f"{name}.h5")

    def test_data_in_other_files_are_not_read(self, tmp_path):
        (tmp_path / "secret").write_bytes(bytes(100))
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("train", (10, 10), "u1", external=[(str(tmp_path / "secret"), 0, 100)])
        layout = h5py.VirtualLayout((3, 2), "f8")
        layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "x", (3, 2))
        with h5py.File(tmp_path / "b.h5", "w") as file:
            file.create_virtual_dataset("train", layout)
        for name in "ab":
            with pytest.raises(UserError, match="refers to other files, which are not opened"):
                read_table(tmp_path / f"{name}.h5")

    def test_filters_that_would_load_a_plug_in_are_refused(self, tmp_path):
        """Number 32015 is that of Zstandard, which HDF5 would look for in a folder of plug-ins."""
        with h5py.File(tmp_path / "a.h5", "w") as file:
            settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            settings.set_chunk((2, 2))
            settings.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))
            space = h5py.h5s.create_simple((4, 2))
            h5py.h5d.create(file.id, b"train", h5py.h5t.NATIVE_DOUBLE, space, settings)
        with pytest.raises(UserError, match="packed by the filter 32015"):
            read_table(tmp_path / "a.h5")

    def test_an_array_that_only_says_it_is_large_is_refused(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("train", (10**12, 100), "f8", chunks=(1000, 100), compression="gzip")
        assert (tmp_path / "a.h5").stat().st_size < 10_000
        with pytest.raises(UserError, match="unfolds to"):
            read_table(tmp_path / "a.h5")


@pytest.mark.report
def test_arrays_are_read_where_memory_is_not_told(tmp_path, monkeypatch):
    monkeypatch.delattr("os.sysconf")  # as on Windows
    np.savez(tmp_path / "x.npz", x=np.arange(6))
    np.testing.assert_array_equal(read_npz(tmp_path / "x.npz")["x"], np.arange(6))
