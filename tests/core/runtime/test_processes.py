"""Shares of work; whole verbs in two processes are tested with the domains."""

import os

import pytest
import torch

from arflows.core.runtime import processes
from arflows.core.runtime.processes import Rank, distributed_map


def test_alone_all_is_one_process():
    assert processes.is_main()
    assert processes.local_rank() is None
    processes.wait()
    assert list(distributed_map("abc", lambda index, letter: f"{index}{letter}")) == ["0a", "1b", "2c"]


def test_another_process_writes_nothing(tmp_path, monkeypatch):
    from arflows.core.runtime.files import new_folder, replacing

    monkeypatch.setattr(processes._groups, "command", Rank(1, 2))
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    with replacing(tmp_path / "a.csv") as temporary:
        temporary.write_text("text")
    with new_folder(tmp_path / "folder") as folder:
        (folder / "file").write_text("text")
    assert not list(tmp_path.iterdir())


@pytest.mark.report
def test_cores_are_counted_where_processes_are_not_bound_to_them(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS and Windows
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert processes.cores() == 6
