"""Audio chapter of ``arflows demo``: WaveFlow on built-in speech."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arflows.audio.evaluate import evaluate
from arflows.audio.inputs import Speech, SpeechInput
from arflows.audio.model import SpeechFlow
from arflows.audio.prepare import prepare
from arflows.audio.render import likelihood_curve, spectrograms
from arflows.audio.representation import log_mel
from arflows.audio.sample import synthesise
from arflows.audio.score import frame_means, sample_log_likelihoods
from arflows.audio.train import train
from arflows.core.commands.plots import score_histogram, training_curve
from arflows.core.commands.report import Chapter, Paragraph, Picture, Setup, Sounds, Table
from arflows.core.runtime.pretrained import load_model
from arflows.data.audio_files import write_wav

UTTERANCES = 64
"""Number of training sentences, and limit of validation and test sentences."""
EVALUATED = 4
"""Number of test sentences for `evaluate`; scoring uses all."""
TEMPERATURE = 0.7


def chapter(out: Path, seed: int = 0) -> Chapter:
    """Prepare the built-in speech, train a model, and synthesise, score and evaluate with it.

    Args:
        out: Folder for the store, the run and sounds; results of an earlier demo are replaced.
        seed: Seed of voices, weights, data order and latents.
    """
    store, run = out / "espeak.h5", out / "run"
    shutil.rmtree(run, ignore_errors=True)
    prepare("espeak", store, limit=UTTERANCES, seed=seed, overwrite=True)
    words = ["--config", "demo", "--data.store", str(store), "--out", str(run), "--seed", str(seed)]
    train(*words)
    result = evaluate(
        str(run), store, out / "figures.json", temperature=TEMPERATURE, limit=EVALUATED, perceptual=False, seed=seed
    )
    flow = load_model(SpeechFlow, str(run), "cpu")
    utterances = list(SpeechInput(store, flow).utterances())
    blocks = [
        *_copy(flow, utterances[0], out, seed),
        Picture(
            training_curve(run, "nats_per_dim", "negative log-likelihood, nats/sample"),
            "Training: nats per sample of each batch, and of validation sentences with the averaged weights. Lower is "
            "better; values are negative because the density of quiet sounds is above 1.",
            "A curve of nats per sample that falls over the training steps",
        ),
        Paragraph(
            "The flow gives the density of a recording sample by sample. In the test sentence below, a quarter of a "
            "second was replaced by noise of the same loudness; the mel spectrogram that conditions the flow is that "
            "of the original."
        ),
        _likelihood_over_time(flow, utterances[1], seed),
        _histogram(flow, utterances, seed),
        _figures(result),
        Setup(
            {
                "data": f"built in: eSpeak NG reads this project's sentences in five voices, {UTTERANCES} to train on; "
                "no sentence is in two splits",
                "likelihood": "density of waveforms in [-1, 1] in nats per sample, no dequantisation, with 95% "
                "intervals over sentences; bits per 16-bit sample by uniform dequantisation, an upper bound",
                "budget": "about a minute on a CPU: enough to show that everything works, not for good sound",
                "temperature": TEMPERATURE,
                "seed": seed,
            }
        ),
    ]
    return Chapter(
        "Speech",
        "A small WaveFlow is trained on built-in speech by exact maximum likelihood, conditioned on mel spectrograms. "
        "Below are a test sentence and its copy synthesis, the training curve, and log-likelihoods of test sentences.",
        blocks,
    )


def _copy(flow: SpeechFlow, utterance: Speech, out: Path, seed: int) -> list[Any]:
    """Return sounds and spectrograms of a test sentence and its copy synthesis."""
    assert utterance.waveform is not None
    generator = torch.Generator().manual_seed(seed)
    copies = {
        "spoken by eSpeak NG": utterance.waveform[0],
        f"synthesised from its mel spectrogram, temperature {TEMPERATURE:g}": synthesise(
            flow, utterance, 1, TEMPERATURE, generator
        )[0],
    }
    paths = [out / f"{name}.wav" for name in ("spoken", "synthesised")]
    for path, waveform in zip(paths, copies.values(), strict=True):
        write_wav(path, waveform.numpy(), flow.spec.sample_rate)
    mels = {
        name: log_mel(waveform.clamp(-1, 1)[None], flow.spec)[0].numpy()
        for name, waveform in zip(("spoken", "synthesised"), copies.values(), strict=True)
    }
    difference = abs(mels["spoken"] - mels["synthesised"]).mean()
    return [
        Sounds(paths, list(copies), "A test sentence, and its synthesis from the mel spectrogram alone."),
        Picture(
            spectrograms(mels, flow.spec, difference=("spoken", "synthesised")),
            "Mel spectrograms of both, and their difference.",
            f"Two mel spectrograms that differ by {difference:.2g} on average, and a third picture of their difference",
        ),
    ]


def _likelihood_over_time(flow: SpeechFlow, utterance: Speech, seed: int) -> Picture:
    assert utterance.waveform is not None
    waveform = utterance.waveform.clone()
    length, middle = flow.spec.sample_rate // 4, waveform.shape[1] // 2
    part = waveform[:, middle : middle + length]
    part[:] = part.std() * torch.randn(part.shape, generator=torch.Generator().manual_seed(seed))
    values = frame_means(sample_log_likelihoods(flow, _changed(utterance, waveform)), flow.spec.hop)
    return Picture(
        likelihood_curve(values, log_mel(waveform, flow.spec)[0].numpy(), flow.spec),
        "Log-likelihood over time, nats per sample averaged over each frame: it falls where the noise is.",
        "A spectrogram with a noisy stretch in its middle, and a curve below that dips there",
    )


def _histogram(flow: SpeechFlow, utterances: list[Speech], seed: int) -> Picture:
    """Return a histogram of the scores of test sentences, as they are and corrupted."""
    generator = torch.Generator().manual_seed(seed)

    def noisy(x: torch.Tensor) -> torch.Tensor:
        return x + 0.003 * torch.randn(x.shape, generator=generator)

    changes = {"test sentences": lambda x: x, "with a little noise": noisy, "played backwards": lambda x: x.flip(1)}
    scores: dict[str, Any] = {name: [] for name in changes}
    for utterance in utterances:
        for name, change in changes.items():
            assert utterance.waveform is not None
            scores[name].append(sample_log_likelihoods(flow, _changed(utterance, change(utterance.waveform))).mean())
    return Picture(
        score_histogram({name: np.array(values) for name, values in scores.items()}, "log-likelihood, nats/sample"),
        "Log-likelihood of test sentences, given their mel spectrograms, and of the same sentences with noise at "
        "-50 dB or played backwards.",
        "Histograms of nats per sample of the three sets",
    )


def _changed(utterance: Speech, waveform: torch.Tensor) -> Speech:
    """Return the utterance with another waveform and its own mel spectrogram."""
    return Speech(utterance.name, waveform, utterance.condition, utterance.mel)


def _figures(result: dict[str, Any]) -> Table:
    def formatted(figure: dict[str, Any], digits: int = 2) -> str:
        if figure["value"] is None:
            return "-"
        spread = "" if figure["interval_95"] is None else f" ± {1.96 * figure['standard_error']:.{digits}f}"
        return f"{figure['value']:.{digits}f}{spread}"

    quality = result["quality"]
    rows = [
        ["log-likelihood, nats/sample (higher is better)", formatted(result["log_likelihood"])],
        ["bits/sample of 16, upper bound", formatted(result["bits_per_sample"])],
        ["mel-cepstral distortion, dB", formatted(quality["mcd"], 1)],
        ["multi-resolution STFT distance", formatted(quality["mrstft"])],
        ["pitch error, Hz", formatted(quality["f0_rmse"], 1)],
        ["F1 of voicing", formatted(quality["voicing_f1"])],
        ["times real time", f"{result['real_time_factor']['value']:.1f}"],
        ["parameters", f"{result['model']['parameters']:,}"],
    ]
    caption = f"Measured on {result['utterances']} test sentences, at temperature {TEMPERATURE:g}, on this machine."
    return Table(["figure", "value ± 95% interval"], rows, caption)
