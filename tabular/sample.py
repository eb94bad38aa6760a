"""Draw rows with a trained flow: ``arflows tabular sample``."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor
from tqdm import tqdm

from arflows.core.flows import VectorFlow
from arflows.core.inversion import SOLVERS, SolverName
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.files import new_folder
from arflows.core.runtime.noise import PerExample
from arflows.core.runtime.option_types import NonNegativeFloat, PositiveInt
from arflows.core.runtime.pretrained import load_model
from arflows.core.runtime.processes import distributed_map
from arflows.tabular.columns import Columns
from arflows.tabular.render import density_figure, density_map, extent_of

SHOWN = 5000


def sample(
    model: str,
    out: Path,
    count: PositiveInt = 1000,
    temperature: NonNegativeFloat = 1.0,
    context: list[float] | float | None = None,
    seed: int = 0,
    solver: SolverName = "sequential",
    batch_size: PositiveInt = 1000,
    device: str = "auto",
) -> None:
    """Draw rows with a trained flow.

    Writes a folder: samples.csv with a column for each of the model's and log_density (nats, in the data's own units),
    samples.npz with the arrays x, log_density, context, seed and temperature, and of rows of two columns density.png.
    The same seed gives the same rows on every device, up to rounding, and in any number of processes.

    Args:
        model: Folder of a model or of a training run, or a model's name on the Hugging Face Hub.
        out: Folder to write; it must be empty or not exist.
        count: Number of rows.
        temperature: Multiplies the standard deviation of the latents; below 1 for rows nearer to the mode.
        context: Condition of all rows, for a conditional model, as 2019 or '[2019, 1.5]'.
        seed: Seed of the latents.
        solver: Solver that inverts autoregressive flows: sequential goes column by column, jacobi updates all columns
            at once until they converge, gauss-seidel-jacobi in blocks.
        batch_size: Rows computed at a time.
        device: Device: cpu, cuda, …; auto uses a GPU if available.
    """
    with new_folder(out) as folder:
        flow = load_model(VectorFlow, model, device)
        columns = Columns.of(model, flow)
        context = [context] if isinstance(context, float) else context
        if context is None and flow.context_features:
            raise UserError(
                f"{model} is conditioned on {', '.join(columns.context)}: give --context, {flow.context_features} "
                f"number{'s' if flow.context_features > 1 else ''}."
            )
        if context is not None and flow.context_features and len(context) != flow.context_features:
            raise UserError(
                f"--context has {len(context)} numbers, the model is conditioned on {', '.join(columns.context)}: give "
                f"{flow.context_features}."
            )
        if context is not None and flow.context_features:
            context = [value - offset for value, offset in zip(context, columns.offsets[flow.dims :], strict=True)]
        arrays = draw(flow, count, temperature, context, seed, solver, batch_size)
        shifted = _with_offsets(columns, arrays)
        saved: dict[str, Any] = {**shifted, "seed": seed, "temperature": temperature}
        np.savez_compressed(folder / "samples.npz", **saved)
        _write_csv(folder / "samples.csv", columns, shifted)
        if flow.dims == 2:
            extent = extent_of(arrays["x"])
            row = torch.from_numpy(arrays["context"][:1]).to(flow.device, flow.dtype) if "context" in arrays else None
            points = [("samples", arrays["x"][:SHOWN])]
            labels = [
                f"{name} − {offset:.12g}" if offset else name
                for name, offset in zip(columns.features, columns.offsets[:2], strict=True)
            ]
            density_figure(density_map(flow, extent, row), points, extent, labels).savefig(
                folder / "density.png", dpi=150
            )
    print(f"samples at temperature {temperature:g}: {arrays['log_density'].mean():.3f} nats on average; seed {seed}")
    print(f"{out}: {count:,} rows; see {out / ('density.png' if flow.dims == 2 else 'samples.csv')}.")


def draw(
    flow: VectorFlow,
    count: int,
    temperature: float = 1.0,
    context: list[float] | None = None,
    seed: int = 0,
    solver: SolverName = "sequential",
    batch_size: int = 1000,
) -> dict[str, Float32[np.ndarray, "count ..."]]:
    """Samples rows a batch at a time, with a progress bar.

    Args:
        flow: The flow.
        count: Number of rows.
        temperature: Multiplies the standard deviation of the latents.
        context: Condition of all rows.
        seed: Seed of the latents.
        solver: How autoregressive parts are inverted.
        batch_size: Rows at a time.

    Returns:
        ``x`` (count, features), ``log_density`` (count,) in nats and, of a conditional model, ``context`` (count,
        context).
    """
    row = None if context is None else torch.tensor([context], dtype=flow.dtype, device=flow.device)

    def draw_batch(index: int, start: int) -> tuple[Tensor, Tensor]:
        x, log_prob = flow.sample_with_log_prob(
            min(batch_size, count - start),
            row,
            temperature=temperature,
            generator=PerExample(seed, start),
            solver=SOLVERS[solver](),
        )
        return x.cpu(), log_prob.cpu()

    rows, log_density = [], []
    with tqdm(total=count, desc="sampling", disable=None) as progress:
        for x, log_prob in distributed_map(range(0, count, batch_size), draw_batch):
            rows.append(x)
            log_density.append(log_prob)
            progress.update(len(x))
    arrays = {"x": torch.cat(rows).numpy(), "log_density": torch.cat(log_density).numpy()}
    return arrays if row is None else {**arrays, "context": row.cpu().expand(count, -1).numpy()}


def _with_offsets(columns: Columns, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Add the columns' offsets, in float64; arrays without stay as they are."""
    if not any(columns.offsets):
        return arrays
    width = len(columns.features)
    parts = {"x": columns.offsets[:width], "context": columns.offsets[width:]}
    return arrays | {name: arrays[name] + np.array(parts[name]) for name in parts if name in arrays}


def _write_csv(path: Path, columns: Columns, arrays: dict[str, np.ndarray]) -> None:
    values = np.column_stack([arrays[name] for name in ("x", "context", "log_density") if name in arrays])
    # Nine digits tell any two float32 apart; an offset may stand before them.
    formats = ["{:.17g}" if offset else "{:.9g}" for offset in (*columns.offsets, 0.0)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*columns.names, "log_density"])
        writer.writerows([form.format(value) for form, value in zip(formats, row, strict=True)] for row in values)
