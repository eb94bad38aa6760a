import copy
import math
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from arflows.core.bases import DiagonalNormal
from arflows.core.bijections import ActNorm
from arflows.core.dequantization import UniformDequantizer
from arflows.core.flow import BijectiveFlow
from arflows.core.runtime.errors import UserError
from arflows.core.training.module import FlowTraining
from tests.core.training.training_runs import Data, KeepState, assert_same, small_flow, trainer

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
    class Overflowing(BijectiveFlow):
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
    with pytest.raises(UserError, match=r"batch 6 of epoch 0: 4 steps in a row .*last\.ckpt"):
        trainer(tmp_path).fit(module, datamodule=Data(x))
    with pytest.raises(KeyboardInterrupt):  # which waits for the end of a step only while there are steps
        signal.raise_signal(signal.SIGINT)
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
from arflows.core.runtime.processes import destroy_process_group_on_exit
from arflows.core.training.module import FlowTraining
from tests.core.training.training_runs import Data, small_flow

class Save(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        torch.save((pl_module.skipped_steps, pl_module.state_dict()), f"{sys.argv[1]}/{trainer.global_rank}.pt")

torch.manual_seed(0)
x = torch.randn(64, 4)
x[9] = math.nan  # in the share of one process alone
module = FlowTraining(small_flow(), ema_decay=0.0, learning_rate=0.1)
trainer = Trainer(accelerator="cpu", devices=2, max_epochs=1, logger=False, enable_checkpointing=False,
                  callbacks=[Save()], enable_progress_bar=False, enable_model_summary=False)
with destroy_process_group_on_exit():
    trainer.fit(module, datamodule=Data(x))
"""


def test_all_processes_skip_the_step_that_is_bad_on_one(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES)
    root = Path(__file__).parents[3]
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


def test_signals_are_given_back():
    """Or nothing but SIGKILL would end what comes after a training."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    trainer().fit(FlowTraining(small_flow()), datamodule=Data(torch.randn(16, 4)))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_sigterm_is_given_back_after_an_interrupt_in_the_last_validation():
    """When Lightning has given back its own handlers by the time that training ends."""

    class Signal(FlowTraining):
        def validation_step(self, batch, batch_idx):
            if batch_idx == 0:
                signal.raise_signal(signal.SIGTERM)
            super().validation_step(batch, batch_idx)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SIGTERMException):
        trainer().fit(Signal(small_flow()), datamodule=Data(torch.randn(16, 4)))
    assert signal.getsignal(signal.SIGTERM) == before


def test_signals_act_at_once_after_a_training_that_failed():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(UserError):
        trainer().fit(FlowTraining(small_flow(), patience=1), datamodule=Data(torch.full((16, 4), math.nan)))
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


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


# ---------------------------------------------------------------------------------------------- the interrupt


def test_an_interrupt_waits_for_the_step_and_can_be_resumed(tmp_path):
    class Interrupt(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if trainer.global_step == 12:
                signal.raise_signal(signal.SIGINT)

    data = Data(torch.randn(80, 4))
    module = FlowTraining(small_flow())
    with pytest.raises(SystemExit) as ending:
        trainer(tmp_path, [Interrupt()], max_epochs=3).fit(module, datamodule=data)
    assert isinstance(ending.value.__context__, KeyboardInterrupt)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 13  # the thirteenth step was finished
    assert {int(s["step"]) for s in saved["optimizer_states"][0]["state"].values()} == {13}
    assert saved["averaging_state"]["n_averaged"] == 13
    resumed = trainer(tmp_path, max_epochs=3)
    resumed.fit(module, datamodule=data, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert (resumed.current_epoch, resumed.global_step) == (3, 30)


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGINT, SystemExit), (signal.SIGTERM, SIGTERMException)], ids=["ctrl-c", "sigterm"]
)
def test_what_is_saved_is_logged_and_between_optimizer_steps(number, kind, tmp_path):
    """With two batches a step: never half a step, and no line of the log is missing."""

    class Signal(Callback):
        raised = False

        def on_before_backward(self, trainer, pl_module, loss):
            if trainer.global_step == 2 and not self.raised:
                self.raised = True  # a second one would end all at once
                signal.raise_signal(number)

    with pytest.raises(kind):
        trainer(tmp_path, [Signal()], accumulate_grad_batches=2).fit(
            FlowTraining(small_flow()), datamodule=Data(torch.randn(80, 4))
        )
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    loop = saved["loops"]["fit_loop"]
    progress = loop["epoch_loop.batch_progress"]["total"]
    assert saved["global_step"] == 3
    assert loop["epoch_loop.state_dict"]["_batches_that_stepped"] == 3
    assert progress["ready"] == progress["completed"] == 6


# ---------------------------------------------------------------------------------------------- the round trip


class Drifting(ActNorm):
    """Flow whose inverse has a given error."""

    error = 0.0

    def inverse(self, z, context=None):
        x, log_det = super().inverse(z, context)
        return x + self.error, log_det


@pytest.mark.parametrize(("error", "warns"), [(0.0, False), (5e-4, False), (0.01, True), (math.nan, True)])
def test_a_flow_that_is_no_longer_inverted_is_told(error, warns):
    flow = BijectiveFlow(DiagonalNormal((4,)), Drifting(4))
    flow.bijection.error = error
    t = trainer()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        t.fit(FlowTraining(flow), datamodule=Data(torch.rand(16, 4)))  # below 1, where the error is not a relative one
    told = [str(w.message) for w in caught if "no longer inverts" in str(w.message)]
    assert bool(told) is warns
    logged = t.callback_metrics["val/round_trip_error"].item()
    assert logged == pytest.approx(error, abs=2e-6) or (math.isnan(error) and math.isinf(logged))


@pytest.mark.parametrize(("error", "warns"), [(0.4 / 16, False), (0.6 / 16, True)])
def test_integers_are_to_come_back_as_they_were(error, warns):
    flow = BijectiveFlow(DiagonalNormal((4,)), Drifting(4), UniformDequantizer(16))
    flow.bijection.error = error
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer().fit(FlowTraining(flow), datamodule=Data(torch.randint(0, 16, (16, 4))))
    assert any("no longer inverts" in str(w.message) for w in caught) is warns


def test_no_examples_no_round_trip():
    t = trainer()
    t.fit(FlowTraining(small_flow(), round_trip_examples=0), datamodule=Data(torch.randn(16, 4)))
    assert "val/round_trip_error" not in t.callback_metrics


def test_a_skipped_step_tells_the_batch_and_the_norms(caplog):
    x = torch.randn(24, 4)
    x[9] = math.nan
    module = FlowTraining(small_flow(), ema_decay=0.0, learning_rate=0.0)
    with torch.no_grad():
        module.flow.base.mean.fill_(2.0)
    with caplog.at_level("INFO"):
        trainer().fit(module, datamodule=Data(x))
    told = next(record.message for record in caplog.records if "step skipped" in record.message)
    assert told.startswith("batch 1 of epoch 0: the loss or its gradient is not finite; step skipped (1 in all). ")
    assert "Norm of the parameters: 4" in told
    assert "the largest: flow.base.mean 4," in told
