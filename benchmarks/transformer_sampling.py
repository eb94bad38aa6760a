"""Sampling speed of transformer flows: ``python benchmarks/transformer_sampling.py --model runs/tarflow_mnist_cpu``.

Two comparisons. The cache of a stream, allocated once, beside loops that grow theirs by `torch.cat` at every token, by
joining the new token to those before it or, as TarFlow's published code, by joining a list of all tokens; all make
the same numbers. And `GaussSeidelJacobi` and `Jacobi` beside `Sequential` at equal error, on a model whose weights were
trained, since it depends on what was learned how few sweeps suffice. Each row is measured in a process of its own.

The error of samples is their distance from the float64 solution for the same latents. The latents that the model in
float32 gives a sample are no measure of it: on `tarflow_mnist_cpu` they lie 1e-4 to 6e-4 from where the sample came
from, even if that is the float64 solution, rounded, since each of the eight flows magnifies perturbations. Samples
themselves are off by 2e-5 to 3e-5 at batch 64 by every solver, which is the rounding of float32 and not the solver's
tolerance. On that model blocks of 4 patches need 48 sweeps
where one patch after the other needs 49 steps: a patch depends too strongly on the one before it for sweeps to agree
early at such a tolerance. And a sweep costs several steps, which on CPUs are one compiled loop with all that they read
at hand.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
from pathlib import Path
from typing import Any

import torch
from common import OUT, measure_in_turn, table, write
from torch import Tensor
from torch.nn import functional as F

from arflows.core.bijections import Autoregressive, LocationScale
from arflows.core.conditioners import CausalTransformer
from arflows.core.inversion import GaussSeidelJacobi, Jacobi, Report, Sequential, Solver, relative_residual, use_solver
from arflows.core.runtime.pretrained import load_model
from arflows.vision import ImageFlow

GOALS = {"cache": {"joined / static": 2.0}, "solvers": {"Sequential / GaussSeidelJacobi at equal error": 2.0}}
TOLERANCE = 1e-5
# Sites, channels, width, layers, heads, batch: images of 28² and of 32² in patches of 4² and of 2².
FLOWS = {
    "49 tokens": (49, 16, 96, 2, 3, 64),
    "64 tokens": (64, 12, 128, 4, 4, 16),
    "256 tokens, batch 1": (256, 12, 128, 4, 4, 1),
    "256 tokens": (256, 12, 128, 4, 4, 16),
    "256 tokens, batch 64": (256, 12, 128, 4, 4, 64),
}


def growing_inverse(flow: Autoregressive, z: Tensor, keep_list: bool) -> Tensor:
    """The inverse by a cache that grows: at every token, keys and values are joined anew."""
    network = flow.conditioner
    assert isinstance(network, CausalTransformer)
    caches: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in network.blocks]
    x = torch.empty_like(z[:, :0])
    previous = torch.zeros_like(z[:, :1])
    for position in range(z.shape[1]):
        hidden = network.input_proj(previous) + network.positions[position]
        for number, block in enumerate(network.blocks):
            joint = block.query_key_value(block.norm_attention(hidden)).unflatten(-1, (3, block.heads, -1))
            query, key, value = joint.permute(2, 0, 3, 1, 4)
            keys, values = [*caches[number][0], key], [*caches[number][1], value]
            key, value = torch.cat(keys, 2), torch.cat(values, 2)
            caches[number] = (keys, values) if keep_list else ([key], [value])
            seen = F.scaled_dot_product_attention(query, key, value)
            hidden = hidden + block.out_proj(seen.transpose(1, 2).flatten(2))
            hidden = hidden + block.fc2(F.gelu(block.fc1(block.norm_perceptron(hidden))))
        parameters = network.output_proj(network.norm(hidden)).unflatten(
            -1, (network.channels, network.parameter_count)
        )
        previous, _ = flow.elementwise.inverse(z[:, position : position + 1], parameters)
        x = torch.cat([x, previous], 1)
    return x


def measure_cache(name: str, threads: int, repeats: int) -> dict[str, Any]:
    """One row: both loops on one flow with noise on its weights, in milliseconds."""
    sites, channels, width, layers, heads, batch = FLOWS[name]
    device = prepare(threads)
    network = CausalTransformer(sites, channels, LocationScale.parameter_count, width, layers, heads)
    flow = Autoregressive(LocationScale(), network).to(device)
    for parameter in flow.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    z = torch.randn(batch, sites, channels, device=device)

    def static() -> Tensor:
        with torch.no_grad():
            return flow.inverse(z)[0]

    def growing(keep_list: bool) -> Tensor:
        with torch.inference_mode():
            return growing_inverse(flow, z, keep_list)

    for keep_list in (False, True):
        torch.testing.assert_close(static(), growing(keep_list), atol=1e-4, rtol=1e-4)
    fast, joined, listed = measure_in_turn(static, lambda: growing(False), lambda: growing(True), repeats=repeats)
    return {
        "flow": name,
        "device": device.type,
        "threads": threads,
        "batch": batch,
        "static ms": 1e3 * fast.median,
        "joined ms": 1e3 * joined.median,
        "joined / static": joined.median / fast.median,
        "list ms": 1e3 * listed.median,
        "list / static": listed.median / fast.median,
    }


def measure_solvers(model: str, batch: int, threads: int, repeats: int) -> list[dict[str, Any]]:
    """A row for each solver: time, work, the error of samples, and that of the latents which float32 gives them."""
    device = prepare(threads)
    flow = load_model(ImageFlow, model, device.type)
    z = flow.base.sample(batch)
    labels = flow.labels_for(batch, None)
    context = None if labels is None or flow.context_encoder is None else flow.context_encoder(labels)
    solvers: dict[str, Solver] = {
        "Sequential": Sequential(),
        "Jacobi": Jacobi(TOLERANCE),
        **{f"GaussSeidelJacobi({block})": GaussSeidelJacobi(block, TOLERANCE) for block in (4, 8, 16)},
    }

    def inverse(solver: Solver) -> tuple[Tensor, list[Report]]:
        with torch.no_grad(), use_solver(solver) as reports:
            return flow.bijection.inverse(z, context)[0], reports

    times = measure_in_turn(*(lambda s=s: inverse(s) for s in solvers.values()), repeats=repeats)
    with torch.no_grad():
        in_double = None if context is None else context.double()
        exact, _ = copy.deepcopy(flow.bijection).double().inverse(z.double(), in_double)
    rows = []
    for (name, solver), time in zip(solvers.items(), times, strict=True):
        x, reports = inverse(solver)
        with torch.no_grad():
            latents = flow.bijection(x, context)[0]
        rows.append(
            {
                "solver": name,
                "device": device.type,
                "threads": threads,
                "batch": batch,
                "ms": 1e3 * time.median,
                "Sequential / it": times[0].median / time.median,
                "sweeps a block of the flow": sum(report.sweeps for report in reports) / len(reports),
                "network evaluations": sum(report.network_evaluations for report in reports) / len(reports),
                "error": relative_residual(x, exact),
                "latents' error": relative_residual(latents, z),
            }
        )
    return rows


def prepare(threads: int) -> torch.device:
    """Settings of a process; the device to measure on."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    """Measure, print tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder of a trained TarFlow; without it only the caches are compared")
    parser.add_argument(
        "--batch", type=int, nargs="+", default=[1, 16, 64], help="samples at a time of the trained model"
    )
    parser.add_argument("--flows", nargs="+", default=list(FLOWS), choices=FLOWS, help="whose caches to compare")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the JSON file")
    options = parser.parse_args()

    def alone(function: Any, *arguments: Any) -> Any:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(function, arguments)

    caches = [
        alone(measure_cache, name, threads, options.repeats) for name in options.flows for threads in options.threads
    ]
    print(table(caches))
    path = write("transformer_cache", caches, folder=options.out, goal=GOALS["cache"])
    print(f"goal: at least {GOALS['cache']}; {path}")
    solvers = [
        row
        for batch in (options.batch if options.model else [])
        for threads in options.threads
        for row in alone(measure_solvers, options.model, batch, threads, options.repeats)
    ]
    if solvers:
        print(table(solvers))
        facts = {"goal": GOALS["solvers"], "tolerance": TOLERANCE, "model": Path(options.model).name}
        print(f"goal: {GOALS['solvers']}; {write('transformer_solvers', solvers, folder=options.out, **facts)}")


if __name__ == "__main__":
    main()
