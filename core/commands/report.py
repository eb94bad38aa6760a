"""Self-contained HTML reports, such as that of ``arflows demo``.

A report is a list of `Chapter`, a chapter a list of blocks. A block is a small dataclass with the content; the macro of
the same name in ``report.html.j2`` renders it. A new kind of block needs one of each.

The file needs no network: images and sounds are embedded, and its content security policy forbids all requests.
"""

from __future__ import annotations

import base64
import datetime
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import jinja2
import PIL.Image

from arflows.core.runtime.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    PictureSource: TypeAlias = bytes | Path | PIL.Image.Image | Figure | Tensor
    """The bytes of a PNG file, its path, a Pillow image, a matplotlib figure, or uint8 (channels, height, width)."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
FIGURE_DPI = 150
NUMBER = re.compile(r"[-−+]?\d[\d.,  ]*(e[-+]?\d+)?( ?± ?[\d.,]+)?( ?%)?")


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        picture: The image.
        caption: Text below it.
        alt: Description for people who cannot see it.
        pixelated: True if enlarged pixels stay sharp squares, for small images.
    """

    picture: PictureSource
    caption: str
    alt: str
    pixelated: bool = False


@dataclass(frozen=True)
class ImageGrid:
    """Small pictures of equal size side by side, each with a label.

    Attributes:
        pictures: The images in reading order.
        labels: One line below each picture, such as its bits/dim.
        caption: Text below the grid.
        alt: Description for people who cannot see it; each picture's label is added.
    """

    pictures: Sequence[PictureSource]
    labels: Sequence[str]
    caption: str
    alt: str

    def __post_init__(self) -> None:
        if len(self.pictures) != len(self.labels):
            raise ValueError(f"{len(self.pictures)} pictures have {len(self.labels)} labels")


@dataclass(frozen=True)
class Sounds:
    """Recordings to listen to, each with a label.

    Attributes:
        clips: Bytes or paths of WAV files, in order.
        labels: Label of each clip.
        caption: Text below them.
    """

    clips: Sequence[bytes | Path]
    labels: Sequence[str]
    caption: str

    def __post_init__(self) -> None:
        if len(self.clips) != len(self.labels):
            raise ValueError(f"{len(self.clips)} clips have {len(self.labels)} labels")


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers.

    Attributes:
        header: Names of the columns.
        rows: Their values; numbers with significant digits as text, such as ``"3.49 ± 0.01"``.
        caption: Text below the table.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str | int | float]]
    caption: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"a row has {len(row)} values for {len(self.header)} columns: {row}")

    @property
    def numeric(self) -> list[bool]:
        """True for each column that holds only numbers; these are right-aligned."""
        return [all(NUMBER.fullmatch(str(row[column])) for row in self.rows) for column in range(len(self.header))]


@dataclass(frozen=True)
class Setup:
    """Conditions of a measurement: data, split, budget, seed, kind of likelihood."""

    facts: Mapping[str, object]


@dataclass(frozen=True)
class Failure:
    """A missing part of the report, with the reason."""

    reason: str


Block: TypeAlias = Paragraph | Picture | ImageGrid | Sounds | Table | Setup | Failure


@dataclass(frozen=True)
class Chapter:
    """Chapter of a report, one for each domain.

    Attributes:
        title: Heading.
        intro: First paragraph, with the task and the result.
        blocks: Further content, in order.
    """

    title: str
    intro: str
    blocks: Sequence[Block] = field(default_factory=list)


def write_report(
    path: str | Path, chapters: Sequence[Chapter], facts: Mapping[str, object], title: str = "arflows report"
) -> None:
    """Write one self-contained HTML file; an existing one is replaced atomically.

    Args:
        path: The file.
        chapters: Its content.
        facts: Facts about the whole report: versions, machine, seed, duration.
        title: Title of the page.

    Raises:
        OSError: If the file cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("arflows.core.commands", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["png"] = _data_url
    environment.filters["wav"] = _sound_url
    environment.filters["kind"] = lambda block: type(block).__name__
    now = datetime.datetime.now().astimezone()
    page = environment.get_template("report.html.j2").render(title=title, chapters=chapters, facts=facts, now=now)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _data_url(picture: Any) -> str:
    return "data:image/png;base64," + base64.b64encode(_png(picture)).decode("ascii")


def _sound_url(clip: bytes | Path) -> str:
    content = clip.read_bytes() if isinstance(clip, Path) else clip
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        raise ValueError("a clip of the report is not a WAV file")
    return "data:audio/wav;base64," + base64.b64encode(content).decode("ascii")


def _png(picture: Any) -> bytes:
    if isinstance(picture, Path):
        picture = picture.read_bytes()
    if isinstance(picture, bytes):
        if not picture.startswith(PNG_SIGNATURE):
            raise ValueError("a picture of the report is not a PNG file")
        return picture
    stream = io.BytesIO()
    if hasattr(picture, "numpy"):
        picture = PIL.Image.fromarray((picture[0] if len(picture) == 1 else picture.movedim(0, -1)).numpy())
    if hasattr(picture, "savefig"):
        picture.savefig(stream, format="png", dpi=FIGURE_DPI, bbox_inches="tight")
    else:
        picture.save(stream, format="png")
    return stream.getvalue()
