import copy
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.data import DataLoader

from arflows.core.bases import DiagonalNormal
from arflows.core.bijections import ActNorm, BatchNorm, Chain, Permutation
from arflows.core.callbacks import ExponentialMovingAverage
from arflows.core.dequantization import UniformDequantizer
from arflows.core.errors import UserError
from arflows.core.experiment import RunCheckpoint
from arflows.core.flow import Flow
from arflows.core.training import FlowTraining


def small_flow(levels=0):
    """With parameters, running statistics, a counter and a permutation."""
    layers = Chain(ActNorm(4), Permutation(torch.tensor([2, 0, 3, 1])), BatchNorm(4))
    return Flow(DiagonalNormal((4,)), layers, UniformDequantizer(levels) if levels else None)


class Data(LightningDataModule):
    def __init__(self, x, batch_size=8, shuffle=False):
        super().__init__()
        self.x = x
        self.batch_size = batch_size
        self.shuffle = shuffle

    def train_dataloader(self):
        return DataLoader([{"x": row} for row in self.x], self.batch_size, shuffle=self.shuffle)

    def val_dataloader(self):
        return DataLoader([{"x": row} for row in self.x[:12]], self.batch_size)


class InitializingData(Data):
    asked = 0

    def initialization_batch(self):
        self.asked += 1
        return {"x": self.x[:16]}


def trainer(folder=None, callbacks=(), **options):
    options = {"max_epochs": 1, "num_sanity_val_steps": 0, "log_every_n_steps": 1, **options}
    checkpoints = []
    if folder is not None:
        checkpoints = [RunCheckpoint(folder, "best", monitor="val/bits_per_dim", mode="min")]
        checkpoints.append(RunCheckpoint(folder, "last", save_on_exception=True))
    return Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=folder is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, *checkpoints],
        **options,
    )


def state(module, trainer):
    """Everything that training changes."""
    average = next((c for c in trainer.callbacks if isinstance(c, ExponentialMovingAverage)), None)
    return {
        "module": copy.deepcopy(module.state_dict()),
        "optimizer": copy.deepcopy(trainer.optimizers[0].state_dict()["state"]),
        "average": copy.deepcopy(average._average_model.state_dict()) if average else {},
    }


def assert_same(first, second):
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    else:
        torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=False)


class KeepState(Callback):
    """Before the end of training replaces the weights by their average."""

    def on_validation_start(self, trainer, pl_module):
        self.state = state(pl_module, trainer)


# ---------------------------------------------------------------------------------------------- the guard


def bad_batch(kind, x):
    return torch.full_like(x[:8], {"nan": math.nan, "infinite": math.inf, "overflowing": 1e30}[kind])


@pytest.mark.parametrize("kind", ["nan", "infinite", "overflowing"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "adamax"])
def test_a_skipped_step_leaves_no_trace(kind, accumulate, optimizer):
    torch.manual_seed(0)
    x = torch.randn(32, 4)
    bad = bad_batch(kind, x)
    with_bad = torch.cat([x[:16], bad, x[8:16], x[16:]]) if accumulate == 2 else torch.cat([x[:16], bad, x[16:]])
    states = []
    for data in (x, with_bad):
        torch.manual_seed(1)
        module = FlowTraining(small_flow(), optimizer=optimizer, weight_decay=0.1)
        keep = KeepState()
        t = trainer(callbacks=[keep], accumulate_grad_batches=accumulate)
        t.fit(module, datamodule=Data(data))
        states.append(keep.state)
    assert module.skipped_steps == 1
    assert t.callback_metrics["train/skipped_steps"] == 1
    assert t.callback_metrics["train/bits_per_dim"].isfinite()
    assert_same(*states)


def test_a_loss_that_is_not_finite_is_skipped_even_if_its_gradient_is():
    class Overflowing(Flow):
        def log_prob(self, x, context=None):
            return super().log_prob(x, context) + torch.where(x[:, 0].detach() > 5, math.inf, 0.0)

    x = torch.randn(24, 4).clamp(-3, 3)
    x[9, 0] = 6.0
    module = FlowTraining(Overflowing(DiagonalNormal((4,)), ActNorm(4)))
    trainer().fit(module, datamodule=Data(x))
    assert module.skipped_steps == 1


def test_training_stops_after_too_many_skipped_steps_and_keeps_the_last_good_state(tmp_path):
    x = torch.randn(8 * 9, 4)
    x[8 * 3 :: 8] = math.nan  # from the fourth batch on
    module = FlowTraining(small_flow(), patience=4)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(UserError, match=r"batch 6 of epoch 0: 4 steps in a row .*last\.ckpt"):
        trainer(tmp_path).fit(module, datamodule=Data(x))
    with pytest.raises(KeyboardInterrupt):  # which waits for the end of a step only while there are steps
        signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, handler)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for weights in (saved["state_dict"], saved["current_model_state"]):
        assert all(tensor.isfinite().all() for tensor in weights.values())


def test_single_bad_batches_do_not_add_up_to_a_stop():
    x = torch.randn(8 * 12, 4)
    x[::16] = math.nan
    module = FlowTraining(small_flow(), patience=2)
    trainer().fit(module, datamodule=Data(x))
    assert module.skipped_steps == 6


TWO_PROCESSES = """
import math, sys, torch
from lightning.pytorch import Callback, Trainer
from tests.core.test_training import Data, FlowTraining, small_flow

class Save(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        torch.save((pl_module.skipped_steps, pl_module.state_dict()), f"{sys.argv[1]}/{trainer.global_rank}.pt")

torch.manual_seed(0)
x = torch.randn(64, 4)
x[9] = math.nan  # in the share of one process alone
module = FlowTraining(small_flow(), ema_decay=0.0, learning_rate=0.1)
Trainer(accelerator="cpu", devices=2, max_epochs=1, logger=False, enable_checkpointing=False, callbacks=[Save()],
        enable_progress_bar=False, enable_model_summary=False).fit(module, datamodule=Data(x))
"""


def test_all_processes_skip_the_step_that_is_bad_on_one(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES)
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, script, tmp_path], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    (skipped, first), (also_skipped, second) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert skipped == also_skipped == 1
    parameters = [name for name, _ in FlowTraining(small_flow()).named_parameters()]
    assert_same({name: first[name] for name in parameters}, {name: second[name] for name in parameters})
    assert all(first[name].isfinite().all() for name in first)
    assert all(second[name].isfinite().all() for name in second)


# ---------------------------------------------------------------------------------------------- averaged weights


def test_the_average_warms_up_and_is_what_validation_and_checkpoint_see(tmp_path):
    class Record(Callback):
        def __init__(self):
            self.weights, self.buffers = [], []

        def on_train_batch_end(self, trainer, pl_module, *args):
            self.weights.append(pl_module.flow.base.mean.detach().clone())
            self.buffers.append(pl_module.flow.bijection.bijections[2].mean.clone())

        def on_validation_batch_start(self, trainer, pl_module, *args):
            self.seen = copy.deepcopy(pl_module.flow.state_dict())

    def averaged(values, decay):
        average = values[0]
        for count, value in enumerate(values[1:], start=1):
            average = torch.lerp(average, value, 1 - min(decay, (1 + count) / (10 + count)))
        return average

    record = Record()
    torch.manual_seed(0)
    module = FlowTraining(small_flow(), ema_decay=0.4, learning_rate=0.1)
    trainer(tmp_path, [record]).fit(module, datamodule=Data(3 + torch.randn(80, 4)))
    torch.testing.assert_close(record.seen["base.mean"], averaged(record.weights, 0.4))
    torch.testing.assert_close(record.seen["bijection.bijections.2.mean"], averaged(record.buffers, 0.4))
    assert record.seen["bijection.bijections.2.batches"] == 10  # a counter is copied, not averaged
    assert not torch.allclose(record.seen["base.mean"], record.weights[-1])
    saved = torch.load(tmp_path / "best.ckpt", weights_only=True)["state_dict"]
    assert_same(record.seen, {name.removeprefix("flow."): tensor for name, tensor in saved.items()})


def test_an_exception_in_validation_saves_weights_and_average_each_in_its_place(tmp_path):
    class Failing(FlowTraining):
        def validation_step(self, batch, batch_idx):
            raise RuntimeError("broken validation")

    torch.manual_seed(0)
    x = torch.randn(80, 4)
    keep = KeepState()
    with pytest.raises(RuntimeError, match="broken validation"):
        trainer(tmp_path, [keep]).fit(Failing(small_flow(), learning_rate=0.1), datamodule=Data(x))
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert_same(keep.state["module"], saved["current_model_state"])
    average = {n.removeprefix("module."): t for n, t in keep.state["average"].items() if n != "n_averaged"}
    assert_same(average, saved["state_dict"])


def test_without_averaging_the_weights_themselves_are_saved(tmp_path):
    module = FlowTraining(small_flow(), ema_decay=0.0)
    trainer(tmp_path).fit(module, datamodule=Data(torch.randn(80, 4)))
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert "current_model_state" not in saved
    assert_same(saved["state_dict"], module.state_dict())


# ---------------------------------------------------------------------------------------------- checkpoints, resuming


class Scripted(FlowTraining):
    """Whose validation loss is told beforehand."""

    losses = (2.0, 0.5, -1.0, -0.5, -3.0, 1.0)

    def validation_step(self, batch, batch_idx):
        self.log("val/bits_per_dim", self.losses[self.trainer.current_epoch])


@pytest.mark.parametrize(("epochs", "best"), [(2, 1), (4, 2), (6, 4)])
def test_best_is_the_lowest_loss_be_it_positive_or_negative(tmp_path, epochs, best):
    trainer(tmp_path, max_epochs=epochs).fit(Scripted(small_flow()), datamodule=Data(torch.randn(16, 4)))
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["epoch"] == best
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == epochs - 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]


def test_best_survives_resuming_in_a_folder_that_was_moved(tmp_path):
    data = Data(torch.randn(16, 4))
    trainer(tmp_path / "here", max_epochs=3).fit(Scripted(small_flow()), datamodule=data)
    moved = (tmp_path / "here").rename(tmp_path / "there")
    resumed = trainer(moved, max_epochs=4)
    resumed.fit(Scripted(small_flow()), datamodule=data, ckpt_path=moved / "last.ckpt", weights_only=True)
    assert resumed.checkpoint_callbacks[0].best_model_path == str(moved / "best.ckpt")
    assert torch.load(moved / "best.ckpt", weights_only=True)["epoch"] == 2
    assert torch.load(moved / "last.ckpt", weights_only=True)["epoch"] == 3


def test_a_resumed_run_is_the_uninterrupted_run(tmp_path):
    x = torch.randint(0, 16, (64, 4))

    def run(folder, epochs, **options):
        seed_everything(5, verbose=False)
        module = FlowTraining(small_flow(levels=16), learning_rate=0.01, warmup_steps=10, ema_decay=0.9)
        t = trainer(folder, max_epochs=epochs)
        t.fit(module, datamodule=InitializingData(x, shuffle=True), weights_only=True, **options)
        return torch.load(folder / "last.ckpt", weights_only=True)

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "parts", 2)
    parts = run(tmp_path / "parts", 4, ckpt_path=tmp_path / "parts" / "last.ckpt")
    for key in ("state_dict", "current_model_state", "averaging_state", "random_state", "global_step"):
        assert_same(whole[key], parts[key])
    assert_same(whole["optimizer_states"][0]["state"], parts["optimizer_states"][0]["state"])
    assert whole["lr_schedulers"] == parts["lr_schedulers"]
    seconds = [c["seconds"] for name, c in parts["callbacks"].items() if "Stopwatch" in name]
    assert seconds[0] > 0


def test_an_interrupt_waits_for_the_step_and_can_be_resumed(tmp_path):
    class Interrupt(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if trainer.global_step == 12:
                signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    data = Data(torch.randn(80, 4))
    module = FlowTraining(small_flow())
    try:
        with pytest.raises(SystemExit) as ending:
            trainer(tmp_path, [Interrupt()], max_epochs=3).fit(module, datamodule=data)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert isinstance(ending.value.__context__, KeyboardInterrupt)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 13  # the thirteenth step was finished
    assert {int(s["step"]) for s in saved["optimizer_states"][0]["state"].values()} == {13}
    assert saved["averaging_state"]["n_averaged"] == 13
    resumed = trainer(tmp_path, max_epochs=3)
    resumed.fit(module, datamodule=data, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert (resumed.current_epoch, resumed.global_step) == (3, 30)


def test_the_signal_is_given_back_after_training():
    handler = signal.getsignal(signal.SIGINT)
    trainer().fit(FlowTraining(small_flow()), datamodule=Data(torch.randn(16, 4)))
    assert signal.getsignal(signal.SIGINT) is handler


# ---------------------------------------------------------------------------------------------- the objective


def test_data_dependent_initialisation_comes_once_before_the_first_step(tmp_path):
    x = 5 + 3 * torch.randn(64, 4)
    data = InitializingData(x)
    module = FlowTraining(Flow(DiagonalNormal((4,)), ActNorm(4)), learning_rate=0.0)
    trainer(tmp_path).fit(module, datamodule=data)
    assert data.asked == 1
    z = module.flow.bijection(x[:16])[0]
    torch.testing.assert_close(z.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(4), atol=1e-5, rtol=0)
    # what a resumed run starts from is the checkpoint, whatever the first batch is by then
    weights = copy.deepcopy(module.state_dict())
    other = InitializingData(x.flip(0))
    trainer(tmp_path, max_epochs=2).fit(module, datamodule=other, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert_same(module.state_dict(), weights)


def test_fine_tuning_keeps_what_was_trained_before():
    def flow():
        return Flow(DiagonalNormal((4,)), ActNorm(4))

    trained, x = flow(), 5 + 3 * torch.randn(64, 4)
    trained.initialize(x)
    again = flow()
    again.load_state_dict(trained.state_dict())
    trainer().fit(FlowTraining(again, learning_rate=0.0), datamodule=InitializingData(7 + x))
    assert_same(again.state_dict(), trained.state_dict())


def test_loss_is_in_bits_per_dim_or_nats():
    x = torch.randn(8, 4)
    flow = Flow(DiagonalNormal((4,)), ActNorm(4))
    nats = -flow.log_prob(x).mean()
    for unit, expected in {"nats": nats, "bits_per_dim": nats / (4 * math.log(2))}.items():
        module = FlowTraining(flow, unit=unit, learning_rate=0.0)
        t = trainer()
        t.fit(module, datamodule=Data(x))
        torch.testing.assert_close(t.callback_metrics[f"train/{unit}"], expected)
        torch.testing.assert_close(t.callback_metrics[f"val/{unit}"], expected)


def test_logs_what_a_person_watches():
    t = trainer(max_epochs=2, gradient_clip_val=1e-3)
    module = FlowTraining(small_flow(), learning_rate=0.01)
    t.fit(module, datamodule=Data(torch.randn(32, 4)))
    logged = t.callback_metrics
    assert logged["train/gradient_norm"] > 1e-3  # before clipping
    assert logged["train/learning_rate"] == pytest.approx(0.01)
    assert logged["train/examples_per_second"] > 0
    assert logged["train/skipped_steps"] == 0
    assert module.seconds > 0


def test_clipping_bounds_the_gradient_that_counts():
    x = torch.randn(8, 4) + 3
    flow = Flow(DiagonalNormal((4,)), ActNorm(4))
    norms = []

    class Look(Callback):
        def on_train_batch_end(self, *args):
            norms.append(torch.nn.utils.get_total_norm([p.grad for p in flow.parameters() if p.grad is not None]))

    trainer(callbacks=[Look()], gradient_clip_val=0.01, max_epochs=3).fit(FlowTraining(flow), datamodule=Data(x))
    torch.testing.assert_close(torch.stack(norms), torch.full((3,), 0.01), atol=1e-6, rtol=1e-3)


def test_validation_noise_is_the_same_every_time():
    module = FlowTraining(small_flow(levels=16), learning_rate=0.0)
    module.flow.bijection.bijections[2].requires_grad_(False)
    losses = []

    class Look(Callback):
        def on_validation_end(self, trainer, pl_module):
            losses.append(trainer.callback_metrics["val/bits_per_dim"].item())

    module.flow.bijection.bijections[2].momentum = 1.0
    t = trainer(callbacks=[Look()])
    data = Data(torch.randint(0, 16, (32, 4)))
    t.validate(module, datamodule=data, verbose=False)
    torch.manual_seed(99)
    t.validate(module, datamodule=data, verbose=False)
    assert losses[0] == losses[1]


class WeightNormed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = weight_norm(nn.Linear(4, 4))


def test_weight_decay_can_be_kept_to_the_scales_of_weight_norm():
    flow = small_flow()
    flow.context_encoder = WeightNormed()

    def decayed(**options):
        module = FlowTraining(flow, weight_decay=5e-5, **options)
        module._trainer = trainer()
        groups = module.configure_optimizers()["optimizer"].param_groups
        names = {parameter: name for name, parameter in flow.named_parameters()}
        assert sum(len(group["params"]) for group in groups) == len(names)
        return {names[p] for group in groups if group["weight_decay"] == 5e-5 for p in group["params"]}

    assert decayed(decay_only_scales=True) == {"context_encoder.layer.parametrizations.weight.original0"}
    assert decayed() == {name for name, _ in flow.named_parameters()}
    scale = flow.context_encoder.layer.parametrizations.weight.original0
    torch.testing.assert_close(scale.flatten(), flow.context_encoder.layer.weight.norm(dim=1))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1.0, 1.0, 1.0]),
        ("cosine", [1.0, 0.1 + 0.9 / 2, 0.1]),
        ("exponential", [1.0, math.sqrt(0.1), 0.1]),
    ],
)
def test_learning_rate_warms_up_linearly_and_then_follows_its_schedule(schedule, expected):
    module = FlowTraining(small_flow(), schedule=schedule, warmup_steps=4, final_fraction=0.1)
    rates = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, *args):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"] / module.learning_rate)

    t = trainer(callbacks=[Look()], max_epochs=6)
    t.fit(module, datamodule=Data(torch.randn(32, 4)))
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert [rates[4], rates[14], module._learning_rate_factor(24)] == pytest.approx(expected)


def test_a_falling_schedule_needs_an_end():
    module = FlowTraining(small_flow(), schedule="cosine")
    with pytest.raises(UserError, match="max_epochs"):
        trainer(max_epochs=-1).fit(module, datamodule=Data(torch.randn(32, 4)))


@pytest.mark.parametrize(("setting", "value"), [("ema_decay", 1.0), ("ema_decay", -0.1), ("final_fraction", 0.0)])
def test_settings_out_of_range_are_named(setting, value):
    with pytest.raises(UserError, match=rf"model\.{setting} is {value}"):
        FlowTraining(small_flow(), **{setting: value})


def test_half_precision_trains_and_keeps_likelihoods_in_full():
    t = trainer(precision="bf16-mixed", max_epochs=2)
    t.fit(FlowTraining(small_flow(), learning_rate=0.01), datamodule=Data(torch.randn(32, 4)))
    assert t.callback_metrics["val/bits_per_dim"].dtype == torch.float32
    assert t.callback_metrics["val/bits_per_dim"].isfinite()


@pytest.mark.slow
def test_compiled_training_is_training(tmp_path):
    x = 1 + torch.randn(64, 4)

    def losses(**options):
        torch.manual_seed(0)
        t = trainer(tmp_path / str(options), max_epochs=2)
        flow = Flow(DiagonalNormal((4,)), ActNorm(4))
        t.fit(FlowTraining(flow, learning_rate=0.05, **options), datamodule=Data(x))
        assert all(
            "_orig_mod" not in name for name in torch.load(t.checkpoint_callbacks[1].best_model_path)["state_dict"]
        )
        return t.callback_metrics["val/bits_per_dim"]

    torch.testing.assert_close(losses(compile=True), losses(compile=False), atol=1e-5, rtol=1e-5)


def test_running_out_of_disk_leaves_no_partial_checkpoint(tmp_path, monkeypatch):
    """What fills the disk here is a device that is always full, in the place of the file's temporary name."""
    import errno

    import fsspec.implementations.local as local

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(local.LocalFileOpener, "write", full)
    with pytest.raises(OSError, match="No space left"):
        trainer(tmp_path).fit(FlowTraining(small_flow()), datamodule=Data(torch.randn(16, 4)))
    assert not list(Path(tmp_path).glob("*.ckpt"))
