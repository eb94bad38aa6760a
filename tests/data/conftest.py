"""A small store."""

import pytest

from arflows.data.store_writer import write_store
from tests.data.small_stores import SPEC, arrays


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "data.h5"
    write_store(path, domain="vision", spec=SPEC, splits={"train": arrays(), "test": arrays(4, seed=1)})
    return path
