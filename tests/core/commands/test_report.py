import base64
import io
import re
import wave
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from arflows.core.commands import report
from arflows.core.commands.report import (
    Chapter,
    Failure,
    ImageGrid,
    Paragraph,
    Picture,
    Setup,
    Sounds,
    Table,
    write_report,
)

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Collects elements and text, and holds that every element is closed where it should be."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def all(self, name):
        return [attributes for tag, attributes in self.elements if tag == name]


def picture(value=7):
    return Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8))


def png(value=7):
    stream = io.BytesIO()
    picture(value).save(stream, format="png")
    return stream.getvalue()


@pytest.fixture
def write(tmp_path):
    def page(*blocks, title="Images", intro="An intro.", facts=None):
        path = tmp_path / "report.html"
        write_report(path, [Chapter(title, intro, blocks)], facts or {})
        return Page(path.read_text(encoding="utf-8"))

    return page


@pytest.fixture
def figure():
    figure, axes = plt.subplots(figsize=(2, 1))
    axes.plot([0, 1])
    yield figure
    plt.close(figure)


def decoded(source):
    head, _, data = source.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


def test_page_loads_nothing(write, figure):
    page = write(Picture(figure, "A curve.", "a line that rises"), ImageGrid([png()], ["3.49"], "Samples.", "a sample"))
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed")
        for name, value in attributes.items():
            if name in ("src", "href", "srcset", "action", "data"):
                assert value.startswith(("data:", "#")), f"<{tag} {name}={value[:40]}>"
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert not re.search(r"https?:|@import|url\(", page.text)


def test_pictures_of_all_kinds_are_embedded(write, figure, tmp_path):
    path = tmp_path / "sample.png"
    path.write_bytes(png(9))
    colours = torch.arange(6, dtype=torch.uint8).view(3, 1, 2)
    sources = [figure, picture(8), path, png(7), colours, colours[:1]]
    page = write(*[Picture(source, "A picture.", "something") for source in sources])
    images = [decoded(image["src"]) for image in page.all("img")]
    assert images[0].width > 200
    assert [image.getpixel((0, 0))[0] for image in images[1:4]] == [8, 9, 7]
    assert [image.size for image in images[4:]] == [(2, 1), (2, 1)]
    assert [image.getpixel((1, 0)) for image in images[4:]] == [(1, 3, 5), 1]


def test_what_is_no_png_is_refused(write):
    with pytest.raises(ValueError, match="not a PNG"):
        write(Picture(b"\xff\xd8\xff", "A picture.", "something"))


@pytest.mark.report
def test_every_picture_has_a_description(write):
    page = write(
        Picture(png(), "A picture.", "a dark square"), ImageGrid([png(), png()], ["3.4", "3.5"], "Samples.", "a sample")
    )
    assert [image["alt"] for image in page.all("img")] == ["a dark square", "a sample: 3.4", "a sample: 3.5"]
    assert "A picture." in page.text
    assert "3.5" in page.text


def test_text_is_escaped(write):
    hostile = '<script>alert("1 & 2")</script>'
    page = write(
        Paragraph(hostile),
        Table([hostile], [[hostile]], hostile),
        Setup({hostile: hostile}),
        Failure(hostile),
        Picture(png(), hostile, hostile),
        title=hostile,
        intro=hostile,
        facts={hostile: hostile},
    )
    assert page.all("script") == []
    assert page.text.count(hostile) == 12
    assert page.all("img")[0]["alt"] == hostile


def test_table_aligns_columns_of_numbers(write):
    rows = [["CIFAR-10", "3.49 ± 0.01", 1000, "-"], ["MNIST", "−1.2", 2.5, "7 %"]]
    table = Table(["data", "bits/dim", "images", "mixed"], rows)
    assert table.numeric == [False, True, True, False]
    page = write(table)
    assert [cell.get("class") for cell in page.all("td")] == [None, "number", "number", None] * 2
    assert [cell.get("class") for cell in page.all("th")] == [None, "number", "number", None]


def test_ragged_blocks_are_refused():
    with pytest.raises(ValueError, match="1 values for 2 columns"):
        Table(["a", "b"], [[1]])
    with pytest.raises(ValueError, match="2 pictures have 1 labels"):
        ImageGrid([png(), png()], ["a"], "", "")


def test_protocol_and_facts_are_shown(write):
    page = write(Setup({"likelihood": "bound, by uniform dequantisation", "seed": 3}), facts={"took": "2 min"})
    lines = page.text.splitlines()
    assert "  took2 min" in lines
    assert lines.index("  likelihoodbound, by uniform dequantisation") < lines.index("  seed3")


def test_chapters_are_linked(tmp_path):
    path = tmp_path / "report.html"
    write_report(path, [Chapter("Images", "", []), Chapter("Speech", "", [])], {})
    page = Page(path.read_text(encoding="utf-8"))
    targets = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    links = [link["href"].removeprefix("#") for link in page.all("a")]
    assert len(links) == 2
    assert set(links) <= targets


def test_every_kind_of_block_has_its_macro():
    template = Path(report.__file__).with_name("report.html.j2").read_text()
    for block in report.Block.__args__:
        assert f"{{% macro {block.__name__}(block) %}}" in template


def test_failed_report_leaves_the_older_one(write, tmp_path):
    write(Paragraph("older"))
    with pytest.raises(ValueError, match="not a PNG"):
        write(Picture(b"", "", ""))
    assert "older" in (tmp_path / "report.html").read_text()
    assert len(list(tmp_path.iterdir())) == 1


def test_sounds_are_embedded_with_their_names(write, tmp_path):
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(b"\1\2\3\4")
    (tmp_path / "x.wav").write_bytes(stream.getvalue())
    page = write(Sounds([stream.getvalue(), tmp_path / "x.wav"], ["spoken", "synthesised"], "Listen."))
    players = page.all("audio")
    assert [player["aria-label"] for player in players] == ["spoken", "synthesised"]
    for player in players:
        kind, _, content = player["src"].partition(",")
        assert kind == "data:audio/wav;base64"
        with wave.open(io.BytesIO(base64.b64decode(content))) as file:
            assert file.readframes(9) == b"\1\2\3\4"
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert "media-src data:" in policy
    assert "Listen." in page.text
    with pytest.raises(ValueError, match="not a WAV file"):
        write(Sounds([b"ID3 something else"], ["an MP3"], ""))
    with pytest.raises(ValueError, match="1 clips have 2 labels"):
        Sounds([b""], ["a", "b"], "")
