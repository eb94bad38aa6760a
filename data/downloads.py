"""Downloads, verified by checksum and resumed after interruptions."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pooch
import requests
from tqdm import tqdm

from arflows.core.runtime.errors import UserError

ATTEMPTS = 5
"""Maximum number of attempts for one file; each resumes the interrupted transfer."""

PATIENCE = 30.0
"""Seconds without data after which a transfer counts as interrupted."""

CHUNK = 1 << 14


@dataclass(frozen=True)
class Remote:
    """A file on a server.

    Attributes:
        url: Address of the file.
        sha256: Its checksum.
    """

    url: str
    sha256: str

    @property
    def name(self) -> str:
        """File name on the server."""
        return self.url.rsplit("/", 1)[-1]


class Resuming:
    """Downloads for `pooch`: what was transferred before a cut stays in ``<file>.part``, and the rest is asked for."""

    def __init__(self, part: Path, attempts: int = ATTEMPTS, patience: float = PATIENCE) -> None:
        self.part = part
        self.attempts = attempts
        self.patience = patience

    def __call__(self, url: str, output_file: str | Path, pooch: Any, check_only: bool = False) -> None:
        """Download ``url`` to ``output_file``.

        Raises:
            OSError: The download failed in every attempt.
        """
        for attempt in range(1, self.attempts + 1):
            try:
                self._transfer(url)
                break
            except requests.HTTPError:
                raise
            except (requests.RequestException, OSError):
                if attempt == self.attempts:
                    raise
                time.sleep(min(0.2 * 2**attempt, 10))
        os.replace(self.part, output_file)

    def _transfer(self, url: str) -> None:
        """Download the missing rest of the file."""
        there = self.part.stat().st_size if self.part.exists() else 0
        # No compression in transit: checksum and range refer to the file as stored.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={there}-"} if there else {})
        with requests.get(url, headers=headers, stream=True, timeout=self.patience) as answer:
            if answer.status_code == requests.codes.requested_range_not_satisfiable:
                self.part.unlink()  # it is as long as the file already, or longer
                raise requests.ConnectionError("the part that was there did not fit")
            answer.raise_for_status()
            goes_on = answer.status_code == requests.codes.partial_content
            length = int(answer.headers.get("Content-Length", 0))
            expected = length + (there if goes_on else 0)
            with (
                self.part.open("ab" if goes_on else "wb") as file,
                tqdm(
                    total=expected or None,
                    initial=there if goes_on else 0,
                    desc=self.part.stem,
                    unit="B",
                    unit_scale=True,
                    leave=False,
                    disable=None,
                ) as progress,
            ):
                for chunk in answer.iter_content(CHUNK):
                    file.write(chunk)
                    progress.update(len(chunk))
            if length and self.part.stat().st_size < expected:
                raise requests.ConnectionError(f"cut after {self.part.stat().st_size:,} of {expected:,} bytes")


def fetch(files: Sequence[Remote], folder: Path, attempts: int = ATTEMPTS, patience: float = PATIENCE) -> list[Path]:
    """Make sure that files are in a folder, fetching those that are not, or are damaged.

    A transfer that is cut or stalls is taken up where it ended, also by a later call. A file with the wrong checksum is
    removed.

    Args:
        files: The files to download.
        folder: Destination; made if it is not there.
        attempts: How often a cut transfer is taken up again.
        patience: Seconds without a byte after which it counts as cut.

    Returns:
        Where the files are.

    Raises:
        UserError: A file cannot be downloaded; the message says how to get it by hand.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for remote in files:
        part = folder / f"{remote.name}.part"
        try:
            path = pooch.retrieve(
                remote.url,
                f"sha256:{remote.sha256}",
                remote.name,
                folder,
                downloader=Resuming(part, attempts, patience),
            )
        except ValueError as error:  # pooch's word for a wrong checksum; it has removed the file
            raise UserError(
                f"{remote.url} gave another file than it should (its SHA-256 is not {remote.sha256[:16]}…), which was "
                f"removed: try again later, or put the right file into {folder} yourself."
            ) from error
        except (OSError, requests.RequestException) as error:
            raise UserError(
                f"{remote.name} could not be downloaded ({_reason(error)}): check the network and start again, which "
                f"goes on where it ended; or open {remote.url} on any machine and put the file into {folder}."
            ) from error
        paths.append(Path(path))
    return paths


def _reason(error: Exception) -> str:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answers {error.response.status_code}"
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return "the server does not answer"
    if isinstance(error, requests.ConnectionError) and "cut after" not in str(error):
        return "there is no connection"
    return " ".join(str(error).split()).rstrip(".")
