"""Training of a flow on a store of speech: ``arflows audio train --config recipe.yaml``.

On several GPUs: ``--trainer.devices 8``, or ``torchrun --nproc-per-node 8 --no-python arflows audio train …``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from tqdm import tqdm

from arflows.audio.datamodule import SpeechDataModule
from arflows.audio.metrics import Mean
from arflows.audio.model import SpeechFlow
from arflows.core.commands.train import run_experiment
from arflows.core.inversion import InversionError
from arflows.core.likelihood import Batch, Estimate, Reference, log_probs
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.files import replacing
from arflows.core.training.experiment import Experiment
from arflows.core.training.module import FlowTraining
from arflows.core.training.sharding import whole_weights
from arflows.data.audio_files import write_wav

REFERENCE_UTTERANCES = 100
"""Number of training utterances whose scores are saved with the model."""


class SpeechFlowTraining(FlowTraining):
    """Training of a speech flow, with the loss in nats per sample; see `FlowTraining`.

    Args:
        flow: The flow, such as arflows.audio.WaveFlow, and its arguments.
        **options: Options of `FlowTraining`.
    """

    def __init__(self, flow: SpeechFlow, **options: Any) -> None:
        super().__init__(flow, unit="nats_per_dim", **options)

    def _losses(self, batch: Batch) -> Float[Tensor, " batch"]:
        """Compute the mean loss of each segment, without its lead."""
        assert isinstance(self.flow, SpeechFlow)
        if not self.training or not self.flow.lead:
            return super()._losses(batch)
        conditions = {name: field for name, field in batch.items() if name != "x"}
        log_prob = self.flow.log_prob_per_sample(batch["x"], **conditions)
        return -log_prob[:, self.flow.lead * self.flow.spec.hop :].mean(1)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score a whole utterance, uncompiled: utterances differ in length, and compiling for each would not pay."""
        compiled, self._log_prob = self._log_prob, self.flow.log_prob
        super().validation_step(batch, batch_idx)
        self._log_prob = compiled


class SampleClip(Callback):
    """Callback that vocodes the beginning of the first validation utterance, to samples/<step>.wav and TensorBoard.

    The latents are the same at every validation, so that clips are comparable.

    Args:
        seconds: Length of the clip.
        temperature: Multiplies the standard deviation of the latents.
    """

    def __init__(self, seconds: float = 2.0, temperature: float = 0.8) -> None:
        self.seconds = seconds
        self.temperature = temperature

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Synthesise the clip with the averaged weights."""
        if trainer.sanity_checking:
            return
        with whole_weights(trainer):
            if trainer.is_global_zero:
                self._synthesise(trainer, pl_module)

    def _synthesise(self, trainer: Trainer, pl_module: LightningModule) -> None:
        flow, data = pl_module.flow, trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(flow, SpeechFlow)
        try:
            clip = self._clip(flow, data)
        except InversionError as error:  # should not end the training
            rank_zero_warn(f"no clip after step {trainer.global_step}: {error}", category=RuntimeWarning)
            return
        with replacing(Path(trainer.default_root_dir) / "samples" / f"{trainer.global_step:07d}.wav") as temporary:
            write_wav(temporary, clip.numpy(), data.spec.sample_rate)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_audio("clip", clip, trainer.global_step, sample_rate=data.spec.sample_rate)

    def _clip(self, flow: SpeechFlow, data: SpeechDataModule) -> torch.Tensor:
        batch = data.dataset("val").__getitems__([0])
        frames = max(1, min(round(self.seconds * data.spec.sample_rate), batch["x"].shape[1]) // data.spec.hop)
        conditions: dict[str, Any] = {name: field.to(flow.device) for name, field in batch.items() if name != "x"}
        if "mel" in conditions:
            conditions["mel"] = conditions["mel"][..., :frames]
        return flow.sample(
            1,
            **conditions,
            samples=frames * data.spec.hop,
            temperature=self.temperature,
            generator=torch.Generator().manual_seed(0),
        )[0].cpu()


class SpeechExperiment(Experiment):
    """Experiment that trains a flow on a store of speech."""

    model: SpeechFlowTraining
    datamodule: SpeechDataModule

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__(SpeechFlowTraining, SpeechDataModule, words, "audio", [SampleClip()])

    def check(self) -> None:
        """Check that the flow fits the store's settings and speakers.

        Raises:
            UserError: If it does not.
        """
        flow, data = self.model.flow, self.datamodule
        assert isinstance(flow, SpeechFlow)
        if differences := flow.spec.differences(data.spec):
            raise UserError(
                f"{data.store.path} does not fit the model, model ≠ store: {', '.join(differences)}; "
                f"{self.remedy('model.flow.init_args.spec')}."
            )
        known = self.start.data.get("speakers") if self.start is not None else None
        if flow.speakers and known:
            data.number_speakers(known)
        elif flow.speakers and flow.speakers != len(data.speaker_names):
            raise UserError(
                f"the model has {flow.speakers} speakers, {data.store.path} has {len(data.speaker_names)}: set "
                f"model.flow.init_args.speakers to {len(data.speaker_names)}, or to 0 for a model without speakers."
            )
        data.mels, data.speakers = flow.conditional, flow.speakers > 0
        data.lead, data.surroundings = flow.lead, flow.surroundings
        data.train_dataloader()  # raises if there are too few utterances for a batch
        if left_out := data.dataset("train", training=True).left_out:
            print(f"{left_out:,} training utterances are shorter than a segment of {data.segment} samples: left out")

    def data_facts(self) -> dict[str, Any]:
        """Return the facts of the store, the limit and the speakers."""
        data = self.datamodule
        return {**data.store.facts(), "limit": data.limit, "speakers": data.speaker_names}

    def _validation_figure(self) -> Estimate | None:
        if "val" not in self.datamodule.store.splits:
            return None
        scores, lengths = self._score("val", None, "validating")
        mean = Mean.ratio(-scores, lengths)
        return Estimate(mean.value, mean.standard_error, "nats/sample", self.model.flow.likelihood, mean.count)

    def _reference(self) -> Reference:
        """Return the scores of whole training utterances, chosen at random."""
        scores, lengths = self._score("train", REFERENCE_UTTERANCES, "scoring training data")
        return Reference.of(torch.from_numpy(-scores / lengths))

    def _score(self, split: str, count: int | None, title: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the log-likelihoods of whole utterances of a split in nats, and their lengths in samples."""
        dataset = self.datamodule.dataset(split)
        order = np.random.default_rng(self.config.seed).permutation(len(dataset))[:count]
        lengths: list[int] = []

        def batches() -> Any:
            for index in tqdm(order.tolist(), title, leave=False, disable=None):
                batch = dataset.__getitems__([index])
                lengths.append(batch["x"].shape[1])
                yield batch

        return log_probs(self.model.flow, batches()).numpy(), np.array(lengths)


def train(*words: str) -> None:
    """Train a flow on a store of speech by maximum likelihood.

    Args:
        *words: Command-line arguments, such as ``"--config", "recipe.yaml", "--out", "run"``;
            `arflows audio train --help` lists the options.

    Raises:
        UserError: If the options do not fit together, or training cannot continue.
    """
    run_experiment(SpeechExperiment, words)
