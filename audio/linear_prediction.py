"""Linear prediction whose coefficients come from a mel spectrogram: it whitens speech before anything is learned.

mel spectrogram → power spectrum → autocorrelation → Levinson–Durbin recursion → coefficients of every sub-frame.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from arflows.audio.representation import MelSpec, _filters, log_mel
from arflows.core.bijections import Bijection, InitializedFromData
from arflows.core.bijections.base import full_precision
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.numba_loops import compiled
from arflows.core.runtime.torch_compat import is_transformed

GROUP_WIDTH = 400.0
"""Hz, about the width of the groups of frequencies above the highest mel band whose levels are estimated."""
RIDGE = 10.0
"""Weight of the penalty of the regression that estimates them."""
LAG_WINDOW = 30.0
"""Hz: the width of the Gaussian that smooths the power spectrum, so that no pole is narrower than that."""
WHITE_NOISE = 1e-5
"""Power of the white noise that is added, relative to the signal; a correction of −50 dB."""
LEAST_POWER = 1e-9
"""Absolute power of the white noise that is added, about that of one step of 16 bits."""
LOG_RANGE = (-20.0, 12.0)
"""Log-amplitudes of a spectrum are held within, so that every mel spectrogram has a finite filter."""


class Envelope(InitializedFromData):
    """Mel spectrogram → log-amplitude at every frequency of the Fourier transform.

    A band's mean amplitude stands at its centre; between centres log-amplitudes are interpolated. Levels above the
    highest band are a linear function of the log-mel values, by ridge regression on the waveforms that initialise it;
    before that they continue the highest band.

    Args:
        spec: settings of the mel spectrograms.
    """

    high: Tensor

    def __init__(self, spec: MelSpec) -> None:
        super().__init__()
        self.spec = spec
        groups = len(_constants(spec).groups)
        high = torch.zeros(groups, spec.bands + 1)
        high[:, -2] = 1.0
        high[:, -1] = -float(_constants(spec).log_area[-1]) / spec.power
        self.register_buffer("high", high)

    def forward(self, mel: Float[Tensor, "*batch bands frames"]) -> Float[Tensor, "*batch frames frequencies"]:
        """Log-mel spectrogram, as of `MelSpec` → natural log-amplitudes, float64."""
        constants = _constants(self.spec).to(mel.device)
        bands = natural(mel, self.spec).mT
        levels = bands - constants.log_area / self.spec.power
        if constants.groups:
            high = self.high.double()
            levels = torch.cat([levels, bands @ high[:, :-1].mT + high[:, -1]], -1)
        return (levels @ constants.interpolation).clamp(*LOG_RANGE)

    def _set_from(self, x: Float[Tensor, "batch samples"]) -> None:
        """Fits the levels above the highest band to waveforms; frames that reach beyond these are left out."""
        spec, constants = self.spec, _constants(self.spec)
        if constants.groups:
            mel = log_mel(x, spec)
            before = -(-spec.margin[0] // spec.hop)
            inner = x.double()[:, before * spec.hop - spec.margin[0] :]
            window = torch.hann_window(spec.window, dtype=torch.float64, device=x.device)
            spectrum = torch.stft(inner, spec.n_fft, spec.hop, spec.window, window, center=False, return_complex=True)
            power = spectrum.abs().square()
            levels = [(power[:, first:last].mean(1) + 1e-10).log() / 2 for first, last in constants.groups]
            target = torch.stack(levels, 2)
            known = natural(mel, spec).mT[:, before : before + target.shape[1]]
            target = target[:, : known.shape[1]].flatten(0, 1)
            inputs = F.pad(known, (0, 1), value=1.0).flatten(0, 1)
            if len(inputs) < inputs.shape[1]:  # waveforms too short or too few to tell
                return
            penalty = RIDGE * torch.eye(inputs.shape[1], dtype=inputs.dtype, device=inputs.device)
            self.high.copy_(torch.linalg.solve(inputs.mT @ inputs + penalty, inputs.mT @ target).mT)


def natural(mel: Tensor, spec: MelSpec) -> Tensor:
    """Log-mel values as natural logarithms of amplitudes, float64."""
    return mel.double() * ((1.0 if spec.log_base == "e" else math.log(10)) / spec.power)


class _Constants(NamedTuple):
    """Of a `MelSpec`: log-sums of its filters, first and last frequencies of groups above them, matrix of levels."""

    log_area: Tensor
    groups: list[tuple[int, int]]
    interpolation: Tensor

    def to(self, device: torch.device) -> _Constants:
        return self._replace(log_area=self.log_area.to(device), interpolation=self.interpolation.to(device))


@functools.lru_cache(maxsize=8)
def _constants(spec: MelSpec) -> _Constants:
    import librosa

    area = _filters(spec).sum(1)
    centres = librosa.mel_frequencies(spec.bands + 2, fmin=spec.fmin, fmax=spec.fmax)[1:-1]
    width, count = spec.sample_rate / spec.n_fft, spec.n_fft // 2 + 1
    first = math.ceil(spec.fmax / width)
    groups = min(math.ceil((count - 1 - first) * width / GROUP_WIDTH), count - first) if first < count - 1 else 0
    edges = np.linspace(first, count, groups + 1).astype(int) if groups else np.zeros(0, int)
    pairs = [(int(low), int(high)) for low, high in itertools.pairwise(edges)] if groups else []
    places = np.concatenate([centres, [(low + high - 1) / 2 * width for low, high in pairs]])
    # Bands narrower than a frequency's distance have no filter: nothing is known of them.
    known = np.concatenate([area.numpy() > 0, np.ones(len(pairs), bool)])
    matrix = np.zeros((len(places), count))
    matrix[known] = np.stack(
        [np.interp(np.arange(count) * width, places[known], row) for row in np.eye(int(known.sum()))]
    )
    return _Constants(torch.where(area > 0, area, 1.0).log(), pairs, torch.from_numpy(matrix))


def autocorrelation(
    log_amplitude: Float[Tensor, "*batch frequencies"], spec: MelSpec, order: int
) -> Float[Tensor, "*batch order+1"]:
    """Autocorrelation of a sample at lags 0 … order, float64, from the log-amplitudes of a windowed transform."""
    return (2 * log_amplitude).exp() @ _cosines(spec, order).to(log_amplitude.device)


@functools.lru_cache(maxsize=8)
def _cosines(spec: MelSpec, order: int) -> Float[Tensor, "frequencies lags"]:
    """The inverse Fourier transform of a power spectrum, per sample of the window's energy."""
    count = spec.n_fft // 2 + 1
    weight = np.full(count, 2.0)
    weight[0] = 1.0
    if spec.n_fft % 2 == 0:
        weight[-1] = 1.0
    angles = 2 * np.pi * np.outer(np.arange(count), np.arange(order + 1)) / spec.n_fft
    energy = float(torch.hann_window(spec.window, dtype=torch.float64).square().sum())
    return torch.from_numpy(weight[:, None] * np.cos(angles) / (spec.n_fft * energy))


def conditioned(r: Float[Tensor, "*batch order+1"], rate: int) -> Float[Tensor, "*batch order+1"]:
    """Autocorrelations of a smoothed spectrum with some white noise, of which every filter is stable."""
    lags = torch.arange(r.shape[-1], dtype=r.dtype, device=r.device)
    r = r * (-0.5 * (2 * math.pi * LAG_WINDOW / rate * lags).square()).exp()
    noise = torch.zeros_like(lags)
    noise[0] = 1.0
    return r + (WHITE_NOISE * r[..., :1] + LEAST_POWER) * noise


def levinson_durbin(
    r: Float[Tensor, "*batch order+1"],
) -> tuple[Float[Tensor, "*batch order"], Float[Tensor, "*batch"], Float[Tensor, "*batch order"]]:
    """Coefficients a of the linear prediction Σ a_k x_{t−k} with the smallest mean squared error.

    The Levinson–Durbin recursion; Rabiner & Schafer, "Digital processing of speech signals", 1978, section 8.3.2.

    Args:
        r: autocorrelations at lags 0 … order, positive definite.

    Returns:
        The coefficients, the mean squared error, and the reflection coefficients, all of which are within (−1, 1): the
        inverse filter is stable.
    """
    order = r.shape[-1] - 1
    if r.device.type == "cpu":
        rows = r.detach().reshape(-1, order + 1).contiguous().numpy()
        arrays = np.zeros((len(rows), order), rows.dtype), np.zeros(len(rows), rows.dtype), np.zeros_like(rows[:, 1:])
        _levinson_durbin(rows, *arrays)
        a, error, reflections = (torch.from_numpy(array) for array in arrays)
        return a.view(*r.shape[:-1], order), error.view(r.shape[:-1]), reflections.view(*r.shape[:-1], order)
    a = r.new_zeros(*r.shape[:-1], order)
    reflections = torch.zeros_like(a)
    error = r[..., 0].clone()
    for i in range(order):
        k = (r[..., i + 1] - (a[..., :i] * r[..., 1 : i + 1].flip(-1)).sum(-1)) / error
        reflections[..., i] = k
        a[..., :i] = a[..., :i] - k[..., None] * a[..., :i].flip(-1)
        a[..., i] = k
        error = error * (1 - k.square())
    return a, error, reflections


@compiled
def _levinson_durbin(r: Any, a: Any, error: Any, reflections: Any) -> None:
    order = a.shape[1]
    before = np.zeros(order, r.dtype)
    for row in range(len(r)):
        own, given = a[row], r[row]
        left = given[0]
        for i in range(order):
            k = given[i + 1]
            for j in range(i):
                k -= own[j] * given[i - j]
            k /= left
            before[:i] = own[:i]
            for j in range(i):
                own[j] = before[j] - k * before[i - 1 - j]
            own[i] = k
            reflections[row, i] = k
            left *= 1 - k * k
        error[row] = left


class Filters(NamedTuple):
    """Linear prediction of every sub-frame.

    Attributes:
        coefficients: (batch, sub-frames, order), of the previous samples, the last one first.
        gain: (batch, sub-frames), the residual's standard deviation, g.
        level: (batch, sub-frames), that of the signal.
    """

    coefficients: Float[Tensor, "batch subframes order"]
    gain: Float[Tensor, "batch subframes"]
    level: Float[Tensor, "batch subframes"]


def filters(
    log_amplitude: Float[Tensor, "batch frames frequencies"], spec: MelSpec, order: int, per_frame: int
) -> Filters:
    """Linear prediction of the sub-frames of all frames but the first and the last; float64.

    The autocorrelation of a sub-frame is interpolated between those of the frames whose middles lie around its own. As
    a convex combination of autocorrelations it is one itself, and so every filter is stable.

    Args:
        log_amplitude: spectra of the frames and of one more at either end.
        spec: settings of the mel spectrograms.
        order: of the prediction.
        per_frame: sub-frames of a frame.
    """
    r = conditioned(interpolated(autocorrelation(log_amplitude, spec, order), spec, per_frame), spec.sample_rate)
    coefficients, error, _ = levinson_durbin(r)
    return Filters(coefficients, error.sqrt(), r[..., 0].sqrt())


def interpolated(
    values: Float[Tensor, "batch frames features"], spec: MelSpec, per_frame: int
) -> Float[Tensor, "batch subframes features"]:
    """Frame-wise values at the middles of the sub-frames of all frames but the first and the last, linearly."""
    frames = values.shape[1] - 2
    place = (torch.arange(per_frame, dtype=torch.float64) + 0.5) / per_frame - (0.5 if spec.padding == "same" else 0.0)
    after = place >= 0
    weight = (place - place.floor()).to(values)[:, None]
    previous, own, following = (values[:, shift : shift + frames, None] for shift in range(3))
    after = after.to(values.device)[:, None]
    mixed = torch.lerp(torch.where(after, own, previous), torch.where(after, following, own), weight)
    return mixed.flatten(1, 2)


def predict(
    x: Float[Tensor, "batch samples"], coefficients: Float[Tensor, "batch subframes order"]
) -> Float[Tensor, "batch samples"]:
    """Linear prediction of each sample from those before it; zeros precede the first."""
    order, subframes = coefficients.shape[-1], coefficients.shape[1]
    past = F.pad(x, (order, 0))[:, :-1].unfold(1, order, 1)
    past = past.unflatten(1, (subframes, -1))
    return (past @ coefficients.flip(-1)[..., None].to(x.dtype)).flatten(1)


class LinearPrediction(Bijection):
    """e_t = (x_t − Σ a_k x_{t−k}) / g, with coefficients and gains that the context brings.

    A unit-triangular map but for the gain, of log-determinant −Σ log g. The inverse is an all-pole filter, a compiled
    loop on CPUs.

    The context is (batch, sub-frames, order + 1): the coefficients of each sub-frame and log g; waveforms are
    (batch, samples), a multiple of the sub-frames.
    """

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Waveform → residual."""
        coefficients, log_gain = self._parts(x, context)
        per_sample = log_gain.repeat_interleave(x.shape[1] // log_gain.shape[1], 1)
        with full_precision(x):
            residual = (x - predict(x, coefficients)) * (-per_sample).exp()
        return residual, -per_sample.sum(1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Residual → waveform."""
        coefficients, log_gain = self._parts(z, context)
        length = z.shape[1] // log_gain.shape[1]
        excitation = z * log_gain.exp().repeat_interleave(length, 1)
        log_det = length * log_gain.sum(1)
        wanted = torch.is_grad_enabled() and (excitation.requires_grad or coefficients.requires_grad)
        if wanted or is_transformed() or torch.compiler.is_compiling():
            return _differentiable_all_pole(excitation, coefficients), log_det
        x = np.zeros(z.shape, excitation.detach().cpu().numpy().dtype)
        _all_pole(excitation.detach().cpu().numpy(), coefficients.detach().cpu().double().numpy(), x)
        return torch.from_numpy(x).to(z), log_det

    def _parts(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if context is None:
            raise UserError("linear prediction needs the coefficients of each sub-frame as its context")
        if not context.shape[1] or x.shape[1] % context.shape[1]:
            raise UserError(f"{x.shape[1]} samples are no multiple of {context.shape[1]} sub-frames")
        return context[..., :-1], context[..., -1].to(x.dtype)


def _differentiable_all_pole(
    excitation: Float[Tensor, "batch samples"], coefficients: Float[Tensor, "batch subframes order"]
) -> Float[Tensor, "batch samples"]:
    """`_all_pole` sample by sample in PyTorch, for gradients."""
    length = excitation.shape[1] // coefficients.shape[1]
    past = torch.zeros_like(excitation[:, :1]).expand(-1, coefficients.shape[2])  # the newest first
    samples = []
    for t in range(excitation.shape[1]):
        sample = excitation[:, t] + (coefficients[:, t // length].to(past.dtype) * past).sum(1)
        past = torch.cat([sample[:, None], past[:, :-1]], 1)
        samples.append(sample)
    return torch.stack(samples, 1)


@compiled
def _all_pole(excitation: Any, coefficients: Any, x: Any) -> None:
    """x_t = e_t + Σ a_k x_{t−k}, with sums in float64."""
    length = x.shape[1] // coefficients.shape[1]
    for example in range(len(x)):
        for t in range(x.shape[1]):
            a = coefficients[example, t // length]
            total = np.float64(excitation[example, t])
            for k in range(min(len(a), t)):
                total += a[k] * x[example, t - 1 - k]
            x[example, t] = total
