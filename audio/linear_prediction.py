"""Linear prediction with coefficients from a mel spectrogram, which whitens speech without learned parameters.

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
"""Approximate width in Hz of the frequency groups above the highest mel band, whose levels are estimated."""
RIDGE = 10.0
"""Penalty of the ridge regression that estimates these levels."""
LAG_WINDOW = 30.0
"""Width in Hz of the Gaussian that smooths the power spectrum; a lower bound of the poles' bandwidths."""
WHITE_NOISE = 1e-5
"""Power of the added white noise relative to the signal, −50 dB."""
LEAST_POWER = 1e-9
"""Absolute power of the added white noise, about that of one 16-bit step."""
LOG_RANGE = (-20.0, 12.0)
"""Clamp range of log-amplitudes, so that the filter of any mel spectrogram is finite."""


class Envelope(InitializedFromData):
    """Mel spectrogram → log-amplitude at every frequency of the Fourier transform.

    Log-amplitudes are interpolated between the centres of the mel bands. Levels above the highest band are a linear
    function of the log-mel values, fitted by ridge regression in `initialize_from`; before that they equal the level
    of the highest band.

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
        """Map a log-mel spectrogram to natural log-amplitudes, float64."""
        constants = _constants(self.spec).to(mel.device)
        bands = natural(mel, self.spec).mT
        levels = bands - constants.log_area / self.spec.power
        if constants.groups:
            high = self.high.double()
            levels = torch.cat([levels, bands @ high[:, :-1].mT + high[:, -1]], -1)
        return (levels @ constants.interpolation).clamp(*LOG_RANGE)

    def _set_from(self, x: Float[Tensor, "batch samples"]) -> None:
        """Fit the levels above the highest band to waveforms, without the frames that exceed their ends."""
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
            if len(inputs) < inputs.shape[1]:  # too few frames for a fit
                return
            penalty = RIDGE * torch.eye(inputs.shape[1], dtype=inputs.dtype, device=inputs.device)
            self.high.copy_(torch.linalg.solve(inputs.mT @ inputs + penalty, inputs.mT @ target).mT)


def natural(mel: Tensor, spec: MelSpec) -> Tensor:
    """Convert log-mel values to natural logarithms of amplitudes, float64."""
    return mel.double() * ((1.0 if spec.log_base == "e" else math.log(10)) / spec.power)


class _Constants(NamedTuple):
    """Constants of a `MelSpec`: log-sums of its filters, frequency groups above them (first, end), interpolation."""

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
    positions = np.concatenate([centres, [(low + high - 1) / 2 * width for low, high in pairs]])
    # Bands narrower than a frequency bin have an empty filter, and their level is unknown.
    known = np.concatenate([area.numpy() > 0, np.ones(len(pairs), bool)])
    matrix = np.zeros((len(positions), count))
    matrix[known] = np.stack(
        [np.interp(np.arange(count) * width, positions[known], row) for row in np.eye(int(known.sum()))]
    )
    return _Constants(torch.where(area > 0, area, 1.0).log(), pairs, torch.from_numpy(matrix))


def autocorrelation(
    log_amplitude: Float[Tensor, "*batch frequencies"], spec: MelSpec, order: int
) -> Float[Tensor, "*batch order+1"]:
    """Compute the autocorrelation at lags 0 … order from the log-amplitudes of a windowed transform, float64.

    Args:
        log_amplitude: natural log-amplitudes of the spectrum.
        spec: settings of the transform.
        order: largest lag.
    """
    return (2 * log_amplitude).exp() @ _cosines(spec, order).to(log_amplitude.device)


@functools.lru_cache(maxsize=8)
def _cosines(spec: MelSpec, order: int) -> Float[Tensor, "frequencies lags"]:
    """Return the inverse Fourier transform of a power spectrum as a matrix, divided by the window's energy."""
    count = spec.n_fft // 2 + 1
    weight = np.full(count, 2.0)
    weight[0] = 1.0
    if spec.n_fft % 2 == 0:
        weight[-1] = 1.0
    angles = 2 * np.pi * np.outer(np.arange(count), np.arange(order + 1)) / spec.n_fft
    energy = float(torch.hann_window(spec.window, dtype=torch.float64).square().sum())
    return torch.from_numpy(weight[:, None] * np.cos(angles) / (spec.n_fft * energy))


def conditioned(r: Float[Tensor, "*batch order+1"], rate: int) -> Float[Tensor, "*batch order+1"]:
    """Smooth the spectrum and add white noise, by lag windowing of its autocorrelation; this keeps filters stable."""
    lags = torch.arange(r.shape[-1], dtype=r.dtype, device=r.device)
    r = r * (-0.5 * (2 * math.pi * LAG_WINDOW / rate * lags).square()).exp()
    noise = torch.zeros_like(lags)
    noise[0] = 1.0
    return r + (WHITE_NOISE * r[..., :1] + LEAST_POWER) * noise


def levinson_durbin(
    r: Float[Tensor, "*batch order+1"],
) -> tuple[Float[Tensor, "*batch order"], Float[Tensor, "*batch"], Float[Tensor, "*batch order"]]:
    """Compute the coefficients a of the linear prediction Σ a_k x_{t−k} with the smallest mean squared error.

    Levinson–Durbin recursion; Rabiner & Schafer, "Digital processing of speech signals", 1978, section 8.3.2.

    Args:
        r: autocorrelations at lags 0 … order, positive definite.

    Returns:
        The coefficients, the mean squared error, and the reflection coefficients. These lie within (−1, 1), so the
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
    previous = np.zeros(order, r.dtype)
    for row in range(len(r)):
        coefficients, correlation = a[row], r[row]
        residual = correlation[0]
        for i in range(order):
            k = correlation[i + 1]
            for j in range(i):
                k -= coefficients[j] * correlation[i - j]
            k /= residual
            previous[:i] = coefficients[:i]
            for j in range(i):
                coefficients[j] = previous[j] - k * previous[i - 1 - j]
            coefficients[i] = k
            reflections[row, i] = k
            residual *= 1 - k * k
        error[row] = residual


class Filters(NamedTuple):
    """Linear prediction of every sub-frame.

    Attributes:
        coefficients: (batch, sub-frames, order), coefficients of the previous samples, the most recent first.
        gain: (batch, sub-frames), standard deviation of the residual, g.
        level: (batch, sub-frames), standard deviation of the signal.
    """

    coefficients: Float[Tensor, "batch subframes order"]
    gain: Float[Tensor, "batch subframes"]
    level: Float[Tensor, "batch subframes"]


def filters(
    log_amplitude: Float[Tensor, "batch frames frequencies"], spec: MelSpec, order: int, per_frame: int
) -> Filters:
    """Compute the linear prediction of the sub-frames of all frames but the first and the last; float64.

    The autocorrelation of a sub-frame is interpolated linearly between the nearest frames. A convex combination of
    autocorrelations is an autocorrelation, so every filter is stable.

    Args:
        log_amplitude: spectra of the frames and of one more frame at either end.
        spec: settings of the mel spectrograms.
        order: order of the prediction.
        per_frame: sub-frames per frame.
    """
    r = conditioned(interpolated(autocorrelation(log_amplitude, spec, order), spec, per_frame), spec.sample_rate)
    coefficients, error, _ = levinson_durbin(r)
    return Filters(coefficients, error.sqrt(), r[..., 0].sqrt())


def interpolated(
    values: Float[Tensor, "batch frames features"], spec: MelSpec, per_frame: int
) -> Float[Tensor, "batch subframes features"]:
    """Interpolate frame-wise values linearly at the centres of the sub-frames of all frames but the first and last.

    Args:
        values: values of the frames and of one more frame at either end.
        spec: settings of the mel spectrograms.
        per_frame: sub-frames per frame.
    """
    frames = values.shape[1] - 2
    centre = 0.5 if spec.padding == "same" else 0.0
    position = (torch.arange(per_frame, dtype=torch.float64) + 0.5) / per_frame - centre
    after = position >= 0
    weight = (position - position.floor()).to(values)[:, None]
    previous, own, following = (values[:, shift : shift + frames, None] for shift in range(3))
    after = after.to(values.device)[:, None]
    mixed = torch.lerp(torch.where(after, own, previous), torch.where(after, following, own), weight)
    return mixed.flatten(1, 2)


def predict(
    x: Float[Tensor, "batch samples"], coefficients: Float[Tensor, "batch subframes order"]
) -> Float[Tensor, "batch samples"]:
    """Predict each sample linearly from the samples before it; zeros precede the first.

    >>> predict(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.ones(1, 1, 1))
    tensor([[0., 1., 2., 3.]])
    """
    order, subframes = coefficients.shape[-1], coefficients.shape[1]
    past = F.pad(x, (order, 0))[:, :-1].unfold(1, order, 1)
    past = past.unflatten(1, (subframes, -1))
    return (past @ coefficients.flip(-1)[..., None].to(x.dtype)).flatten(1)


class LinearPrediction(Bijection):
    """Residual of a linear prediction, e_t = (x_t − Σ a_k x_{t−k}) / g, with coefficients and gains from the context.

    The Jacobian is triangular with log-determinant −Σ log g. The inverse is an all-pole filter, compiled on CPUs.

    The context is (batch, sub-frames, order + 1): the coefficients of each sub-frame, then log g. Waveforms are
    (batch, samples), where samples is a multiple of the sub-frames.

    >>> e, _ = LinearPrediction()(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[[0.5, 0.0]]]))
    >>> e
    tensor([[1.0000, 1.5000, 2.0000, 2.5000]])
    """

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map waveforms to residuals."""
        coefficients, log_gain = self._parts(x, context)
        per_sample = log_gain.repeat_interleave(x.shape[1] // log_gain.shape[1], 1)
        with full_precision(x):
            residual = (x - predict(x, coefficients)) * (-per_sample).exp()
        return residual, -per_sample.sum(1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map residuals to waveforms."""
        coefficients, log_gain = self._parts(z, context)
        length = z.shape[1] // log_gain.shape[1]
        excitation = z * log_gain.exp().repeat_interleave(length, 1)
        log_det = length * log_gain.sum(1)
        needs_grad = torch.is_grad_enabled() and (excitation.requires_grad or coefficients.requires_grad)
        if needs_grad or is_transformed() or torch.compiler.is_compiling():
            return _differentiable_all_pole(excitation, coefficients), log_det
        x = np.zeros(z.shape, excitation.detach().cpu().numpy().dtype)
        _all_pole(excitation.detach().cpu().numpy(), coefficients.detach().cpu().double().numpy(), x)
        return torch.from_numpy(x).to(z), log_det

    def _parts(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if context is None:
            raise UserError("linear prediction needs the coefficients of each sub-frame: pass them as context")
        if not context.shape[1] or x.shape[1] % context.shape[1]:
            raise UserError(f"{x.shape[1]} samples are not a multiple of {context.shape[1]} sub-frames: pad them")
        return context[..., :-1], context[..., -1].to(x.dtype)


def _differentiable_all_pole(
    excitation: Float[Tensor, "batch samples"], coefficients: Float[Tensor, "batch subframes order"]
) -> Float[Tensor, "batch samples"]:
    """Compute `_all_pole` in PyTorch, for gradients."""
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
    """Compute x_t = e_t + Σ a_k x_{t−k}, with sums in float64."""
    length = x.shape[1] // coefficients.shape[1]
    for example in range(len(x)):
        for t in range(x.shape[1]):
            a = coefficients[example, t // length]
            total = np.float64(excitation[example, t])
            for k in range(min(len(a), t)):
                total += a[k] * x[example, t - 1 - k]
            x[example, t] = total
