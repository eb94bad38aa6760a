"""Evaluation of a trained flow on a test split: ``arflows audio evaluate``."""

import itertools
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arflows.audio.inputs import Speech, SpeechInput, speaker_names
from arflows.audio.metrics import (
    Mean,
    bits_per_sample,
    compare_pitch,
    dequantize,
    mel_cepstral_distortion,
    mel_distance,
    multi_resolution_stft,
    optional,
    pesq_wideband,
    stoi,
    tones,
)
from arflows.audio.model import SpeechFlow
from arflows.audio.render import save_figure, spectrograms
from arflows.audio.representation import log_mel
from arflows.audio.sample import synthesise
from arflows.audio.speech_flow import Temperature, temperature_pair
from arflows.core.commands.evaluation import provenance, write_result
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.files import replacing
from arflows.core.runtime.noise import torch_generator
from arflows.core.runtime.option_types import NonNegativeInt, PositiveFloat, PositiveInt
from arflows.core.runtime.options import renamed
from arflows.core.runtime.pretrained import load_model
from arflows.core.runtime.processes import distributed_map, is_main
from arflows.data.audio_files import write_wav
from arflows.data.store import Store

UNITS = {
    "pesq": "PESQ-wb (ITU-T P.862.2), 1 … 4.64, higher is better",
    "stoi": "STOI, up to 1, higher is better",
    "mcd": "dB, mel-cepstral distortion of 13 coefficients from log-mel, no warping, lower is better",
    "mel_distance": "mean absolute difference of log-mel spectrograms, lower is better",
    "mrstft": "multi-resolution STFT: spectral convergence + log magnitude, lower is better",
    "f0_rmse": "Hz, frames voiced in both (pyin), lower is better",
    "voicing_f1": "F1 of voiced frames (pyin), higher is better",
    "tones": "dB at multiples of rate/height above their surroundings, synthesised",
    "tones_original": "dB at multiples of rate/height above their surroundings, original",
}


@renamed(unlike="ood", perception="perceptual", pictures="plots")
def evaluate(
    model: str,
    store: Path,
    out: Path,
    split: str = "test",
    temperature: PositiveFloat = 0.8,
    temperature_unvoiced: PositiveFloat | None = None,
    limit: PositiveInt | None = None,
    ood: list[Path] | None = None,
    perceptual: bool = True,
    plots: NonNegativeInt = 1,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure a trained flow on a split of a store: likelihood, quality of copy synthesis, speed.

    The likelihood of whole utterances is reported in nats per sample in the convention of the literature (a density of
    waveforms in [-1, 1], no dequantisation, at temperature 1), and as bits per 16-bit sample with uniform
    dequantisation, which is an upper bound. Both have 95% confidence intervals over utterances, and per-speaker values.

    Copy synthesis (original → mel spectrogram → waveform) is compared with the original by PESQ, STOI, mel-cepstral
    distortion, multi-resolution STFT distance, pitch and voicing errors, and tones at multiples of rate/height, an
    artefact of flows that fold the waveform. For an unconditional model only the likelihood is measured.

    Writes a JSON file with the results and all options needed to reproduce them. Spectrograms (PNG) and the
    corresponding clips (WAV) are written next to it.

    Args:
        model: Folder of a model or of a training run, or a model's name on the Hugging Face Hub.
        store: Store that contains the split.
        out: JSON file to write; replaced if it exists.
        split: Split of the store.
        temperature: Temperature of the synthesis: multiplies the standard deviation of the latents.
        temperature_unvoiced: Temperature of unvoiced speech, if different; for models that support it, such as
            PredictiveFlow.
        limit: Use only the first utterances, at most this many.
        ood: Out-of-distribution recordings (folders, files). Reports the area under the ROC curve for separating them
            from the split by log-likelihood per sample, given their own mel spectrograms.
        perceptual: Measure PESQ and STOI, which need `pip install pesq pystoi`.
        plots: Number of utterances to plot and save as WAV.
        seed: Seed of the dequantisation noise and of the latents.
        device: Device: cpu, cuda, …; auto uses a GPU if available.

    Returns:
        The written results.
    """
    options = {"model": model, "store": str(store), "split": split, "temperature": temperature, "limit": limit}
    options |= {} if temperature_unvoiced is None else {"temperature_unvoiced": temperature_unvoiced}
    options |= {"ood": [path.name for path in ood or []], "perceptual": perceptual, "seed": seed}
    temperatures = temperature_pair(temperature, temperature_unvoiced)
    start = time.perf_counter()
    flow = load_model(SpeechFlow, model, device)
    names = speaker_names(model)
    data = Store(store, expect_domain="audio")
    source = SpeechInput(data, flow, split=split, speakers=names, limit=limit)
    if perceptual and flow.conditional:
        for package in ("pesq", "pystoi"):
            optional(package)  # fail early
    rows: list[dict[str, float]] = []
    speakers: list[str] = []
    plotted: list[tuple[Speech, np.ndarray]] = []

    def measure(index: int, utterance: Speech) -> tuple[dict[str, float], np.ndarray | None]:
        row = _likelihood(flow, utterance, torch_generator(seed, "dequantization", index))
        if not flow.conditional:
            return row, None
        synthesised, seconds = _synthesise(flow, utterance, temperatures, torch_generator(seed, "latents", index))
        row |= _compare(flow, utterance, synthesised, perceptual)
        return {**row, "seconds": seconds}, synthesised if index < plots else None

    utterances, measured = itertools.tee(source.utterances(f"evaluating on {split}"))
    for (row, synthesised), utterance in zip(distributed_map(utterances, measure), measured, strict=False):
        rows.append(row)
        if synthesised is not None:
            plotted.append((utterance, synthesised))
        speaker = utterance.condition.speaker
        speakers.append("" if speaker is None else names[int(speaker)] if names else str(int(speaker)))
    if not rows:
        raise UserError(f"{store} has no usable utterance in split {split}: {source.summary()}.")
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    result: dict[str, Any] = {
        **_likelihood_figures(columns),
        "speakers": _by_speaker(columns, speakers),
        "utterances": len(rows),
        "skipped": source.skipped,
    }
    if flow.conditional:
        result["quality"] = {
            name: {**Mean.of(columns[name]).as_dict(), "unit": unit} for name, unit in UNITS.items() if name in columns
        }
        duration = columns["samples"].sum() / flow.spec.sample_rate
        result["real_time_factor"] = {
            "value": float(duration / columns["seconds"].sum()),
            "unit": "seconds of speech synthesised in a second, one utterance at a time",
            "height": flow.height,
        }
    if ood:
        own = columns["log_prob"] / columns["samples"]
        result["separation"] = {path.name: _separation(flow, path, own, seed) for path in ood}
    result |= provenance(flow, model, options, data.facts())
    for index, (utterance, synthesised) in enumerate(plotted if is_main() else []):
        stem = out.with_suffix("") if index == 0 else out.with_name(f"{out.stem}-{index}")
        _save_clip(flow, utterance, synthesised, stem)
    result["seconds"] = round(time.perf_counter() - start, 1)
    write_result(out, result, _rows(result))
    return result


def _likelihood(flow: SpeechFlow, utterance: Speech, generator: torch.Generator) -> dict[str, float]:
    """Return the log-likelihood in nats, the bits of the dequantised waveform, and the number of samples."""
    assert utterance.waveform is not None
    conditions = utterance.condition.keywords(flow.device)
    noisy = dequantize(utterance.waveform, generator)
    with torch.no_grad():
        density, dequantized = (
            float(flow.log_prob(waveform.to(flow.device), **conditions)) for waveform in (utterance.waveform, noisy)
        )
    samples = utterance.waveform.shape[1]
    bits = bits_per_sample(dequantized, samples) * samples
    return {"log_prob": density, "bits": bits, "samples": samples}


def _synthesise(
    flow: SpeechFlow, utterance: Speech, temperature: Temperature, generator: torch.Generator
) -> tuple[np.ndarray, float]:
    """Return the copy synthesis of an utterance and its duration in seconds."""
    start = time.perf_counter()
    waveform = synthesise(flow, utterance, 1, temperature, generator)
    seconds = time.perf_counter() - start
    return waveform[0].float().clamp(-1, 1).numpy(), seconds


def _compare(flow: SpeechFlow, utterance: Speech, synthesised: np.ndarray, perceptual: bool) -> dict[str, float]:
    assert utterance.waveform is not None
    original, spec = utterance.waveform[0].numpy(), flow.spec
    rate = spec.sample_rate
    pitch = compare_pitch(original, synthesised, rate)
    row = {"pesq": pesq_wideband(original, synthesised, rate)} if perceptual else {}
    row |= {"stoi": stoi(original, synthesised, rate)} if perceptual else {}
    if flow.height > 1:
        row["tones"] = float(tones(synthesised, flow.height, rate).mean())
        row["tones_original"] = float(tones(original, flow.height, rate).mean())
    return row | {
        "mcd": mel_cepstral_distortion(original, synthesised, spec),
        "mel_distance": mel_distance(original, synthesised, spec),
        "mrstft": multi_resolution_stft(original, synthesised),
        "f0_rmse": pitch.rmse,
        "voicing_f1": pitch.voicing_f1,
    }


def _likelihood_figures(columns: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {
        "log_likelihood": {
            **Mean.ratio(columns["log_prob"], columns["samples"]).as_dict(),
            "unit": "nats/sample",
            "kind": "density of waveforms in [-1, 1], no dequantisation, higher is better",
        },
        "bits_per_sample": {
            **Mean.ratio(columns["bits"], columns["samples"]).as_dict(),
            "unit": "bits/sample",
            "kind": "upper bound for 16-bit samples by uniform dequantisation, 1 draw, lower is better",
        },
    }


def _by_speaker(columns: Mapping[str, np.ndarray], speakers: list[str]) -> dict[str, Any]:
    chosen: dict[str, list[int]] = defaultdict(list)
    for index, speaker in enumerate(speakers):
        chosen[speaker].append(index)
    return {
        speaker: _likelihood_figures({name: values[indices] for name, values in columns.items()})
        for speaker, indices in sorted(chosen.items())
        if speaker
    }


def _separation(flow: SpeechFlow, path: Path, own: np.ndarray, seed: int) -> dict[str, Any]:
    """Return log-likelihood and AUROC of out-of-distribution recordings against the split.

    Raises:
        UserError: No recording can be used.
    """
    from sklearn.metrics import roc_auc_score

    source = SpeechInput(path, flow)
    utterances = source.utterances(f"scoring {path.name}")

    def measure(index: int, utterance: Speech) -> dict[str, float]:
        return _likelihood(flow, utterance, torch_generator(seed, "dequantization", index))

    rows = list(distributed_map(utterances, measure))
    if not rows:
        raise UserError(f"{path} holds no utterance that can be scored: {source.summary()}.")
    totals, samples = np.array([[row["log_prob"], row["samples"]] for row in rows]).T
    likelier = np.concatenate([np.ones(len(own)), np.zeros(len(rows))])
    return {
        "auroc": float(roc_auc_score(likelier, np.concatenate([own, totals / samples]))),
        "log_likelihood": {**Mean.ratio(totals, samples).as_dict(), "unit": "nats/sample"},
        "skipped": source.skipped,
    }


def _save_clip(flow: SpeechFlow, utterance: Speech, synthesised: np.ndarray, stem: Path) -> None:
    assert utterance.waveform is not None
    spec = flow.spec
    mels = {
        "original": utterance.mel[0].cpu().numpy(),
        "synthesised": log_mel(torch.from_numpy(synthesised)[None], spec)[0].numpy(),
    }
    figure = spectrograms(mels, spec, difference=("original", "synthesised"))
    save_figure(figure, stem.with_name(f"{stem.name}.png"))
    for name, wave in (("original", utterance.waveform[0].numpy()), ("synthesised", synthesised)):
        with replacing(stem.with_name(f"{stem.name}-{name}.wav")) as temporary:
            write_wav(temporary, wave, spec.sample_rate)


def _rows(result: Mapping[str, Any]) -> dict[str, str]:
    """Return the rows of the printed table."""

    def formatted(figure: Mapping[str, Any]) -> str:
        if figure["value"] is None:
            return f"none, {figure['unit']}"
        spread = "" if figure["interval_95"] is None else " ({:.4g} … {:.4g})".format(*figure["interval_95"])
        return f"{figure['value']:.4g}{spread} {figure['unit']}"

    rows = {
        "log-likelihood": f"{formatted(result['log_likelihood'])}, {result['log_likelihood']['kind']}",
        "bits": f"{formatted(result['bits_per_sample'])}, {result['bits_per_sample']['kind']}",
    }
    for speaker, figures in result["speakers"].items():
        rows[f"  {speaker}"] = formatted(figures["log_likelihood"])
    rows |= {name: formatted(figure) for name, figure in result.get("quality", {}).items()}
    for name, separation in result.get("separation", {}).items():
        rows[f"against {name}"] = (
            f"AUROC {separation['auroc']:.3f}, their log-likelihood {formatted(separation['log_likelihood'])}"
        )
    if "real_time_factor" in result:
        rows["real-time factor"] = "{value:.3g}, {unit}".format(**result["real_time_factor"])
    rows["utterances"] = f"{result['utterances']:,}; intervals are 95% over utterances"
    return rows
