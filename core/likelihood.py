"""Likelihood estimates: bits per dimension with standard errors and kinds, importance-weighted bounds, typicality.

For discrete data, integers ``x`` are made continuous by noise ``u`` (dequantisation). A flow then computes ``E_u[log
p(x + u) - log q(u | x)] <= log P(x)`` (Theis et al. 2016, arXiv:1511.01844; Ho et al. 2019, arXiv:1902.00275): a
**lower bound** on the log-probability, hence an upper bound on bits per dimension. `Estimate` names the kind.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from arflows.core.flow import BijectiveFlow, Flow, evaluating
from arflows.core.runtime.errors import UserError
from arflows.core.runtime.noise import fixed_noise, seed_of
from arflows.core.runtime.pretrained import FACTS_FILE, model_folder, training_facts
from arflows.core.runtime.processes import distributed_map

Batch: TypeAlias = dict[str, Tensor]
"""Fields of a batch: "x", the examples, and their conditions, see `call_with`."""

Result = TypeVar("Result")

Kind: TypeAlias = Literal["exact", "density", "bound"]
"""Log-probability, density of continuous data, or lower bound on the log-probability."""


def bits_per_dim(log_prob: Float[Tensor, "*shape"], dims: int) -> Float[Tensor, "*shape"]:
    """Convert log-probabilities to bits per dimension, ``-log p / (dims ln 2)``.

    Args:
        log_prob: Log-probabilities in nats.
        dims: Dimensions of one example: height × width × channels of an image.

    Returns:
        Bits per dimension; lower is better. They can be negative for densities of continuous data.

    >>> bits_per_dim(torch.tensor([-5545.18]), dims=1000)
    tensor([8.0000])
    """
    return -log_prob / (dims * math.log(2))


@dataclass(frozen=True)
class Estimate:
    """Mean negative log-likelihood of examples with its standard error, unit and kind.

    Attributes:
        value: Mean over the examples; lower is better.
        standard_error: Standard deviation over the examples / sqrt(count).
        unit: Unit of ``value``.
        kind: "exact", "density" or "bound"; for a bound, the true value is at most ``value``.
        count: Number of examples.
        protocol: Dequantisation of the data, e.g. "uniform dequantisation, 1 draw"; empty for continuous data.

    >>> print(Estimate.of(torch.tensor([-1.0, -3.0]), dims=None, kind="density"))
    log-likelihood -2.0000 ± 1.0000 (s.e.) nats, density of continuous data, over 2 examples
    """

    value: float
    standard_error: float
    unit: Literal["bits/dim", "nats", "nats/sample", "bits/sample"]
    kind: Kind
    count: int
    protocol: str = ""

    @classmethod
    def of(cls, log_prob: Float[Tensor, " count"], dims: int | None, kind: Kind, protocol: str = "") -> "Estimate":
        """Average the log-probabilities of examples in float64.

        Args:
            log_prob: Log-probabilities in nats, one for each example.
            dims: Dimensions of one example, for bits/dim; None for nats.
            kind: Kind of the log-probabilities.
            protocol: Dequantisation of the data.

        Raises:
            UserError: If there are no examples.
        """
        if len(log_prob) == 0:
            raise UserError("no example to average over: the data set or split is empty; prepare one with examples.")
        values = log_prob.detach().cpu().double()
        values = -values if dims is None else bits_per_dim(values, dims)
        error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
        unit: Literal["bits/dim", "nats"] = "nats" if dims is None else "bits/dim"
        return cls(values.mean().item(), error, unit, kind, len(values), protocol)

    def as_dict(self) -> dict[str, Any]:
        """Return the estimate as plain values, for JSON."""
        return {"quantity": "negative log-likelihood", **asdict(self)}

    def __str__(self) -> str:
        meaning = {
            "exact": "exact",
            "density": "density of continuous data",
            "bound": "upper bound" if self.unit == "bits/dim" else "lower bound",
        }[self.kind]
        by = f" by {self.protocol}" if self.protocol else ""
        spread = "" if math.isnan(self.standard_error) else f" ± {self.standard_error:.4f} (s.e.)"
        examples = "1 example" if self.count == 1 else f"{self.count:,} examples"
        # Nats are printed as log-likelihoods, like the columns of every command; bits per dimension are negative ones.
        figure = f"{self.value:.4f}" if self.unit == "bits/dim" else f"log-likelihood {-self.value:.4f}"
        return f"{figure}{spread} {self.unit}, {meaning}{by}, over {examples}"


def dequantization(flow: Flow, draws: int = 1) -> str:
    """Return `Estimate.protocol` for a flow; empty for continuous data.

    Args:
        flow: The flow.
        draws: Number of draws of dequantisation noise.
    """
    if not isinstance(flow, BijectiveFlow) or flow.dequantizer is None:
        return ""
    return f"{flow.dequantizer.noise}, {draws} {'draw' if draws == 1 else 'draws'}"


def call_with(method: Callable[..., Result], batch: Batch) -> Result:
    """Call a method of a flow with the fields of a batch: ``method(x, context, **others)``.

    A field named "context" is the second positional argument, whatever the flow calls it; the other fields are keyword
    arguments, such as ``mel`` and ``speaker`` of speech.

    Args:
        method: `Flow.log_prob` or another method with the same arguments.
        batch: the fields.
    """
    others = {name: field for name, field in batch.items() if name not in ("x", "context")}
    return method(*(batch[name] for name in ("x", "context") if name in batch), **others)


@torch.no_grad()
def log_probs(flow: Flow, batches: Iterable[Batch], *, draws: int = 1, seed: int = 0) -> Float[Tensor, " count"]:
    """Compute the log-probability of every example, by one or several draws of dequantisation noise.

    With ``draws`` K > 1 this is the importance-weighted bound ``log 1/K sum_k p(x + u_k) / q(u_k | x)`` (Burda et al.
    2016, arXiv:1509.00519; for dequantisation Hoogeboom et al. 2020, arXiv:2001.11235). It is still a lower bound, in
    expectation never looser than with fewer draws, and tends to the log-probability as K grows. Compare figures only
    at equal K.

    The noise depends only on the seed, the index of the batch and its size, so that runs are repeatable. Processes of a
    distributed session (see `core.runtime.processes`) share the batches, and each gets all results.

    Args:
        flow: The flow, which computes in evaluation mode on its own device.
        batches: Batches of examples, on any device.
        draws: Number K of dequantisation draws; 1 unless the likelihood is a bound.
        seed: Seed of the dequantisation noise.

    Returns:
        Log-probabilities in nats, float64, on the CPU, in the order of the examples.

    Raises:
        UserError: If ``draws`` is not positive, or is more than one for a likelihood that is not a bound.
    """
    if draws < 1:
        raise UserError(f"draws={draws} must be at least 1")
    if draws > 1 and flow.likelihood != "bound":
        raise UserError(f"draws={draws} needs a model whose likelihood is a bound: use draws=1")
    device = flow.device

    def batch_log_probs(index: int, batch: Batch) -> Tensor:
        moved = {name: field.to(device, non_blocking=True) for name, field in batch.items()}
        with fixed_noise(seed_of(seed, "log_prob", index), device):
            total = call_with(flow.log_prob, moved).cpu().double()
            for _ in range(draws - 1):
                total = torch.logaddexp(total, call_with(flow.log_prob, moved).cpu().double())
        return total - math.log(draws)

    with evaluating(flow):
        results = list(distributed_map(batches, batch_log_probs))
    return torch.cat(results) if results else torch.empty(0, dtype=torch.float64)


@dataclass(frozen=True)
class Reference:
    """Scores of training data, for comparing new examples with it.

    Attributes:
        scores: Sorted scores (bits/dim or nats, lower is likelier) of a sample of training examples.
        mean: Mean of the scores, an estimate of the model's entropy if the model fits its data.

    >>> reference = Reference.of(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    >>> reference.percentile(np.array([2.5, 9.0]))
    array([ 50., 100.])
    """

    scores: np.ndarray
    mean: float

    @classmethod
    def of(cls, scores: Float[Tensor, " count"]) -> "Reference":
        """Make a reference from the scores of a sample of training examples."""
        values = np.sort(scores.cpu().double().numpy())
        return cls(values, float(values.mean()))

    @classmethod
    def load(cls, model: str | Path) -> "Reference | None":
        """Read the reference that ``train`` leaves with a model; None if there is none.

        Args:
            model: A model folder, the folder of a training run, or a name on the Hugging Face Hub.

        Raises:
            UserError: If its file is there but cannot be read.
        """
        facts = training_facts(model)
        if facts is None:
            return None
        try:
            scores = facts["train_scores"]
            return cls(np.asarray(scores["sample"], dtype=np.float64), float(scores["mean"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{Path(model_folder(str(model))) / FACTS_FILE} does not hold the training scores it should "
                f"({error}): export the model again."
            ) from error

    def as_dict(self) -> dict[str, Any]:
        """Return the reference as plain values, for JSON, rounded to six digits."""
        return {"mean": self.mean, "sample": [float(f"{score:.6g}") for score in self.scores]}

    def percentile(self, scores: np.ndarray) -> np.ndarray:
        """Return the percentage of training examples that are likelier than each score; ties count half.

        Args:
            scores: Scores of new examples, any shape.

        Returns:
            Percentiles in [0, 100], same shape; near 100 for examples less likely than almost all training examples.
        """
        below = np.searchsorted(self.scores, scores, side="left")
        up_to = np.searchsorted(self.scores, scores, side="right")
        return 50.0 * (below + up_to) / len(self.scores)

    def typicality(self, scores: np.ndarray) -> np.ndarray:
        """Return the distance of groups of examples from the typical set (Nalisnick et al. 2019, arXiv:1906.02994).

        The distance is ``|1/M sum_m score_m - mean|``. Out-of-distribution inputs can be *likelier* than the training
        data, as SVHN is under a CIFAR-10 flow, but not typical. Larger groups give a sharper test.

        Args:
            scores: Scores of shape (..., M); M = 1 judges single examples.

        Returns:
            Distances in the unit of the scores, shape (...); 0 is perfectly typical.
        """
        return np.abs(scores.mean(-1) - self.mean)
