"""Checks of MAF, NSF and RealNVP against zuko, nflows and normflows: ``python benchmarks/peer_checks.py``.

Each library gets flows of three variables and equal width, and the same table of checks. The table goes to
``docs/peer_checks.md``. Needs ``pip install arflows[bench]``.
"""

from __future__ import annotations

import copy
import importlib.metadata
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from arflows.core import flows

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import normflows
    import zuko
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.nn.nets import ResidualNet
    from nflows.transforms import (
        AffineCouplingTransform,
        CompositeTransform,
        MaskedAffineAutoregressiveTransform,
        MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
        ReversePermutation,
    )

FEATURES, CONTEXT, WIDTH, TRANSFORMS = 3, 2, 16, 2
PAGE = Path(__file__).parent.parent / "docs" / "peer_checks.md"
LIBRARIES = ("arflows", "zuko", "nflows", "normflows")


@dataclass
class Peer:
    """One flow of one library behind one interface.

    Attributes:
        module: The flow, in float64.
        log_prob: (x, context) → log-densities.
        forward: (x, context) → (z, log-determinant), data → latent.
        inverse: (z, context) → (x, log-determinant), latent → data.
        sample: (shape, context) → examples, without gradients.
        rsample: (shape, context) → examples, with gradients.
    """

    module: nn.Module
    log_prob: Callable[[Tensor, Tensor | None], Tensor]
    forward: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
    inverse: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
    sample: Callable[[Any, Tensor | None], Tensor]
    rsample: Callable[[Any, Tensor | None], Tensor]


def arflows_peer(name: str, context: int) -> Peer:
    """Build a flow of arflows."""
    flow = getattr(flows, name)(FEATURES, context, transforms=TRANSFORMS, hidden_features=(WIDTH, WIDTH))
    flow.double().eval()

    def many(shape: Any, given: Tensor | None) -> Tensor:
        return flow.sample(shape, given, per_context=given is not None and given.shape[:-1] != tuple(shape))

    return Peer(flow, flow.log_prob, flow.bijection, flow.bijection.inverse, many, flow.rsample)


def zuko_peer(name: str, context: int) -> Peer:
    """Build a flow of zuko."""
    kind = {"MAF": zuko.flows.MAF, "NSF": zuko.flows.NSF, "RealNVP": zuko.flows.RealNVP}[name]
    flow = kind(FEATURES, context, transforms=TRANSFORMS, hidden_features=(WIDTH, WIDTH)).double().eval()
    return Peer(
        flow,
        lambda x, given: flow(given).log_prob(x),
        lambda x, given: flow(given).transform.call_and_ladj(x),
        lambda z, given: flow(given).transform.inv.call_and_ladj(z),
        lambda shape, given: flow(given).sample(tuple(shape)),
        lambda shape, given: flow(given).rsample(tuple(shape)),
    )


def nflows_peer(name: str, context: int) -> Peer:
    """Build a flow of nflows."""
    parts: list[nn.Module] = []
    options: dict[str, Any] = {"context_features": context or None}
    for _ in range(TRANSFORMS):
        if name == "RealNVP":
            network = partial(ResidualNet, hidden_features=WIDTH, num_blocks=1, **options)
            parts += [AffineCouplingTransform(torch.tensor([1, 0, 1]), network)]
        elif name == "MAF":
            parts += [MaskedAffineAutoregressiveTransform(FEATURES, WIDTH, num_blocks=1, **options)]
        else:
            kind = MaskedPiecewiseRationalQuadraticAutoregressiveTransform
            parts += [kind(FEATURES, WIDTH, num_blocks=1, num_bins=8, tails="linear", tail_bound=5.0, **options)]
        parts += [ReversePermutation(FEATURES)]
    flow = Flow(CompositeTransform(parts), StandardNormal([FEATURES])).double().eval()

    def sample(shape: Any, given: Tensor | None) -> Tensor:
        (count,) = tuple(shape)
        single = copy.deepcopy(flow).float()  # its base draws in float32, also for a flow in float64
        return single.sample(count, None if given is None else given.float())

    return Peer(flow, flow.log_prob, flow._transform, flow._transform.inverse, sample, sample)


def normflows_peer(name: str, context: int) -> Peer:
    """Build a flow of normflows."""
    parts: list[nn.Module] = []
    for _ in range(TRANSFORMS):
        if name == "RealNVP":
            if context:
                raise NotImplementedError("no context")
            network = normflows.nets.MLP([2, WIDTH, 2], init_zeros=False)
            parts += [normflows.flows.AffineCouplingBlock(network), normflows.flows.Permute(FEATURES, "swap")]
        elif name == "MAF":
            parts += [
                normflows.flows.MaskedAffineAutoregressive(
                    FEATURES, WIDTH, context_features=context or None, num_blocks=1
                )
            ]
        else:
            kind = normflows.flows.AutoregressiveRationalQuadraticSpline
            parts += [kind(FEATURES, 1, WIDTH, num_context_channels=context or None)]
    base = normflows.distributions.DiagGaussian(FEATURES, trainable=False)
    whole = normflows.ConditionalNormalizingFlow if context else normflows.NormalizingFlow
    flow = whole(base, parts).double().eval()
    more = lambda given: () if given is None else (given,)  # noqa: E731

    def sample(shape: Any, given: Tensor | None) -> Tensor:
        (count,) = tuple(shape)
        return flow.sample(count, *more(given))[0]

    return Peer(
        flow,
        lambda x, given: flow.log_prob(x, *more(given)),
        lambda x, given: flow.inverse_and_log_det(x, *more(given)),
        lambda z, given: flow.forward_and_log_det(z, *more(given)),
        sample,
        sample,
    )


BUILDERS = {"arflows": arflows_peer, "zuko": zuko_peer, "nflows": nflows_peer, "normflows": normflows_peer}


def shaken(peer: Peer) -> Peer:
    """Give all parameters small random values, so that no layer is the identity."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in peer.module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return peer


def rows(count: int, features: int = FEATURES) -> Tensor:
    """Draw rows of a standard normal in float64 from a fixed seed."""
    return torch.randn(count, features, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# ---------------------------------------------------------------------------------- the checks; each returns an error


def log_det(peer: Peer, direction: str) -> float:
    """Largest difference from the log-determinant of autograd's Jacobian."""
    function = getattr(peer, direction)
    values, found = rows(4), []
    _, told = function(values, None)
    for row in values:
        jacobian = torch.autograd.functional.jacobian(lambda x: function(x[None], None)[0][0], row)
        found.append(torch.linalg.slogdet(jacobian)[1])
    return float((told.flatten() - torch.stack(found)).abs().max())


def round_trip(peer: Peer) -> float:
    """Largest difference of rows from the inverse of their latents."""
    values = rows(64)
    return float((peer.inverse(peer.forward(values, None)[0], None)[0] - values).abs().max())


def copies(peer: Peer) -> float:
    """Largest difference of log-densities after deepcopy, pickle and a state dict."""
    expected = [parameter.clone() for parameter in peer.module.state_dict().values()]
    other = pickle.loads(pickle.dumps(copy.deepcopy(peer.module)))
    other.load_state_dict(peer.module.state_dict())
    pairs = zip(expected, other.state_dict().values(), strict=True)
    return max(float((a.double() - b.double()).abs().max()) if a.numel() else 0.0 for a, b in pairs)


def vmap(peer: Peer) -> float:
    """Largest difference of ``vmap`` over rows from the batch."""
    values = rows(5)
    each = torch.func.vmap(lambda row: peer.log_prob(row[None], None)[0])(values)
    return float((each - peer.log_prob(values, None)).abs().max())


def per_sample_gradients(peer: Peer) -> float:
    """Largest difference of the sum of per-sample gradients from the gradient of the sum."""
    values = rows(5)
    parameters = {name: p.detach() for name, p in peer.module.named_parameters()}

    def loss(given: dict[str, Tensor], row: Tensor) -> Tensor:
        with torch.nn.utils.stateless._reparametrize_module(peer.module, given):
            return peer.log_prob(row[None], None)[0]

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, values)
    wanted = torch.autograd.grad(
        peer.log_prob(values, None).sum(), list(peer.module.parameters()), allow_unused=True, materialize_grads=True
    )
    return max(float((each[name].sum(0) - g).abs().max()) for name, g in zip(parameters, wanted, strict=True))


def hessian(peer: Peer) -> float:
    """Largest difference of ``torch.func.hessian`` of a log-density from autograd's."""
    row = rows(1)[0]

    def density(x: Tensor) -> Tensor:
        return peer.log_prob(x[None], None)[0]

    return float((torch.func.hessian(density)(row) - torch.autograd.functional.hessian(density, row)).abs().max())


def inverse_jacobian(peer: Peer) -> float:
    """Largest entry of J(forward) · jacrev(inverse) − 1."""
    row = rows(1)[0]
    z = peer.forward(row[None], None)[0][0].detach()
    back = torch.func.jacrev(lambda value: peer.inverse(value[None], None)[0][0])(z)
    there = torch.autograd.functional.jacobian(lambda x: peer.forward(x[None], None)[0][0], row)
    return float((there @ back - torch.eye(FEATURES, dtype=torch.float64)).abs().max())


def second_through_inverse(peer: Peer) -> float:
    """Largest difference of a Hessian through the inverse from finite differences of its gradient."""
    z = peer.forward(rows(1), None)[0][0].detach()

    def scalar(value: Tensor) -> Tensor:
        return peer.inverse(value[None], None)[0].square().sum()

    def gradient(value: Tensor) -> Tensor:
        value = value.detach().requires_grad_()
        return torch.autograd.grad(scalar(value), value)[0]

    found = torch.autograd.functional.hessian(scalar, z)
    step = 1e-5 * torch.eye(FEATURES, dtype=torch.float64)
    wanted = torch.stack([(gradient(z + d) - gradient(z - d)) / 2e-5 for d in step])
    return float((found - wanted).abs().max())


class _Density(nn.Module):
    def __init__(self, peer: Peer) -> None:
        super().__init__()
        self.flow, self.function = peer.module, peer.log_prob

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, None)


def export(peer: Peer) -> float:
    """Largest difference of an exported log-density at another batch size."""
    program = torch.export.export(_Density(peer), (rows(4),), dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
    return float((program.module()(rows(9)) - peer.log_prob(rows(9), None)).abs().max())


def leading_dimensions(peer: Peer) -> float:
    """Largest difference of log-densities of (4, 5, features) from those of the rows."""
    values = rows(20).unflatten(0, (4, 5))
    return float(
        (peer.log_prob(values, None) - peer.log_prob(values.flatten(0, 1), None).unflatten(0, (4, 5))).abs().max()
    )


def sample_shape(peer: Peer) -> str:
    """Shape of ``sample((2, 3))``."""
    return f"{tuple(peer.sample((2, 3), None).shape)}"


def samples_and_contexts(peer: Peer) -> str:
    """Shape of 7 samples for each of 10 contexts."""
    return f"{tuple(peer.sample((7,), rows(10, CONTEXT)).shape)}"


def gradients_of_samples(peer: Peer) -> str:
    """Reparameterised samples: True if they carry gradients."""
    return "yes" if peer.rsample((4,), None).requires_grad else "no"


def not_a_number(peer: Peer) -> str:
    """Log-densities of a batch with a row of NaN."""
    values = rows(3)
    values[1] = torch.nan
    found = peer.log_prob(values, None)
    return "NaN in that row" if found.isnan().tolist() == [False, True, False] else f"{found.tolist()}"


CHECKS: dict[str, tuple[Callable[[Peer], float | str], int]] = {
    "log-determinant, data → latent": (lambda peer: log_det(peer, "forward"), 0),
    "log-determinant, latent → data": (lambda peer: log_det(peer, "inverse"), 0),
    "round trip, float64": (round_trip, 0),
    "deepcopy, pickle, state dict": (copies, 0),
    "vmap over log_prob": (vmap, 0),
    "per-sample gradients": (per_sample_gradients, 0),
    "torch.func.hessian of log_prob": (hessian, 0),
    "jacrev of the inverse": (inverse_jacobian, 0),
    "second derivatives through the inverse": (second_through_inverse, 0),
    "torch.export, batch of any size": (export, 0),
    "x of shape (4, 5, 3)": (leading_dimensions, 0),
    "sample((2, 3))": (sample_shape, 0),
    "7 samples × 10 contexts": (samples_and_contexts, CONTEXT),
    "rsample": (gradients_of_samples, 0),
    "a row of NaN": (not_a_number, 0),
}


def cell(library: str, name: str, check: Callable[[Peer], float | str], context: int) -> str:
    """Run one check and describe its result in a few characters."""
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = check(shaken(BUILDERS[library](name, context)))
    except NotImplementedError:
        return "not offered"
    except Exception as error:  # whatever a library raises is its result
        return f"error ({type(error).__name__})"
    return found if isinstance(found, str) else ("exact" if found == 0 else f"{found:.0e}")


def main() -> None:
    """Run all checks and write the page."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)
    lines = [
        "# Checks of vector flows beside other libraries",
        "",
        f"Written by `python benchmarks/peer_checks.py` with {versions}",
        f"and torch {torch.__version__}, on a CPU in float64 (samples of nflows in float32).",
        f"Flows of {FEATURES} variables, {TRANSFORMS} layers of width {WIDTH}, random weights of seed 0.",
        "Numbers are the largest absolute errors; a call that raised an exception shows its class.",
    ]
    for name in ("MAF", "NSF", "RealNVP"):
        lines += ["", f"## {name}", "", f"| check | {' | '.join(LIBRARIES)} |", "| --- |" + " --- |" * len(LIBRARIES)]
        for title, (check, context) in CHECKS.items():
            cells = [cell(library, name, check, context) for library in LIBRARIES]
            lines.append(f"| {title} | {' | '.join(cells)} |")
            print(name, title, cells, flush=True)
    PAGE.write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
