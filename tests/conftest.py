"""What all tests share."""

import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch is imported; the tests run in as many processes
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.pop("ARFLOWS_DEBUG", None)

USUAL_HANDLERS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of downloaded data sets, which few machines have: tests that ask for it are skipped elsewhere."""
    folder = os.environ.get("ARFLOWS_DATA")
    if not folder:
        pytest.skip("ARFLOWS_DATA names no folder of data sets")
    return Path(folder)


@pytest.fixture(autouse=True)
def _signals_left_alone():
    """What a test leaves behind as a signal's handler outlives it: the worker processes of later tests inherit it.

    They hang where it swallows the SIGTERM that should end them. A test starts with the usual handlers, whatever this
    process inherited: under ``nohup``, and on some machines that run tests, signals are ignored.
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
    """Runs a call that must end the process with an exit code and one line on standard error, which it returns."""

    def call(code, function, *args):
        with pytest.raises(SystemExit) as ending:
            function(*args)
        output = capsys.readouterr()
        assert ending.value.code == code
        assert output.out == ""
        assert output.err.count("\n") == 1
        return output.err

    return call
