"""Properties of every bijection in the registries, which are `bijection_cases` here and in the domains."""

import copy
import importlib
import io
import pickle
import pkgutil
from inspect import isabstract

import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.func import hessian, jacrev, jvp, vmap

import arflows
import arflows.core.bijections
import arflows.core.conditioners
from arflows.core.bijections import (
    Affine,
    Bijection,
    Elementwise,
    GaussianMixture,
    LocationScale,
    LogisticMixture,
    Mask,
    PiecewiseLinearCDF,
    RationalQuadraticSpline,
)
from arflows.core.conditioners import AutoregressiveConditioner
from arflows.core.runtime.errors import UserError
from tests.audio import bijection_cases as audio
from tests.molecules import bijection_cases as molecules
from tests.vision import bijection_cases as vision

from . import bijection_cases as core
from .bijection_cases import Case

CASES = core.CASES | vision.CASES | audio.CASES
ALL_CASES = CASES | molecules.CASES
"""With those of discrete data, which have no Jacobian."""

every_case = pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])
# In float32 the parameters are those of a trained model in size; in float64 larger, which is harder.
both_dtypes = pytest.mark.parametrize(
    ("dtype", "scale", "tolerance"),
    [(torch.float64, 0.3, 1e-9), (torch.float32, 0.1, 1e-5)],
    ids=["float64", "float32"],
)


including_discrete = pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in ALL_CASES.items()])


def subclasses(*kinds: type) -> set[type]:
    """Classes of arflows that are, or derive from, one of the kinds."""
    found = {*kinds}.union(*(subclasses(*kind.__subclasses__()) for kind in kinds if kind.__subclasses__()))
    return {kind for kind in found if kind.__module__.startswith("arflows.")}


def test_every_class_is_registered():
    """A bijection, elementwise map, mask or conditioner that no case contains would go untested, in any package."""
    for module in pkgutil.walk_packages(arflows.__path__, "arflows."):
        importlib.import_module(module.name)
    covered = {type(module) for case in ALL_CASES.values() for module in case.build().modules()}
    public = [getattr(arflows.core.conditioners, name) for name in arflows.core.conditioners.__all__]
    found = subclasses(Bijection, Elementwise, Mask, AutoregressiveConditioner).union(public)
    missing = {item.__name__ for item in found - covered if not isabstract(item)}
    assert not missing, f"add cases to bijection_cases.py: {missing}"


def test_every_subclass_is_public():
    """Bijections of the core are found in the package's names."""
    found = {
        kind.__name__ for kind in subclasses(Bijection, Elementwise, Mask) if kind.__module__[:12] == "arflows.core"
    }
    assert found <= set(arflows.core.bijections.__all__)


@every_case
@both_dtypes
def test_round_trip(case: Case, dtype: torch.dtype, scale: float, tolerance: float):
    bijection, x, context = case.randomized(dtype, scale), case.data(5, dtype), case.context(5, dtype)
    z, log_det = bijection(x, context)
    back, inverse_log_det = bijection.inverse(z, context)
    assert z.dtype == back.dtype == log_det.dtype == dtype
    assert log_det.shape == inverse_log_det.shape == (5,)
    torch.testing.assert_close(back, x, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(inverse_log_det, -log_det, atol=10 * tolerance, rtol=10 * tolerance)
    assert z.shape[1:] == bijection.latent_shape(case.event_shape)


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in molecules.CASES.items()])
def test_round_trip_of_discrete_data(case: Case):
    # Small weights: a decision less likely than a rounding error of float32 has no interval of its own.
    bijection, x = case.randomized(torch.float32, scale=0.05), case.data(5, torch.float32)
    z, log_det = bijection(x)
    back, inverse_log_det = bijection.inverse(z)
    assert torch.equal(back[:, : x.shape[1]], x)
    torch.testing.assert_close(inverse_log_det, -log_det, atol=1e-5, rtol=1e-5)


@every_case
def test_log_det_is_that_of_the_jacobian_in_both_directions(case: Case):
    bijection, x, context = case.randomized(torch.float64), case.data(3, torch.float64), case.context(3, torch.float64)
    z, log_det = bijection(x, context)
    _, inverse_log_det = bijection.inverse(z, context)
    for index in range(3):
        row = None if context is None else context[index : index + 1]
        forward = torch.autograd.functional.jacobian(lambda v, row=row: bijection(v[None], row)[0][0], x[index])
        inverse = torch.autograd.functional.jacobian(lambda v, row=row: bijection.inverse(v[None], row)[0][0], z[index])
        size = x[index].numel()
        torch.testing.assert_close(forward.reshape(size, size).slogdet().logabsdet, log_det[index], atol=1e-8, rtol=0)
        torch.testing.assert_close(
            inverse.reshape(size, size).slogdet().logabsdet, inverse_log_det[index], atol=1e-8, rtol=0
        )


@every_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_extreme_inputs_have_finite_values_and_gradients(case: Case, dtype: torch.dtype, direction: str):
    bijection, values = case.randomized(dtype, scale=1.0), case.extreme_data(dtype)
    if direction == "inverse":
        values = 200 * (values - 0.5) if case.unit else values
        values = values.reshape(-1, *bijection.latent_shape(case.event_shape))
        values = values.clamp(-case.largest_latent, case.largest_latent)
    values.requires_grad_()
    output, log_det = getattr(bijection, direction)(values, case.context(len(values), dtype))
    assert output.isfinite().all()
    assert log_det.isfinite().all()
    # Bounded weights: the product with a huge output must not overflow by the test's own doing.
    objective = output.mean() * 1e-3 + log_det.mean()
    for gradient in torch.autograd.grad(objective, [values, *bijection.parameters()], allow_unused=True):
        assert gradient is None or gradient.isfinite().all()


@every_case
def test_extreme_inputs_come_back(case: Case):
    """At the ends and far out, the round trip holds relative to the size of the values."""
    bijection, x = case.randomized(torch.float64), case.extreme_data(torch.float64)
    context = case.context(len(x), torch.float64)
    z, _ = bijection(x, context)
    back, _ = bijection.inverse(z, context)
    scale = x.abs().flatten(1).amax(1).clamp_min(1).view(-1, *[1] * len(case.event_shape))
    assert ((back - x).abs() / scale).max() <= 1e-9


@every_case
def test_every_parameter_gets_a_gradient(case: Case):
    bijection, x, context = case.randomized(torch.float64), case.data(5, torch.float64), case.context(5, torch.float64)
    z, log_det = bijection(x.requires_grad_(), context)
    weights = torch.randn(z.shape, dtype=z.dtype, generator=torch.Generator().manual_seed(5))
    ((weights * z).sum() + (log_det * torch.arange(1.0, 6.0, dtype=z.dtype)).sum()).backward()
    for name, parameter in bijection.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items() if case.identity])
def test_starts_as_the_identity(case: Case):
    torch.manual_seed(0)
    bijection = case.build().double().eval()
    x, context = case.data(4, torch.float64), case.context(4, torch.float64)
    z, log_det = bijection(x, context)
    torch.testing.assert_close(z, x, atol=1e-12, rtol=0)
    torch.testing.assert_close(log_det, torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)


@every_case
def test_examples_do_not_see_each_other(case: Case):
    bijection, x, context = case.randomized(torch.float64), case.data(4, torch.float64), case.context(4, torch.float64)
    z, log_det = bijection(x, context)
    for index in range(4):
        row = None if context is None else context[index : index + 1]
        alone, alone_log_det = bijection(x[index : index + 1], row)
        torch.testing.assert_close(alone[0], z[index], atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(alone_log_det[0], log_det[index], atol=1e-12, rtol=1e-12)


@every_case
def test_empty_batch(case: Case):
    bijection, x, context = case.randomized(torch.float32), case.data(0, torch.float32), case.context(0, torch.float32)
    z, log_det = bijection(x, context)
    back, _ = bijection.inverse(z, context)
    assert back.shape == x.shape
    assert log_det.shape == (0,)


@every_case
def test_compiles_to_one_graph(case: Case):
    """Both directions, values and gradients; the backend that only traces, since one graph is what is promised."""
    bijection, x = case.randomized(torch.float32, scale=0.1), case.data(3, torch.float32).requires_grad_()
    context = case.context(3, torch.float32)
    torch._dynamo.reset()
    z, log_det = torch.compile(bijection, fullgraph=True, backend="aot_eager")(x, context)
    expected, expected_log_det = bijection(x, context)
    torch.testing.assert_close(z, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(log_det, expected_log_det, atol=1e-5, rtol=1e-5)
    (z.sum() + log_det.sum()).backward()
    back, _ = torch.compile(bijection.inverse, fullgraph=True, backend="aot_eager")(z.detach(), context)
    torch.testing.assert_close(back, x, atol=1e-4, rtol=1e-4)


@pytest.mark.report
@including_discrete
def test_pickles_and_copies(case: Case):
    bijection, x, context = case.randomized(torch.float32), case.data(3, torch.float32), case.context(3, torch.float32)
    expected = bijection(x, context)
    file = io.BytesIO()
    torch.save(bijection, file)
    file.seek(0)
    copies = pickle.loads(pickle.dumps(bijection)), copy.deepcopy(bijection), torch.load(file, weights_only=False)
    for restored in copies:
        assert all(map(torch.equal, restored(x, context), expected))


@pytest.mark.report
@every_case
def test_half_precision_parameters_are_refused(case: Case):
    bijection = case.build()
    for convert in (nn.Module.half, nn.Module.bfloat16, lambda module: module.to("cpu", torch.float16)):
        with pytest.raises(UserError, match=r"compute in float32 or float64, not in torch\.b?float16"):
            convert(bijection)
    assert all(parameter.dtype == torch.float32 for parameter in bijection.parameters())


@pytest.mark.report
@every_case
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_transforms_of_torch_func(case: Case, direction: str):
    """Maps over examples, Jacobians in both modes and second derivatives are those that autograd finds."""
    bijection, x, context = case.randomized(torch.float64), case.data(3, torch.float64), case.context(3, torch.float64)
    if direction == "inverse":
        x = bijection(x, context)[0].detach()
    conditional = context is not None
    context = context if conditional else torch.zeros(3, 1, dtype=torch.float64)

    def one(row, own):
        output, log_det = getattr(bijection, direction)(row[None], own[None] if conditional else None)
        return output[0], log_det[0]

    expected = [one(*each) for each in zip(x, context, strict=True)]
    outputs, log_dets = vmap(one)(x, context)
    torch.testing.assert_close(outputs, torch.stack([output for output, _ in expected]), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(log_dets, torch.stack([log_det for _, log_det in expected]), atol=1e-10, rtol=1e-10)

    size = x[0].numel()
    jacobians = vmap(jacrev(lambda row, own: one(row, own)[0]))(x, context).reshape(3, size, size)
    torch.testing.assert_close(jacobians.slogdet().logabsdet, log_dets, atol=1e-8, rtol=0)
    tangent = torch.randn(x[0].shape, dtype=x.dtype, generator=torch.Generator().manual_seed(4))
    _, along = jvp(lambda row: one(row, context[0])[0], (x[0],), (tangent,))
    torch.testing.assert_close(along.flatten(), jacobians[0] @ tangent.flatten(), atol=1e-8, rtol=1e-8)

    second = hessian(lambda row: one(row, context[0])[1])(x[0]).reshape(size, size)
    gradient = jacrev(lambda row: one(row, context[0])[1])
    step = 1e-5 * tangent
    difference = (gradient(x[0] + step) - gradient(x[0] - step)).flatten() / 2e-5
    torch.testing.assert_close(second @ tangent.flatten(), difference, atol=1e-5, rtol=1e-4)


@including_discrete
def test_saves_and_loads(case: Case):
    bijection, x, context = case.randomized(torch.float32), case.data(3, torch.float32), case.context(3, torch.float32)
    torch.manual_seed(99)
    restored = case.build().eval()
    restored.load_state_dict(load(save({k: v.contiguous() for k, v in bijection.state_dict().items()})))
    for expected, got in zip(bijection(x, context), restored(x, context), strict=True):
        assert torch.equal(expected, got)


@every_case
def test_half_precision_networks_leave_the_state_in_float32(case: Case):
    bijection, x = case.randomized(torch.float32, scale=0.1), case.data(3, torch.float32)
    context = case.context(3, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, log_det = bijection(x, context)
        back, inverse_log_det = bijection.inverse(z, context)
    assert z.dtype == back.dtype == log_det.dtype == inverse_log_det.dtype == torch.float32
    # Mostly the same half-precision parameters in both directions: then the round trip is that of float32.
    torch.testing.assert_close(back, x, atol=case.half_precision, rtol=case.half_precision)


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items() if case.context_features])
def test_context_reaches_the_output_and_is_asked_for(case: Case):
    bijection, x = case.randomized(torch.float64), case.data(3, torch.float64)
    one, other = case.context(3, torch.float64, seed=3), case.context(3, torch.float64, seed=4)
    assert not torch.equal(bijection(x, one)[0], bijection(x, other)[0])
    with pytest.raises(ValueError, match=f"context with {case.context_features} features, got none"):
        bijection(x)
    with pytest.raises(ValueError, match=f"context with {case.context_features} features, got one with 2"):
        bijection(x, torch.zeros(3, 2, dtype=torch.float64))


@pytest.mark.gpu
@every_case
def test_cpu_and_cuda_agree(case: Case):
    bijection, x, context = case.randomized(torch.float32), case.data(5, torch.float32), case.context(5, torch.float32)
    expected = [*bijection(x, context), *bijection.inverse(bijection(x, context)[0], context)]
    moved, x = bijection.cuda(), x.cuda()
    context = None if context is None else context.cuda()
    got = [*moved(x, context), *moved.inverse(moved(x, context)[0], context)]
    for a, b in zip(expected, got, strict=True):
        torch.testing.assert_close(a, b.cpu(), atol=1e-4, rtol=1e-4)


ELEMENTWISE = [
    Affine(),
    LocationScale(),
    RationalQuadraticSpline(8),
    LogisticMixture(4),
    GaussianMixture(3),
    PiecewiseLinearCDF(5),
]


@pytest.mark.parametrize("elementwise", ELEMENTWISE, ids=lambda item: type(item).__name__)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("size", [1e2, 1e4, 1e8])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_parameters_may_be_huge(elementwise, dtype, size, direction):
    """Bins collapse, log-scales reach their bounds, and values and gradients stay finite."""
    generator = torch.Generator().manual_seed(0)
    parameters = (
        size * torch.randn(400, elementwise.parameter_count, generator=generator, dtype=dtype)
    ).requires_grad_()
    values = torch.rand(400, generator=generator, dtype=dtype)
    values = (values if isinstance(elementwise, PiecewiseLinearCDF) else 12 * values - 6).requires_grad_()
    output, log_derivative = getattr(elementwise, direction)(values, parameters)
    gradients = torch.autograd.grad(1e-3 * output.sum() + log_derivative.sum(), [values, parameters])
    for tensor in (output, log_derivative, *gradients):
        assert tensor.isfinite().all()
