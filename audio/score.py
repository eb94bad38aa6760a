"""Log-likelihood of utterances under a trained flow: ``arflows audio score``."""

import csv
import itertools
from pathlib import Path

import numpy as np
import torch

from arflows.audio.inputs import Speech, SpeechInput, speaker_names
from arflows.audio.metrics import Mean
from arflows.audio.model import SpeechFlow
from arflows.audio.render import likelihood_curve, save_figure
from arflows.core.commands.scores import write_scores
from arflows.core.likelihood import Estimate, Reference
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.files import replacing
from arflows.core.runtime.option_types import PositiveInt
from arflows.core.runtime.pretrained import load_model
from arflows.core.runtime.processes import distributed_map, is_main
from arflows.data.folders import FileNames

LISTED = 5


def score(
    model: str,
    speech: Path,
    out: Path,
    curves: Path | None = None,
    split: str = "test",
    speaker: str | None = None,
    limit: PositiveInt | None = None,
    device: str = "auto",
) -> None:
    """Score speech by a trained flow and write a CSV file with one line per utterance.

    Columns: utterance, samples, log_likelihood (nats per sample, a density of waveforms in [-1, 1]; higher is
    likelier), percentile (percentage of training utterances that are likelier; near 100: unlike the training data) and
    typicality (distance of the log-likelihood from its mean over training utterances, Nalisnick et al. 2019). Rank by
    typicality to find out-of-distribution recordings, because quiet or simple sounds can be too likely.

    Args:
        model: Folder of a model or of a training run, or a model's name on the Hugging Face Hub.
        speech: Folder of audio files, audio file, or store.
        out: CSV file to write; replaced if it exists.
        curves: Folder for the log-likelihood of each frame of each utterance, as CSV and as plot.
        split: Split of a store.
        speaker: Speaker, for a multi-speaker model and speech without speaker labels.
        limit: Score only the first utterances, at most this many.
        device: Device: cpu, cuda, …; auto uses a GPU if available.
    """
    flow = load_model(SpeechFlow, model, device)
    reference = Reference.load(model)
    source = SpeechInput(speech, flow, split=split, speaker=speaker, speakers=speaker_names(model), limit=limit)
    names, totals, lengths = [], [], []
    stems = FileNames()
    utterances, scored = itertools.tee(source.utterances("scoring"))
    likelihoods = distributed_map(utterances, lambda _, utterance: sample_log_likelihoods(flow, utterance))
    for values, utterance in zip(likelihoods, scored, strict=False):
        names.append(utterance.name)
        totals.append(float(values.sum()))
        lengths.append(len(values))
        if curves is not None and is_main():
            _write_curve(curves, stems(utterance.name), utterance, frame_means(values, flow.spec.hop), flow, reference)
    if not names:
        raise UserError(f"{speech} holds no utterance that can be scored: {source.summary()}.")
    means = np.array(totals) / np.array(lengths)
    columns = {
        "utterance": names,
        "samples": [str(length) for length in lengths],
        "log_likelihood": [f"{value:.6f}" for value in means],
    }
    write_scores(out, columns, -means, reference)
    mean = Mean.ratio(-np.array(totals), np.array(lengths))
    print(f"{out}: {Estimate(mean.value, mean.standard_error, 'nats/sample', flow.likelihood, mean.count)}")
    if reference is not None:
        print(f"training utterances: log-likelihood {-reference.mean:.4f} nats/sample")
        order = np.argsort(-reference.typicality(-means[:, None]))[:LISTED]
        print("least typical: " + ", ".join(f"{names[i]} ({means[i]:.3f} nats/sample)" for i in order))
    for remark, count in sorted(source.converted.items()):
        print(f"{count:,} of them {remark}")
    if source.skipped:
        print(f"skipped: {source.summary()}")


@torch.no_grad()
def sample_log_likelihoods(flow: SpeechFlow, utterance: Speech) -> np.ndarray:
    """Compute the log-likelihood in nats of each sample of an utterance, float64 (samples,)."""
    assert utterance.waveform is not None
    waveform, conditions = utterance.waveform.to(flow.device), utterance.condition.keywords(flow.device)
    return flow.log_prob_per_sample(waveform, **conditions)[0].cpu().double().numpy()


def frame_means(values: np.ndarray, hop: int) -> np.ndarray:
    """Average values over the samples of each frame.

    >>> frame_means(np.arange(6.0), hop=3)
    array([1., 4.])
    """
    return values.reshape(-1, hop).mean(1)


def _write_curve(
    folder: Path, stem: str, utterance: Speech, values: np.ndarray, flow: SpeechFlow, reference: Reference | None
) -> None:
    spec = flow.spec
    with replacing(folder / f"{stem}.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["frame", "seconds", "log_likelihood"])
        for frame, value in enumerate(values):
            writer.writerow([frame, f"{frame * spec.hop / spec.sample_rate:.4f}", f"{value:.6f}"])
    usual = None if reference is None else -reference.mean
    save_figure(
        likelihood_curve(values, utterance.mel[0].cpu().numpy(), spec, usual, utterance.name), folder / f"{stem}.png"
    )
