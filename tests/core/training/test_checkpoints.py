"""States of runs: damaged and malicious ones, and the choice of the one to resume."""

import copy
import os
import pickle
import signal
import zipfile

import pytest
import torch

from arflows.core.bases import StandardNormal
from arflows.core.bijections import Affine, Autoregressive
from arflows.core.conditioners import CausalTransformer
from arflows.core.flow import BijectiveFlow
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.pretrained import RENAMED, Pretrained
from arflows.core.training import checkpoints
from arflows.core.training.checkpoints import (
    CheckpointFiles,
    DamagedCheckpoint,
    RunCheckpoint,
    newest_sound,
    read_checkpoint,
)
from arflows.core.training.module import FlowTraining
from tests.core.training.training_runs import Data, assert_same, small_flow, state, trainer
from tests.faults.hostile import Harm


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The bytes of the state of a run."""
    folder = tmp_path_factory.mktemp("run")
    trainer(folder).fit(FlowTraining(small_flow()), datamodule=Data(torch.randn(16, 4)))
    return (folder / "last.ckpt").read_bytes()


@pytest.fixture
def path(tmp_path, sound):
    path = tmp_path / "last.ckpt"
    path.write_bytes(sound)
    return path


def test_a_sound_one_is_read(path):
    assert read_checkpoint(path)["global_step"] == 2


def test_a_malicious_pickle_is_refused_and_not_run(path, tmp_path):
    state = read_checkpoint(path)
    torch.save(state | {"callbacks": Harm(tmp_path / "harm")}, path)
    with pytest.raises(DamagedCheckpoint, match=r"last\.ckpt .* holds more than tensors and plain values") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)
    path.write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    with pytest.raises(DamagedCheckpoint):
        read_checkpoint(path)
    torch.save(state | {"callbacks": Harm(tmp_path / "harm")}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(DamagedCheckpoint):
        CheckpointFiles().load_checkpoint(path, weights_only=False)
    assert not (tmp_path / "harm").exists()


def test_a_packed_archive_is_refused(path, tmp_path):
    bomb = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        for part in archive.infolist():
            packed.writestr(part.filename, archive.read(part))
        packed.writestr("bomb/data/99", bytes(1 << 24))
    with pytest.raises(DamagedCheckpoint, match="is compressed"):
        read_checkpoint(bomb)


def test_no_flipped_byte_goes_unnoticed(path, sound):
    """Wherever it lies, it is found, or is in a place that says nothing (padding between tensors)."""
    whole = read_checkpoint(path)
    found = 0
    for offset in torch.randint(len(sound), (60,), generator=torch.Generator().manual_seed(0)).tolist():
        path.write_bytes(sound[:offset] + bytes([sound[offset] ^ 1]) + sound[offset + 1 :])
        try:
            state = read_checkpoint(path)
        except DamagedCheckpoint:
            found += 1
        else:
            for name, tensor in whole["state_dict"].items():
                assert torch.equal(state["state_dict"][name], tensor)
    assert found > 20


@pytest.mark.parametrize("part", [0.0, 0.3, 0.99])
def test_a_truncated_one_is_refused(path, sound, part):
    path.write_bytes(sound[: int(len(sound) * part)])
    with pytest.raises(DamagedCheckpoint, match=r"last\.ckpt"):
        read_checkpoint(path)


def test_what_is_no_state_of_a_run_is_refused(path):
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(DamagedCheckpoint, match="is not the state of a run"):
        read_checkpoint(path)


def test_the_newest_sound_one_is_found(path, sound):
    warnings = []
    assert newest_sound(path.parent, warnings.append) == path
    older = path.with_name("last-1.ckpt")
    older.write_bytes(sound)
    path.write_bytes(sound[:1000])
    assert newest_sound(path.parent, warnings.append) == older
    assert [str(path) in warning for warning in warnings] == [True]
    older.write_bytes(sound[:1000])
    best = path.with_name("best.ckpt")
    best.write_bytes(sound)
    assert newest_sound(path.parent, warnings.append) == best
    best.unlink()
    with pytest.raises(UserError, match="holds no undamaged state"):
        newest_sound(path.parent, warnings.append)


def run(folder, resume=None, epochs=4, **options):
    torch.manual_seed(0)
    t = trainer(max_epochs=epochs, plugins=[CheckpointFiles()])
    t.callbacks.append(RunCheckpoint(folder, "last", **options))
    module = FlowTraining(small_flow(), learning_rate=0.01)
    t.fit(module, datamodule=Data(torch.randn(32, 4)), ckpt_path=resume, weights_only=True)
    return module


def steps(folder):
    return {path.name: read_checkpoint(path)["global_step"] for path in folder.glob("*.ckpt")}


def test_as_many_are_kept_as_was_asked(tmp_path):
    run(tmp_path / "one")
    assert steps(tmp_path / "one") == {"last.ckpt": 16}
    run(tmp_path / "three", keep=3)
    assert steps(tmp_path / "three") == {"last.ckpt": 16, "last-1.ckpt": 12, "last-2.ckpt": 8}


def test_states_are_saved_within_an_epoch_if_that_was_asked(tmp_path):
    run(tmp_path, keep=4, every=3, epochs=2)
    assert steps(tmp_path) == {"last.ckpt": 8, "last-1.ckpt": 6, "last-2.ckpt": 4, "last-3.ckpt": 3}


def test_a_damaged_state_does_not_displace_the_sound_one_before_it(tmp_path):
    run(tmp_path, keep=2)
    (tmp_path / "last.ckpt").write_bytes(b"damaged")
    start = newest_sound(tmp_path, lambda sentence: None)
    assert start.name == "last-1.ckpt"
    run(tmp_path, resume=start, epochs=4, keep=2)
    assert steps(tmp_path) == {"last.ckpt": 16, "last-1.ckpt": 12}


def test_a_failing_write_leaves_the_older_state(tmp_path, monkeypatch, path):
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        CheckpointFiles().save_checkpoint({}, path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["last.ckpt"]


def test_an_interrupt_while_a_state_is_read_leaves_it_alone(tmp_path, monkeypatch):
    """By then the step is counted and the optimizer knows nothing yet: such a state would not be that of the run."""
    data = Data(torch.randn(16, 4))
    trainer(tmp_path).fit(FlowTraining(small_flow()), datamodule=data)
    before = (tmp_path / "last.ckpt").read_bytes()

    def interrupted(self, state):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.Optimizer, "load_state_dict", interrupted)
    resumed = trainer(tmp_path, max_epochs=2)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit):
        resumed.fit(FlowTraining(small_flow()), datamodule=data, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    signal.signal(signal.SIGINT, handler)  # which Lightning ignores from then on
    assert resumed.global_step == 2
    assert (tmp_path / "last.ckpt").read_bytes() == before


class Tokens(BijectiveFlow, Pretrained):
    """A flow with weights that have had other names."""

    def __init__(self) -> None:
        network = CausalTransformer(3, 2, Affine.parameter_count, 8, layers=1, heads=2)
        super().__init__(StandardNormal((3, 2)), Autoregressive(Affine(), network))


def with_old_names(state):
    """The state of a run as a version before the renames would have saved it, averages included."""
    if isinstance(state, dict):
        new_names = {new: old for old, new in RENAMED.items()}

        def old(name):
            return ".".join(new_names.get(part, part) for part in name.split(".")) if isinstance(name, str) else name

        return {old(name): with_old_names(value) for name, value in state.items()}
    return [with_old_names(value) for value in state] if isinstance(state, list) else state


def test_a_run_with_older_names_of_weights_goes_on_as_it_would_have(tmp_path):
    torch.manual_seed(0)
    data, flow = Data(torch.randn(16, 3, 2)), Tokens()

    def resumed(path):
        module = FlowTraining(copy.deepcopy(flow), ema_decay=0.9)
        t = trainer(tmp_path / "again", max_epochs=2)
        t.fit(module, datamodule=data, ckpt_path=path, weights_only=True)
        return state(module, t)

    module = FlowTraining(copy.deepcopy(flow), ema_decay=0.9)
    trainer(tmp_path / "run").fit(module, datamodule=data)
    saved = read_checkpoint(tmp_path / "run" / "last.ckpt")
    older = with_old_names(saved)
    assert any("expand" in name for name in older["state_dict"])
    assert not any("fc1" in name for name in older["state_dict"])
    torch.save(older, tmp_path / "older.ckpt")
    assert_same(resumed(tmp_path / "older.ckpt"), resumed(tmp_path / "run" / "last.ckpt"))
