"""The published flows, by name."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap

from arflows.core import flows
from arflows.core.bijections import BatchNorm
from arflows.core.inversion import GaussSeidelJacobi, Jacobi, Sequential, use_solver
from arflows.core.runtime.errors import UserError

AUTOREGRESSIVE = ["MADE", "MADEMoG", "MAF", "MAFMoG", "IAF", "NSF"]
SINGLE = ["MADE", "MADEMoG"]  # have no number of transforms
COUPLINGS = ["RealNVP", "NSFC"]
every_flow = pytest.mark.parametrize("name", AUTOREGRESSIVE + COUPLINGS)


def make(name: str, features: int = 6, scale: float = 0.2, dtype=torch.float64, **options) -> flows.VectorFlow:
    """A flow with random weights, in evaluation mode."""
    torch.manual_seed(0)
    options = {"hidden_features": (24, 24), "activation": "tanh", **options}
    flow = getattr(flows, name)(features, **options).to(dtype).eval()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return flow


def test_every_flow_of_the_module_is_tested():
    named = {
        name
        for name, value in vars(flows).items()
        if isinstance(value, type) and issubclass(value, flows.VectorFlow) and value is not flows.VectorFlow
    }
    assert named == set(AUTOREGRESSIVE + COUPLINGS)


@every_flow
def test_starts_as_the_standard_normal(name):
    """Up to the ε of batch normalisation, or the spread of a mixture's means."""
    torch.manual_seed(0)
    flow = getattr(flows, name)(4, hidden_features=(8,)).eval()
    x = torch.randn(3, 4)
    expected = torch.distributions.Normal(0, 1).log_prob(x).sum(1)
    torch.testing.assert_close(flow.log_prob(x), expected, atol=2 if "MoG" in name else 5e-3, rtol=0)


@every_flow
@pytest.mark.parametrize("context", [0, 3])
def test_samples_have_the_density_they_come_with(name, context):
    flow = make(name, context=context)
    given = torch.randn(7, context, dtype=torch.float64) if context else None
    x, log_prob = flow.sample_with_log_prob(7, given)
    assert x.shape == (7, 6)
    torch.testing.assert_close(flow.log_prob(x, given), log_prob, atol=1e-9, rtol=0)
    assert not x.requires_grad


@every_flow
@pytest.mark.parametrize("scale", [0.0, 0.2, 0.5], ids=["initial", "random", "large"])
def test_every_solver_gives_the_same_samples(name, scale):
    flow = make(name, scale=scale)

    def sample(solver):
        return flow.sample(50, generator=torch.Generator().manual_seed(1), solver=solver)

    expected = sample(None)
    for solver in (Sequential(), Jacobi(1e-13), GaussSeidelJacobi(4, 1e-13)):
        torch.testing.assert_close(sample(solver), expected, atol=1e-10, rtol=1e-10)


@every_flow
def test_log_det_is_that_of_the_jacobian(name):
    flow = make(name)
    x = torch.randn(2, 6, dtype=torch.float64)
    for row in x:
        jacobian = torch.autograd.functional.jacobian(lambda v: flow.bijection(v[None])[0][0], row)
        expected = flow.base.log_prob(flow.encode(row[None])) + jacobian.slogdet().logabsdet
        torch.testing.assert_close(flow.log_prob(row[None]), expected, atol=1e-8, rtol=0)


@every_flow
def test_density_integrates_to_one(name):
    flow = make(name, features=2, scale=0.15, **({} if name in SINGLE else {"transforms": 2}))
    axis = torch.linspace(-8, 8, 801, dtype=torch.float64)  # fine enough for the kinks of splines
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        mass = flow.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert mass.item() == pytest.approx(1, abs=1e-3)


@every_flow
def test_log_prob_compiles_to_one_graph(name):
    options = {} if name in SINGLE else {"transforms": 2}
    flow = make(name, 3, dtype=torch.float32, **options)
    x = torch.randn(4, 3)
    torch._dynamo.reset()
    compiled = torch.compile(flow.log_prob, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(compiled, flow.log_prob(x), atol=1e-4, rtol=1e-4)
    compiled.sum().backward()


@every_flow
def test_training_raises_the_likelihood(name):
    """A strongly dependent density, which only a flow that uses its networks fits; then all solvers still agree."""
    torch.manual_seed(0)
    first = torch.randn(2000, 1)
    data = torch.cat([first, torch.sin(2 * first) + 0.2 * torch.randn_like(first)], 1)
    flow = getattr(flows, name)(2, hidden_features=(32, 32), activation="tanh")
    before = flow.eval().log_prob(data).mean().item()
    optimizer = torch.optim.Adam(flow.parameters(), 5e-3)
    flow.train()
    for step in range(120):
        loss = -flow.log_prob(data[(step % 10) * 200 : (step % 10 + 1) * 200]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    flow.eval()
    assert flow.log_prob(data).mean().item() > before + 0.5
    z = flow.encode(data[:100]).detach()
    with torch.no_grad():
        found = []
        for solver in (Sequential(), Jacobi(1e-6), GaussSeidelJacobi(1, 1e-6)):
            with use_solver(solver):
                found.append(flow.decode(z))
    for x in found:
        torch.testing.assert_close(x, data[:100], atol=1e-4, rtol=1e-4)


@every_flow
def test_is_a_folder(name, tmp_path):
    options = {"randmask": True} if name in COUPLINGS else {"randperm": True}
    flow = make(name, dtype=torch.float32, context=2, **options)
    flow.save_pretrained(tmp_path / "model")
    loaded = flows.VectorFlow.from_pretrained(tmp_path / "model")
    assert type(loaded) is type(flow)
    x, context = torch.randn(4, 6), torch.randn(4, 2)
    assert torch.equal(loaded.log_prob(x, context), flow.log_prob(x, context))
    z = torch.randn(4, 6)
    assert torch.equal(loaded.decode(z, context), flow.decode(z, context))


@pytest.mark.parametrize("name", AUTOREGRESSIVE)
def test_a_single_feature(name):
    flow = make(name, features=1, context=2)
    context = torch.randn(5, 2, dtype=torch.float64)
    x, log_prob = flow.sample_with_log_prob(5, context)
    torch.testing.assert_close(flow.log_prob(x, context), log_prob, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", COUPLINGS)
def test_a_coupling_has_no_half_of_one_feature(name):
    with pytest.raises(UserError, match="features must be at least 2"):
        getattr(flows, name)(1)


class LogProb(torch.nn.Module):
    """A flow whose call is its log-density, for `functional_call`."""

    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, x, context=None):
        return self.flow.log_prob(x, context)


@pytest.mark.report
@every_flow
def test_per_sample_gradients(name):
    module = LogProb(make(name, 3, context=2))
    parameters = dict(module.named_parameters())
    x, context = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)

    def one(parameters, row, own):
        return functional_call(module, parameters, (row[None], own[None]))[0]

    torch.testing.assert_close(vmap(one, (None, 0, 0))(parameters, x, context), module(x, context))
    found = vmap(grad(one), (None, 0, 0))(parameters, x, context)
    for index in range(4):
        alone = module(x[index : index + 1], context[index : index + 1])
        expected = torch.autograd.grad(alone.sum(), list(parameters.values()), allow_unused=True)
        for key, value in zip(parameters, expected, strict=True):
            value = torch.zeros_like(parameters[key]) if value is None else value
            torch.testing.assert_close(found[key][index], value, atol=1e-8, rtol=1e-7)


@pytest.mark.report
@every_flow
def test_ensembles_by_vmap(name):
    """One batch under several flows of one shape."""
    several = [LogProb(make(name, 3, scale=scale)) for scale in (0.1, 0.2, 0.3)]
    x = torch.randn(4, 3, dtype=torch.float64)
    parameters, buffers = torch.func.stack_module_state(several)
    found = vmap(lambda p, b: functional_call(several[0], (p, b), (x,)))(parameters, buffers)
    torch.testing.assert_close(found, torch.stack([flow(x) for flow in several]), atol=1e-9, rtol=1e-9)


@pytest.mark.report
@every_flow
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_derivatives_by_torch_func(name, direction):
    flow = make(name, 3)
    x = torch.randn(3, 3, dtype=torch.float64)
    call = getattr(flow.bijection, direction)
    expected = torch.stack([torch.autograd.functional.jacobian(lambda v: call(v[None])[0][0], row) for row in x])
    found = vmap(jacrev(lambda v: call(v[None])[0][0]))(x)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-8)
    _, along = jvp(lambda v: call(v[None])[0][0], (x[0],), (x[1],))
    torch.testing.assert_close(along, expected[0] @ x[1], atol=1e-9, rtol=1e-8)


@pytest.mark.report
@every_flow
def test_hessian_of_log_prob(name):
    flow = make(name, 3)
    x = torch.randn(3, dtype=torch.float64)
    found = hessian(lambda v: flow.log_prob(v[None])[0])(x)
    gradient = jacrev(lambda v: flow.log_prob(v[None])[0])
    for column, step in enumerate(1e-5 * torch.eye(3, dtype=torch.float64)):
        difference = (gradient(x + step) - gradient(x - step)) / 2e-5
        torch.testing.assert_close(found[:, column], difference, atol=1e-5, rtol=1e-5)


@pytest.mark.report
@every_flow
@pytest.mark.parametrize("activation", ["relu", "tanh", "elu", "silu"])
def test_pickles_and_copies(name, activation):
    flow = make(name, 3, dtype=torch.float32, activation=activation)
    x = torch.randn(4, 3)
    for restored in (pickle.loads(pickle.dumps(flow)), copy.deepcopy(flow)):
        assert torch.equal(restored.log_prob(x), flow.log_prob(x))
        assert restored.config() == flow.config()


@every_flow
def test_the_config_holds_every_argument(name):
    """Defaults too, so that a saved model keeps its settings when a default changes."""
    arguments = getattr(flows, name)(3, hidden_features=(8,)).config()["arguments"]
    assert {"features", "context", "hidden_features", "activation"} <= set(arguments)
    assert arguments["hidden_features"] == (8,)
    assert (arguments.get("transforms"), "elementwise" in arguments) == (
        None if name in SINGLE else 4 if name == "IAF" else 5,
        False,
    )
    getattr(flows, name)(**arguments)


@pytest.mark.report
@every_flow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_parameters_are_refused_by_name(name, dtype):
    flow = getattr(flows, name)(3, hidden_features=(8,))
    with pytest.raises(UserError, match=f"compute in float32 or float64, not in {dtype}"):
        flow.to(dtype)
    assert flow.dtype == torch.float32
    flow.log_prob(torch.zeros(2, 3))


@pytest.mark.report
@every_flow
def test_no_batch_normalisation_unless_asked_for(name):
    assert not any(isinstance(module, BatchNorm) for module in getattr(flows, name)(3).modules())


@pytest.mark.report
@pytest.mark.parametrize("name", ["MAF", "MAFMoG", "RealNVP"])
def test_batch_normalisation_is_moved_by_training_steps_alone(name):
    flow = make(name, 3, batch_norm=True)
    x = 5 + torch.randn(20, 3, dtype=torch.float64)
    expected, state = flow.log_prob(x), copy.deepcopy(flow.state_dict())
    flow.train()
    with torch.no_grad():
        torch.testing.assert_close(flow.log_prob(x), expected, atol=0, rtol=0)
        torch.testing.assert_close(flow.log_prob(x[:1]), expected[:1], atol=1e-9, rtol=0)
    assert all(torch.equal(value, state[key]) for key, value in flow.state_dict().items())
    with pytest.raises(UserError, match="cannot train on a batch of one example"):
        flow.log_prob(x[:1])
    flow.log_prob(x)
    assert not all(torch.equal(value, state[key]) for key, value in flow.state_dict().items())


@pytest.mark.report
@pytest.mark.parametrize("name", ["MADE", "MAF", "IAF", "RealNVP"])
def test_the_bound_of_log_scales_can_be_set(name):
    """Data on a line need a narrow conditional; the bound says how narrow a layer can make it."""

    def narrowest(**options):
        flow = make(name, 2, scale=0.0, **options | ({} if name == "MADE" else {"transforms": 1}))
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.fill_(1e4)
        z = torch.zeros(1, 2, dtype=torch.float64)
        return torch.autograd.functional.jacobian(lambda v: flow.bijection(v)[0], z)[0, -1, 0, -1].log().abs().item()

    assert narrowest() == pytest.approx(5, abs=0.1)
    assert narrowest(scale_bound=12.0) == pytest.approx(12, abs=0.5)


def test_iaf_is_maf_the_other_way_round():
    iaf, maf = make("IAF", transforms=1), make("MAF", transforms=1, batch_norm=False)
    maf.load_state_dict({k.replace("bijections.0.bijection.", "bijections.0."): v for k, v in iaf.state_dict().items()})
    z = torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(iaf.decode(z), maf.encode(z), atol=1e-12, rtol=0)


def test_temperature_narrows_the_samples_not_the_score():
    flow = make("MAF", scale=0.05)
    x, log_prob = flow.sample_with_log_prob(400, temperature=0.5)
    assert x.std() < 0.8 * flow.sample(400).std()
    torch.testing.assert_close(flow.log_prob(x), log_prob, atol=1e-9, rtol=0)


@pytest.mark.report
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f.log_prob(torch.zeros(2, 5)), r"x must have shape \(batch, 6\), got \(2, 5\)"),
        (lambda f: f.log_prob(torch.zeros(6)), r"x must have shape \(batch, 6\), got \(6,\)"),
        (lambda f: f.log_prob(torch.zeros(2, 6)), "needs a context of 3 features"),
        (lambda f: f.log_prob(torch.zeros(2, 6), torch.zeros(2, 4)), r"context must have shape \(batch, 3\)"),
        (lambda f: f.log_prob(torch.zeros(2, 6), torch.zeros(3, 3)), "one row of context for each of 2 examples"),
        (lambda f: f.log_prob(torch.zeros(2, 6).double(), torch.zeros(1, 3)), "x is torch.float64 on cpu, the flow"),
        (lambda f: f.log_prob(torch.zeros(2, 6).log(), torch.zeros(1, 3)), "NaN or infinite values in 2 of its rows"),
        (lambda f: f.log_prob(torch.full((2, 6), math.nan), torch.zeros(1, 3)), "NaN or infinite values"),
        (lambda f: f.sample(3), "needs a context of 3 features"),
        (lambda f: f.sample(0, torch.zeros(1, 3)), "at least 1"),
        (lambda f: f.sample(3, torch.zeros(1, 3), temperature=0.0), "temperature must be greater than 0"),
    ],
)
def test_input_that_does_not_fit(call, message):
    with pytest.raises(UserError, match=message):
        call(make("MAF", context=3, dtype=torch.float32))


@pytest.mark.report
@pytest.mark.parametrize("values", [np.zeros((2, 6)), [[0.0] * 6]])
def test_other_things_than_tensors_are_refused_by_name(values):
    kind = type(values).__name__
    with pytest.raises(UserError, match=rf"x is a {kind}: give a tensor, as by torch\.as_tensor\(x\)"):
        make("MAF").log_prob(values)
    with pytest.raises(UserError, match=f"context is a {kind}: give a tensor"):
        make("MAF", context=6).sample(2, values)


def test_context_where_there_is_none():
    with pytest.raises(UserError, match="built without context"):
        make("MAF").log_prob(torch.zeros(2, 6).double(), torch.zeros(2, 1).double())


@pytest.mark.parametrize("sizes", [{"features": 0}, {"features": 3, "transforms": 0}, {"features": 3, "context": -1}])
def test_sizes_that_make_no_sense(sizes):
    with pytest.raises(UserError, match="must be at least 1"):
        flows.MAF(**sizes)


def test_batches_of_nothing():
    flow = make("MAF")
    assert flow.log_prob(torch.zeros(0, 6).double()).shape == (0,)
