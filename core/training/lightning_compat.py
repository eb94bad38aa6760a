"""Private API of Lightning, in one place.

``pyproject.toml`` admits only the versions of Lightning for which this is known to be true; a test checks each
assumption (``tests/core/training/test_lightning_compat.py``). The state of `arflows.data.batches.StoreDataModule` reads
`batches_done` by its own means, because that package imports nothing of training.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar, WeightAveraging
from lightning.pytorch.cli import LightningCLI


def _batch_progress(trainer: Trainer) -> Any:
    return trainer.fit_loop.epoch_loop.batch_progress


def batches_done(trainer: Trainer) -> int:
    """Return the number of training batches since the run began, over all epochs and resumptions."""
    return int(_batch_progress(trainer).total.processed)


def batch_of_epoch(trainer: Trainer) -> int:
    """Return the index of the training batch at hand in its epoch."""
    return trainer.fit_loop.epoch_loop.batch_idx


def within_epoch(trainer: Trainer) -> bool:
    """Return True if batches of the epoch at hand are left."""
    return not _batch_progress(trainer).is_last_batch


def forget_batch(trainer: Trainer) -> None:
    """Make a state that is saved at the start of a batch one that ends with the batch before."""
    progress = _batch_progress(trainer)
    progress.total.ready -= 1
    progress.current.ready -= 1


@contextmanager
def before_batch(trainer: Trainer) -> Iterator[None]:
    """Let states that are saved in the block, at the start of a batch, end with the batch before."""
    forget_batch(trainer)
    try:
        yield
    finally:
        progress = _batch_progress(trainer)
        progress.total.ready += 1
        progress.current.ready += 1


@contextmanager
def epoch_goes_on(trainer: Trainer) -> Iterator[None]:
    """Save states of the block, in ``on_train_epoch_end``, as states of an unfinished epoch.

    By then Lightning has counted the epoch as processed, also where the Trainer's limit of steps ends it early.
    """
    progress: Any = trainer.fit_loop.epoch_progress  # the annotation does not name the type of its counters
    progress.total.processed -= 1
    progress.current.processed -= 1
    try:
        yield
    finally:
        progress.total.processed += 1
        progress.current.processed += 1


class FixedNameCheckpoint(ModelCheckpoint):
    """A `ModelCheckpoint` that saves on request, and that calls `write_state` to write a file."""

    def should_save_now(self, trainer: Trainer) -> bool:
        """Return False in a trial run, in the sanity check, and where this step is saved already."""
        return not self._should_skip_saving_checkpoint(trainer)

    def save_now(self, trainer: Trainer) -> None:
        """Save, whatever the metrics are."""
        self._save_none_monitor_checkpoint(trainer, self._monitor_candidates(trainer))

    @property
    def has_saved(self) -> bool:
        """True if a state was saved, by this process or by the run that it resumes."""
        return bool(self._last_checkpoint_saved)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self.write_state(trainer, filepath)

    def write_state(self, trainer: Trainer, path: str, target: str | None = None) -> None:
        """Write the state of the run.

        Args:
            trainer: The Trainer.
            path: The file's name.
            target: The file that is written in its place, to be renamed later; the file itself by default.
        """
        super()._save_checkpoint(trainer, target or path)
        self._last_checkpoint_saved = path


class SwappingAverage(WeightAveraging):
    """A `WeightAveraging` that knows whether the average stands in for the weights.

    Attributes:
        swapped: True while the module has the averaged weights.
    """

    swapped = False

    def swap(self, pl_module: LightningModule) -> None:
        """Exchange the weights and their average."""
        self._swap_models(pl_module)

    def _swap_models(self, pl_module: LightningModule) -> None:
        super()._swap_models(pl_module)
        self.swapped = not self.swapped


class SeededCLI(LightningCLI):
    """A `LightningCLI` whose subclass seeds the generators in `seed_generators`."""

    def _set_seed(self) -> None:
        self.seed_generators()

    def seed_generators(self) -> None:
        """Seed all random generators from the options."""
        super()._set_seed()


class ProgressLine(TQDMProgressBar):
    """Lightning's progress bar without the number of the logs' version."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the figures that the bar shows."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}
