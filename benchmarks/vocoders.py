"""Copy synthesis without learned models, for comparison: ``python benchmarks/vocoders.py --store FILE``.

Each row synthesises the sentences of a store's test split and compares them with the originals, as `arflows audio
evaluate` does. All start from the mel spectrogram but WORLD, which analyses the original: its own pitch, envelope and
aperiodicity.

- Griffin-Lim: amplitudes by non-negative least squares, phases by 60 iterations (librosa's defaults otherwise).
- WORLD: Harvest, CheapTrick and D4C, then its synthesis (pyworld, which is to be installed for this benchmark alone).
- linear prediction, noise: the filters of `PredictiveFlow`, excited by white noise at temperature 0.8.
- linear prediction, pulses and noise: voiced frames get a pulse of the excitation's power each pitch period, by the lag
  that is followed in the mel spectrogram, mixed with noise by the periodicity.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pyworld
import torch
from common import OUT, table, write

from arflows.audio import MelSpec, PredictiveFlow
from arflows.audio.datamodule import SpeechDataset
from arflows.audio.linear_prediction import LinearPrediction
from arflows.audio.metrics import (
    Mean,
    compare_pitch,
    mel_cepstral_distortion,
    multi_resolution_stft,
    pesq_wideband,
    stoi,
)
from arflows.audio.predictive_synthesis import VOICED
from arflows.data.store import Store

TEMPERATURE = 0.8


def griffin_lim(waveform: np.ndarray, mel: torch.Tensor, spec: MelSpec) -> np.ndarray:
    """From the mel spectrogram."""
    amplitudes = librosa.feature.inverse.mel_to_stft(
        mel[0].double().exp().numpy(), sr=spec.sample_rate, n_fft=spec.n_fft, power=spec.power, fmin=spec.fmin,
        fmax=spec.fmax,
    )  # fmt: skip
    # Frames lie around the middles of hops, librosa's around their beginnings.
    shift, length = spec.hop // 2, (amplitudes.shape[1] - 1) * spec.hop
    found = librosa.griffinlim(
        amplitudes, n_iter=60, hop_length=spec.hop, win_length=spec.window, random_state=0, length=length
    )
    out = np.zeros(len(waveform), np.float32)
    out[shift : shift + length] = found
    return out


def world(waveform: np.ndarray, mel: torch.Tensor, spec: MelSpec) -> np.ndarray:
    """From the original."""
    wave, rate = waveform.astype(np.float64), spec.sample_rate
    pitch, times = pyworld.harvest(wave, rate)
    envelope, aperiodicity = pyworld.cheaptrick(wave, pitch, times, rate), pyworld.d4c(wave, pitch, times, rate)
    return pyworld.synthesize(pitch, envelope, aperiodicity, rate)[: len(waveform)].astype(np.float32)


class Prediction:
    """Linear prediction excited by noise, or by pulses and noise."""

    def __init__(self, spec: MelSpec, training: torch.Tensor, pulses: bool) -> None:
        self.flow = PredictiveFlow(spec.as_dict(), density="normal")
        self.flow.initialize(training)
        self.pulses = pulses

    def __call__(self, waveform: np.ndarray, mel: torch.Tensor, spec: MelSpec) -> np.ndarray:
        """From the mel spectrogram."""
        flow = self.flow
        with torch.no_grad():
            conditions = flow.context(torch.from_numpy(waveform)[None], _condition(mel))
        coefficients, gain, _ = conditions.filters
        noise = TEMPERATURE * torch.randn(len(waveform), generator=torch.Generator().manual_seed(0)).numpy()
        excitation = noise
        if self.pulses:
            low, high = VOICED
            voiced = ((conditions.periodicity[0] - low) / (high - low)).clamp(0, 1).numpy()
            lag = conditions.lag[0, flow.per_frame : -flow.per_frame].numpy()
            train, due = np.zeros(len(waveform)), 0.0
            while due < len(waveform):
                sub = int(due) // flow.subframe
                train[int(due)] = np.sqrt(lag[sub])
                due += lag[sub]
            share = np.repeat(voiced, flow.subframe)
            excitation = np.sqrt(share) * train + np.sqrt(1 - share) * noise
        context = torch.cat([coefficients, gain.log()[..., None]], 2)
        found, _ = LinearPrediction().inverse(torch.from_numpy(excitation)[None], context)
        return found[0].float().numpy()


def _condition(mel: torch.Tensor) -> Any:
    from arflows.audio.representation import Condition

    return Condition(mel)


def compare(original: np.ndarray, synthesised: np.ndarray, spec: MelSpec) -> dict[str, float]:
    """The figures of a sentence."""
    synthesised = np.clip(synthesised, -1, 1)
    pitch, rate = compare_pitch(original, synthesised, spec.sample_rate), spec.sample_rate
    return {
        "PESQ-wb": pesq_wideband(original, synthesised, rate),
        "STOI": stoi(original, synthesised, rate),
        "MCD dB": mel_cepstral_distortion(original, synthesised, spec),
        "M-STFT": multi_resolution_stft(original, synthesised),
        "F0 rmse Hz": pitch.rmse,
        "voicing F1": pitch.voicing_f1,
    }


def main() -> None:
    """Measure and write down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    store = Store(options.store, expect_domain="audio")
    spec = MelSpec.from_dict(store.spec)
    training = SpeechDataset(store, "train", segment=40 * spec.hop)
    segments = training.__getitems__(list(range(min(256, len(training)))))["x"]
    test = SpeechDataset(store, "test", limit=None)
    count = min(len(test), options.limit or len(test))
    methods: dict[str, Callable[[np.ndarray, torch.Tensor, MelSpec], np.ndarray]] = {
        "Griffin-Lim, from mel": griffin_lim,
        "WORLD, from the original": world,
        "linear prediction, noise, from mel": Prediction(spec, segments, pulses=False),
        "linear prediction, pulses and noise, from mel": Prediction(spec, segments, pulses=True),
    }
    rows = []
    for name, method in methods.items():
        figures = []
        for index in range(count):
            batch = test.__getitems__([index])
            original = batch["x"][0].numpy()
            figures.append(compare(original, method(original, batch["mel"], spec), spec))
        means = {key: Mean.of(np.array([figure[key] for figure in figures])).value for key in figures[0]}
        rows.append({"method": name, **means})
        print(rows[-1], flush=True)
    data = {"source": store.facts()["source"], "split": "test", "sentences": count}
    path = write("vocoders", rows, folder=options.out, data=data)
    print(table(rows), path, sep="\n")


if __name__ == "__main__":
    main()
