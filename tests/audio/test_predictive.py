"""PredictiveFlow as a model: densities, lengths, generation, streams, bad input."""

import math

import numpy as np
import pytest
import torch

from arflows.audio import MelSpec, PredictiveFlow, inpaint, log_mel
from arflows.audio.predictive_conditions import AHEAD, SURROUNDINGS
from arflows.audio.predictive_synthesis import BLOCK
from arflows.audio.stream import analysed, mel_frames
from arflows.audio.streaming import latents, stream
from arflows.core.runtime.errors import UserError

SMALL = {"order": 6, "channels": 6, "dilations": (1, 2, 4, 1), "width": 5, "features": 4}
SPEC = {"sample_rate": 8000, "n_fft": 256, "hop": 64, "window": 256, "bands": 20, "fmax": 3000.0}


def model(dtype=torch.float64, scale=0.02, **options) -> PredictiveFlow:
    """A small flow with noise on its parameters, standing in for training."""
    torch.manual_seed(0)
    flow = PredictiveFlow(**{"spec": SPEC, "chunk": 4, **SMALL, **options})
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
        flow.mean_mel.fill_(-3.0)
    return flow.to(dtype).eval()


def speech(frames=30, batch=2, dtype=torch.float64, spec=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Something like voiced speech with noise, and its mel spectrogram."""
    spec = MelSpec(**(spec or SPEC))
    generator = torch.Generator().manual_seed(1)
    time = torch.arange(frames * spec.hop, dtype=torch.float64) / spec.sample_rate
    phase = 2 * math.pi * 120 * time * (1 + 0.1 * torch.rand(batch, 1, generator=generator, dtype=torch.float64))
    waveform = sum((phase * k).sin() / k for k in range(1, 12)) * 0.1
    waveform = waveform + 0.01 * torch.randn(waveform.shape, generator=generator, dtype=torch.float64)
    return waveform.to(dtype), log_mel(waveform, spec).to(dtype)


OPTIONS = [
    {},
    {"density": "normal"},
    {"chunk": 1, "dilations": (1, 2, 4)},
    {"chunk": 8, "pitch": False},
    {"speakers": 3},
    {"conditional": False},
]


def given(flow, mel):
    conditions = {"mel": mel} if flow.conditional else {}
    return conditions | ({"speaker": torch.tensor([1] * len(mel))} if flow.speakers else {})


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_log_density_is_that_of_the_latents_and_the_jacobian(options):
    flow, (waveform, mel) = model(**options), speech(6, 1)
    conditions = given(flow, mel)
    context = flow.context(waveform, condition=_condition(conditions))

    def latent(x):
        return flow.bijection.transform(x, context)[0]

    jacobian = torch.autograd.functional.jacobian(latent, waveform)[0, :, 0]
    assert torch.equal(jacobian.triu(1), torch.zeros_like(jacobian))
    sign, log_det = torch.linalg.slogdet(jacobian)
    z = latent(waveform)
    expected = log_det - 0.5 * (z.square() + math.log(2 * math.pi)).sum()
    assert sign == 1
    torch.testing.assert_close(flow.log_prob(waveform, **conditions)[0], expected, rtol=1e-9, atol=1e-7)


def _condition(conditions):
    from arflows.audio.representation import Condition

    return Condition(conditions.get("mel"), conditions.get("speaker"))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_latents_decode_to_the_waveform_and_samples_have_their_density(options, dtype):
    flow, (waveform, mel) = model(dtype, **options), speech(dtype=dtype)
    conditions = given(flow, mel)
    tolerance = 1e-10 if dtype == torch.float64 else 2e-4
    z = flow.encode(waveform, **conditions)
    torch.testing.assert_close(flow.decode(z, **conditions), waveform, atol=tolerance, rtol=0)
    samples = None if flow.conditional else 700
    drawn, log_prob = flow.sample_with_log_prob(2, **conditions, samples=samples, generator=_seed(3))
    torch.testing.assert_close(
        flow.log_prob(drawn, **conditions if samples is None else given(flow, mel[..., :11])),
        log_prob,
        rtol=tolerance,
        atol=tolerance,
    )


def _seed(number):
    return torch.Generator().manual_seed(number)


def test_each_waveform_of_a_batch_has_the_density_that_it_has_alone():
    flow, (waveform, mel) = model(), speech()
    lengths = torch.tensor([30 * 64, 1000])
    together = flow.log_prob_per_sample(waveform, mel=mel, lengths=lengths)
    first = flow.log_prob_per_sample(waveform[:1], mel=mel[:1])
    second = flow.log_prob_per_sample(waveform[1:, :1000], mel=mel[1:, :, :16])
    torch.testing.assert_close(together[:1], first)
    torch.testing.assert_close(together[1:, :1000], second)
    assert not together[1, 1000:].any()
    drawn = flow.sample(2, mel=mel, lengths=lengths, generator=_seed(0))
    assert not drawn[1, 1000:].any()


def test_a_part_of_an_utterance_has_the_density_that_it_has_within_it():
    """As training sees it: a segment with frames around its spectrogram, and what lies before it as context."""
    flow, (waveform, mel) = model(), speech(80, 1)
    whole = flow.log_prob_per_sample(waveform, mel=mel)
    first, last, hop = 30, 50, flow.spec.hop
    before = -(-flow.memory // hop)
    start = first - before
    around = mel[:, :, start - SURROUNDINGS : last + SURROUNDINGS]
    part = flow.log_prob_per_sample(waveform[:, start * hop : last * hop], mel=around)
    # The pitch is followed from the beginning of what is given, here from another frame on.
    torch.testing.assert_close(part[:, before * hop :], whole[:, first * hop : last * hop], rtol=0, atol=1e-6)


@pytest.mark.report
def test_windows_of_a_long_waveform_give_what_the_whole_gives(monkeypatch):
    flow, (waveform, mel) = model(), speech(60)
    with torch.no_grad():
        whole = flow.log_prob_per_sample(waveform, mel=mel)
        monkeypatch.setattr("arflows.audio.predictive.WINDOW", 16)
        torch.testing.assert_close(flow.log_prob_per_sample(waveform, mel=mel), whole)
        z = flow.encode(waveform, mel=mel)
        torch.testing.assert_close(flow.decode(z, mel=mel), waveform)


@pytest.mark.parametrize("sizes", [[1] * 30, [7, 1, 13, 9], [29, 1]], ids=["single", "uneven", "almost_all"])
def test_streams_are_the_same_bit_by_bit_however_they_are_cut(sizes):
    flow, (_, mel) = model(torch.float32), speech(dtype=torch.float32)
    whole = torch.cat(list(stream(flow, [mel], seed=4, temperature=0.7)), 1)
    parts = torch.cat(list(stream(flow, mel.split(sizes, 2), seed=4, temperature=0.7)), 1)
    assert torch.equal(parts, whole)
    z = 0.7 * latents(2, 0, 30 * 64, 4)
    torch.testing.assert_close(whole, flow.decode(z, mel=mel), atol=1e-4, rtol=0)


def test_a_stream_gives_each_block_when_the_frames_that_decide_on_it_are_known():
    flow, (_, mel) = model(), speech()
    given_frames, heard = 0, []

    def chunks():
        nonlocal given_frames
        for chunk in mel.split(1, 2):
            given_frames += 1
            yield chunk

    for part in stream(flow, chunks()):
        heard.append((given_frames, part.shape[1] // 64))
    whole = -(-(BLOCK + AHEAD) // BLOCK) * BLOCK
    assert heard[0] == (whole, BLOCK)
    assert heard[1] == (whole + BLOCK, BLOCK)
    assert sum(frames for _, frames in heard) == 30


def test_voiced_and_unvoiced_speech_may_have_temperatures_of_their_own():
    flow, (_, mel) = model(), speech()
    same = flow.sample(mel=mel, temperature=(0.7, 0.7), generator=_seed(5))
    torch.testing.assert_close(same, flow.sample(mel=mel, temperature=0.7, generator=_seed(5)))
    other = flow.sample(mel=mel, temperature=(0.7, 1.0), generator=_seed(5))
    assert not torch.allclose(same, other)
    with pytest.raises(UserError, match="temperatures must be two numbers greater than 0"):
        flow.sample(mel=mel, temperature=(0.7, 0.0))


def test_a_gap_is_filled_and_the_rest_stays():
    flow, (waveform, mel) = model(), speech(30, 1)
    filled, log_prob = inpaint(flow, waveform, 700, 760, mel=mel, count=2, steps=4, generator=_seed(0))
    outside = torch.ones(waveform.shape[1], dtype=torch.bool)
    outside[700:760] = False
    assert torch.equal(filled[:, outside], waveform[:, outside].expand(2, -1))
    assert not torch.equal(filled[0], filled[1])
    torch.testing.assert_close(log_prob, flow.log_prob(filled, mel=mel.expand(2, -1, -1)))


def test_density_around_a_gap_changes_as_that_of_the_whole():
    flow, (waveform, mel) = model(), speech(60, 1)
    context = flow.context(waveform, _condition({"mel": mel}))
    exact, _ = flow.windows(1500, 1530, waveform.shape[1], context)
    other = waveform.clone()
    other[:, 1500:1530] *= 0.9

    def density(x):
        z, log_derivative = flow.bijection.transform(x[:, exact.first : exact.last], exact.context)
        return (log_derivative - 0.5 * z.square()).sum()

    with torch.no_grad():
        whole = flow.log_prob(other, mel=mel) - flow.log_prob(waveform, mel=mel)
        torch.testing.assert_close((density(other) - density(waveform))[None], whole)


BAD = {
    "silence": torch.zeros(1, 1920),
    "dc": torch.full((1, 1920), 0.7),
    "clipped": (5 * torch.sin(torch.arange(1920.0) * 0.1))[None].clamp(-1, 1),
    "impulse": torch.eye(1, 1920),
    "loud_noise": torch.rand(1, 1920, generator=_seed(0)) * 2 - 1,
}


@pytest.mark.parametrize("name", BAD)
def test_odd_waveforms_have_finite_densities_and_come_back(name):
    waveform, spec = BAD[name], MelSpec(**SPEC)
    flow, mel = (
        model(torch.float32, scale=0.002),
        log_mel(BAD[name], spec),
    )  # errors of rounding grow in wilder networks
    assert flow.log_prob(waveform, mel=mel).isfinite().all()
    back = flow.decode(flow.encode(waveform, mel=mel), mel=mel)
    torch.testing.assert_close(back, waveform, atol=1e-3, rtol=0)


@pytest.mark.parametrize("level", ["floor", "most", "alternating", "single_band", "beyond"])
def test_extreme_mel_spectrograms_give_finite_speech(level):
    flow = model(torch.float32)
    least, most = flow.spec.silence, math.log(flow.spec.window)
    mel = torch.full((1, 20, 24), least)
    match level:
        case "most":
            mel.fill_(most)
        case "alternating":
            mel[:, :, ::2] = most
        case "single_band":
            mel[:, 3] = most
        case "beyond":
            mel[:, ::2] = 1e4
    drawn = flow.sample(mel=mel, generator=_seed(0))
    assert drawn.isfinite().all()
    assert flow.log_prob(drawn, mel=mel).isfinite().all()


def test_one_frame_and_less_than_one():
    flow = model()
    mel = torch.full((1, 20, 1), -3.0, dtype=torch.float64)
    for samples in (64, 10, 1):
        drawn, log_prob = flow.sample_with_log_prob(mel=mel, samples=samples, generator=_seed(0))
        assert drawn.shape == (1, samples)
        torch.testing.assert_close(flow.log_prob(drawn, mel=mel), log_prob)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk": 7}, "chunk=7 does not fit: it must divide the hop of 64 samples"),
        ({"chunk": 16}, "be at most 8"),
        ({"chunk": 0}, "chunk=0 does not fit"),
        ({"order": 0}, "order=0 must lie between 1 and the hop"),
    ],
)
def test_refuses_sizes_that_do_not_fit(options, message):
    with pytest.raises(UserError, match=message):
        model(**options)


@pytest.mark.report
def test_refuses_a_mel_spectrogram_with_a_frame_that_is_no_number():
    flow, (waveform, mel) = model(), speech()
    mel[0, 3, 5] = math.nan
    with pytest.raises(UserError, match="values that are not finite"):
        flow.log_prob(waveform, mel=mel)
    with pytest.raises(UserError, match="values that are not finite"):
        flow.sample(mel=mel)


def test_initialisation_sets_what_is_not_learned_once_and_it_is_saved(tmp_path):
    torch.manual_seed(0)
    flow, (waveform, _) = PredictiveFlow(SPEC, chunk=4, **SMALL), speech(40, 3, torch.float32)
    flow.initialize(waveform)
    assert flow.envelope.initialized
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    flow.initialize(0.1 * waveform)
    assert all(torch.equal(value, before[name]) for name, value in flow.state_dict().items())
    flow.save_pretrained(tmp_path)
    loaded = PredictiveFlow.from_pretrained(tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in loaded.state_dict().items())
    # What is standardised by training data is standardised.
    assert not torch.equal(before["encoder.mean"], torch.zeros_like(before["encoder.mean"]))


@pytest.mark.parametrize(
    ("rate", "hop", "n_fft", "fmax", "chunk"),
    [
        (16_000, 200, 800, 8000.0, 8),
        (24_000, 300, 1200, 12_000.0, 4),
        (44_100, 512, 2048, 16_000.0, 8),
        (48_000, 480, 2048, 8000.0, 8),
    ],
)
def test_other_sample_rates(rate, hop, n_fft, fmax, chunk):
    spec = {"sample_rate": rate, "hop": hop, "n_fft": n_fft, "window": n_fft, "bands": 40, "fmax": fmax}
    flow, (waveform, mel) = model(scale=0.002, spec=spec, chunk=chunk), speech(12, 1, spec=spec)
    z = flow.encode(waveform, mel=mel)
    torch.testing.assert_close(flow.decode(z, mel=mel), waveform)


@pytest.mark.parametrize(
    "settings", [{"padding": "centre"}, {"power": 2.0}, {"log_base": "10"}, {"fmin": 50.0}], ids=str
)
def test_other_mel_settings_whiten_as_well(settings):
    """Linear prediction from any kind of mel spectrogram leaves an excitation of about unit power."""
    spec = SPEC | settings
    waveform, mel = speech(60, 2, spec=spec)
    flow = PredictiveFlow(spec, chunk=4, density="normal", **SMALL).double()
    z = flow.encode(waveform, mel=mel)
    assert 0.5 < z[:, 512:-512].std() < 2.0


def test_audio_that_arrives_has_the_mel_frames_that_it_has_as_a_whole():
    spec = MelSpec(**SPEC)
    waveform, _ = speech(40, 1, torch.float32)
    data = (waveform[0, :2500] * 32_768).round().clamp(-32_768, 32_767).short()
    whole = log_mel(data[None].float() / 32_768, spec)

    class Arriving:
        """Gives a few bytes at a time."""

        def __init__(self, content: bytes) -> None:
            self.left = content

        def read1(self, _: int) -> bytes:
            part, self.left = self.left[:301], self.left[301:]
            return part

    parts = list(analysed(Arriving(data.numpy().astype("<i2").tobytes()), spec))
    assert len(parts) > 5
    torch.testing.assert_close(torch.cat(parts, 2), whole, atol=1e-5, rtol=0)
    frames = whole[0].mT.contiguous().numpy().astype("<f4").tobytes()
    torch.testing.assert_close(torch.cat(list(mel_frames(Arriving(frames), spec)), 2), whole)
    with pytest.raises(UserError, match="mel frames on standard input end in the middle of one"):
        list(mel_frames(Arriving(frames[:-3]), spec))


def test_rounded_weights_stay_inverse_and_close():
    flow, (waveform, mel) = model(torch.float32, scale=0.02), speech(dtype=torch.float32)
    before = flow.log_prob(waveform, mel=mel)
    flow.round_weights()
    torch.testing.assert_close(flow.log_prob(waveform, mel=mel), before, rtol=1e-2, atol=0)
    assert flow.continuation().weights.present.dtype == np.uint16
    z = flow.encode(waveform, mel=mel)
    torch.testing.assert_close(flow.decode(z, mel=mel), waveform, atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", ["c128", "c64", "c32"])
def test_presets_are_models(name):
    flow = PredictiveFlow.from_preset(name, speakers=2)
    assert flow.speakers == 2
    assert flow.trunk.stack.channels == int(name[1:])
