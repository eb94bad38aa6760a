"""Errors that end a command: `arflows.core.commands.exit_codes.guarded` and `ShortErrors`."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from arflows.core.commands import exit_codes
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.files import replacing
from arflows.core.runtime.options import ShortErrors


class Mendable(Exception):
    user_facing = True


class OutOfMemoryError(RuntimeError):
    """Named as PyTorch's."""


def os_error(code, name=None):
    return OSError(code, os.strerror(code), name)


class TestGuarded:
    @pytest.mark.parametrize(
        ("error", "code", "sentence"),
        [
            (UserError("Mend this."), 2, "error: Mend this."),
            (Mendable("Mend that."), 2, "error: Mend that."),
            (os_error(errno.ENOENT, "a.h5"), 2, "error: a.h5 does not exist: check the path."),
            (os_error(errno.ENOENT, b"a.h5"), 2, "error: a.h5 does not exist: check the path."),
            (os_error(errno.EACCES, Path("a.h5")), 2, "error: a.h5 may not be read or written by you: change its"),
            (os_error(errno.EROFS, "a.h5"), 2, "error: a.h5 may not be read or written by you: change its"),
            (os_error(errno.EISDIR, "runs"), 2, "error: runs is a folder: name a file."),
            (os_error(errno.ENOTDIR, "a/b"), 2, "error: a/b is not in a folder"),
            (os_error(errno.EEXIST, "runs"), 2, "error: runs exists already: remove it or choose another path."),
            (os_error(errno.EIO, "a.h5"), 2, "error: a.h5: Input/output error."),
            (os_error(errno.ENOSPC, "a.h5"), 2, "error: No space is left while writing a.h5: free some, or"),
            (os_error(errno.ENOSPC), 2, "error: No space is left: free some, or write to another disk."),
            (RuntimeError("I/O: No space left on device (os error 28)"), 2, "error: No space is left: free some"),
            (ConnectionError("no network"), 2, "error: no network"),
            (TimeoutError(), 2, "error: TimeoutError"),
            (BrokenPipeError(errno.EPIPE, "a worker died"), 2, "error: [Errno 32] a worker died"),
            (OutOfMemoryError("CUDA out of memory.\nTried much."), 2, "error: The memory does not suffice; choose"),
            (MemoryError(), 2, "error: The memory does not suffice; choose a smaller batch or model."),
            (RuntimeError("alloc: can't allocate memory: 9 bytes"), 2, "error: The memory does not suffice; choose"),
            (KeyboardInterrupt(), 130, "interrupted"),
            (ValueError("odd"), 1, "error: ValueError: odd (a fault of the program, not of your input; --debug shows"),
        ],
    )
    def test_error_is_one_sentence(self, fails, error, code, sentence):
        @exit_codes.guarded([])
        def command():
            raise error

        assert fails(code, command).startswith(sentence)

    def test_debug_is_taken_from_anywhere_and_shows_the_traceback(self, capsys):
        def command():
            with exit_codes.guarded(["a", "--debug", "b"]) as words:
                assert words == ["a", "b"]
                raise UserError("Mend this.")

        with pytest.raises(SystemExit, match="2"):
            command()
        output = capsys.readouterr().err
        assert "Traceback (most recent call last)" in output
        assert output.endswith("error: Mend this.\n")

    @pytest.mark.parametrize(("value", "shown"), [("1", True), ("0", False), ("", False)])
    def test_debug_by_the_environment(self, capsys, monkeypatch, value, shown):
        monkeypatch.setenv("ARFLOWS_DEBUG", value)
        with pytest.raises(SystemExit, match="1"), exit_codes.guarded([]):
            raise ValueError("odd")
        assert ("Traceback" in capsys.readouterr().err) is shown

    def test_inner_guard_leaves_errors_to_the_outer(self):
        def inner():
            with exit_codes.guarded(["--debug"]) as words:
                assert words == []
                raise UserError("Mend this.")

        with exit_codes.guarded([]), pytest.raises(UserError):
            inner()

    def test_guard_ends_with_its_block(self, fails):
        for _ in range(2):
            with exit_codes.guarded([]):
                pass

        @exit_codes.guarded([])
        def command():
            raise UserError("Mend this.")

        assert fails(2, command) == "error: Mend this.\n"

    @pytest.mark.parametrize("code", [0, 3])
    def test_own_exit_codes_pass(self, code):
        with pytest.raises(SystemExit) as ending, exit_codes.guarded([]):
            raise SystemExit(code)
        assert ending.value.code == code

    def test_exit_after_an_interrupt_is_an_interrupt(self, fails):
        @exit_codes.guarded([])
        def as_lightning_does():
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt:
                sys.exit(1)

        assert fails(130, as_lightning_does) == "interrupted\n"


def test_lightning_cli_has_the_same_manners(fails, monkeypatch):
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
    from lightning.pytorch.demos.boring_classes import BoringModel

    class Parser(ShortErrors, LightningArgumentParser):
        pass

    def train(words):
        with exit_codes.guarded(words) as words:
            LightningCLI(BoringModel, parser_class=Parser, args=words, run=False, save_config_callback=None)

    monkeypatch.setattr(sys, "argv", ["train"])
    assert fails(2, train, ["--trainer.max_epochs=x"]) == "error: --trainer.max_epochs takes int or null, not 'x'.\n"
    assert "Did you mean --trainer.max_epochs?" in fails(2, train, ["--trainer.max_epoch=1"])


def process(script, **options):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        **options,
    )


def test_a_reader_that_has_gone_ends_us_silently():
    running = process(
        """
        from arflows.core.commands.exit_codes import guarded
        with guarded([]):
            input()
            print("nobody reads this")
        """,
        stdin=subprocess.PIPE,
    )
    running.stdout.close()
    running.stdin.write("\n")
    running.stdin.close()
    assert running.wait(60) == 141
    assert running.stderr.read() == ""


def test_ctrl_c_ends_us_with_130(tmp_path):
    running = process(
        """
        import time
        from arflows.core.commands.exit_codes import guarded
        with guarded([]):
            print("ready", flush=True)
            time.sleep(60)
        """
    )
    assert running.stdout.readline() == "ready\n"
    time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    assert running.communicate(timeout=60) == ("", "interrupted\n")
    assert running.returncode == 130


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_full_disk_names_the_file(tmp_path, fails):
    @exit_codes.guarded([])
    def command():
        with replacing(tmp_path / "figures.csv") as temporary:
            temporary.symlink_to("/dev/full")
            temporary.write_text("figures")

    message = fails(2, command)
    assert (
        message
        == f"error: No space is left while writing {tmp_path}/figures.csv: free some, or write to another disk.\n"
    )
    assert list(tmp_path.iterdir()) == []
