"""Tests under ignored signals, as with ``nohup``."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.report

TESTS = [
    "core/commands/test_exit_codes.py::test_ctrl_c_ends_us_with_130",
    "core/training/test_callbacks.py::test_signals_act_at_once_after_a_training_that_failed",
]


def test_tests_that_send_signals_pass_where_they_are_ignored():
    ignoring = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *sys.argv[1:]])
"""
    folder = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", ignoring, *(str(folder / test) for test in TESTS)],
        cwd=folder.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "2 passed" in done.stdout
    assert signal.getsignal(signal.SIGINT) != signal.SIG_IGN
