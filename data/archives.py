"""Safe unpacking of untrusted compressed files, with limits on size and destination."""

from __future__ import annotations

import codecs
import gzip
import io
import lzma
import tarfile
import zlib
from pathlib import Path
from typing import IO

from arflows.core.runtime.errors import UserError

LARGEST_RATIO = 100
"""Maximum ratio of unpacked to packed size; text reaches 3 to 20, a malicious archive a thousand."""

PEEKED = 4096
"""Bytes by which the encoding of a text is judged."""

ALWAYS_ALLOWED = 1 << 26
"""Bytes to which any file may be unpacked, whatever the ratio."""


def open_text(path: Path, newline: str | None = "") -> IO[str]:
    """Open a text file for reading, unpacking it on the way if its name ends in ``.gz``.

    The text may be UTF-8, with or without a byte order mark, UTF-16, or Latin-1: bytes that are not UTF-8 are read as
    Latin-1. Reading raises `UserError` where a packed file is damaged or unfolds beyond `LARGEST_RATIO`.

    Args:
        path: The file.
        newline: Treatment of line ends, as for `open`: "" keeps them, which `csv` needs; None makes them newlines.

    Raises:
        UserError: The file is not text.
    """
    file = io.BufferedReader(_Unfolding(path)) if path.suffix == ".gz" else path.open("rb")
    try:
        encoding = _encoding(path, file.peek(PEEKED)[:PEEKED])
    except BaseException:
        file.close()
        raise
    return io.TextIOWrapper(file, encoding=encoding, errors="latin-1", newline=newline)


def _encoding(path: Path, start: bytes) -> str:
    """Return the name of a text's encoding, judged by its first bytes."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if b"\0" not in start:
        return "utf-8-sig"
    for encoding, zeros, letters in (("utf-16-le", start[1::2], start[::2]), ("utf-16-be", start[::2], start[1::2])):
        if zeros.count(0) > 0.9 * len(zeros) and 0 not in letters:
            return encoding
    raise UserError(f"{path} is not a text file: give text in UTF-8.")


def _as_latin1(error: UnicodeError) -> tuple[str, int]:
    """Decode the bytes that are invalid in the file's encoding as Latin-1; a handler for `codecs`."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode("latin-1"), error.end


codecs.register_error("latin-1", _as_latin1)


class _Unfolding(io.RawIOBase):
    """The content of a gzip file, up to the most that is allowed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._file = gzip.open(path)  # noqa: SIM115
        self._left = _allowance(path)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            content = self._file.read(len(buffer))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{self._path} is damaged ({error}): copy it again.") from error
        self._left -= len(content)
        if self._left < 0:
            raise _too_large(self._path)
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()


def unpack_tar(path: Path, folder: Path) -> None:
    """Unpack a tar archive, packed or not, into a folder.

    Raises:
        UserError: It is damaged, unfolds beyond measure, or names a place outside the folder, a link out of it or a
            device. Nothing is unpacked then.
    """
    left = _allowance(path)
    try:
        with tarfile.open(path) as archive:
            members = []
            for member in archive:
                left -= member.size
                if left < 0:
                    raise _too_large(path)
                members.append(tarfile.data_filter(member, str(folder)))
            archive.extractall(folder, members, filter="data")
    except tarfile.FilterError as error:
        raise UserError(f"{path} would write outside the target folder ({error}): do not use it.") from error
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is damaged ({error}): copy it again.") from error


def _allowance(path: Path) -> int:
    return max(ALWAYS_ALLOWED, LARGEST_RATIO * path.stat().st_size)


def _too_large(path: Path) -> UserError:
    return UserError(
        f"{path} unpacks to more than {LARGEST_RATIO} times its size, as malicious files do: unpack it yourself if you "
        "trust its origin."
    )
