"""Downloads from a local server with realistic faults."""

import hashlib
import http.server
import threading
import time

import numpy as np
import pytest

from arflows.core.runtime.errors import UserError
from arflows.data import torchvision_sets
from arflows.data.downloads import Remote, fetch

CONTENT = np.random.default_rng(0).bytes(200_000)
RIGHT = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `CONTENT`, and misbehaves as the path says; remembers what was asked for."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges = []
        self.cuts = {}

    def url(self, path):
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        kind = self.path.strip("/").split("/")[0]
        self.server.ranges.append(self.headers.get("Range"))
        if kind == "redirect":
            self.send_response(302)
            self.send_header("Location", self.server.url("good/file.bin"))
            self.end_headers()
            return
        if kind == "circle":
            self.send_response(302)
            self.send_header("Location", self.server.url("circle/file.bin"))
            self.end_headers()
            return
        if kind == "missing":
            self.send_error(404)
            return
        start = 0
        if self.headers.get("Range") and kind != "deaf":
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        content = CONTENT[start:] if kind != "corrupt" else bytes(200_000)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if kind in ("cut", "deaf") and self.server.cuts.setdefault(self.path, 0) < 2:
            self.server.cuts[self.path] += 1
            self.wfile.write(content[:50_000])
            self.close_connection = True
            return
        if kind == "always_cut":
            self.wfile.write(content[:20_000])
            self.close_connection = True
            return
        if kind == "stall" and self.server.cuts.setdefault(self.path, 0) < 1:
            self.server.cuts[self.path] += 1
            self.wfile.write(content[:50_000])
            self.wfile.flush()
            time.sleep(2)
            return
        self.wfile.write(content)


@pytest.fixture
def server():
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def get(server, path, folder, **options):
    return fetch([Remote(server.url(path), RIGHT)], folder, **options)[0]


@pytest.mark.parametrize("kind", ["good", "redirect", "cut", "deaf", "stall"])
def test_comes_whole_from_a_server_that(kind, server, tmp_path):
    path = get(server, f"{kind}/file.bin", tmp_path, patience=0.5)
    assert path.read_bytes() == CONTENT
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.bin"]


def test_only_the_rest_is_asked_for_after_a_cut(server, tmp_path):
    get(server, "cut/file.bin", tmp_path)
    assert server.ranges == [None, "bytes=49152-", "bytes=98304-"]  # in pieces of 16 KiB


def test_a_later_call_goes_on_where_an_earlier_one_ended(server, tmp_path):
    with pytest.raises(UserError, match="goes on where it ended"):
        get(server, "always_cut/file.bin", tmp_path, attempts=2)
    assert (tmp_path / "file.bin.part").stat().st_size == 32_768
    assert get(server, "good/file.bin", tmp_path).read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=32768-"


def test_what_is_there_is_not_fetched_again_unless_damaged(server, tmp_path):
    path = get(server, "good/file.bin", tmp_path)
    get(server, "good/file.bin", tmp_path)
    assert len(server.ranges) == 1
    path.write_bytes(b"damaged")
    assert get(server, "good/file.bin", tmp_path).read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused_and_removed(server, tmp_path):
    with pytest.raises(UserError, match=r"corrupt/file\.bin gave another file .* removed.*into .* yourself") as error:
        get(server, "corrupt/file.bin", tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("path", "reason"), [("missing/file.bin", "the server answers 404"), ("circle/file.bin", "redirects")]
)
def test_a_server_without_the_file_is_one_sentence(path, reason, server, tmp_path):
    with pytest.raises(UserError, match=reason) as error:
        get(server, path, tmp_path, attempts=1)
    assert server.url(path) in str(error.value)


def test_no_network_is_one_sentence_with_the_steps_by_hand(tmp_path):
    with pytest.raises(UserError, match="there is no connection") as error:
        fetch([Remote("http://127.0.0.1:9/file.bin", RIGHT)], tmp_path, attempts=1)
    assert "open http://127.0.0.1:9/file.bin on any machine and put the file into" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_set_of_images_is_fetched_by_it(server, tmp_path, monkeypatch):
    monkeypatch.setitem(torchvision_sets.FILES, "svhn", (".", [Remote(server.url("corrupt/train_32x32.mat"), RIGHT)]))
    with pytest.raises(UserError, match="gave another file"):
        torchvision_sets.torchvision_set("svhn", tmp_path, download=True)


def test_every_set_but_celeba_has_checksums():
    assert torchvision_sets.TORCHVISION_SETS.keys() - torchvision_sets.FILES.keys() == {"celeba"}
    for _, files in torchvision_sets.FILES.values():
        assert all(len(remote.sha256) == 64 and int(remote.sha256, 16) for remote in files)
