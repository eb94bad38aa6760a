"""Commands in separate processes, into which faults are injected."""

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from arflows.core.commands.cli import main as arflows

LIMIT = 300.0
"""Seconds after which a command counts as hanging."""


class Lost(Exception):
    """Data were lost."""


class NotSurvived(Exception):
    """A command did not end as a user would want it to, though nothing was lost."""


class Command:
    """``arflows …`` in a process of its own, which a fault may befall."""

    def __init__(self, words: list[str], log: Path, before: Callable[[], None] | None = None) -> None:
        self.log = log
        self.code: int | None = None
        self.process = os.fork()
        if self.process == 0:
            with log.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            # Whatever captures the output of the process that forked: its file must not fill with this one's.
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
            code = 1
            try:
                if before is not None:
                    before()
                arflows(words)
                code = 0
            except SystemExit as ending:
                code = ending.code if isinstance(ending.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)

    def wait(self, seconds: float = LIMIT) -> int | None:
        """The exit code, −n after the signal n, or None if it is not over by then.

        Seconds count while this process runs, for a machine may stop all that runs on it for a while.
        """
        while self.code is None:
            process, status = os.waitpid(self.process, os.WNOHANG)
            if process:
                self.code = os.waitstatus_to_exitcode(status)
            elif seconds <= 0:
                break
            else:
                time.sleep(0.002)
                seconds -= 0.002
        return self.code

    def send(self, number: signal.Signals) -> None:
        if self.code is None:
            os.kill(self.process, number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.wait()

    def end(self) -> int:
        """Waits for the end.

        Raises:
            NotSurvived: If it does not come.
        """
        code = self.wait()
        if code is None:
            self.kill()
            raise NotSurvived("hangs")
        return code

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")


def wait_for(path: Path) -> None:
    until = time.monotonic() + LIMIT
    while not path.exists():
        if time.monotonic() > until:
            raise NotSurvived(f"{path} does not appear")
        time.sleep(0.005)


def limited(nbytes: int) -> Callable[[], None]:
    """Makes every file of a process end there, as on a disk that is full."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, nbytes))

    return limit
