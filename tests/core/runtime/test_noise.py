"""Counter-based noise: a function of seed, stream and index, of the right distribution."""

import numpy as np
import pytest
import torch
from scipy import stats

from arflows.core.bases import DiagonalNormal, StandardNormal, Uniform
from arflows.core.runtime import processes
from arflows.core.runtime.noise import Noise, PerExample, fixed_noise, noise_rows, seed_of, torch_generator
from arflows.core.runtime.processes import Rank, batch_shard

UNIFORM = [0.5271030281317672, 0.21366304291299465]
SEED = 3218869700678520503

DRAWS = [Noise.uniform, Noise.normal]


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("shape", [(), (3,), (3, 5), (4,), (2, 3, 7)])
def test_any_stretch_can_be_drawn_by_itself(draw, shape):
    whole = draw(Noise(7, "latents"), 0, 50, shape)
    assert whole.shape == (50, *shape)
    assert whole.dtype == torch.float64
    for first, count in ((0, 1), (4, 3), (13, 37), (49, 1), (6, 0)):
        assert torch.equal(draw(Noise(7, "latents"), first, count, shape), whole[first : first + count])


@pytest.mark.parametrize("draw", DRAWS)
def test_a_far_stretch_is_reached_at_once(draw):
    far = draw(Noise(0, "latents"), 10**15, 8, (38, 65))
    assert torch.equal(draw(Noise(0, "latents"), 10**15 + 3, 2, (38, 65)), far[3:5])


def test_values_of_a_seed_stay():
    uniform = Noise(0, "latents").uniform(5, 2)
    normal = Noise(0, "latents").normal(5, 2)
    torch.testing.assert_close(uniform, torch.tensor(UNIFORM, dtype=torch.float64), rtol=0, atol=0)
    torch.testing.assert_close(normal, torch.tensor(stats.norm.ppf(UNIFORM)), rtol=1e-12, atol=0)
    assert seed_of(0, "training", 3) == SEED


def test_seeds_and_streams_are_unrelated():
    names = [(0, "latents"), (0, "targets"), (1, "latents"), (-1, "latents"), (2**70, "latents"), (0, "")]
    drawn = torch.stack([Noise(seed, stream).normal(0, 20_000) for seed, stream in names])
    correlations = torch.corrcoef(drawn) - torch.eye(len(names))
    assert correlations.abs().max() < 5 / 20_000**0.5
    # Neighbours within a sequence, and the same place of neighbouring examples.
    normal = drawn[0]
    for lag in (1, 2, 3, 4, 65):
        assert abs(float((normal[lag:] * normal[:-lag]).mean())) < 5 / 20_000**0.5


def test_distributions():
    uniform, normal = (draw(Noise(3, "latents"), 0, 200_000).numpy() for draw in DRAWS)
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3
    assert stats.kstest(normal, "norm").pvalue > 1e-3
    assert abs(normal.mean()) < 4 / 200_000**0.5
    assert abs(normal.std() - 1) < 4 / 400_000**0.5
    counts = np.histogram(uniform, 1000, (0, 1))[0]
    assert stats.chisquare(counts).pvalue > 1e-3
    # Tails, and bits of float64 that float32 lacks.
    assert abs(np.mean(np.abs(normal) > 3) / 0.0026998 - 1) < 0.2
    assert np.mean(uniform.astype(np.float32) == uniform) < 0.01
    np.testing.assert_allclose(normal, stats.norm.ppf(uniform), rtol=1e-9, atol=1e-12)


def test_extreme_words_stay_finite(monkeypatch):
    words = np.array([0.0, 1 - 2.0**-53, 0.5])
    monkeypatch.setattr(Noise, "uniform", lambda *_: torch.from_numpy(words.copy()))
    normal = Noise(0, "latents").normal(0, 3)
    assert normal.isfinite().all()
    assert normal[0] == -normal[1] < -8
    assert Noise(0, "latents").draw("uniform", 0, 3, (), torch.float32).max() < 1
    assert Noise(0, "latents").draw("uniform", 0, 3, (), torch.float64).max() < 1


def test_seeds_differ_and_are_integers_of_63_bits():
    seeds = [seed_of(seed, stream, index) for seed in (0, 1, -1) for stream in "ab" for index in range(20)]
    assert len(set(seeds)) == 120
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert [Noise(1, "a").seed(index) for index in range(20)] == seeds[40:60]
    one, other = torch_generator(0, "a", 1), torch.Generator().manual_seed(seed_of(0, "a", 1))
    assert torch.equal(torch.rand(4, generator=one), torch.rand(4, generator=other))


@pytest.mark.parametrize("base", [StandardNormal((3,)), DiagonalNormal((2, 2)), Uniform((5,)).double()])
def test_latents_of_an_example_do_not_depend_on_its_batch(base):
    whole = base.sample(7, generator=PerExample(5, 0))
    assert whole.dtype == base.origin.dtype
    parts = [base.sample(count, generator=PerExample(5, first)) for first, count in ((0, 4), (4, 1), (5, 2))]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(base.sample(7, generator=PerExample(6, 0)), whole)
    assert len(torch.unique(whole.flatten())) == whole.numel()
    generator = PerExample(5, 0)
    assert not torch.equal(base.sample(2, generator=generator), base.sample(2, generator=generator))


@pytest.mark.parametrize("count", [2, 4])
def test_latents_do_not_depend_on_the_number_of_processes(monkeypatch, count):
    base = StandardNormal((3,))
    whole = base.sample(8, generator=PerExample(5, 0))
    batches = []
    for rank in range(count):
        monkeypatch.setattr(processes._groups, "command", Rank(rank, count))
        starts = list(range(0, 8, 2))[rank::count]
        batches += [(start, base.sample(2, generator=PerExample(5, start))) for start in starts]
    assert torch.equal(torch.cat([batch for _, batch in sorted(batches, key=lambda pair: pair[0])]), whole)


def test_rows_of_noise_are_those_of_the_whole_batch():
    def draw(rank, count):
        torch.manual_seed(3)
        with batch_shard(rank, count):
            return noise_rows(torch.rand, (8 // count, 5))

    whole = draw(0, 1)
    for count in (2, 4):
        torch.testing.assert_close(torch.stack([draw(rank, count) for rank in range(count)], 1).flatten(0, 1), whole)
    assert processes.batch_rank() == Rank()


def test_fixed_noise_repeats_itself_and_restores_the_generators():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with fixed_noise(7, torch.device("cpu")):
        first = torch.rand(2)
    torch.testing.assert_close(torch.rand(4), expected, rtol=0, atol=0)
    with fixed_noise(7, torch.device("cpu")):
        torch.testing.assert_close(torch.rand(2), first, rtol=0, atol=0)
