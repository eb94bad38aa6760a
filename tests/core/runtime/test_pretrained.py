"""Model folders: saving, loading and refusing."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from arflows.core.runtime import pretrained
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.pretrained import Pretrained


class Toy(Pretrained):
    """A module with arguments of several kinds."""

    def __init__(self, width: int, sizes: tuple[int, ...] = (1, 2), *, bias: bool = True):
        super().__init__()
        self.linear = nn.Linear(width, len(sizes), bias=bias)


class OtherToy(Toy):
    """Another class, with the same constructor."""


@pytest.fixture
def folder(tmp_path):
    Toy(3, sizes=[4, 5, 6], bias=False).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_comes_back_the_same(folder):
    model, again = Toy.from_pretrained(folder), Pretrained.from_pretrained(str(folder))
    assert isinstance(again, Toy)
    assert not model.training
    assert torch.equal(model.linear.weight, again.linear.weight)
    assert model.linear.bias is None
    assert json.loads((folder / "config.json").read_text()) == {
        "format_version": 2,
        "class": "Toy",
        "arguments": {"width": 3, "sizes": [4, 5, 6], "bias": False},
    }
    assert sorted(os.listdir(folder)) == ["SHA256SUMS", "config.json", "model.safetensors"]


@pytest.mark.report
def test_a_run_is_taken_for_its_model(folder):
    assert Toy.from_pretrained(folder.parent).linear.weight.equal(Toy.from_pretrained(folder).linear.weight)


@pytest.mark.report
def test_everything_with_a_checksum_comes_from_the_hub(folder, monkeypatch, tmp_path):
    (folder / "training.json").write_text('{"steps": 3}')
    pretrained.write_checksums(folder)
    fetched = tmp_path / "fetched"

    def download(name, revision, allow_patterns):
        fetched.mkdir(exist_ok=True)
        for path in folder.iterdir():
            if path.name in allow_patterns:
                (fetched / path.name).write_bytes(path.read_bytes())
        return str(fetched)

    monkeypatch.setattr(pretrained, "snapshot_download", download)
    assert isinstance(Toy.from_pretrained("owner/toy"), Toy)
    assert pretrained.verify(fetched) == f"{fetched}: a model, 3 files"
    assert pretrained.training_facts("owner/toy") == {"steps": 3}


@pytest.mark.report
def test_hub_names_go_to_the_hub(folder, monkeypatch):
    monkeypatch.setattr(pretrained, "snapshot_download", lambda name, **_: {"owner/toy": folder}[name])
    assert isinstance(Toy.from_pretrained("owner/toy"), Toy)


def test_no_network_is_one_sentence(monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(pretrained, "snapshot_download", offline)
    with pytest.raises(UserError, match="no folder owner/toy, and no model of that name"):
        Toy.from_pretrained("owner/toy")


def truncate(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])


def garble_header(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(b"\xff" * 32 + weights.read_bytes()[32:])


def edit_config(**changes):
    def edit(folder):
        config = folder / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | changes))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "model.safetensors is damaged or truncated"),
        (garble_header, "model.safetensors is damaged or truncated"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "damaged or truncated"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda folder: (folder / "config.json").unlink(), "is not a model folder"),
        (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\x00"), "not valid JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "not an arflows config"),
        (edit_config(format_version=99), "format version 99, this arflows reads up to 2: install a newer"),
        (edit_config(**{"class": "Popen"}), "class 'Popen', not OtherToy or Toy"),
        (edit_config(arguments={"depth": 3}), "arguments do not fit Toy"),
        (edit_config(arguments={"width": 4, "sizes": [1, 2, 3], "bias": False}), "does not fit config.json beside it"),
    ],
)
def test_damaged_folders_are_refused_in_one_sentence(folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        Toy.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_another_class_is_refused(folder):
    with pytest.raises(UserError, match="class 'Toy', not OtherToy"):
        OtherToy.from_pretrained(folder)


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/model", "a/b/c", "nowhere"])
def test_missing_folders_do_not_reach_for_the_network(path, monkeypatch):
    monkeypatch.setattr(pretrained, "snapshot_download", lambda *_, **__: pytest.fail("asked the network"))
    with pytest.raises(UserError, match="no model folder"):
        Toy.from_pretrained(path)


def test_a_file_is_not_a_folder(folder):
    with pytest.raises(UserError, match="is a file: give the model folder"):
        Toy.from_pretrained(folder / "config.json")


def test_a_failing_save_leaves_the_older_model(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full_disk(tensors, filename, **_):
        with open(filename, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pretrained, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        Toy(7).save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_weights_are_tensors_and_nothing_else(folder):
    assert set(load_file(folder / "model.safetensors")) == {"linear.weight"}


def test_loading_does_not_unpickle(folder):
    """A fresh process that cannot unpickle still loads the model."""
    code = (
        "import pickle, sys\n"
        "from arflows.vision.model import RealNVP\n"
        "def refuse(*a, **k): raise SystemExit('unpickled')\n"
        "pickle.load = pickle.loads = pickle.Unpickler = refuse\n"
        "model = RealNVP(8, 1, scales=1, blocks=1, width=4)\n"
        "model.save_pretrained(sys.argv[1]); RealNVP.from_pretrained(sys.argv[1])\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder / "image")], check=True, cwd=folder)


class Block(nn.Module):
    """A part with weights that have been renamed, and one that has an old name of its own."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(2, 3)
        self.merge = nn.Linear(3, 2)


class Renamed(Pretrained):
    """A model of which a part has the old name of another."""

    def __init__(self):
        super().__init__()
        self.input_proj = nn.Linear(2, 2)
        self.block = Block()


def old_names(state):
    """A state dict as an older version would have saved it."""
    return {name.replace("input_proj", "enter").replace("fc1", "expand"): value for name, value in state.items()}


@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "inside another module"])
def test_weights_of_older_names_are_loaded(wrapped):
    saved, model = Renamed(), Renamed()
    state = old_names(saved.state_dict())
    assert "block.expand.weight" in state
    if wrapped:
        nn.ModuleDict({"flow": model}).load_state_dict({f"flow.{name}": value for name, value in state.items()})
    else:
        model.load_state_dict(state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, saved.state_dict()[name])


def test_names_that_never_were_are_refused():
    state = Renamed().state_dict()
    with pytest.raises(RuntimeError, match="Unexpected key"):
        Renamed().load_state_dict(state | {"block.enter.weight": torch.zeros(1)})


def test_arguments_that_are_passed_on_are_in_the_config():
    class Base(Pretrained):
        def __init__(self, kind: str, width: int, depth: int = 2, bias: bool = True) -> None:
            super().__init__()

    class Derived(Base):
        def __init__(self, width: int, scale: float = 1.0, **kwargs: Any) -> None:
            super().__init__("derived", width, bias=False, **kwargs)

    assert Derived(3).config()["arguments"] == {"width": 3, "scale": 1.0, "depth": 2}
    assert Derived(3, 2.0, depth=5).config()["arguments"] == {"width": 3, "scale": 2.0, "depth": 5}
    with pytest.raises(TypeError):
        Derived(3, bias=True)
