"""Assumptions about Lightning's private API."""

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint

from arflows.core.training import lightning_compat as compat
from arflows.core.training.module import FlowTraining

from .training_runs import Data, small_flow, trainer


class Watch(Callback):
    """Results of the functions at each hook of a run of two epochs of three batches."""

    def __init__(self):
        self.seen = []

    def note(self, hook, trainer):
        done, index = compat.batches_done(trainer), compat.batch_of_epoch(trainer)
        self.seen.append((hook, done, index, compat.within_epoch(trainer)))

    def on_train_batch_start(self, trainer, *_):
        self.note("start", trainer)

    def on_train_batch_end(self, trainer, *_):
        self.note("end", trainer)

    def on_train_epoch_end(self, trainer, *_):
        self.note("epoch", trainer)


def run(*callbacks, folder=None, **options):
    torch.manual_seed(0)
    module = FlowTraining(small_flow(), unit="nats", ema_decay=0.0, round_trip_examples=0)
    fitted = trainer(folder, callbacks, **{"limit_val_batches": 0, **options})
    fitted.fit(module, Data(torch.randn(24, 4)))
    return fitted, module


def test_batches_are_counted_over_epochs_and_within_them():
    watch = Watch()
    run(watch, max_epochs=2)
    starts = [(done, index) for hook, done, index, _ in watch.seen if hook == "start"]
    assert starts == [(0, 0), (1, 1), (2, 2), (3, 0), (4, 1), (5, 2)]
    assert [within for hook, *_, within in watch.seen if hook == "epoch"] == [False, False]


def test_a_limit_of_steps_ends_within_an_epoch():
    watch = Watch()
    run(watch, max_epochs=-1, max_steps=4)
    assert [within for hook, *_, within in watch.seen if hook == "epoch"] == [False, True]


class States(Callback):
    """The loops' states inside and outside of the blocks."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        before = trainer.fit_loop.epoch_loop.batch_progress.state_dict()
        with compat.before_batch(trainer):
            self.inside = trainer.fit_loop.epoch_loop.batch_progress.state_dict()
        assert trainer.fit_loop.epoch_loop.batch_progress.state_dict() == before

    def on_train_epoch_end(self, trainer, module):
        before = trainer.fit_loop.epoch_progress.state_dict()
        with compat.epoch_goes_on(trainer):
            self.epoch = trainer.fit_loop.epoch_progress.state_dict()
        assert trainer.fit_loop.epoch_progress.state_dict() == before


def test_states_are_changed_within_the_blocks_alone():
    states = States()
    run(states)
    assert len(set(states.inside["total"].values())) == 1  # as many batches ready as processed and completed
    assert states.epoch["total"]["processed"] == states.epoch["total"]["completed"] == 0


class Named(compat.FixedNameCheckpoint):
    written = ()

    def write_state(self, trainer, path, target=None):
        self.written = (*self.written, path)
        super().write_state(trainer, path, f"{path}.new")

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == 1:
            assert not self.has_saved
            assert self.should_save_now(trainer)
            self.save_now(trainer)
            assert self.has_saved
            assert not self.should_save_now(trainer)  # the same step


def test_a_checkpoint_saves_on_request_and_by_its_own_writer(tmp_path):
    checkpoint = Named(tmp_path, "state", every_n_epochs=100)
    run(checkpoint, folder=tmp_path / "others")
    path = str(tmp_path / "state.ckpt")
    assert checkpoint.written == (path,)
    assert (tmp_path / "state.ckpt.new").is_file()
    assert checkpoint.best_model_path == path


def test_an_average_knows_when_it_is_in_place():
    from arflows.core.training.callbacks import ExponentialMovingAverage, NonFiniteGuard

    seen = []

    class Look(Callback):
        def on_validation_batch_start(self, trainer, *_):
            seen.append(average.swapped)

    average = ExponentialMovingAverage(0.9, NonFiniteGuard())
    _, _module = run(average, Look(), limit_val_batches=1)
    assert seen == [True]
    assert not average.swapped


def test_the_bar_does_not_show_the_version_of_the_logs():
    bar = compat.ProgressLine()
    fitted, module = run()
    assert "v_num" not in bar.get_metrics(fitted, module)
    assert issubclass(compat.FixedNameCheckpoint, ModelCheckpoint)


def test_a_command_line_interface_seeds_by_its_own_means(tmp_path):
    class Seeded(compat.SeededCLI):
        calls = 0

        def seed_generators(self):
            self.calls += 1

    words = ["--model.out_features", "2"]
    interface = Seeded(Small, Data24, args=words, run=False, save_config_callback=None)
    assert interface.calls == 1


class Small(LightningModule):
    def __init__(self, out_features: int) -> None:
        super().__init__()


class Data24(Data):
    def __init__(self) -> None:
        super().__init__(torch.randn(24, 4))
