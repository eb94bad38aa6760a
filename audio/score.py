"""Say how likely a trained flow holds utterances, and each moment of them: ``arflows audio score``."""

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
    """Score speech by a trained flow and write a CSV file, one line an utterance.

    Columns: utterance, samples, log_likelihood (nats per sample, a density of waveforms in [-1, 1]; higher is
    likelier), percentile (the share in percent of training utterances that are likelier; near 100: unlike the training
    data) and typicality (distance of the log-likelihood from its mean over training utterances, Nalisnick et al. 2019;
    quiet or simple sounds can be too likely). Rank by typicality to find recordings from elsewhere.

    Args:
        model: Folder of a model or of a training run, or a model's name on the Hugging Face Hub.
        speech: A folder of audio files, an audio file, or a store.
        out: The CSV file to write; replaced if it exists.
        curves: A folder for the log-likelihood of each frame of each utterance, as CSV and as picture.
        split: Which part of a store.
        speaker: Who speaks, for a model of several speakers and speech of which it is not known.
        limit: Score at most so many utterances, the first.
        device: Where to compute: cpu, cuda, …; auto takes a GPU if there is one.
    """
    flow = load_model(SpeechFlow, model, device)
    reference = Reference.load(model)
    given = SpeechInput(speech, flow, split=split, speaker=speaker, speakers=speaker_names(model), limit=limit)
    names, totals, lengths = [], [], []
    stems = FileNames()
    utterances, heard = itertools.tee(given.utterances("scoring"))
    likelihoods = distributed_map(utterances, lambda _, utterance: sample_log_likelihoods(flow, utterance))
    for values, utterance in zip(likelihoods, heard, strict=False):
        names.append(utterance.name)
        totals.append(float(values.sum()))
        lengths.append(len(values))
        if curves is not None and is_main():
            _write_curve(curves, stems(utterance.name), utterance, frame_means(values, flow.spec.hop), flow, reference)
    if not names:
        raise UserError(f"{speech} holds no utterance that can be scored: {given.summary()}.")
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
    for remark, count in sorted(given.converted.items()):
        print(f"{count:,} of them {remark}")
    if given.skipped:
        print(f"skipped: {given.summary()}")


@torch.no_grad()
def sample_log_likelihoods(flow: SpeechFlow, utterance: Speech) -> np.ndarray:
    """Log-likelihood of each sample of an utterance in nats, float64 (samples,); their sum is the utterance's."""
    assert utterance.waveform is not None
    waveform, conditions = utterance.waveform.to(flow.device), utterance.condition.keywords(flow.device)
    return flow.log_prob_per_sample(waveform, **conditions)[0].cpu().double().numpy()


def frame_means(values: np.ndarray, hop: int) -> np.ndarray:
    """Mean over the samples of each frame."""
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
