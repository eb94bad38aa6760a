"""Streaming synthesis: independent of the chunks, equal to synthesis of the whole spectrogram."""

import pytest
import torch

from arflows.audio import WaveFlow
from arflows.audio.streaming import latents, stream
from arflows.core.runtime.errors import UserError

BANDS, FRAMES = 5, 23
SPEC = {"sample_rate": 4000, "n_fft": 64, "hop": 24, "window": 64, "bands": BANDS, "fmax": 2000.0}
CHUNKS = [[FRAMES], [1] * FRAMES, [2, 1, 9, 4, 7], [22, 1]]


def model(causal_width: bool, height: int = 8, speakers: int = 0) -> WaveFlow:
    """A small flow with noise on its parameters, standing in for training."""
    torch.manual_seed(0)
    flow = WaveFlow(SPEC, True, speakers, height, channels=4, layers=3, flows=2, causal_width=causal_width)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return flow.double().eval()


def mels(batch: int = 2, frames: int = FRAMES) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, BANDS, frames, generator=generator, dtype=torch.float64) - 4


def streamed(flow: WaveFlow, mel: torch.Tensor, sizes: list[int], **options) -> torch.Tensor:
    return torch.cat(list(stream(flow, mel.split(sizes, 2), seed=3, temperature=0.7, **options)), 1)


def whole(flow: WaveFlow, mel: torch.Tensor, speaker: torch.Tensor | None = None) -> torch.Tensor:
    z = 0.7 * latents(len(mel), 0, mel.shape[2] * flow.spec.hop, 3).double()
    with torch.no_grad():
        return flow.decode(z, mel=mel, speaker=speaker)


@pytest.mark.parametrize("sizes", CHUNKS, ids=["all", "single", "uneven", "almost_all"])
@pytest.mark.parametrize("height", [8, 7, 24, 36])
def test_a_flow_of_causal_width_streams_exactly(height, sizes):
    flow = model(causal_width=True, height=height)
    torch.testing.assert_close(streamed(flow, mels(), sizes), whole(flow, mels()), atol=1e-10, rtol=1e-10)


def test_samples_come_as_soon_as_two_more_frames_are_known():
    flow = model(causal_width=True)
    heard = 0
    given = 0

    def chunks():
        nonlocal given
        for chunk in mels().split(1, 2):
            given += 1
            yield chunk

    for chunk in stream(flow, chunks()):
        heard += chunk.shape[1]
        assert heard >= (given - 2) * flow.spec.hop
    assert heard == FRAMES * flow.spec.hop


@pytest.mark.parametrize("height", [8, 7])
def test_blocks_do_not_depend_on_the_chunks(height):
    flow = model(causal_width=False, height=height)
    expected = streamed(flow, mels(), CHUNKS[0], block=4, margin=3)
    assert expected.shape == (2, FRAMES * flow.spec.hop)
    for sizes in CHUNKS[1:]:
        torch.testing.assert_close(streamed(flow, mels(), sizes, block=4, margin=3), expected, atol=1e-12, rtol=1e-12)


def test_a_margin_of_the_reach_is_exact_and_a_smaller_one_comes_closer_as_it_grows():
    flow = model(causal_width=False)
    frames = 90
    expected = whole(flow, mels(1, frames))
    assert flow.reach() < 45, "the test needs blocks that do not see everything"
    errors = [
        float((streamed(flow, mels(1, frames), [frames], block=8, margin=margin) - expected).abs().max())
        for margin in (1, 4, 8, flow.reach())
    ]
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[0] > 1e-6
    assert errors[3] < 1e-10


def test_speakers_stream_too():
    flow = model(causal_width=True, speakers=3)
    speaker = torch.tensor([2, 0])
    expected = whole(flow, mels(), speaker)
    torch.testing.assert_close(streamed(flow, mels(), CHUNKS[2], speaker=speaker), expected, atol=1e-10, rtol=1e-10)
    assert (expected - whole(flow, mels(), speaker.flip(0))).abs().max() > 1e-6


def test_latents_depend_on_place_and_seed_alone():
    drawn = latents(2, 0, 5000, seed=1)
    for start, stop in ((0, 10), (1023, 1025), (100, 3000), (7, 7)):
        assert torch.equal(latents(2, start, stop, seed=1), drawn[:, start:stop])
    assert (latents(2, 0, 100, seed=2) != drawn[:, :100]).all()
    assert torch.equal(latents(1, 0, 5000, seed=1), drawn[:1])
    assert (drawn[0] != drawn[1]).all()
    assert drawn.unique().numel() > 9990
    assert abs(float(drawn.mean())) < 0.05
    assert abs(float(drawn.std()) - 1) < 0.05


def test_no_chunks_are_no_samples():
    assert list(stream(model(causal_width=True), [])) == []
    assert list(stream(model(causal_width=False), [])) == []


@pytest.mark.parametrize(
    ("chunks", "options", "message"),
    [
        ([torch.zeros(1, 6, 2)], {}, r"must be \(batch, 5, frames\), got \(1, 6, 2\)"),
        ([torch.zeros(5, 2)], {}, r"must be \(batch, 5, frames\)"),
        ([torch.zeros(2, 5, 2), torch.zeros(1, 5, 2)], {}, "of 2 mel spectrograms are followed by one of 1"),
        ([], {"temperature": 0.0}, "temperature must be greater than 0"),
        ([], {"block": 0}, "block=0, .*must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(chunks, options, message):
    with pytest.raises(UserError, match=message):
        list(stream(model(causal_width=True), [chunk.double() for chunk in chunks], **options))


def test_a_model_without_mels_has_nothing_to_stream():
    flow = WaveFlow(SPEC, conditional=False, height=8, channels=4, layers=1, flows=1)
    with pytest.raises(UserError, match="without mel spectrograms"):
        list(stream(flow, [mels()]))
