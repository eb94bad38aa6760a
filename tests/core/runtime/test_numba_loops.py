"""Compiled code on disk, shared by several processes."""

import multiprocessing

from numba.core.caching import IndexDataCacheFile

from arflows.core.runtime import numba_loops

KEYS = [f"types {number}" for number in range(12)]


def save_and_load(folder, order, start, wrong):
    """Compile for the types in the given order, and put the results into a queue; runs in a process."""
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
