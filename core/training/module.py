"""Maximum-likelihood training of any flow, as a LightningModule."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from arflows.core.bijections import mark_initialized
from arflows.core.flow import Flow
from arflows.core.likelihood import Batch, bits_per_dim, call_with
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.noise import fixed_noise, seed_of
from arflows.core.runtime.processes import batch_shard
from arflows.core.training.callbacks import (
    DriftMonitor,
    ExponentialMovingAverage,
    NonFiniteGuard,
    OrderlyInterrupt,
    Stopwatch,
)
from arflows.core.training.lightning_compat import batches_done

VALIDATION_NOISE = 2017
"""Seed of the dequantisation noise in validation, the same every time, so that epochs can be compared."""

_OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "adamax": torch.optim.Adamax}


class FlowTraining(LightningModule):
    """Minimises the negative log-likelihood of a flow, in bits per dimension or nats.

    Batches hold "x", the examples, and their conditions (see `call_with`). The datamodule may offer
    ``initialization_batch() -> Batch``, by which layers such as ActNorm are initialised once, before the first step.

    Logged: ``train/bits_per_dim`` and ``val/bits_per_dim`` (or in another unit), ``train/gradient_norm`` (before
    clipping), ``train/learning_rate``, ``train/examples_per_second``, ``train/skipped_steps``,
    ``val/round_trip_error``.

    The noise of a step is a function of the seed and the number of the step, and each process draws the rows of its own
    examples. So a resumed run equals an uninterrupted one, and the same global batch gives the same loss in any number
    of processes. (Only dropout is drawn by each process independently.)

    Clipping, accumulation, precision and devices are the Trainer's options.

    Args:
        flow: The flow to train.
        unit: "bits_per_dim", "nats", or "nats_per_dim" for examples whose number of dimensions varies; those of a batch
            share theirs.
        optimizer: "adam", "adamw" or "adamax".
        learning_rate: The highest learning rate.
        betas: Decay of the optimizer's averages of the gradient and of its square (its maximum, for adamax).
        weight_decay: L2 penalty (adam, adamax) or decoupled decay (adamw).
        decay_only_scales: Apply ``weight_decay`` to the scales of weight-normalised layers alone, as RealNVP does
            (Dinh et al. 2017, section 4.1: 5e-5).
        warmup_steps: Steps over which the learning rate rises linearly from zero.
        schedule: After warm-up the learning rate stays ("constant"), or falls to ``final_fraction`` of its highest
            value at the end of the run, along a half cosine ("cosine") or exponentially ("exponential").
        final_fraction: See ``schedule``.
        ema_decay: Decay of the average of the weights that is validated and exported; 0 for none.
        patience: Steps in a row with a non-finite loss or gradient after which training stops; fewer are skipped.
        round_trip_examples: Examples that are encoded and decoded at each validation, to warn if the inverse becomes
            inexact; see `DriftMonitor`. 0 for none.
        compile: Compile the log-probability by `torch.compile`.
        recompute: Recompute activations in the backward pass instead of keeping them: by the inverse if it is as cheap
            as the forward pass (couplings), else by a second forward pass. Memory then hardly grows with depth, and a
            step takes longer. If the inverse becomes inexact, activations are kept from then on. With ``compile``, the
            inside of a chain of bijections is not compiled.
    """

    def __init__(
        self,
        flow: Flow,
        unit: Literal["bits_per_dim", "nats", "nats_per_dim"] = "bits_per_dim",
        optimizer: Literal["adam", "adamw", "adamax"] = "adam",
        learning_rate: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        decay_only_scales: bool = False,
        warmup_steps: int = 0,
        schedule: Literal["constant", "cosine", "exponential"] = "constant",
        final_fraction: float = 0.01,
        ema_decay: float = 0.999,
        patience: int = 10,
        round_trip_examples: int = 8,
        compile: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= ema_decay < 1:
            raise UserError(
                f"model.ema_decay is {ema_decay}: give a number from 0 (no averaging) up to, not including, 1."
            )
        if not 0 < final_fraction <= 1:
            raise UserError(f"model.final_fraction is {final_fraction}: give a number above 0 and at most 1.")
        if unit == "bits_per_dim" and flow.dims is None:
            raise UserError(
                f"model.unit is bits_per_dim, but examples of {type(flow).__name__} differ in size: use nats."
            )
        self.flow = flow
        self.unit = unit
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.betas = betas
        self.weight_decay = weight_decay
        self.decay_only_scales = decay_only_scales
        self.warmup_steps = warmup_steps
        self.schedule = schedule
        self.final_fraction = final_fraction
        self.ema_decay = ema_decay
        self.compile_log_prob = compile
        self._guard = NonFiniteGuard(patience)
        self._stopwatch = Stopwatch()
        self._log_prob: Callable[..., Tensor] = flow.log_prob
        self._drift = DriftMonitor(round_trip_examples, recompute)
        self._noise_seed: int | None = None
        self._random_state: dict[str, Tensor] | None = None

    @property
    def skipped_steps(self) -> int:
        """Steps skipped since training began, for a loss or gradient that was not finite."""
        return self._guard.skipped_in_all

    @property
    def seconds(self) -> float:
        """Duration of training so far, validation included."""
        return self._stopwatch.seconds

    def configure_callbacks(self) -> list[Callback]:
        """Callbacks that training relies on: the guard first, the interrupt last, after the averages are up to date."""
        averaging = [ExponentialMovingAverage(self.ema_decay, self._guard)] if self.ema_decay > 0 else []
        return [self._guard, *averaging, self._drift, self._stopwatch, OrderlyInterrupt()]

    def setup(self, stage: str) -> None:
        """Initialises the flow from data, before it is distributed and before a checkpoint, if any, is loaded.

        A flow that has been initialised or trained before stays as it is.
        """
        batch_for = getattr(getattr(self.trainer, "datamodule", None), "initialization_batch", None)
        if stage == "fit" and batch_for is not None:
            device = self.trainer.strategy.root_device
            batch = {name: tensor.to(device) for name, tensor in batch_for().items()}
            call_with(self.flow.to(device).initialize, batch)
        if stage == "fit":
            mark_initialized(self.flow)
        if self.compile_log_prob:
            self._log_prob = torch.compile(self.flow.log_prob)

    def on_fit_start(self) -> None:
        """Sets the seed of the noise to that of the run, or restores it and the generators from the checkpoint."""
        if self._noise_seed is None:
            self._noise_seed = torch.initial_seed()
        if self._random_state is not None:  # from which a foreign datamodule may draw the order of an epoch
            torch.set_rng_state(self._random_state["cpu"])
            if self.device.type == "cuda" and "cuda" in self._random_state:
                torch.cuda.set_rng_state(self._random_state["cuda"], self.device)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seeds the random generators for this step."""
        assert self._noise_seed is not None
        torch.manual_seed(seed_of(self._noise_seed, "training", batches_done(self.trainer)))

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        """Mean loss of a batch; if it is not finite, neither is its gradient, on any process: see `NonFiniteGuard`."""
        with batch_shard(self.global_rank, self.trainer.world_size):
            loss = self._losses(batch).mean()
        return loss * torch.where(loss.detach().isfinite(), 1.0, math.nan)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Logs the loss of steps that were not skipped."""
        if not self._guard.skipped:
            loss = outputs["loss"] * self.trainer.accumulate_grad_batches
            self.log(f"train/{self.unit}", loss, prog_bar=True, sync_dist=True)
        self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs the mean loss over the validation split, with the same dequantisation noise every time.

        Processes take batches in turn, weighted by their examples: the last batch of a process may be empty.
        """
        count = len(batch["x"])
        total = torch.zeros((), device=self.device)
        if count:
            index = batch_idx * self.trainer.world_size + self.global_rank
            with fixed_noise(seed_of(VALIDATION_NOISE, "validation", index), self.device):
                total = self._losses(batch).sum()
        self.log(f"val/{self.unit}", total / max(1, count), prog_bar=True, batch_size=count, sync_dist=True)

    def _losses(self, batch: Batch) -> Float[Tensor, " batch"]:
        log_prob = call_with(self._log_prob, batch)
        match self.unit:
            case "nats":
                return -log_prob
            case "nats_per_dim":
                return -log_prob / batch["x"][0].numel()
        assert self.flow.dims is not None
        return bits_per_dim(log_prob, self.flow.dims)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer and its schedule, stepped after every optimizer step."""
        scales = [p for name, p in self.flow.named_parameters() if self._decays(name)]
        others = [p for name, p in self.flow.named_parameters() if not self._decays(name)]
        groups = [{"params": scales, "weight_decay": self.weight_decay}, {"params": others, "weight_decay": 0.0}]
        optimizer: Optimizer = _OPTIMIZERS[self.optimizer](
            [group for group in groups if group["params"]], lr=self.learning_rate, betas=self.betas
        )
        scheduler = LambdaLR(optimizer, self._learning_rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _decays(self, name: str) -> bool:
        """True if weight decay applies: with `decay_only_scales` to weight normalisation alone, ours or PyTorch's."""
        return not self.decay_only_scales or name.endswith((".weight_g", "parametrizations.weight.original0"))

    def _learning_rate_factor(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if self.schedule == "constant":
            return 1.0
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise UserError(
                f"model.schedule {self.schedule} needs an end: set trainer.max_epochs or trainer.max_steps."
            )
        progress = min(1.0, (step - self.warmup_steps) / max(1, steps - self.warmup_steps))
        if self.schedule == "exponential":
            return self.final_fraction**progress
        return self.final_fraction + (1 - self.final_fraction) * (1 + math.cos(math.pi * progress)) / 2

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the seed and the states of the random generators."""
        checkpoint["noise_seed"] = self._noise_seed
        checkpoint["random_state"] = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            checkpoint["random_state"]["cuda"] = torch.cuda.get_rng_state(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Stores the seed and the states of the random generators until training starts."""
        self._noise_seed = checkpoint.get("noise_seed")
        self._random_state = checkpoint["random_state"]
