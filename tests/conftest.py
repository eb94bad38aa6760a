"""Fixtures and environment of all tests."""

import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch is imported: each test process uses one core
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.pop("ARFLOWS_DEBUG", None)

USUAL_HANDLERS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder of downloaded data sets, from ARFLOWS_DATA; tests that use it are skipped if the variable is not set."""
    folder = os.environ.get("ARFLOWS_DATA")
    if not folder:
        pytest.skip("ARFLOWS_DATA names no folder of data sets")
    return Path(folder)


@pytest.fixture(autouse=True)
def _signals_left_alone():
    """Fail a test that leaves a signal handler behind.

    Worker processes of later tests would inherit it, and hang if it ignores SIGTERM. Each test starts with the usual
    handlers, because ``nohup`` and some test machines make the process ignore signals.
    """
    inherited = {number: signal.getsignal(number) for number in USUAL_HANDLERS}
    for number, handler in USUAL_HANDLERS.items():
        if inherited[number] == signal.SIG_IGN:
            signal.signal(number, handler)
    before = {number: signal.getsignal(number) for number in USUAL_HANDLERS}
    yield
    changed = [number.name for number, handler in before.items() if signal.getsignal(number) != handler]
    for number, handler in inherited.items():
        signal.signal(number, handler)
    assert not changed, f"the test left a handler of {' and '.join(changed)} behind"


@pytest.fixture
def fails(capsys):
    """Function that checks a call's exit code and its one line on standard error, and returns the line."""

    def call(code, function, *args):
        with pytest.raises(SystemExit) as ending:
            function(*args)
        output = capsys.readouterr()
        assert ending.value.code == code
        assert output.out == ""
        assert output.err.count("\n") == 1
        return output.err

    return call
