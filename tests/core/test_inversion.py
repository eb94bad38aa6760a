"""Solvers of autoregressive bijections: agreement, reports and refusals."""

import contextvars
import math
import threading

import pytest
import torch

from arflows.core.bijections import (
    Affine,
    Autoregressive,
    Inverse,
    LocationScale,
    LogisticMixture,
    RationalQuadraticSpline,
)
from arflows.core.conditioners import CausalTransformer, MaskedMLP
from arflows.core.conditioners.autoregressive import RecomputedStream
from arflows.core.inversion import (
    GaussSeidelJacobi,
    InversionError,
    Jacobi,
    Sequential,
    Solver,
    relative_residual,
    solve,
    use_solver,
)

SHAPES = {
    "one_site": (1, (8,), {}),
    "one_site_context": (1, (8, 8), {"context_features": 3}),
    "wide": (6, (64, 40), {}),
    "narrow": (40, (16, 9), {"context_features": 3}),
    "residual": (35, (48, 48, 48), {"residual": True, "context_features": 2, "activation": "elu"}),
    "staircase": (20, (600, 540), {}),
    "several_stream_blocks": (50, (128,), {"activation": "silu"}),
}
every_shape = pytest.mark.parametrize(("features", "hidden", "options"), SHAPES.values(), ids=SHAPES)


def layer(features, hidden=(32, 32), scale=0.2, elementwise=None, ordered=True, **options) -> Autoregressive:
    """An autoregressive layer with random weights, in float64."""
    torch.manual_seed(0)
    elementwise = elementwise or Affine()
    made = MaskedMLP(features, elementwise.parameter_count, hidden, **options)
    order = torch.randperm(features) if ordered else None
    bijection = Autoregressive(elementwise, made, order).double()
    with torch.no_grad():
        for parameter in bijection.parameters():  # sums of inputs grow by the same factor, however many there are
            fan_in = parameter.shape[-1] if parameter.ndim > 1 else 1
            parameter.add_(scale * torch.randn_like(parameter) / max(1, fan_in) ** 0.5)
    return bijection


def examples(bijection: Autoregressive, batch: int = 5):
    """Data, context, latents, log-determinants."""
    made = bijection.conditioner
    x = torch.randn(batch, made.features, dtype=torch.float64)
    context = torch.randn(batch, made.context_features, dtype=torch.float64) if made.context_features else None
    with torch.no_grad():
        return x, context, *bijection(x, context)


def inverse_by(solver: Solver, bijection: Autoregressive, z, context=None):
    """Solution of a solver, and its report."""
    with torch.no_grad(), use_solver(solver) as reports:
        x, log_det = bijection.inverse(z, context)
    (report,) = reports
    return x, log_det, report


@every_shape
@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0], ids=["initial", "random", "steep"])
def test_all_solvers_find_the_same(features, hidden, options, scale):
    bijection = layer(features, hidden, scale, **options)
    x, context, z, log_det = examples(bijection)
    for solver in (Sequential(), Jacobi(1e-13), GaussSeidelJacobi(7, 1e-13), GaussSeidelJacobi(64, 1e-13)):
        found, inverse_log_det, _ = inverse_by(solver, bijection, z, context)
        size = x.abs().max().item()
        torch.testing.assert_close(found, x, atol=1e-10 * size, rtol=0)
        torch.testing.assert_close(inverse_log_det, -log_det, atol=1e-9, rtol=0)


@every_shape
def test_solvers_agree_in_float32(features, hidden, options):
    bijection = layer(features, hidden, 0.05, **options).float()
    made = bijection.conditioner
    z = torch.randn(64, features)
    context = torch.randn(64, made.context_features) if made.context_features else None
    found = [inverse_by(s, bijection, z, context)[0] for s in (Sequential(), Jacobi(1e-6), GaussSeidelJacobi(7, 1e-6))]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-5, rtol=1e-5)


@every_shape
def test_a_streams_parameters_are_those_of_the_pass(features, hidden, options):
    """Step by step, by committed blocks, and by the general stream that takes a pass for each site."""
    bijection = layer(features, hidden, **options)
    x, context, _, _ = examples(bijection)
    made = bijection.conditioner
    expected = made(x, context)
    with torch.no_grad():
        for stream in (made.stream(x, context), RecomputedStream(made, x, context)):
            previous = [None, *x.T[:-1]]
            steps = torch.stack([stream.step(value).clone() for value in previous], 1)
            torch.testing.assert_close(steps, expected, atol=1e-12, rtol=0)
        for stream in (made.stream(x, context), RecomputedStream(made, x, context)):
            for start in range(0, features, 9):
                block = x[:, start : start + 9]
                stream.sweep(torch.randn_like(block))  # a guess leaves no trace
                torch.testing.assert_close(stream.sweep(block), expected[:, start : start + 9], atol=1e-12, rtol=0)
                stream.commit(block)


@every_shape
@pytest.mark.parametrize(
    "elementwise", [Affine, LocationScale, RationalQuadraticSpline, lambda: RationalQuadraticSpline(1)]
)
@pytest.mark.parametrize("activation", ["relu", "tanh", "elu", "silu"])
def test_the_compiled_loop_does_what_steps_do(features, hidden, options, elementwise, activation):
    bijection = layer(features, hidden, 0.3, elementwise(), **options | {"activation": activation})
    made, batch = bijection.conditioner, 300  # more examples than the loop takes at a time
    z = 2 * torch.randn(batch, features, dtype=torch.float64)  # of a spline, bins and tails
    context = torch.randn(batch, made.context_features, dtype=torch.float64) if made.context_features else None
    stream, x, values, log_derivatives = made.stream(z, context), None, [], []
    with torch.no_grad():
        for site in range(features):
            x, log_derivative = bijection.elementwise.inverse(z[:, site], stream.step(x))
            values.append(x)
            log_derivatives.append(log_derivative)
        found, found_log_derivative = made.stream(z, context).generate(bijection.elementwise, z)
    torch.testing.assert_close(found, torch.stack(values, 1), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(found_log_derivative, torch.stack(log_derivatives, 1), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("elementwise", [Affine, RationalQuadraticSpline])
def test_the_compiled_loop_in_float32(elementwise):
    bijection = layer(20, (60,), 0.1, elementwise()).float()
    z = 2 * torch.randn(64, 20)
    found, log_det, _ = inverse_by(Sequential(), bijection, z, None)
    expected, expected_log_det, _ = inverse_by(Sequential(), bijection.double(), z.double(), None)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(log_det.double(), expected_log_det, atol=1e-4, rtol=1e-5)


def test_layers_are_cut_into_blocks_with_a_dense_part():
    first, second, _ = layer(*SHAPES["staircase"][:2]).conditioner.masked_layers
    assert len(second.blocks) == 2
    assert second.blocks[1].dense is not None
    assert len(first.blocks) == 1


def steps_of(monkeypatch, stream):
    """A list of the sites for which a stream takes a step from now on."""
    steps, step = [], stream.step
    monkeypatch.setattr(stream, "step", lambda previous: steps.append(len(steps)) or step(previous))
    return steps


@pytest.mark.parametrize("elementwise", [Affine, RationalQuadraticSpline, lambda: LogisticMixture(2)])
def test_half_precision_is_left_to_steps(elementwise, monkeypatch):
    """Streams and maps alone; whole bijections refuse to be converted."""
    bijection = layer(4, elementwise=elementwise())
    bijection.conditioner.bfloat16()
    bijection.elementwise.bfloat16()
    z = torch.randn(3, 4, dtype=torch.bfloat16)
    stream = bijection.conditioner.stream(z)
    steps = steps_of(monkeypatch, stream)
    with torch.no_grad():
        stream.generate(bijection.elementwise, z)
    assert steps == [0, 1, 2, 3]


@pytest.mark.parametrize(("elementwise", "count"), [(LogisticMixture(2), 4), (Affine(), 0)])
def test_maps_without_a_compiled_loop_are_left_to_steps(elementwise, count, monkeypatch):
    bijection = layer(4, elementwise=elementwise)
    z = torch.randn(3, 4, dtype=torch.float64)
    stream = bijection.conditioner.stream(z)
    steps = steps_of(monkeypatch, stream)
    with torch.no_grad():
        stream.generate(bijection.elementwise, z)
    assert len(steps) == count


@pytest.mark.report
def test_reports_say_what_was_done():
    bijection = layer(40)
    _, _, z, _ = examples(bijection)
    _, _, sequential = inverse_by(Sequential(), bijection, z)
    assert (sequential.sites, sequential.sweeps, sequential.network_evaluations) == (40, 40, 1)
    assert sequential.residual is None
    _, _, jacobi = inverse_by(Jacobi(1e-9), bijection, z)
    assert 1 < jacobi.sweeps == jacobi.network_evaluations < 40
    assert jacobi.residual <= 1e-9
    _, _, blocks = inverse_by(GaussSeidelJacobi(10, 1e-9), bijection, z)
    assert 4 <= blocks.sweeps <= 40
    assert blocks.residual <= 1e-9
    assert all(report.converged and not report.fell_back for report in (sequential, jacobi, blocks))


@pytest.mark.report
@pytest.mark.parametrize("make", [Jacobi, GaussSeidelJacobi])
def test_no_solution_goes_uncertified(make):
    """Too few sweeps end in the exact solution by another way, or in an error; never in what the last sweep left."""
    bijection = layer(40, scale=0.5)
    x, _, z, _ = examples(bijection)
    found, _, report = inverse_by(make(tolerance=1e-9, max_sweeps=2), bijection, z)
    assert report.fell_back
    assert not report.converged
    assert report.sweeps > 40
    torch.testing.assert_close(found, x, atol=1e-9, rtol=0)
    with pytest.raises(InversionError, match=r"did not converge: residual .* after .* sweeps.*raise max_sweeps"):
        inverse_by(make(tolerance=1e-9, max_sweeps=2, fallback=False), bijection, z)


def test_guesses_may_overflow_on_the_way():
    """Log-scales of ±5 in 60 sites: early Jacobi sweeps leave float32's range, the solution is within it."""
    bijection = layer(60, (64, 64), scale=2.0).float()
    x = torch.randn(8, 60)
    with torch.no_grad():
        z, _ = bijection(x)
    found, _, report = inverse_by(Jacobi(1e-4), bijection, z)
    assert found.isfinite().all()
    assert report.converged
    mapped, _ = bijection(found)
    assert ((mapped - z).abs() / z.abs().clamp_min(1)).max() <= 1e-3


@pytest.mark.report
def test_a_solution_that_is_not_finite_is_an_error():
    bijection = layer(5)
    z = torch.zeros(2, 5, dtype=torch.float64)
    z[1, 3] = math.nan
    with pytest.raises(InversionError, match="z is not finite"):
        inverse_by(Sequential(), bijection, z)
    with torch.no_grad():
        bijection.conditioner.layers[-1].blocks[0].bias[0] = 1e300
        bijection.elementwise.bound.fill_(1e5)
        bijection.conditioner.layers[-1].blocks[0].bias[1] = -1000
    with pytest.raises(InversionError, match="too steep"):
        inverse_by(Sequential(), bijection, torch.zeros(2, 5, dtype=torch.float64))


@pytest.mark.parametrize("make", [lambda: Sequential(), lambda: Jacobi(1e-13), lambda: GaussSeidelJacobi(4, 1e-13)])
@pytest.mark.parametrize("elementwise", [Affine, lambda: RationalQuadraticSpline(4)], ids=["affine", "spline"])
def test_gradients_through_the_inverse_are_those_of_the_unrolled_loop(make, elementwise):
    bijection = layer(9, (16, 16), elementwise=elementwise(), ordered=False, context_features=2, activation="tanh")
    _, context, z, _ = examples(bijection)
    z.requires_grad_()
    context.requires_grad_()
    inputs = [z, context, *bijection.parameters()]
    weights = torch.randn(z.shape, dtype=z.dtype)

    def gradients(x, log_det):
        return torch.autograd.grad((weights * x).sum() + log_det.sum(), inputs)

    with use_solver(make()):
        implicit = gradients(*bijection.inverse(z, context))
    unrolled = gradients(*bijection._unrolled_inverse(z, context))
    for a, b in zip(implicit, unrolled, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


@pytest.mark.report
@pytest.mark.parametrize("weight", [0.0, 1.0, 1e5, 1e7])
def test_the_gradient_of_an_example_does_not_depend_on_the_others(weight):
    bijection = layer(6, (32,), 0.5, ordered=False, activation="tanh")
    bijection.conditioner.layers[-1].blocks[0].bias.data.normal_()
    z = torch.randn(2, 6, dtype=torch.float64)
    at = z.clone().requires_grad_()
    (truth,) = torch.autograd.grad(bijection._unrolled_inverse(at, None)[0][0].sum(), at)
    bijection, at = bijection.float(), z.float().requires_grad_()
    x, _ = bijection.inverse(at)
    (found,) = torch.autograd.grad(x[0].sum() + weight * x[1, 0], at)
    assert (found[0] - truth[0]).norm() / truth[0].norm() < 1e-6


@pytest.mark.report
@pytest.mark.parametrize("elementwise", [Affine, lambda: RationalQuadraticSpline(4)], ids=["affine", "spline"])
@pytest.mark.parametrize("ordered", [False, True])
def test_second_derivatives_through_the_inverse_are_those_of_the_unrolled_loop(elementwise, ordered):
    bijection = layer(5, (8, 8), 0.5, elementwise(), ordered=False, context_features=2, activation="tanh")
    _, context, z, _ = examples(bijection, 3)
    z.requires_grad_()
    context.requires_grad_()
    inputs = [z, context, *bijection.parameters()]
    weights = torch.randn(z.shape, dtype=z.dtype)
    directions = [torch.randn_like(each) for each in inputs]

    def derivatives(x, log_det):
        loss = (weights * x.sin()).sum() + (log_det**2).sum()
        first = torch.autograd.grad(loss, inputs, create_graph=True)
        along = sum((gradient * direction).sum() for gradient, direction in zip(first, directions, strict=True))
        return [*first, *torch.autograd.grad(along, inputs)]

    if ordered:
        bijection.order = torch.randperm(5)
        bijection.rank = bijection.order.argsort()
    implicit = derivatives(*bijection.inverse(z, context))
    x, log_det = bijection._unrolled_inverse(z if not ordered else z[:, bijection.order], context)
    unrolled = derivatives(x if not ordered else x[:, bijection.rank], log_det)
    for a, b in zip(implicit, unrolled, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)
    assert any(each.abs().max() > 1e-3 for each in unrolled[len(inputs) :])


@pytest.mark.report
def test_third_derivatives_through_the_inverse_are_refused():
    bijection = layer(3, (8,), activation="tanh")
    z = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    loss = bijection.inverse(z)[0].sin().sum()
    for _ in range(2):
        (loss,) = torch.autograd.grad(loss, z, create_graph=True)
        loss = loss.square().sum()
    with pytest.raises(RuntimeError, match="third derivatives through the inverse"):
        torch.autograd.grad(loss, z)


def test_gradients_through_the_inverse_follow_functional_parameters():
    bijection = layer(4, (8,), activation="tanh")
    other = {name: (1.5 * value).detach().requires_grad_() for name, value in bijection.named_parameters()}
    z = torch.randn(3, 4, dtype=torch.float64)
    wrapped = Inverse(bijection)
    given = {f"bijection.{name}": value for name, value in other.items()}
    x, log_det = torch.func.functional_call(wrapped, given, (z,))
    found = torch.autograd.grad((x.sin().sum() + log_det.sum()), list(other.values()))
    with torch.no_grad():
        for name, parameter in bijection.named_parameters():
            parameter.copy_(other[name])
    x, log_det = bijection.inverse(z)
    expected = torch.autograd.grad((x.sin().sum() + log_det.sum()), list(bijection.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


STEEP = {"spline": (lambda: RationalQuadraticSpline(8, 3.0), 0.6), "affine": (Affine, 0.6)}


@pytest.mark.report
@pytest.mark.parametrize("fallback", [True, False])
@pytest.mark.parametrize(("elementwise", "scale"), STEEP.values(), ids=STEEP)
@pytest.mark.parametrize(
    "solver",
    [
        lambda tolerance, fallback: Sequential(tolerance),
        lambda tolerance, fallback: Jacobi(tolerance, fallback=fallback),
        lambda tolerance, fallback: Jacobi(tolerance, max_sweeps=3, fallback=fallback),
        lambda tolerance, fallback: GaussSeidelJacobi(4, tolerance, fallback=fallback),
    ],
    ids=["sequential", "jacobi", "jacobi_3", "blocks"],
)
def test_the_residual_that_is_reported_is_that_of_the_solution(solver, elementwise, scale, fallback):
    """Layers so steep that in float32 the exact algorithms end far from a solution."""
    torch.manual_seed(4)
    made = MaskedMLP(16, elementwise().parameter_count, (64, 64))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    bijection = Autoregressive(elementwise(), made)
    z = torch.randn(256, 16)
    for tolerance in (1e-5, math.inf):
        try:
            x, _, report = inverse_by(solver(tolerance, fallback), bijection, z)
        except InversionError:
            assert tolerance < math.inf
            with torch.no_grad():
                x, _ = bijection.inverse(z)
                assert relative_residual(bijection(x)[0], z) > 1e-5
            continue
        with torch.no_grad():
            actual = relative_residual(bijection(x)[0], z)
        assert actual == pytest.approx(report.residual, rel=0.5, abs=1e-6)
        assert report.residual <= (max(tolerance, 3.5e-4) if report.fell_back else tolerance)
        assert report.converged == (not report.fell_back)


@pytest.mark.report
def test_a_thread_has_the_solver_of_its_context():
    bijection = layer(5)
    _, _, z, _ = examples(bijection)
    with torch.no_grad(), use_solver(Jacobi()) as reports:
        run = lambda: solve(bijection, z)  # noqa: E731
        thread = threading.Thread(target=contextvars.Context().run, args=(run,))
        thread.start()
        thread.join()
        assert reports == []
        thread = threading.Thread(target=contextvars.copy_context().run, args=(run,))
        thread.start()
        thread.join()
    assert [report.solver for report in reports] == ["Jacobi"]


def test_changed_futures_never_change_the_past():
    bijection = layer(12, ordered=False)
    x, _, z, _ = examples(bijection)
    for site in range(12):
        other = x.clone()
        other[:, site] += 1
        mapped, _ = bijection(other)
        assert torch.equal(mapped[:, :site], z[:, :site])
        assert (mapped[:, site] != z[:, site]).all()


def test_every_later_variable_sees_every_earlier_one():
    """Also with fewer hidden units than variables, where cyclic degrees would leave the last inputs unseen."""
    for features, hidden in ((6, (64, 64)), (24, (8, 8)), (24, (5,))):
        bijection = layer(features, hidden, ordered=False, activation="tanh")
        x = torch.randn(features, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(lambda v, b=bijection: b(v[None])[0][0], x)
        assert (jacobian.triu(1) == 0).all()
        seen = jacobian[-1, :-1] != 0
        assert seen.float().mean() > 0.95 if hidden[0] >= features else seen[: features // 2].any() and seen[-6:].any()


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="tolerance=0"):
        Jacobi(tolerance=0)
    with pytest.raises(ValueError, match="max_sweeps=0"):
        Jacobi(max_sweeps=0)
    with pytest.raises(ValueError, match="block=0"):
        GaussSeidelJacobi(block=0)
    with pytest.raises(ValueError, match=r"order must hold each of 0 … 2 once, got \[0, 0, 2\]"):
        Autoregressive(Affine(), MaskedMLP(3, 2), torch.tensor([0, 0, 2]))
    with pytest.raises(ValueError, match="tolerance=0"):
        Sequential(tolerance=0)
    with pytest.raises(ValueError, match="computes 3 parameters for each element, Affine takes 2"):
        Autoregressive(Affine(), MaskedMLP(3, 3))
    with pytest.raises(ValueError, match="one width"):
        MaskedMLP(3, 2, (8, 9), residual=True)
    with pytest.raises(ValueError, match="activation must be one of"):
        MaskedMLP(3, 2, activation="sigmoid")
    with pytest.raises(ValueError, match="must be positive"):
        MaskedMLP(0, 2)
    with pytest.raises(ValueError, match="expected examples of 3 features"):
        MaskedMLP(3, 2)(torch.zeros(2, 4))


def test_batches_of_nothing():
    for solver in (Sequential(), Jacobi(), GaussSeidelJacobi(2)):
        bijection = layer(5).float()
        x, log_det, _ = inverse_by(solver, bijection, torch.zeros(0, 5))
        assert x.shape == (0, 5)
        assert log_det.shape == (0,)


def test_the_solver_in_force_ends_with_its_block():
    bijection = layer(5)
    _, _, z, _ = examples(bijection)
    with torch.no_grad(), use_solver(Jacobi()) as outer:
        with use_solver(Sequential()) as inner:
            bijection.inverse(z)
        bijection.inverse(z)
    assert [report.solver for report in inner] == ["Sequential"]
    assert [report.solver for report in outer] == ["Jacobi"]


@pytest.mark.gpu
def test_replayed_graphs_follow_shapes_and_weights():
    bijection = layer(30, (64, 64)).float()
    moved = layer(30, (64, 64)).float().cuda()
    for batch in (4, 4, 7):
        z = torch.randn(batch, 30)
        expected, _, _ = inverse_by(Sequential(), bijection, z)
        found, _, _ = inverse_by(Sequential(), moved, z.cuda())
        torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=1e-4)
        with torch.no_grad():
            for a, b in zip(bijection.parameters(), moved.parameters(), strict=True):
                a.mul_(0.9)
                b.mul_(0.9)


@pytest.mark.parametrize(
    ("conditioner", "graphs"),
    [(lambda: MaskedMLP(6, 2, (12, 12)), 6), (lambda: CausalTransformer(6, 2, 2, 16, 2, 2), 4)],
    ids=["made", "transformer"],
)
def test_steps_compile(conditioner, graphs):
    """A step compiles to whole graphs: one a site for a MaskedMLP, whose sites differ; few for a transformer."""
    torch.manual_seed(0)
    conditioner = conditioner()
    x = torch.randn(3, 6) if isinstance(conditioner, MaskedMLP) else torch.randn(3, 6, 2)
    with torch.no_grad():
        for parameter in conditioner.parameters():
            parameter.normal_(0, 0.2)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        step = torch.compile(conditioner.stream(x).step, fullgraph=True, backend="aot_eager")
        parameters = torch.stack([step(previous).clone() for previous in [None, *x.unbind(1)[:-1]]], 1)
        torch.testing.assert_close(parameters, conditioner(x), atol=1e-5, rtol=0)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= graphs
