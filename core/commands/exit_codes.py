"""Exceptions as exit codes and one sentence for the user."""

import errno
import io
import os
import select
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NoReturn

BUG, USER_ERROR = 1, 2
INTERRUPTED, BROKEN_PIPE = 130, 141  # 128 + SIGINT and 128 + SIGPIPE, as shells report a signal

_debug: ContextVar[bool | None] = ContextVar("debug", default=None)
"""True if tracebacks are to be printed; None outside of `guarded`."""


@contextmanager
def guarded(args: Sequence[str] | None = None) -> Iterator[list[str]]:
    """Turn exceptions of the block into a message and an exit code.

    A user error (an exception with ``user_facing`` set, an `OSError`, exhausted memory) prints one sentence on standard
    error and exits with code 2. Ctrl-C exits with 130, a closed output pipe exits silently, and any other exception is
    a bug: exit code 1. The option ``--debug``, in any position, or the environment variable ``ARFLOWS_DEBUG=1`` adds
    the traceback.

    Guards may be nested, so that a command can call another: the outermost one handles the errors.

    Args:
        args: Words of the command line; by default the words of the process.

    Yields:
        The words without ``--debug``.
    """
    args = sys.argv[1:] if args is None else args
    words = [word for word in args if word != "--debug"]
    if _debug.get() is not None:
        yield words
        return
    token = _debug.set(len(words) < len(args) or os.environ.get("ARFLOWS_DEBUG", "0") not in ("", "0"))
    try:
        try:
            yield words
        finally:
            sys.stdout.flush()  # before Python's own flush at exit, so that a closed pipe is caught here
    except SystemExit as ending:
        if not isinstance(ending.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into sys.exit(1)
            raise
        _end(INTERRUPTED, "interrupted")
    except KeyboardInterrupt:
        if _debug.get():
            traceback.print_exc()
        _end(INTERRUPTED, "interrupted")
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush at exit
            raise SystemExit(BROKEN_PIPE) from None
        code, sentence = explain(error)
        _end(code, f"error: {sentence}")
    finally:
        _debug.reset(token)


def explain(error: Exception) -> tuple[int, str]:
    """Return the exit code and the message for an exception; print its traceback with ``--debug``.

    Returns:
        The exit code, 2 for a user error and 1 for a bug, and one sentence.
    """
    if _debug.get():
        traceback.print_exception(error)
    sentence = _user_facing_sentence(error)
    if sentence is not None:
        return USER_ERROR, sentence
    advice = "" if _debug.get() else "; --debug shows the traceback"
    return BUG, f"{type(error).__name__}: {error} (a fault of the program, not of your input{advice})"


def _end(code: int, line: str) -> NoReturn:
    print(line, file=sys.stderr)
    raise SystemExit(code) from None


def _reader_is_gone() -> bool:
    """Return True if the reader of standard output has closed it, as in ``arflows --help | head -1``."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), select.POLLOUT)
    except io.UnsupportedOperation:  # standard output of a notebook or a test
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _user_facing_sentence(error: Exception) -> str | None:
    """Return the message of a user error; None for any other exception."""
    if getattr(error, "user_facing", False):
        return str(error)
    if isinstance(error, OSError) or "No space left on device" in str(error):
        return _os_error_sentence(error)
    # PyTorch raises its own class on a GPU, and a RuntimeError with this text on a CPU
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    ):
        details = f" ({str(error).splitlines()[0].rstrip('.')})" if str(error) else ""
        return f"The memory does not suffice; choose a smaller batch or model{details}."
    return None


def _os_error_sentence(error: Exception) -> str:
    name = getattr(error, "filename", None)
    file = f"{os.fsdecode(name) if isinstance(name, bytes | os.PathLike) else name}" if name is not None else ""
    code = getattr(error, "errno", None)
    if code in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
        return f"No space is left{f' while writing {file}' if file else ''}: free some, or write to another disk."
    if not file:
        return str(error) or type(error).__name__
    match code:
        case errno.ENOENT:
            return f"{file} does not exist: check the path."
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"{file} may not be read or written by you: change its permissions or choose another path."
        case errno.EISDIR:
            return f"{file} is a folder: name a file."
        case errno.ENOTDIR:
            return f"{file} is not in a folder, or is not one itself: check the path."
        case errno.EEXIST:
            return f"{file} exists already: remove it or choose another path."
    return f"{file}: {getattr(error, 'strerror', None) or error}."
