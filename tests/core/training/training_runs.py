"""Shared parts of the tests of training: a small flow, data, a quiet Trainer, and states to compare."""

import copy

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from arflows.core.bases import DiagonalNormal
from arflows.core.bijections import ActNorm, BatchNorm, Chain, Permutation
from arflows.core.dequantization import UniformDequantizer
from arflows.core.flow import BijectiveFlow
from arflows.core.training.callbacks import ExponentialMovingAverage
from arflows.core.training.experiment import RunCheckpoint


def small_flow(levels=0):
    """With parameters, running statistics, a counter and a permutation."""
    layers = Chain(ActNorm(4), Permutation(torch.tensor([2, 0, 3, 1])), BatchNorm(4))
    return BijectiveFlow(DiagonalNormal((4,)), layers, UniformDequantizer(levels) if levels else None)


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
