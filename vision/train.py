"""Train a flow on a store of images: ``arflows vision train --config recipe.yaml``.

On several GPUs: ``--trainer.devices 8``, or ``torchrun --nproc-per-node 8 --no-python arflows vision train …``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from arflows.core.commands.train import run_experiment
from arflows.core.inversion import InversionError
from arflows.core.runtime.errors import UserError
from arflows.core.training.experiment import Experiment
from arflows.core.training.module import FlowTraining
from arflows.core.training.sharding import whole_weights
from arflows.vision.datamodule import ImageDataModule
from arflows.vision.model import ImageFlow
from arflows.vision.render import grid, save_png


class ImageFlowTraining(FlowTraining):
    """Trains a flow of images; see `FlowTraining`.

    Args:
        flow: The flow, such as arflows.vision.RealNVP or arflows.vision.Glow, and its arguments.
        **options: Options of `FlowTraining`.
    """

    def __init__(self, flow: ImageFlow, **options: Any) -> None:
        super().__init__(flow, **options)


class SampleGrid(Callback):
    """Writes a grid of samples at each validation: samples/<step>.png in the run's folder, and to TensorBoard.

    The latents are the same every time, so that grids of different steps can be compared.

    Args:
        count: Images in the grid.
    """

    def __init__(self, count: int = 64) -> None:
        self.count = count

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws, while the averaged weights are in place."""
        if trainer.sanity_checking:
            return
        with whole_weights(trainer):
            if trainer.is_global_zero:
                self._draw(trainer, pl_module)

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        flow = pl_module.flow
        assert isinstance(flow, ImageFlow)
        try:
            image = grid(flow.sample(self.count, generator=torch.Generator().manual_seed(0)), bits=flow.spec.bits)
        except InversionError as error:  # an early state of a model is not worth a run
            rank_zero_warn(f"no samples after step {trainer.global_step}: {error}", category=RuntimeWarning)
            return
        save_png(image, Path(trainer.default_root_dir) / "samples" / f"{trainer.global_step:07d}.png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("samples", image, trainer.global_step)


class ImageExperiment(Experiment):
    """Trains a flow on a store of images."""

    model: ImageFlowTraining
    datamodule: ImageDataModule

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__(ImageFlowTraining, ImageDataModule, words, "vision", [SampleGrid()])

    def check(self) -> None:
        """Makes sure that the flow fits the size, channels, bits and classes of the images.

        Raises:
            UserError: If it does not.
        """
        flow, data = self.model.flow, self.datamodule
        assert isinstance(flow, ImageFlow)
        if differences := flow.spec.differences(data.spec):
            raise UserError(
                f"{data.store.path} does not fit the model, model ≠ store: {', '.join(differences)}; "
                f"{self.remedy('image_size, channels and bits of model.flow.init_args')}."
            )
        if flow.classes and flow.class_names is None:
            if flow.classes != data.class_count:
                raise UserError(
                    f"the model has {flow.classes} classes, {data.store.path} has {data.class_count}: set "
                    f"model.flow.init_args.classes to {data.class_count}, or to 0 for a model without classes."
                )
            flow.name_classes(data.classes)
        if flow.classes and not data.class_count:
            raise UserError(f"the model has {flow.classes} classes, {data.store.path} has no labels: prepare another.")
        data.labels = flow.classes > 0
        data.model_classes = flow.class_names
        if "val" in data.store.splits:
            data.dataset("val")  # refuses classes that the model does not know
        data.train_dataloader()  # refuses a store that has too few images for a batch

    def data_facts(self) -> dict[str, Any]:
        """Facts about the training data: the store, the limit of examples, and the number of images of each class."""
        data = self.datamodule
        facts = {**data.store.facts(), "limit": data.limit}
        if data.labels and data.classes:
            counts = np.bincount(data.store.array("train", "labels"), minlength=len(data.classes))
            facts |= {"class_counts": dict(zip(data.classes, counts.tolist(), strict=True))}
        return facts


def train(*words: str) -> None:
    """Train a flow on a store of images by maximum likelihood.

    Args:
        *words: The words of the command line, such as ``"--config", "recipe.yaml", "--out", "run"``;
            `arflows vision train --help` lists the options.

    Raises:
        UserError: If the options do not fit together, or training cannot go on.
    """
    run_experiment(ImageExperiment, words)
