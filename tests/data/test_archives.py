"""Compressed files, some of them malicious."""

import gzip
import io
import tarfile

import numpy as np
import pytest

from arflows.core.runtime.errors import UserError
from arflows.data.archives import open_text, unpack_tar
from arflows.data.tables import read_table


def test_packed_text_is_that_which_was_packed(tmp_path):
    rows = np.random.default_rng(0).normal(size=(200, 3))
    np.savetxt(tmp_path / "a.csv", rows, delimiter=",", header="a,b,c", comments="")
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes()))
    plain, packed = read_table(tmp_path / "a.csv"), read_table(tmp_path / "b.csv.gz")
    assert packed.columns == plain.columns == ("a", "b", "c")
    np.testing.assert_array_equal(packed.splits["all"], plain.splits["all"])


@pytest.mark.parametrize("line", [b"0" * (1 << 20), b"0,0\n" * (1 << 18)], ids=["one line", "many lines"])
def test_a_gzip_bomb_is_refused(line, tmp_path):
    """Two hundred megabytes in two hundred kilobytes."""
    with gzip.open(tmp_path / "bomb.csv.gz", "wb") as file:
        for _ in range(200):
            file.write(line)
    assert (tmp_path / "bomb.csv.gz").stat().st_size < 1 << 20
    with pytest.raises(UserError, match="unpacks to more than 100 times its size"):
        read_table(tmp_path / "bomb.csv.gz")


def test_truncated_gzip_is_one_sentence(tmp_path):
    content = gzip.compress(np.random.default_rng(0).bytes(10_000).hex().encode())
    (tmp_path / "cut.gz").write_bytes(content[:-2000])
    with pytest.raises(UserError, match=r"cut\.gz is damaged"), open_text(tmp_path / "cut.gz") as file:
        file.read()


def tar(path, *members):
    with tarfile.open(path, "w:gz") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def link(name, to, kind=tarfile.SYMTYPE):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, to
    return member


def device(name):
    member = tarfile.TarInfo(name)
    member.type = tarfile.CHRTYPE
    return member


def test_files_are_unpacked(tmp_path):
    tar(tmp_path / "a.tar.gz", (tarfile.TarInfo("set/a"), b"one"), (tarfile.TarInfo("set/b"), b"two"))
    unpack_tar(tmp_path / "a.tar.gz", tmp_path / "out")
    assert (tmp_path / "out/set/b").read_bytes() == b"two"


@pytest.mark.parametrize(
    "member",
    [
        tarfile.TarInfo("../escaped"),
        tarfile.TarInfo("set/../../escaped"),
        link("set/escaped", "/etc/passwd"),
        link("set/escaped", "../../escaped"),
        link("set/escaped", "../../escaped", tarfile.LNKTYPE),
        device("set/escaped"),
    ],
    ids=["parent", "through a folder", "absolute link", "link", "hard link", "device"],
)
def test_what_leads_elsewhere_is_refused_and_nothing_unpacked(member, tmp_path):
    folder = tmp_path / "here"
    folder.mkdir()
    tar(folder / "a.tar.gz", (tarfile.TarInfo("set/first"), b"one"), (member, b""))
    with pytest.raises(UserError, match="would write outside the target folder"):
        unpack_tar(folder / "a.tar.gz", folder / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["here", "a.tar.gz"]


def test_an_absolute_name_stays_within(tmp_path):
    tar(tmp_path / "a.tar.gz", (tarfile.TarInfo("/escaped"), b"one"))
    unpack_tar(tmp_path / "a.tar.gz", tmp_path / "out")
    assert (tmp_path / "out/escaped").read_bytes() == b"one"


def test_a_tar_bomb_is_refused_before_it_unfolds(tmp_path):
    tar(tmp_path / "a.tar.gz", (tarfile.TarInfo("large"), bytes(1 << 27)))
    with pytest.raises(UserError, match="unpacks to more than 100 times its size"):
        unpack_tar(tmp_path / "a.tar.gz", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_tar_is_one_sentence(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(b"no archive")
    with pytest.raises(UserError, match="is damaged"):
        unpack_tar(tmp_path / "a.tar.gz", tmp_path / "out")
