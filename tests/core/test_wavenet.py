"""The WaveNet over rows: causality, and the stream that generates a row at a time."""

from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from arflows.core.bijections import Affine, Autoregressive
from arflows.core.conditioners.wavenet import WaveNet
from arflows.core.inversion import GaussSeidelJacobi, Jacobi, Sequential, use_solver

CHANNELS, CONTEXT = 4, 3
HEIGHTS = [2, 7, 8, 16, 32, 64, 128]
# Kernels and dilations (down, along): published ones, none, ones without a common factor with the height, wide ones.
STACKS = {
    "dilated": ((3, 3), [(1, 1), (2, 2), (4, 4), (1, 8)]),
    "plain": ((2, 3), [(1, 1), (1, 2)]),
    "odd": ((4, 5), [(3, 2), (5, 1)]),
    "one_column": ((3, 1), [(1, 1), (7, 1)]),
    "one_row": ((1, 3), [(1, 1), (1, 2)]),
}
# In float32 the parameters are those of a trained model in size; in float64 larger, which is harder.
both_dtypes = pytest.mark.parametrize(
    ("dtype", "scale", "tolerance"),
    [(torch.float64, 0.2, 1e-9), (torch.float32, 0.1, 1e-5)],
    ids=["float64", "float32"],
)
every_stack = pytest.mark.parametrize("stack", STACKS)


def noisy(module: nn.Module, scale: float = 0.2) -> nn.Module:
    """Noise on the parameters, standing in for training."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def network(stack="dilated", height=7, scale=0.2, dtype=torch.float64, features=CONTEXT, ordered=False, **options):
    torch.manual_seed(0)
    kernel, dilations = STACKS[stack]
    order = torch.randperm(height) if ordered else None
    return noisy(WaveNet(CHANNELS, dilations, kernel, features, order=order, **options), scale).to(dtype)


def signal(height=7, columns=9, batch=2, dtype=torch.float64, features=CONTEXT, counted=False):
    """Rows and their context, which counts samples where signals shall end early."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, height, columns, generator=generator, dtype=torch.float64).to(dtype)
    context = torch.randn(batch, features, columns, generator=generator, dtype=torch.float64).to(dtype)
    if counted:
        inside = torch.full((batch, 1, columns), float(height), dtype=dtype)
        inside[0, 0, -2:] = 0
        inside[-1, 0, -1] = 1
        context = torch.cat([context, inside], 1)
    return x, context if context.shape[1] else None


@torch.no_grad()
def steps(stream, x):
    return torch.stack([stream.step(x[:, row - 1] if row else None).clone() for row in range(x.shape[1])], 1)


@every_stack
@pytest.mark.parametrize("height", HEIGHTS)
@both_dtypes
def test_steps_give_what_the_parallel_pass_gives(stack, height, dtype, scale, tolerance):
    for number, (features, counted, causal) in enumerate(product((0, CONTEXT), (False, True), (False, True))):
        net = network(stack, height, scale, dtype, features, ordered=counted, causal_width=causal)
        # Odd widths, down to a single column; batches of one and more.
        x, context = signal(height, (9, 1, 13, 2)[number % 4], 1 + number % 3, dtype, features, counted)
        with torch.no_grad():
            expected = net(x, context)
        assert expected.shape == (*x.shape, 2)
        torch.testing.assert_close(steps(net.stream(x, context), x), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("counted", [False, True], ids=["full", "counted"])
def test_a_context_of_each_sample(counted):
    """Rows of the context lie as those of the signal do, whatever their order; equal rows are a context of columns."""
    net = network(height=9, ordered=True)
    x, context = signal(9, counted=counted)
    rows = context[:, :, None].repeat(1, 1, 9, 1)
    with torch.no_grad():
        torch.testing.assert_close(net(x, rows), net(x, context))
        rows[:, :CONTEXT] += torch.randn(2, CONTEXT, 9, 9, dtype=torch.float64)
        expected = net(x, rows)
        assert not torch.equal(expected, net(x, context))
        stream, swept = net.stream(x, rows), []
        for block in x.split(4, 1):
            swept.append(stream.sweep(block))
            stream.commit(block)
    torch.testing.assert_close(steps(net.stream(x, rows), x), expected, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(torch.cat(swept, 1), expected, atol=1e-9, rtol=1e-9)
    changed = rows.clone()
    changed[:, 0, net.order[3]] += 1.0  # of the row that is generated fourth
    moved = (net(x, changed) - expected).abs().amax((0, 2, 3))
    assert (moved[:3] == 0).all()
    assert moved[3] > 0


@pytest.mark.parametrize("counted", [False, True], ids=["full", "counted"])
def test_tiles_of_columns_and_batches_fit_together(counted, monkeypatch):
    """Steps work on a tile of columns and examples at a time; small ones here, so that there are many."""
    net = network(height=7, ordered=True)
    x, context = signal(7, 300, 5, counted=counted)
    with torch.no_grad():
        expected = net(x, context)
    for size in (1, 1 << 16, 1 << 18):
        monkeypatch.setattr("arflows.core.conditioners.wavenet_stream.TILE_BYTES", size)
        torch.testing.assert_close(steps(net.stream(x, context), x), expected, atol=1e-9, rtol=1e-9)


@every_stack
@pytest.mark.parametrize("height", [2, 7, 16])
@pytest.mark.parametrize("block", [1, 3, 16])
def test_sweeps_see_what_was_committed_and_leave_nothing_behind(stack, height, block):
    net = network(stack, height, ordered=True)
    x, context = signal(height, counted=True)
    expected = net(x, context).split(block, 1)
    stream = net.stream(x, context)
    with torch.no_grad():
        for values, parameters in zip(x.split(block, 1), expected, strict=True):
            stream.sweep(torch.full_like(values, 3.0))
            torch.testing.assert_close(stream.sweep(values), parameters, atol=1e-9, rtol=1e-9)
            stream.sweep(torch.full_like(values, -2.0))
            stream.commit(values)


def test_committing_what_was_swept_costs_nothing():
    net = network()
    x, context = signal()
    stream = net.stream(x, context)
    with torch.no_grad():
        stream.sweep(x[:, :4])
        stream.commit(x[:, :4])
        assert stream.computed == 4
        stream.sweep(x[:, 4:])
        stream.commit(x[:, 4:] + 1)
        assert stream.computed == 10


@pytest.mark.parametrize("height", HEIGHTS)
@both_dtypes
def test_solvers_return_to_the_data(height, dtype, scale, tolerance):
    stack = list(STACKS)[height % len(STACKS)]
    bijection = Autoregressive(Affine(), network(stack, height, scale, dtype), torch.arange(height).flip(0)).to(dtype)
    x, context = signal(height, 5, 2, dtype)
    with torch.no_grad():
        z, log_det = bijection(x, context)
        tight = 1e-12 if dtype == torch.float64 else 1e-6
        for solver in (Sequential(), Jacobi(tight), GaussSeidelJacobi(5, tight)):
            with use_solver(solver) as reports:
                back, inverse_log_det = bijection.inverse(z, context)
            assert not reports[0].fell_back
            torch.testing.assert_close(back, x, atol=tolerance, rtol=tolerance)
            torch.testing.assert_close(inverse_log_det, -log_det, atol=100 * tolerance, rtol=10 * tolerance)


@pytest.mark.parametrize("causal", [False, True], ids=["both_sides", "causal_width"])
@every_stack
def test_a_changed_future_never_changes_the_past(stack, causal):
    net = network(stack, causal_width=causal)
    x, context = signal()
    expected = net(x, context)
    for row in range(7):
        changed = x.clone()
        changed[:, row, 4] += 1.0
        moved = (net(changed, context) - expected).abs().amax((0, 3))
        assert (moved[: row + 1] == 0).all()
        if row + 1 < 7 and stack != "one_row":  # whose later rows see only the one before
            assert (moved[row + 1 :].amax(1) > 0).any()
        assert not causal or (moved[:, :4] == 0).all()
    changed = context.clone()
    changed[:, :, 4] += 1.0
    moved = (net(x, changed) - expected).abs().amax((0, 1, 3))
    assert moved[4] > 0
    assert not causal or (moved[:4] == 0).all()


def test_columns_after_a_signals_end_do_not_exist():
    """Samples and context beyond the lengths have no effect; parameters there are zero."""
    net = network(ordered=True)
    x, context = signal(counted=True)
    ended = context[:, -1] == 0
    assert ended.any()
    expected = net(x, context)
    samples, features = x.clone(), context.clone()
    samples.movedim(1, -1)[ended] = 7.0
    features[:, :-1].movedim(1, -1)[ended] = 7.0
    assert torch.equal(net(samples, features), expected)
    assert (expected.movedim(1, -2)[ended] == 0).all()
    short, rest = signal()[0][:1, :, :-2], context[:1, :-1, :-2]
    torch.testing.assert_close(net(short, rest), expected[:1, :, :-2])


def test_streams_of_causal_width_go_on_where_the_last_ended():
    net = network(causal_width=True)
    x, context = signal(7, 20)
    expected = net(x, context)
    for sizes in ([20], [7, 1, 12], [1] * 20):
        memory = net.memory(x)
        parts = [
            steps(net.stream(part, given, memory), part)
            for part, given in zip(x.split(sizes, 2), context.split(sizes, 2), strict=True)
        ]
        torch.testing.assert_close(torch.cat(parts, 2), expected, atol=1e-10, rtol=1e-10)


def test_half_precision_keeps_what_it_returns_close():
    """Under autocast products are taken in bfloat16; the stream rounds in other places than the pass."""
    net = network(height=16, scale=0.05, dtype=torch.float32)
    x, context = signal(16, 40, dtype=torch.float32)
    with torch.no_grad():
        exact = net(x, context)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            swept, stepped = net(x, context), steps(net.stream(x, context), x)
    assert stepped.dtype == torch.float32
    for rough in (swept, stepped):
        error = (rough.float() - exact).abs().max()
        assert 0 < error < 0.02 * exact.abs().max()


def published(net, x, context):
    """The network of the WaveFlow paper as it is written down there, for signals that do not end early."""
    hidden = net.input_proj(F.pad(x[:, :-1], (0, 0, 1, 0))[:, None])
    added = [0] * len(net.stack)
    if net.from_context is not None:
        added = net.from_context(context)[:, :, None].chunk(len(net.stack), 1)
    skipped = 0
    for layer, more in zip(net.stack, added, strict=True):
        padded = F.pad(hidden, (*layer.margins, layer.past, 0))
        signal, gate = (layer.convolution(padded) + more).chunk(2, 1)
        mixed = layer.mix(signal.tanh() * gate.sigmoid())
        skipped = skipped + mixed[:, -net.channels :]
        hidden = (hidden + mixed[:, : net.channels]) * 0.5**0.5
    return net.output_proj(skipped * len(net.stack) ** -0.5).movedim(1, -1)


@every_stack
@pytest.mark.parametrize("features", [0, CONTEXT], ids=["alone", "context"])
@pytest.mark.parametrize("causal", [False, True], ids=["both_sides", "causal_width"])
@both_dtypes
def test_folded_weights_compute_the_published_network(stack, features, causal, dtype, scale, tolerance):
    """Values and all gradients of the pass by hand are those of the plain network in PyTorch's own operations."""
    net = network(stack, 7, scale, dtype, features, causal_width=causal)
    x, context = signal(7, 9, 2, dtype, features)
    inputs = [x.requires_grad_(), *([] if context is None else [context.requires_grad_()]), *net.parameters()]
    expected, computed = published(net, x, context), net(x, context)
    torch.testing.assert_close(computed, expected, atol=tolerance, rtol=tolerance)
    weights = torch.randn(expected.shape, dtype=dtype, generator=torch.Generator().manual_seed(2))
    wanted, got = (torch.autograd.grad(values, inputs, weights) for values in (expected, computed))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=100 * tolerance, rtol=10 * tolerance)


@every_stack
@pytest.mark.parametrize("rows", [False, True], ids=["columns", "rows"])
def test_both_passes_agree_where_signals_end(stack, rows, monkeypatch):
    """The pass by hand and the one that other devices take, with masks and with contexts of each sample."""
    net = network(stack, ordered=True)
    x, context = signal(counted=True)
    if rows:
        context = context[:, :, None].repeat(1, 1, 7, 1)
        context[:, :CONTEXT] += torch.randn(2, CONTEXT, 7, 9, dtype=torch.float64)
    inputs = [x.requires_grad_(), context.requires_grad_(), *net.parameters()]
    by_hand = net(x, context)
    monkeypatch.setattr("arflows.core.conditioners.wavenet_pass.fits", lambda *_: False)
    plain = net(x, context)
    torch.testing.assert_close(by_hand, plain, atol=1e-10, rtol=1e-10)
    got, wanted = (torch.autograd.grad(values.square().sum(), inputs) for values in (by_hand, plain))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


def test_threads_share_a_pass():
    """The same values and gradients on one thread and on several, whose shares are columns."""
    net = network(height=4)
    x, context = signal(4, 200)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            values = net(x, context)
            results.append([values, *torch.autograd.grad(values.square().sum(), list(net.parameters()))])
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


def test_half_precision_has_the_gradients_of_full():
    net = network(height=16, scale=0.05, dtype=torch.float32)
    x, context = signal(16, 40, dtype=torch.float32)
    exact = torch.autograd.grad(net(x, context).square().mean(), list(net.parameters()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = net(x, context)
    assert values.dtype == torch.float32
    rough = torch.autograd.grad(values.square().mean(), list(net.parameters()))
    largest = max(gradient.norm() for gradient in exact)  # those of normalised directions may be zero up to rounding
    for one, other in zip(rough, exact, strict=True):
        assert (one - other).norm() < 0.05 * other.norm() + 1e-4 * largest


def test_a_number_that_is_none_stays_none():
    net = network(dtype=torch.float32)
    x, context = signal(dtype=torch.float32)
    x[0, 0, 4] = float("nan")
    with torch.no_grad():
        assert net(x, context)[0, 1:].isnan().any()


def test_a_new_network_is_the_identity():
    net = WaveNet(CHANNELS, [(1, 1)], context_features=CONTEXT)
    x, context = signal(dtype=torch.float32)
    assert (net(x, context) == 0).all()
    assert (net(x + 1, context + 1) == 0).all()


def test_every_parameter_gets_a_gradient():
    net = network().train()
    x, context = signal()
    net(x, context).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in net.parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: WaveNet(0, [(1, 1)]), "channels=0.*must be positive"),
        (lambda: WaveNet(4, []), "dilations=\\[\\].*must be positive"),
        (lambda: WaveNet(4, [(1, 0)]), "must be positive"),
        (lambda: WaveNet(4, [(1, 1)], (3, 2)), "kernel's width odd"),
        (lambda: network()(signal()[0]), "context with 3 features a column, got 0"),
        (lambda: network()(signal()[0], torch.zeros(2, 5, 9)), "context with 3 features a column, got 5"),
        (lambda: network().stream(signal()[0]).step(None), "context with 3 features a column, got 0"),
        (lambda: network().stream(*signal(), memory=[]), "only a network with causal_width=True"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.gpu
@pytest.mark.parametrize("counted", [False, True], ids=["full", "counted"])
def test_a_captured_loop_gives_what_the_cpu_gives(counted):
    bijection = Autoregressive(Affine(), network(dtype=torch.float32, ordered=True, scale=0.1)).float()
    x, context = signal(dtype=torch.float32, counted=counted)
    with torch.no_grad():
        expected, _ = bijection.inverse(x, context)
        moved = bijection.cuda()
        for _ in range(2):
            torch.testing.assert_close(moved.inverse(x.cuda(), context.cuda())[0].cpu(), expected, atol=1e-4, rtol=1e-4)
