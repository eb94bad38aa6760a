"""Threads that share work on a CPU; parts of a batch are tested with the transformer's generation."""

import pytest
import torch

from arflows.core.runtime import threads


@pytest.mark.parametrize("count", [1, 4, 7])
def test_shares_are_all_of_it(count, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    seen = []
    threads.in_shares(lambda *words: seen.append(words), count, 2, "more")
    assert [number for _, start, stop, _ in sorted(seen) for number in range(start, stop)] == list(range(count))
    assert [(share, more) for share, _, _, more in sorted(seen)] == [
        (n, "more") for n in range(max(1, min(3, count // 2)))
    ]


def test_an_error_of_a_share_is_not_lost(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def fail(share, start, stop):
        if share == 1:
            raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        threads.in_shares(fail, 4, 1)


def test_products_take_one_thread_until_the_last_has_left():
    def counts():
        return {library.num_threads for library in threads._blas().lib_controllers}

    with threads._blas().limit(limits=2):
        with threads.multiplying():
            other = threads.multiplying()
            other.__enter__()  # as another thread that is still at work when the first leaves
            assert counts() == {1}
        assert counts() == {1}
        other.__exit__(None, None, None)
        assert counts() == {2}


@pytest.mark.parametrize(("size", "count"), [(3, 1), (3, 2), (100, 2), (1, 4)])
def test_parts_of_a_batch_are_joined(size, count):
    sizes = []

    def work(part, context):
        sizes.append(len(part))
        return part + context, part.sum(1)

    x, context = torch.randn(7, 3), torch.randn(7, 1)
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        first, second = threads.map_parts(work, x, context, size)
        for_all, _ = threads.map_parts(work, x, context[:1], size)
        assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)
    assert torch.equal(first, x + context)
    assert torch.equal(for_all, x + context[:1])
    assert torch.equal(second, x.sum(1))
    assert max(sizes) <= size
    assert not first.is_inference()


def test_an_error_of_a_part_is_raised():
    def work(part, context):
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        threads.map_parts(work, torch.zeros(4, 2), None, 2)
