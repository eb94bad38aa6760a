"""Shares of work and of noise; whole verbs in two processes are tested with the domains."""

import torch

from arflows.core.runtime import processes
from arflows.core.runtime.processes import Rank, batch_shard, distributed_map, noise_rows, seed_of


def test_alone_all_is_one_process():
    assert processes.is_main()
    assert processes.local_rank() is None
    processes.wait()
    assert list(distributed_map("abc", lambda index, letter: f"{index}{letter}")) == ["0a", "1b", "2c"]


def test_seeds_of_batches_differ_and_stay():
    seeds = [seed_of(seed, index) for seed in (0, 1, -1) for index in range(20)]
    assert len(set(seeds)) == 60
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(0, 0) == 4440543551817394114


def test_rows_of_noise_are_those_of_the_whole_batch():
    def draw(rank, count):
        torch.manual_seed(3)
        with batch_shard(rank, count):
            return noise_rows(torch.rand, (8 // count, 5))

    whole = draw(0, 1)
    for count in (2, 4):
        torch.testing.assert_close(torch.stack([draw(rank, count) for rank in range(count)], 1).flatten(0, 1), whole)
    assert processes._rows == Rank()


def test_another_process_writes_nothing(tmp_path, monkeypatch):
    from arflows.core.runtime.files import new_folder, replacing

    monkeypatch.setattr(processes, "_verb", Rank(1, 2))
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    with replacing(tmp_path / "a.csv") as temporary:
        temporary.write_text("text")
    with new_folder(tmp_path / "folder") as folder:
        (folder / "file").write_text("text")
    assert not list(tmp_path.iterdir())


def test_what_is_drawn_of_an_example_is_its_own():
    from arflows.core.bases import DiagonalNormal, PerExample, StandardNormal

    for base in (StandardNormal((3,)), DiagonalNormal((2, 2))):
        whole = base.sample(7, generator=PerExample(5, 0))
        parts = [base.sample(count, generator=PerExample(5, first)) for first, count in ((0, 4), (4, 1), (5, 2))]
        assert torch.equal(torch.cat(parts), whole)
        assert not torch.equal(base.sample(7, generator=PerExample(6, 0)), whole)
        assert len(torch.unique(whole.flatten())) == whole.numel()
    generator = PerExample(5, 0)
    assert not torch.equal(base.sample(2, generator=generator), base.sample(2, generator=generator))
