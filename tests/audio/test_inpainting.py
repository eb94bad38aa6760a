"""Inpainting: draws from the density of a gap given its surroundings."""

import pytest
import torch

from arflows.audio import WaveFlow, inpaint
from arflows.core.runtime.errors import UserError

from .test_model import model, noisy, speech

GAP = (31, 45)
CHAINS = 100


@pytest.fixture(scope="module")
def flow() -> WaveFlow:
    return model(flows=2)


def test_only_the_gap_changes_and_the_densities_are_those_of_the_waveforms(flow):
    waveform, mel = speech(77, 1)

    def filled(seed, **options):
        return inpaint(flow, waveform, *GAP, mel=mel, generator=torch.Generator().manual_seed(seed), **options)

    alternatives, log_probs = filled(0, count=3, steps=4)
    assert alternatives.shape == (3, 77)
    outside = torch.ones(77, dtype=torch.bool)
    outside[GAP[0] : GAP[1]] = False
    assert torch.equal(alternatives[:, outside], waveform[:, outside].expand(3, -1))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(alternatives[one], alternatives[other])
    torch.testing.assert_close(log_probs, flow.log_prob(alternatives, mel=mel.expand(3, -1, -1)))
    assert torch.equal(filled(0, count=3, steps=4)[0], alternatives)
    assert not torch.equal(filled(1, steps=4)[0][0], alternatives[0])
    assert not flow.training


def test_chains_have_the_density_as_their_target():
    """Means and deviations of two samples over many chains against sums over a grid; the first guess is elsewhere."""
    flow = noisy(model(height=2, flows=2, layers=1, conditional=False, channels=2), 0.5)
    waveform = 0.5 * speech(8, 1)[0]
    start, stop = 3, 5
    places = torch.linspace(-40, 40, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(places, places)
    whole = waveform.repeat(len(grid), 1)
    whole[:, start:stop] = grid
    with torch.no_grad():
        weights = flow.log_prob(whole).softmax(0)
    mean = (weights[:, None] * grid).sum(0)
    deviation = (weights[:, None] * (grid - mean).square()).sum(0).sqrt()

    def errors(steps):
        generator = torch.Generator().manual_seed(0)
        drawn = inpaint(flow, waveform, start, stop, count=CHAINS, steps=steps, generator=generator)[0][:, start:stop]
        return torch.cat([drawn.mean(0) - mean, drawn.std(0) - deviation]) / deviation.repeat(2) * CHAINS**0.5

    assert errors(0).abs().max() > 3
    assert errors(24).abs().max() < 3


def test_the_piece_that_is_looked_at_is_enough(flow):
    """Differences of densities over it are those of whole waveforms."""
    from arflows.audio.inpainting import _Chain
    from arflows.audio.representation import Condition

    waveform, mel = speech(400, 1)
    columns = flow.context(waveform, Condition(mel))
    chain = _Chain(flow, waveform, 190, 205, columns, 1.0, None)
    first, last, _ = chain.exact
    assert 0 < first < last < 400
    other = waveform.clone()
    other[:, 190:205] += 0.3
    whole = flow.log_prob(other, mel=mel) - flow.log_prob(waveform, mel=mel)
    with torch.no_grad():
        assert chain._density(other) - chain._density(waveform) == pytest.approx(whole.item(), abs=1e-9)


@pytest.mark.parametrize(
    ("gap", "options", "message"),
    [
        ((5, 5), {}, "sample 5 to 5 does not lie"),
        ((-1, 5), {}, "does not lie"),
        ((70, 78), {}, "one waveform of 77 samples"),
        ((5, 9), {"count": 0}, "count=0"),
        ((5, 9), {"steps": -1}, "steps=-1"),
        ((5, 9), {"temperature": 0.0}, "temperature must be greater than 0"),
    ],
)
def test_what_does_not_fit_is_refused(flow, gap, options, message):
    waveform, mel = speech(77, 1)
    with pytest.raises(UserError, match=message):
        inpaint(flow, waveform, *gap, mel=mel, **options)
