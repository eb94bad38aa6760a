"""What is compiled: kept on disk by several processes at once."""

import multiprocessing

import pytest
import torch
from numba.core.caching import IndexDataCacheFile

from arflows.core.runtime import numba_loops

KEYS = [f"types {number}" for number in range(12)]


def save_and_load(folder, order, start, wrong):
    """What a process does that compiles for the types in some order; it puts what it got into a queue."""
    start.wait(60)
    for number in range(20):
        cache = IndexDataCacheFile(str(folder), f"function{number}", "stamp")
        for key in order:
            if cache.load(key) is None:
                cache.save(key, f"code for {key}")
    found = {
        (number, key): IndexDataCacheFile(str(folder), f"function{number}", "stamp").load(key)
        for number in range(20)
        for key in order
    }
    wrong.put([each for each in found.items() if each[1] not in (None, f"code for {each[0][1]}")])


def test_code_is_kept_under_its_own_types(tmp_path):
    context = multiprocessing.get_context("fork")
    start, wrong = context.Barrier(3), context.Queue()
    orders = [KEYS, KEYS[::-1], KEYS[5:] + KEYS[:5]]
    processes = [
        context.Process(target=save_and_load, args=(tmp_path, order, start, wrong), daemon=True) for order in orders
    ]
    for process in processes:
        process.start()
    assert [wrong.get(timeout=60) for _ in processes] == [[], [], []]
    for process in processes:
        process.join()
    for number in range(20):
        cache = IndexDataCacheFile(str(tmp_path), f"function{number}", "stamp")
        assert [cache.load(key) for key in KEYS] == [f"code for {key}" for key in KEYS]


def test_a_folder_that_may_only_be_read_is_read(tmp_path, monkeypatch):
    cache = IndexDataCacheFile(str(tmp_path), "function", "stamp")
    cache.save("types", "code")

    def refuse(lock):
        raise PermissionError(lock.lock_file)

    monkeypatch.setattr(numba_loops.FileLock, "acquire", refuse)
    assert cache.load("types") == "code"


@pytest.mark.parametrize("count", [1, 4, 7])
def test_shares_are_all_of_it(count, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    seen = []
    numba_loops.in_shares(lambda *words: seen.append(words), count, 2, "more")
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
        numba_loops.in_shares(fail, 4, 1)


def test_products_take_one_thread_until_the_last_has_left():
    def threads():
        return {library.num_threads for library in numba_loops._blas().lib_controllers}

    with numba_loops._blas().limit(limits=2):
        with numba_loops.multiplying():
            other = numba_loops.multiplying()
            other.__enter__()  # as another thread that is still at work when the first leaves
            assert threads() == {1}
        assert threads() == {1}
        other.__exit__(None, None, None)
        assert threads() == {2}
