"""WaveFlow as a model: densities, conditions, lengths, draws, presets, files."""

import pytest
import torch

from arflows.audio import MelSpec, WaveFlow
from arflows.audio.folding import rows_reversed
from arflows.audio.presets import height_dilations
from arflows.audio.representation import Condition
from arflows.core.inversion import GaussSeidelJacobi, Jacobi, Sequential, use_solver
from arflows.core.runtime.errors import UserError

SPEC = {"n_fft": 32, "hop": 16, "window": 32, "bands": 5}
SMALL = {"spec": SPEC, "channels": 4, "layers": 2, "flows": 4}
HEIGHTS = [2, 7, 8, 16, 32, 40]  # up to and above the hop, with and without a common factor


def noisy(flow: WaveFlow, scale: float = 0.2) -> WaveFlow:
    """Noise on the parameters, standing in for training."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return flow.eval()


def model(height=8, dtype=torch.float64, **options) -> WaveFlow:
    torch.manual_seed(0)
    return noisy(WaveFlow(height=height, **SMALL | options)).to(dtype)


def speech(samples=80, batch=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    waveform = torch.randn(batch, samples, generator=generator, dtype=torch.float64)
    mel = (
        3 * torch.randn(batch, SPEC["bands"], -(-samples // SPEC["hop"]), generator=generator, dtype=torch.float64) - 6
    )
    return waveform.to(dtype), mel.to(dtype)


def given(flow: WaveFlow, mel):
    """The conditions that a model takes."""
    return ({"mel": mel} if flow.conditional else {}) | (
        {"speaker": torch.arange(len(mel)) % flow.speakers} if flow.speakers else {}
    )


@pytest.mark.parametrize("options", [{}, {"conditional": False}, {"speakers": 3}], ids=["mel", "free", "speakers"])
@pytest.mark.parametrize("height", HEIGHTS)
@pytest.mark.parametrize("samples", [80, 67], ids=["even", "odd"])
def test_every_solver_returns_to_the_waveform(height, samples, options):
    flow = model(height, **options)
    waveform, mel = speech(samples)
    conditions = given(flow, mel)
    with torch.no_grad():
        z = flow.encode(waveform, **conditions)
        columns = flow.context(waveform, Condition(**conditions))
        for solver in (Sequential(), Jacobi(1e-12), GaussSeidelJacobi(5, 1e-12)):
            with torch.no_grad(), use_solver(solver):
                back, log_det = flow.bijection.inverse(z, columns)
            torch.testing.assert_close(back, waveform, atol=1e-9, rtol=1e-9)
            torch.testing.assert_close(log_det, -flow.bijection(waveform, columns)[1], atol=1e-8, rtol=0)


def test_float32_returns_to_the_waveform():
    flow, (waveform, mel) = model(16, torch.float32, flows=2), speech(500, dtype=torch.float32)
    with torch.no_grad():
        back = flow.decode(flow.encode(waveform, mel=mel), mel=mel)
    torch.testing.assert_close(back, waveform, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("height", [7, 8, 40])
@pytest.mark.parametrize("samples", [24, 21])
def test_the_density_is_that_of_the_jacobian(height, samples):
    flow, (waveform, mel) = model(height), speech(samples, 1)
    jacobian = torch.autograd.functional.jacobian(lambda x: flow.encode(x[None], mel=mel)[0], waveform[0])
    z = flow.encode(waveform, mel=mel)
    expected = torch.distributions.Normal(0, 1).log_prob(z).sum() + jacobian.slogdet().logabsdet
    torch.testing.assert_close(flow.log_prob(waveform, mel=mel)[0], expected, atol=1e-8, rtol=0)


@pytest.mark.parametrize("options", [{}, {"conditional": False}, {"speakers": 3}], ids=["mel", "free", "speakers"])
@pytest.mark.parametrize("height", [7, 8, 40])
def test_clips_of_a_batch_have_the_density_of_each_alone(height, options):
    """Whatever stands in waveform and mel spectrogram after their ends."""
    flow = model(height, **options)
    waveform, mel = speech(83, 4)
    lengths = torch.tensor([83, 64, 33, 5])
    conditions = given(flow, mel)
    together = flow.log_prob(waveform, **conditions, lengths=lengths)
    latents = flow.encode(waveform, **conditions, lengths=lengths)
    back = flow.decode(latents, **conditions, lengths=lengths)
    by_sample = flow.log_prob_per_sample(waveform, **conditions, lengths=lengths)
    for index, length in enumerate(lengths.tolist()):
        part = slice(index, index + 1)
        alone = {name: value[part] for name, value in conditions.items()}
        if "mel" in alone:
            alone["mel"] = alone["mel"][..., : -(-length // SPEC["hop"])]
        clip = waveform[part, :length]
        torch.testing.assert_close(together[part], flow.log_prob(clip, **alone), atol=1e-9, rtol=0)
        torch.testing.assert_close(latents[part, :length], flow.encode(clip, **alone), atol=1e-9, rtol=0)
        torch.testing.assert_close(back[part, :length], clip, atol=1e-9, rtol=0)
        assert (by_sample[part, length:] == 0).all()
        assert (latents[part, length:] == 0).all()
        assert (back[part, length:] == 0).all()


def test_samples_contribute_what_they_are_given_those_before():
    flow, (waveform, mel) = model(), speech()
    by_sample = flow.log_prob_per_sample(waveform, mel=mel)
    torch.testing.assert_close(by_sample.sum(1), flow.log_prob(waveform, mel=mel))
    assert by_sample.shape == waveform.shape


def test_conditions_reach_the_density():
    flow = model(speakers=3)
    waveform, mel = speech()
    speaker = torch.tensor([0, 1])
    expected = flow.log_prob(waveform, mel=mel, speaker=speaker)
    assert (flow.log_prob(waveform, mel=mel + 1, speaker=speaker) != expected).all()
    assert (flow.log_prob(waveform, mel=mel, speaker=speaker + 1) != expected).all()


def test_causal_width_depends_on_no_later_column():
    flow, (waveform, mel) = model(causal_width=True), speech()
    expected = flow.encode(waveform, mel=mel)
    changed = waveform.clone()
    changed[:, 40:] += 1
    assert torch.equal(flow.encode(changed, mel=mel)[:, :40], expected[:, :40])
    assert not torch.equal(flow.encode(changed, mel=mel)[:, 40:], expected[:, 40:])


def test_draws():
    flow = model(dtype=torch.float32)
    _, mel = speech(dtype=torch.float32)

    def drawn(seed=0, **options):
        return flow.sample(mel=mel, generator=torch.Generator().manual_seed(seed), **options)

    waveform = drawn()
    assert waveform.shape == (2, 80)
    assert torch.equal(waveform, drawn())
    assert not torch.equal(waveform, drawn(1))
    latents = flow.encode(waveform, mel=mel)
    torch.testing.assert_close(flow.encode(drawn(temperature=0.5), mel=mel), 0.5 * latents, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(drawn(solver=Jacobi(1e-6)), waveform, atol=1e-4, rtol=1e-4)
    generator = torch.Generator().manual_seed(0)
    same, log_prob = flow.sample_with_log_prob(mel=mel, generator=generator)
    assert torch.equal(same, waveform)
    torch.testing.assert_close(log_prob, flow.log_prob(waveform, mel=mel), atol=1e-2, rtol=1e-4)
    one = flow.sample(3, mel=mel[:1])
    assert one.shape == (3, 80)
    shorter = drawn(lengths=torch.tensor([80, 37]))
    assert (shorter[1, 37:] == 0).all()
    assert (shorter[1, :37] != 0).all()
    assert model(conditional=False).sample(2, samples=50).shape == (2, 50)


def test_draws_leave_the_mode_as_it_was():
    flow = model().train()
    flow.sample(mel=speech()[1])
    assert flow.training


def test_latents_of_draws_are_those_of_any_batch():
    flow, (_, mel) = model(), speech()
    together = flow.sample(mel=mel, generator=torch.Generator().manual_seed(3))
    alone = flow.sample(mel=mel[:1], generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(together[:1], alone, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("name", "millions"), [("h16_c64", 5.925), ("h16_c128", 22.3), ("h64_c64", 5.925)])
def test_presets_have_the_published_sizes(name, millions):
    """Table 2 of the paper, but for its upsampling convolutions: ours is one over frames."""
    flow = WaveFlow.from_preset(name)
    count = sum(parameter.numel() for parameter in flow.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.005)


@pytest.mark.parametrize(
    ("height", "dilations"),
    [
        (8, [1] * 8),
        (16, [1] * 8),
        (32, [1, 2, 4, 1, 2, 4, 1, 2]),
        (64, [1, 2, 4, 8, 16, 1, 2, 4]),
        (4000, [1, 2, 4, 8, 16, 32, 64, 128]),
    ],
)
def test_dilations_down_the_rows_are_the_published_ones(height, dilations):
    assert height_dilations(height, 8, 3) == dilations


def test_rows_are_reversed_whole_or_by_halves():
    assert rows_reversed(4, bipartite=False).tolist() == [3, 2, 1, 0]
    assert rows_reversed(4, bipartite=True).tolist() == [1, 0, 3, 2]
    assert rows_reversed(5, bipartite=True).tolist() == [1, 0, 4, 3, 2]


def test_a_new_model_is_the_identity():
    flow, (waveform, mel) = WaveFlow(height=8, **SMALL), speech(dtype=torch.float32)
    assert torch.equal(flow.encode(waveform, mel=mel), waveform)


def test_half_precision_keeps_log_determinants_in_single():
    flow, (waveform, mel) = model(dtype=torch.float32), speech(dtype=torch.float32)
    exact = flow.log_prob(waveform, mel=mel)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = flow.log_prob(waveform, mel=mel)
        z, log_det = flow.bijection(waveform, flow.context(waveform, Condition(mel)))
    assert rough.dtype == z.dtype == log_det.dtype == torch.float32
    torch.testing.assert_close(rough, exact, atol=0, rtol=0.02)
    assert not torch.equal(rough, exact)


@pytest.mark.parametrize("options", [{}, {"height": 48}], ids=["columns", "samples"])
def test_half_precision_draws_nearly_the_same(options):
    flow, mel = noisy(WaveFlow(**SMALL | {"height": 8} | options), 0.05), speech(90)[1].float()
    exact = flow.sample(mel=mel, samples=90, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = flow.sample(mel=mel, samples=90, generator=torch.Generator().manual_seed(0))
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, atol=0.05, rtol=0.05)
    assert not torch.equal(rough, exact)


def test_densities_compile_to_one_graph():
    flow, (waveform, mel) = model(flows=1, layers=1, dtype=torch.float32), speech(dtype=torch.float32)
    compiled = torch.compile(flow.log_prob, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(waveform, mel=mel), flow.log_prob(waveform, mel=mel))
    lengths = torch.tensor([80, 33])
    torch.testing.assert_close(
        compiled(waveform, mel=mel, lengths=lengths), flow.log_prob(waveform, mel=mel, lengths=lengths)
    )


def test_files_keep_a_model(tmp_path):
    flow, (waveform, mel) = model(causal_width=True, speakers=2, dtype=torch.float32), speech(dtype=torch.float32)
    flow.save_pretrained(tmp_path / "model")
    loaded = WaveFlow.from_pretrained(tmp_path / "model")
    speaker = torch.tensor([0, 1])
    expected = flow.log_prob(waveform, mel=mel, speaker=speaker)
    assert torch.equal(loaded.log_prob(waveform, mel=mel, speaker=speaker), expected)
    assert loaded.spec == MelSpec.from_dict(SPEC)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, mel: model(1), "height=1 must be at least 2"),
        (lambda x, mel: WaveFlow.from_preset("h9"), "no preset 'h9': choose h16_c64"),
        (lambda x, mel: model().log_prob(x), "is conditional on mel: give it"),
        (lambda x, mel: model(conditional=False).log_prob(x, mel=mel), "was trained without mel: leave it out"),
        (lambda x, mel: model(speakers=2).log_prob(x, mel=mel), "is conditional on speaker: give it"),
        (lambda x, mel: model().log_prob(x, mel=mel[:, :4]), "has 5 bands and 5 frames, got 4 and 5"),
        (lambda x, mel: model().log_prob(x, mel=mel[..., :4]), "has 5 bands and 5 frames, got 5 and 4"),
        (lambda x, mel: model().log_prob(x, mel=torch.cat([mel, mel[:1]])), "mel of each of 2 waveforms, got 3"),
        (lambda x, mel: model().log_prob(x[:, :0], mel=mel[..., :0]), "without samples has no density"),
        (lambda x, mel: model().log_prob(x, mel=mel, lengths=torch.tensor([80])), "lengths of 2 waveforms"),
        (lambda x, mel: model().log_prob(x, mel=mel, lengths=torch.tensor([80, 0])), "between 1 and the 80 samples"),
        (lambda x, mel: model().log_prob(x, mel=mel, lengths=torch.tensor([81, 8])), "between 1 and the 80 samples"),
        (lambda x, mel: model().sample(), "is conditional on mel: give it|does not know the length"),
        (lambda x, mel: model(conditional=False).sample(2), "does not know the length of a waveform"),
        (lambda x, mel: model().sample(mel=mel, temperature=0), "temperature must be greater than 0"),
        (lambda x, mel: model().sample(0, mel=mel), "at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        call(*speech())


@pytest.mark.parametrize("options", [{}, {"conditional": False}, {"speakers": 3}], ids=["mel", "free", "speakers"])
@pytest.mark.parametrize("samples", [67, 1100, 1111])
def test_widened_latents_give_the_same_waveform(samples, options):
    """As CUDA devices take them, so that many lengths share a captured loop."""
    flow = model(8, **options)
    z, mel = speech(samples)
    condition = Condition(**given(flow, mel))
    with torch.no_grad():
        expected = flow.decode(z, **condition.keywords())
        wide, condition, lengths = flow.widened(z, condition, None)
        decoded = flow.decode(wide, **condition.keywords(), lengths=lengths)
    torch.testing.assert_close(decoded[:, :samples], expected, atol=1e-9, rtol=1e-9)
    assert not decoded[:, samples:].any()
    assert samples <= wide.shape[1] <= 1.125 * samples + flow.height


def test_lengths_share_widths():
    flow = model(8, conditional=False)
    widths = {flow.widened(torch.zeros(1, samples), Condition(), None)[0].shape[1] for samples in range(4096, 8192, 8)}
    assert len(widths) <= 9


@pytest.mark.gpu
@pytest.mark.parametrize("samples", [67, 80])
def test_captured_loops_give_the_waveform_of_the_cpu(samples):
    flow = model(8, torch.float32)
    z, mel = speech(samples, dtype=torch.float32)
    with torch.no_grad():
        expected = flow.decode(z, mel=mel)
        moved = flow.cuda()
        for _ in range(2):
            decoded = moved.decode(z.cuda(), mel=mel.cuda())
            torch.testing.assert_close(decoded.cpu(), expected, atol=1e-4, rtol=1e-4)
