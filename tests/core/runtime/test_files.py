import os

import pytest

from arflows.core.runtime.errors import UserError
from arflows.core.runtime.files import new_folder, refuse_existing, replacing


def test_file_is_replaced_when_the_block_succeeds(tmp_path):
    path = tmp_path / "new" / "figures.csv"
    for text in ("first", "second"):
        with replacing(path) as temporary:
            temporary.write_text(text)
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_older_file_stays_when_the_block_fails(tmp_path):
    path = tmp_path / "figures.csv"
    path.write_text("older")

    def write():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


def test_error_carries_the_name_that_was_asked_for(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()

    def write():
        with replacing(path) as temporary:
            temporary.write_text("text")

    with pytest.raises(IsADirectoryError) as error:
        write()
    assert error.value.filename == str(path)
    assert list(tmp_path.iterdir()) == [path]


def test_file_has_the_permissions_of_any_new_file(tmp_path):
    with replacing(tmp_path / "a") as temporary:
        temporary.touch()
    (tmp_path / "b").touch()
    assert os.stat(tmp_path / "a").st_mode == os.stat(tmp_path / "b").st_mode


@pytest.mark.parametrize("name", ["s1.png", "rows.CSV", "clip.wav"])
def test_a_folder_with_the_name_of_a_file_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="is to be a folder: give a name without"), new_folder(tmp_path / name):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_may_have_a_dot_in_its_name(tmp_path):
    with new_folder(tmp_path / "samples-0.8") as folder:
        (folder / "a").touch()
    assert (tmp_path / "samples-0.8/a").exists()


@pytest.mark.report
def test_a_file_is_replaced_only_on_request(tmp_path):
    path = tmp_path / "s.h5"
    refuse_existing(path, overwrite=False)
    path.touch()
    refuse_existing(path, overwrite=True)
    with pytest.raises(UserError, match=r"s\.h5 exists already: .* by --overwrite"):
        refuse_existing(path, overwrite=False)
