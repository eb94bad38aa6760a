"""The causal transformer: causality, and the stream that generates a token at a time."""

import pytest
import torch
from torch import nn

from arflows.core.bijections import (
    Affine,
    Autoregressive,
    LocationScale,
    LogisticMixture,
    RationalQuadraticSpline,
)
from arflows.core.conditioners import CausalTransformer, Guided, transformer_loops
from arflows.core.conditioners.autoregressive import AutoregressiveConditioner, RecomputedStream, Stream
from arflows.core.conditioners.transformer import TransformerStream
from arflows.core.inversion import GaussSeidelJacobi, InversionError, Jacobi, Sequential, Solver, use_solver

SITES, CHANNELS, BATCH = 11, 3, 4
both_dtypes = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
plain_or_guided = pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])


def noisy(module: nn.Module, scale: float = 0.2, seed: int = 0):
    """Noise on the parameters, standing in for training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def conditioner(guided: bool = False, context_features: int = 5, dtype=torch.float64) -> AutoregressiveConditioner:
    """In float32 the parameters are those of a trained model in size; in float64 larger, which is harder."""
    torch.manual_seed(0)
    made = CausalTransformer(SITES, CHANNELS, 2, 16, layers=3, heads=2, context_features=context_features)
    return noisy(Guided(made, 0.7) if guided else made, 0.2 if dtype == torch.float64 else 0.05).to(dtype)


def inputs(network: AutoregressiveConditioner, dtype=torch.float64, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, SITES, CHANNELS, generator=generator, dtype=torch.float64)
    context = torch.randn(BATCH, network.context_features, generator=generator, dtype=torch.float64)
    return x.to(dtype), context.to(dtype) if network.context_features else None


@plain_or_guided
def test_a_token_sees_exactly_those_before_it(guided):
    network = conditioner(guided)
    x, context = inputs(network)
    expected = network(x, context)
    for site in range(SITES):
        changed = x.clone()
        changed[:, site] += 1.0
        moved = (network(changed, context) - expected).abs().amax((0, 2, 3))
        assert (moved[: site + 1] == 0).all()
        assert (moved[site + 1 :] > 1e-6).all()


def test_the_context_reaches_every_token():
    network = conditioner()
    x, context = inputs(network)
    moved = (network(x, context + 1) - network(x, context)).abs().amax((0, 2, 3))
    assert (moved > 1e-6).all()


@plain_or_guided
@both_dtypes
def test_steps_give_what_the_parallel_pass_gives(guided, dtype, tolerance):
    network = conditioner(guided, dtype=dtype)
    x, context = inputs(network, dtype)
    expected = network(x, context)
    stream = network.stream(x, context)
    with torch.no_grad():
        got = [stream.step(x[:, site - 1] if site else None) for site in range(SITES)]
    torch.testing.assert_close(torch.stack(got, 1), expected, atol=tolerance, rtol=tolerance)
    assert stream.computed == SITES


@plain_or_guided
@both_dtypes
@pytest.mark.parametrize("sizes", [(11,), (4, 4, 3), (1, 6, 1, 3)])
def test_sweeps_see_what_was_committed_and_leave_nothing_behind(guided, sizes, dtype, tolerance):
    network = conditioner(guided, dtype=dtype)
    x, context = inputs(network, dtype)
    expected = network(x, context).split(sizes, 1)
    stream = network.stream(x, context)
    with torch.no_grad():
        for values, parameters in zip(x.split(sizes, 1), expected, strict=True):
            stream.sweep(torch.full_like(values, 3.0))
            torch.testing.assert_close(stream.sweep(values), parameters, atol=tolerance, rtol=tolerance)
            stream.sweep(torch.full_like(values, -2.0))
            stream.commit(values)


def test_committing_what_was_swept_costs_nothing():
    network = conditioner()
    x, context = inputs(network)
    stream = network.stream(x, context)
    with torch.no_grad():
        stream.sweep(x[:, :4])
        stream.commit(x[:, :4])
        assert stream.computed == 4
        stream.sweep(x[:, 4:8])
        stream.commit(x[:, 4:8] + 1)
        assert stream.computed == 12


@plain_or_guided
@both_dtypes
@pytest.mark.parametrize("kind", [Sequential, Jacobi, lambda tolerance: GaussSeidelJacobi(4, tolerance)])
def test_solvers_return_to_the_data(guided, kind, dtype, tolerance):
    solver: Solver = kind(0.1 * tolerance)
    network = conditioner(guided, dtype=dtype)
    flow = Autoregressive(LocationScale(), network, torch.arange(SITES).flip(0))
    x, context = inputs(network, dtype)
    with torch.no_grad(), use_solver(solver) as reports:
        z, log_det = flow(x, context)
        back, inverse_log_det = flow.inverse(z, context)
    torch.testing.assert_close(back, x, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(inverse_log_det, -log_det, atol=10 * tolerance, rtol=10 * tolerance)
    assert not reports[0].fell_back


def test_the_stream_allocates_its_cache_once():
    network = conditioner()
    x, context = inputs(network)
    stream = network.stream(x, context)
    place = stream.cache.data_ptr()
    with torch.no_grad():
        for site in range(SITES):
            stream.step(x[:, site - 1] if site else None)
    assert stream.cache.data_ptr() == place
    assert stream.cache.shape == (2, 3, BATCH, 2, SITES, 8)


def test_more_tokens_than_declared_are_refused():
    network = conditioner()
    x, context = inputs(network)
    stream = network.stream(x, context)
    with torch.no_grad():
        for site in range(SITES):
            stream.step(x[:, site - 1] if site else None)
        with pytest.raises(ValueError, match=r"longer than declared: token 12 of 11"):
            stream.step(x[:, -1])
        blocks = network.stream(x, context)
        blocks.commit(x[:, :8])
        with pytest.raises(ValueError, match=r"longer than declared: token 12 of 11"):
            blocks.sweep(x[:, :4])


def test_half_precision_streams_recompute():
    """Only the same products round the same way: a cache would make the inverse that of another map."""
    network = conditioner(dtype=torch.float32)
    x, context = inputs(network, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network(x, context).dtype == torch.bfloat16
        assert isinstance(network.stream(x, context), RecomputedStream)


def test_guidance_extrapolates_from_without_to_with():
    network = conditioner(guided=True)
    x, context = inputs(network)
    given, without = (network.conditioner(x, part) for part in context.chunk(2, 1))
    torch.testing.assert_close(network(x, context), given + 0.7 * (given - without))
    network.weight = 0.0
    torch.testing.assert_close(network(x, context), given)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CausalTransformer(4, 2, 2, width=10, heads=4), "width=10 must be a multiple of heads=4"),
        (lambda: CausalTransformer(4, 2, 2, width=8, layers=0), "layers=0 must be at least 1"),
        (lambda: conditioner()(torch.zeros(1, SITES + 1, CHANNELS)), "11 sites with 3 channels, got shape \\(12, 3\\)"),
        (lambda: conditioner()(torch.zeros(1, SITES, 2)), "11 sites with 3 channels, got shape \\(11, 2\\)"),
        (lambda: conditioner().stream(torch.zeros(1, SITES, 2)), "11 sites with 3 channels"),
        (lambda: conditioner().stream(torch.zeros(1, SITES, CHANNELS)), "context with 5 features, got none"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.gpu
@plain_or_guided
def test_a_captured_loop_gives_what_the_cpu_gives(guided):
    network = conditioner(guided, dtype=torch.float32)
    flow = Autoregressive(LocationScale(), network)
    x, context = inputs(network, torch.float32)
    with torch.no_grad():
        expected, _ = flow.inverse(x, context)
        moved = flow.cuda()
        for _ in range(2):
            torch.testing.assert_close(moved.inverse(x.cuda(), context.cuda())[0].cpu(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
@both_dtypes
def test_compiled_steps_give_what_the_parallel_pass_gives(dtype, tolerance, threads, monkeypatch):
    monkeypatch.setattr(transformer_loops, "LEAST_PRODUCTS", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(0)
    sites = 37  # more than are scored together
    network = noisy(CausalTransformer(sites, CHANNELS, 2, 20, layers=2, heads=4), 0.05).to(dtype)
    x = torch.randn(BATCH, sites, CHANNELS, dtype=dtype)
    with torch.no_grad():
        expected = network(x)
        stream = network.stream(x)
        got = [stream.step(x[:, site - 1] if site else None) for site in range(20)]
        assert stream.loops is not None
        stream.commit(x[:, 19:30])  # by a sweep, which needs the keys of all steps
        assert stream.loops is None
        got += [stream.sweep(x[:, 30:31])[:, 0]]
        got += [stream.step(x[:, site - 1]) for site in range(31, sites)]
    seen = [*range(20), 30, *range(31, sites)]
    torch.testing.assert_close(torch.stack(got, 1), expected[:, seen], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "elementwise", [Affine(), LocationScale(), RationalQuadraticSpline(4)], ids=lambda map: type(map).__name__
)
@both_dtypes
def test_a_compiled_generation_gives_what_steps_give(dtype, tolerance, elementwise, threads, monkeypatch):
    monkeypatch.setattr(transformer_loops, "LEAST_PRODUCTS", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(0)
    network = CausalTransformer(SITES, CHANNELS, elementwise.parameter_count, 20, layers=2, heads=4, context_features=5)
    flow = Autoregressive(elementwise, noisy(network, 0.05)).to(dtype)
    z, context = inputs(network, dtype)
    with torch.no_grad():
        with monkeypatch.context() as patch:
            patch.delattr(TransformerStream, "step")  # the compiled generation does without
            found = flow.inverse(z, context)
        monkeypatch.setattr(TransformerStream, "generate", Stream.generate)
        expected = flow.inverse(z, context)
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def test_an_overflow_in_a_compiled_generation_is_told():
    flow = Autoregressive(LocationScale(), conditioner(dtype=torch.float32))
    z, context = inputs(flow.conditioner, torch.float32)
    z[1, 3, 0] = torch.nan
    with torch.no_grad(), pytest.raises(InversionError, match="z is not finite"):
        flow.inverse(z, context)


def test_maps_that_loops_do_not_know_are_inverted_step_by_step():
    elementwise = LogisticMixture(2)
    network = noisy(CausalTransformer(SITES, CHANNELS, elementwise.parameter_count, 16, 2, 2, 5), 0.05).double()
    flow = Autoregressive(elementwise, network)
    x, context = inputs(network)
    with torch.no_grad():
        z, _ = flow(x, context)
        torch.testing.assert_close(flow.inverse(z, context)[0], x, atol=1e-9, rtol=1e-9)


def test_a_model_in_half_precision_takes_steps():
    network = conditioner(context_features=0).to(torch.bfloat16)
    x, _ = inputs(network, torch.bfloat16)
    with torch.no_grad():
        stream = network.stream(x)
        got = [stream.step(x[:, site - 1] if site else None) for site in range(SITES)]
        torch.testing.assert_close(torch.stack(got, 1), network(x), atol=0.1, rtol=0.1)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_batch_is_generated_in_parts(monkeypatch, threads):
    network = conditioner(dtype=torch.float32)
    flow = Autoregressive(LocationScale(), network)
    z = torch.randn(7, SITES, CHANNELS)
    context = torch.randn(7, network.context_features)
    with torch.no_grad():
        whole, whole_log_det = flow.inverse(z, context)
        monkeypatch.setattr(CausalTransformer, "examples_at_once", lambda self, like: 2)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            parts, log_det = flow.inverse(z, context)
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(log_det, whole_log_det, atol=1e-4, rtol=1e-5)
    assert not parts.is_inference()


@pytest.mark.parametrize("examples", [2, 100])
def test_a_context_is_for_all_or_for_each(monkeypatch, examples):
    network = conditioner(dtype=torch.float32)
    flow = Autoregressive(LocationScale(), network)
    monkeypatch.setattr(CausalTransformer, "examples_at_once", lambda self, like: examples)
    z = torch.randn(7, SITES, CHANNELS)
    context = torch.randn(1, network.context_features)
    with torch.no_grad():
        found, _ = flow.inverse(z, context)
        torch.testing.assert_close(found, flow.inverse(z, context.expand(7, -1))[0])
        with pytest.raises(RuntimeError, match="size"):
            flow.inverse(z, context.expand(5, -1))


def test_parts_fit_the_cache_or_are_the_whole_batch():
    small = CausalTransformer(256, 12, 2, 128, layers=4, heads=4)
    parts = small.examples_at_once(torch.zeros(64, 256, 12))
    assert 4 <= parts < 64
    bytes_of_a_step = 4 * (sum(p.numel() for p in small.parameters()) + parts * 2 * 4 * 256 * 128)
    assert bytes_of_a_step <= 12 << 20
    large = CausalTransformer(256, 12, 2, 768, layers=2, heads=4)
    assert large.examples_at_once(torch.zeros(64, 256, 12)) == 64
    with torch.no_grad():
        for network, batch, in_loops in ((small, parts, True), (small, 64, False), (large, 1, False)):
            stream = network.stream(torch.zeros(batch, 256, 12))
            stream.step(None)
            assert (stream.loops is not None) == in_loops
