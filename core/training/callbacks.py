"""Callbacks of training: skipped steps, averaged weights, round-trip errors, speed, Ctrl-C."""

import math
import os
import signal
import threading
import time
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from arflows.core.bijections import recompute
from arflows.core.dequantization import Dequantizer
from arflows.core.flow import BijectiveFlow, Flow
from arflows.core.inversion import InversionError
from arflows.core.likelihood import Batch, call_with
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.torch_compat import copy_all_, lerp_all_
from arflows.core.training.lightning_compat import SwappingAverage, batch_of_epoch, forget_batch
from arflows.core.training.sharding import total_norm, whole_weights


class NonFiniteGuard(Callback):
    """Skips optimizer steps whose gradient is not finite.

    The check follows the averaging over all processes, so they agree on it. A skipped step gets no gradient, so
    parameters and optimizer state do not change; buffers (running statistics) are restored to their values before the
    step. `FlowTraining` makes the gradient of a non-finite loss non-finite.

    Args:
        patience: Training stops with a `UserError` after this many skipped steps in a row.
    """

    def __init__(self, patience: int = 10) -> None:
        self.patience = patience
        self.skipped = False
        self.skipped_in_a_row = 0
        self.skipped_in_all = 0
        self._buffers: list[Tensor] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stores the buffers at the start of every optimizer step."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._buffers = [buffer.clone() for buffer in pl_module.buffers()]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Removes the gradient if it is not finite; logs its norm if it is."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = total_norm(trainer, gradients)
        self.skipped = not bool(norm.isfinite())
        if not self.skipped:
            self.skipped_in_a_row = 0
            pl_module.log("train/gradient_norm", norm)
            return
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, before in zip(pl_module.buffers(), self._buffers, strict=True):
                buffer.copy_(before)
        self.skipped_in_a_row += 1
        self.skipped_in_all += 1
        position = f"batch {batch_of_epoch(trainer)} of epoch {trainer.current_epoch}"
        rank_zero_info(
            f"{position}: the loss or its gradient is not finite; step skipped ({self.skipped_in_all} in all). "
            f"{_parameter_norms(pl_module)}"
        )
        if self.skipped_in_a_row >= self.patience:
            raise UserError(
                f"training stopped at {position}: {self.skipped_in_a_row} steps in a row had a loss or gradient that "
                "is not finite; lower model.learning_rate or set trainer.gradient_clip_val. "
                f"{_last_checkpoint(trainer)}"
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the number of steps skipped since training began."""
        pl_module.log("train/skipped_steps", float(self.skipped_in_all))

    def state_dict(self) -> dict[str, Any]:
        """State from which a resumed run continues."""
        return {"skipped_in_all": self.skipped_in_all}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the count of the interrupted run."""
        self.skipped_in_all = state_dict["skipped_in_all"]


def _parameter_norms(module: LightningModule, largest: int = 3) -> str:
    """Describe the norms of the parameters, the largest first: parameters mostly grow before they overflow."""
    norms = {name: float(parameter.detach().norm()) for name, parameter in module.named_parameters()}
    most = sorted(norms, key=lambda name: -norms[name])[:largest]
    listed = ", ".join(f"{name} {norms[name]:.3g}" for name in most)
    return f"Norm of the parameters: {math.hypot(*norms.values()):.3g}; the largest: {listed}."


def _last_checkpoint(trainer: Trainer) -> str:
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.save_on_exception:
            return f"The last good state is saved as {callback.format_checkpoint_name({})}."
    return "No checkpoint was asked for."


class DriftMonitor(Callback):
    """Encodes and decodes some examples at each validation, in the precision of training, and warns if they differ.

    The loss of a flow does not show that its inverse is inexact, but its samples then no longer follow its density.
    Logs ``val/round_trip_error``, the largest |x' − x| / max(1, |x|) over the examples, where integers count
    as points of the unit interval; other kinds of flows define their own error.

    If activations are recomputed by the inverse, training batches are checked too. If the inverse becomes too inexact,
    activations are kept from then on.

    Args:
        examples: Number of examples of the first validation batch; 0 for none.
        recompute: True if activations are recomputed (see `arflows.core.bijections.recompute`).
        tolerance: Largest error of continuous data without a warning; integers must be reproduced exactly.
        every: Steps between checks of training batches.

    Attributes:
        error: Last error measured; 0 before the first measurement.
        recomputes: True if activations are still recomputed.
    """

    def __init__(self, examples: int, recompute: bool = False, tolerance: float = 1e-3, every: int = 50) -> None:
        self.examples = examples
        self.recomputes = recompute
        self.tolerance = tolerance
        self.every = every
        self.error = 0.0

    def exceeds(self, flow: Flow) -> bool:
        """True if the last error exceeds the tolerance."""
        dequantizer = _dequantizer(flow)
        bound = self.tolerance if dequantizer is None else 0.5 / dequantizer.levels
        return not self.error <= bound

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Switches the recomputation on."""
        recompute(pl_module.flow, self.recomputes)  # type: ignore[arg-type]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Falls back to keeping activations if the inverse no longer reproduces them."""
        if not self.recomputes or trainer.global_step % self.every:
            return
        flow = pl_module.flow
        assert isinstance(flow, Flow)
        if not flow.has_latents:
            return
        self._measure(trainer, flow, batch, max(1, self.examples), trainer.precision_plugin.train_step_context())
        if self.exceeds(flow):
            self.recomputes = False
            recompute(flow, False)
            rank_zero_warn(
                f"from step {trainer.global_step} activations are kept: the inverse no longer gives them back "
                f"(round-trip error {self.error:.2g}).",
                category=RuntimeWarning,
            )

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measures on the first batch."""
        flow = pl_module.flow
        assert isinstance(flow, Flow)
        if batch_idx or not self.examples or trainer.sanity_checking or not flow.has_latents:
            return
        self._measure(trainer, flow, batch, self.examples, trainer.precision_plugin.val_step_context())
        pl_module.log("val/round_trip_error", self.error, batch_size=1)
        if self.exceeds(flow):
            rank_zero_warn(
                f"after step {trainer.global_step} the model no longer inverts its own output (round-trip error "
                f"{self.error:.2g}): its samples differ from its density; lower model.learning_rate, set "
                "trainer.gradient_clip_val, or train in --trainer.precision 32.",
                category=RuntimeWarning,
            )

    def _measure(
        self, trainer: Trainer, flow: Flow, batch: Any, examples: int, precision: AbstractContextManager[None]
    ) -> None:
        """Measure the largest error over all processes."""
        some = {name: tensor[:examples] for name, tensor in batch.items()}
        error = 0.0
        with precision, whole_weights(trainer):
            if len(some["x"]):
                error = _round_trip_error(flow, some)
        if trainer.world_size > 1:
            error = float(trainer.strategy.reduce(torch.tensor(error, device=flow.device), reduce_op="max"))
        self.error = error

    def state_dict(self) -> dict[str, Any]:
        """State from which a resumed run continues."""
        return {"recomputes": self.recomputes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Recomputes only if the interrupted run still did."""
        self.recomputes = self.recomputes and state_dict["recomputes"]


def _dequantizer(flow: Flow) -> Dequantizer | None:
    return flow.dequantizer if isinstance(flow, BijectiveFlow) else None


def _round_trip_error(flow: Flow, batch: Batch) -> float:
    try:
        error = call_with(flow.round_trip_error, batch)
    except InversionError:
        return math.inf
    x = batch["x"]
    discrete = _dequantizer(flow) is not None or not x.is_floating_point()
    scale = 1.0 if discrete else x.abs().flatten(1).amax(1).clamp_min(1)
    return float((error / scale).amax().nan_to_num(math.inf))


class ExponentialMovingAverage(SwappingAverage):
    """Keeps an exponential moving average of the weights, validates with it, and saves it as the model.

    Differences from Lightning's own averaging: the decay warms up, ``min(decay, (1 + t) / (10 + t))`` after t updates,
    so that initial weights do not dominate the average of short runs. Running statistics are averaged like weights,
    while integer and boolean buffers (permutations, counters) are copied. Skipped steps do not count. Ctrl-C during
    validation, when the average replaces the weights, saves both correctly.

    Args:
        decay: Decay of the average, in (0, 1).
        guard: Callback that knows the skipped steps.
    """

    def __init__(self, decay: float, guard: NonFiniteGuard) -> None:
        def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
            """Move averaged tensors of one dtype towards the current ones.

            Args:
                averaged: Averages; changed in place.
                current: Weights or buffers of the model.
                count: Number of updates so far.
            """
            if averaged[0].is_floating_point():
                lerp_all_(averaged, current, 1 - min(decay, (1 + float(count)) / (10 + float(count))))
            else:
                copy_all_(averaged, current)

        super().__init__(use_buffers=True, multi_avg_fn=torch.no_grad()(update))
        self._guard = guard

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """True after every optimizer step that was not skipped."""
        return step_idx is not None and not self._guard.skipped

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restores the weights after an interrupted validation, before the last state is saved."""
        if self.swapped:
            self.swap(pl_module)


class Stopwatch(Callback):
    """Logs training examples per second over all processes, and measures the duration of training.

    The speed includes data loading and excludes validation and saving.

    Attributes:
        seconds: Duration of training, validation included, summed over all parts of a resumed run.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._last = 0.0
        self._stretch: float | None = None
        self._examples = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock of the whole run."""
        self._last = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Starts the clock of the speed at the first batch of an epoch, or after validation."""
        if self._stretch is None:
            self._stretch, self._examples = time.perf_counter(), 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the speed."""
        assert self._stretch is not None
        self._tick()
        self._examples += len(batch["x"]) * trainer.world_size
        pl_module.log("train/examples_per_second", self._examples / (self._last - self._stretch))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock of the speed."""
        self._stretch = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock of the speed."""
        self._tick()
        self._stretch = None

    def _tick(self) -> None:
        now = time.perf_counter()
        self.seconds += now - self._last
        self._last = now

    def state_dict(self) -> dict[str, Any]:
        """State from which a resumed run continues."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the duration of the interrupted run."""
        self.seconds = state_dict["seconds"]


class OrderlyInterrupt(Callback):
    """Delays Ctrl-C and SIGTERM until the current step or validation is complete and logged.

    A second signal stops the process at once without saving.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._process = os.getpid()
        self._handlers_before: dict[int, Any] = {}
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Installs the signal handlers, in the main thread only.

        Lightning has stored the handlers of all signals by now, which it restores when training ends. Its own handler
        of SIGTERM stops between batches, not between optimizer steps.
        """
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._take_over(number, trainer)

    def _take_over(self, number: int, trainer: Trainer) -> None:
        def on_signal(number: int, frame: FrameType | None) -> None:
            if os.getpid() != self._process:
                return  # a data-loading worker, which inherits this handler: the main process ends it
            if self._received is not None:
                for callback in trainer.checkpoint_callbacks:
                    if isinstance(callback, ModelCheckpoint):
                        callback.save_on_exception = False
                raise _exception(number)
            self._received = number
            rank_zero_info("\nInterrupted: stopping after this step. Once more stops at once, without saving.")

        self._handlers[number] = on_signal
        self._handlers_before[number] = signal.signal(number, on_signal)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stops between steps."""
        if batch_idx and batch_idx % trainer.accumulate_grad_batches == 0 and self._agreed(trainer):
            forget_batch(trainer)
            raise _exception(self._received)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops after the validation that ended the epoch before."""
        if self._agreed(trainer):
            raise _exception(self._received)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops after the last validation."""
        if self._agreed(trainer):
            raise _exception(self._received)

    def _agreed(self, trainer: Trainer) -> bool:
        """True if any process was interrupted; all processes must call it together."""
        interrupted = self._received is not None
        if trainer.world_size > 1:
            interrupted = trainer.strategy.reduce_boolean_decision(interrupted, all=False)
        return interrupted

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Lets Ctrl-C act at once again; SIGTERM waits until all is saved, by Lightning's handler."""
        for number, handler in self._handlers.items():
            if signal.getsignal(number) is handler:  # Lightning may have restored the handler, or ignores the signal
                signal.signal(number, self._handlers_before[number])


def _exception(number: int | None) -> BaseException:
    return SIGTERMException() if number == signal.SIGTERM else KeyboardInterrupt()
