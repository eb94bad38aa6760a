import copy
import math
import signal
from pathlib import Path

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from arflows.core.bases import DiagonalNormal
from arflows.core.bijections import ActNorm, Standardize
from arflows.core.flow import BijectiveFlow
from arflows.core.flows import MAF
from arflows.core.runtime.errors import UserError
from arflows.core.training.module import FlowTraining
from tests.core.training.training_runs import Data, InitializingData, assert_same, small_flow, trainer

# ---------------------------------------------------------------------------------------------- checkpoints, resuming


class Scripted(FlowTraining):
    """Module with given validation losses."""

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


# ---------------------------------------------------------------------------------------------- the objective


@pytest.mark.report
def test_data_dependent_initialisation_comes_once_before_the_first_step(tmp_path):
    x = 5 + 3 * torch.randn(64, 4)
    data = InitializingData(x)
    module = FlowTraining(BijectiveFlow(DiagonalNormal((4,)), ActNorm(4)), learning_rate=0.0)
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


@pytest.mark.report
def test_fine_tuning_keeps_what_was_trained_before():
    def flow():
        return BijectiveFlow(DiagonalNormal((4,)), ActNorm(4))

    trained, x = flow(), 5 + 3 * torch.randn(64, 4)
    trained.initialize(x)
    again = flow()
    again.load_state_dict(trained.state_dict())
    trainer().fit(FlowTraining(again, learning_rate=0.0), datamodule=InitializingData(7 + x))
    assert_same(again.state_dict(), trained.state_dict())


@pytest.mark.report
def test_a_standardised_flow_is_trained_on_from_the_density_it_has():
    x = torch.randn(256, 2)
    flow = MAF(2, hidden_features=(8,), batch_norm=False)

    def fit(data, rate):
        trainer().fit(FlowTraining(flow, learning_rate=rate, ema_decay=0.0), datamodule=InitializingData(data))

    fit(5 + 3 * x, 1e-3)
    with torch.no_grad():
        trained = flow.eval().log_prob(5 + 3 * x)
        fit(100 * x, 0.0)
        torch.testing.assert_close(flow.eval().log_prob(5 + 3 * x), trained)


@pytest.mark.report
def test_a_flow_trained_without_initialisation_is_not_initialised_later():
    flow, x = BijectiveFlow(DiagonalNormal((4,)), Standardize(4)), torch.randn(64, 4)
    with torch.no_grad():
        before = flow.log_prob(x)
    module = FlowTraining(flow, learning_rate=0.0, ema_decay=0.0)
    for data in (Data(x), InitializingData(7 + 3 * x)):
        trainer(max_epochs=0).fit(module, datamodule=data)
    with torch.no_grad():
        torch.testing.assert_close(flow.log_prob(x), before)


def test_loss_is_in_bits_per_dim_or_nats():
    x = torch.randn(8, 4)
    flow = BijectiveFlow(DiagonalNormal((4,)), ActNorm(4))
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
    flow = BijectiveFlow(DiagonalNormal((4,)), ActNorm(4))
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
        flow = BijectiveFlow(DiagonalNormal((4,)), ActNorm(4))
        t.fit(FlowTraining(flow, learning_rate=0.05, **options), datamodule=Data(x))
        assert all(
            "_orig_mod" not in name for name in torch.load(t.checkpoint_callbacks[1].best_model_path)["state_dict"]
        )
        return t.callback_metrics["val/bits_per_dim"]

    torch.testing.assert_close(losses(compile=True), losses(compile=False), atol=1e-5, rtol=1e-5)


def test_running_out_of_disk_leaves_no_partial_checkpoint(tmp_path, monkeypatch):
    """A device that is always full, under the file's temporary name, stands for a full disk."""
    import errno

    import fsspec.implementations.local as local

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(local.LocalFileOpener, "write", full)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(OSError, match="No space left"):
        trainer(tmp_path).fit(FlowTraining(small_flow()), datamodule=Data(torch.randn(16, 4)))
    signal.signal(signal.SIGTERM, handler)  # which Lightning keeps when a callback fails that handles a failure
    assert not list(Path(tmp_path).glob("*.ckpt"))
