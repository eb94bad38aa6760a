"""States of a run to resume from: written atomically, verified before use."""

import os
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO

from arflows.core.runtime.errors import UserError
from arflows.core.runtime.files import replacing
from arflows.core.training.lightning_compat import FixedNameCheckpoint, before_batch, epoch_goes_on, within_epoch

LAST = "last.ckpt"
NEEDED = frozenset({"epoch", "global_step", "state_dict", "loops", "optimizer_states", "callbacks"})
"""Keys that every state of a run has."""


class DamagedCheckpoint(UserError):
    """Raised for a file that is not the state of a run, or a damaged one."""


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Reads the state of a run: tensors and plain values only, so that no code can run.

    `torch.save` writes a checksum with each tensor, so that a flipped bit is detected.

    Raises:
        DamagedCheckpoint: If the file is damaged, or is not the state of a run.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise DamagedCheckpoint(
                    f"{path} is compressed, which checkpoints of arflows are not: a small file could unfold to any "
                    "size; give the file that training wrote."
                )
            damaged = archive.testzip()
        if damaged is not None:
            raise DamagedCheckpoint(f"{path} is damaged in {damaged}: go on from an older one.")
        state = torch.load(path, map_location=map_location, weights_only=True)
    except FileNotFoundError:
        raise
    except DamagedCheckpoint:
        raise
    except Exception as error:  # the readers of zip files and pickles raise almost anything for broken ones
        reason = str(error).strip().splitlines()[0].rstrip(".:") if str(error).strip() else type(error).__name__
        raise DamagedCheckpoint(
            f"{path} is damaged, or holds more than tensors and plain values ({reason}): go on from an older one, or "
            "train again."
        ) from error
    if not isinstance(state, dict) or not state.keys() >= NEEDED:
        raise DamagedCheckpoint(f"{path} is not the state of a run: give the folder of one to --out.")
    return state


def resumable(folder: Path) -> list[Path]:
    """The states in a run's folder ``checkpoints``, the newest first, the best one at the end."""
    older = sorted(folder.glob("last-*.ckpt"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [path for path in (folder / LAST, *older, folder / "best.ckpt") if path.is_file()]


def newest_sound(folder: Path, warn: Callable[[str], None]) -> Path:
    """The newest state that is not damaged.

    Args:
        folder: A run's folder ``checkpoints``.
        warn: Called with a sentence for every newer state that is damaged.

    Raises:
        UserError: If there is none.
    """
    for path in resumable(folder):
        try:
            read_checkpoint(path)
        except DamagedCheckpoint as error:
            warn(str(error))
        else:
            return path
    raise UserError(f"{folder} holds no undamaged state: start a new run in another --out.")


def verify(path: Path) -> str | None:
    """Reads every byte of the states in a run's folder and compares them with their checksums.

    Returns:
        A description of the verified states; None if there are none.

    Raises:
        UserError: If one is damaged; the sentence names the file and the damaged part.
    """
    states = resumable(path / "checkpoints") if path.is_dir() else []
    for state in states:
        read_checkpoint(state)
    return f"{path / 'checkpoints'}: {len(states)} states to resume from" if states else None


class CheckpointFiles(TorchCheckpointIO):
    """Writes states as `core.files.replacing` does, and reads them by `read_checkpoint`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a state under a temporary name, syncs it to the disk, and renames it."""
        with replacing(path) as temporary, temporary.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # raised by PyTorch if the disk is full
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a state onto the CPU, without unpickling."""
        return read_checkpoint(Path(path), map_location or "cpu")


class RunCheckpoint(FixedNameCheckpoint):
    """A checkpoint of fixed name in the run's folder, which may be moved between a run and its resumption.

    Args:
        folder: Folder of the checkpoint.
        name: Its name, without ``.ckpt``.
        keep: Number of states that are kept: this one, and older ones as ``<name>-1.ckpt``, ``<name>-2.ckpt``, …
        every: Save after so many optimizer steps too; None for only after validation.
        **options: Of `ModelCheckpoint`.
    """

    def __init__(self, folder: Path, name: str, keep: int = 1, every: int | None = None, **options: Any) -> None:
        super().__init__(folder, name, enable_version_counter=False, **options)
        self.keep = keep
        self.every = every
        self._begun = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that there is a state to save."""
        super().on_train_start(trainer, pl_module)
        self._begun = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves, if requested and if the state is complete; before training begins it may be restored in part."""
        if self._begun:
            super().on_exception(trainer, pl_module, exception)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Saves between steps, if requested: the previous step is logged only now."""
        due = self.every and trainer.global_step % self.every == 0 and batch_idx % trainer.accumulate_grad_batches == 0
        if due and batch_idx and self.should_save_now(trainer):
            with before_batch(trainer):
                self.save_now(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at the end of a run without a validation: a limit of steps may end it within an epoch.

        The best state alone waits for a validation.
        """
        ended_early = within_epoch(trainer)
        if not ended_early:
            super().on_train_epoch_end(trainer, pl_module)
        if self.monitor is None and self.should_save_now(trainer):
            with epoch_goes_on(trainer) if ended_early else nullcontext():
                self.save_now(trainer)

    def write_state(self, trainer: Trainer, path: str, target: str | None = None) -> None:
        """Write the logs to disk first, so that none are missing before the step at which a run resumes.

        Args:
            trainer: Trainer of the run.
            path: File of the state.
            target: Not used: the state is written to a new file beside ``path``, which then replaces it.
        """
        for logger in trainer.loggers:
            logger.save()
        filepath = Path(path)
        new = filepath.with_name(f".{filepath.name}.new")
        ages = not self._replaces_damaged(trainer, filepath)
        super().write_state(trainer, path, str(new))
        if trainer.is_global_zero:
            if ages:
                self._age(filepath)
            os.replace(new, filepath)
        trainer.strategy.barrier()

    def _replaces_damaged(self, trainer: Trainer, path: Path) -> bool:
        """True if the run was resumed from an older state than the one that is overwritten now."""
        return not self.has_saved and trainer.ckpt_path is not None and Path(trainer.ckpt_path).name != path.name

    def _age(self, path: Path) -> None:
        """Renames the existing states to the next older names, once the new one is complete."""
        names = [path, *(path.with_stem(f"{path.stem}-{age}") for age in range(1, self.keep))]
        for younger, older in reversed(list(pairwise(names))):
            if younger.exists():
                os.replace(younger, older)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state with paths in the current folder."""
        here = Path(str(self.dirpath))

        def moved(path: str) -> str:
            return str(here / Path(path).name) if path else path

        paths = {key: moved(state_dict[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {moved(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})
