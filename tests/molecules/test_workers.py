import os

import pytest

from arflows.molecules.workers import Workers, chunked


def squares(chunk, shift):
    return [each**2 + shift for each in chunk]


def process(chunk):
    return os.getpid()


def fail(chunk):
    raise ValueError("no")


@pytest.mark.parametrize("count", [1, 2])
def test_results_come_in_order(count):
    with Workers(count) as workers:
        for _ in range(2):  # they are kept
            found = list(workers.map(squares, chunked(range(100), 7), 1))
            assert [each for chunk in found for each in chunk] == [n**2 + 1 for n in range(100)]


def test_work_is_elsewhere_unless_one_is_enough():
    with Workers(2) as workers:
        assert os.getpid() not in workers.map(process, chunked(range(4), 1))
    assert list(Workers(1).map(process, [[1]])) == [os.getpid()]


def test_few_chunks_are_read_ahead():
    read = []

    def chunks():
        for number in range(1000):
            read.append(number)
            yield [number]

    with Workers(2) as workers:
        next(iter(workers.map(squares, chunks(), 0)))
    assert len(read) == 8


def test_errors_pass():
    with Workers(2) as workers, pytest.raises(ValueError, match="no"):
        list(workers.map(fail, [[1]]))
