"""Likelihoods as the field reports them: bits per dimension, its standard error, what kind of figure it is, typicality.

Models of discrete data see integers ``x`` made continuous by noise ``u`` (dequantisation). What a flow computes then
is ``E_u[log p(x + u) - log q(u | x)] <= log P(x)`` (Theis et al. 2016, arXiv:1511.01844; Ho et al. 2019,
arXiv:1902.00275): a **lower bound** on the log-probability, hence an upper bound on bits per dimension. Figures say so;
see `Estimate`.
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
"""Fields of a batch: "x", the examples, and what they are conditioned on, see `call_with`."""

Result = TypeVar("Result")

Kind: TypeAlias = Literal["exact", "density", "bound"]
"""The log-probability itself, a density of continuous data, or a lower bound on the log-probability."""


def bits_per_dim(log_prob: Float[Tensor, "*shape"], dims: int) -> Float[Tensor, "*shape"]:
    """Turns log-probabilities into bits per dimension, ``-log p / (dims ln 2)``.

    Args:
        log_prob: Log-probabilities in nats.
        dims: Dimensions of one example: height × width × channels of an image.

    Returns:
        Bits per dimension; lower is better. Negative values are right for densities of continuous data.
    """
    return -log_prob / (dims * math.log(2))


@dataclass(frozen=True)
class Estimate:
    """A mean over examples with all that is needed to compare it honestly.

    Attributes:
        value: The mean over examples.
        standard_error: Standard deviation over examples / sqrt(count): how far another test set of this size may lie.
        unit: What ``value`` is in (always of the negative log-likelihood; lower is better).
        kind: "exact", "density" or "bound"; of a bound, the true value is at most ``value``.
        count: The number of examples.
        protocol: How the data were made continuous, e.g. "uniform dequantisation, 1 draw"; empty for continuous data.
    """

    value: float
    standard_error: float
    unit: Literal["bits/dim", "nats", "nats/sample", "bits/sample"]
    kind: Kind
    count: int
    protocol: str = ""

    @classmethod
    def of(cls, log_prob: Float[Tensor, " count"], dims: int | None, kind: Kind, protocol: str = "") -> "Estimate":
        """Averages log-probabilities of examples.

        Args:
            log_prob: Log-probabilities in nats, one an example.
            dims: Dimensions of one example, for bits/dim; None for nats.
            kind: What the log-probabilities are.
            protocol: How the data were made continuous.

        Returns:
            The figure, computed in float64.

        Raises:
            UserError: If there is no example.
        """
        if len(log_prob) == 0:
            raise UserError("no example to average over: the data set or split is empty; prepare one with examples.")
        values = log_prob.detach().cpu().double()
        values = -values if dims is None else bits_per_dim(values, dims)
        error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
        unit: Literal["bits/dim", "nats"] = "nats" if dims is None else "bits/dim"
        return cls(values.mean().item(), error, unit, kind, len(values), protocol)

    def as_dict(self) -> dict[str, Any]:
        """The figure as plain values, for JSON."""
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
        # Nats are told as log-likelihoods, like the columns of every verb; bits per dimension by their own convention.
        figure = f"{self.value:.4f}" if self.unit == "bits/dim" else f"log-likelihood {-self.value:.4f}"
        return f"{figure}{spread} {self.unit}, {meaning}{by}, over {examples}"


def dequantization(flow: Flow, draws: int = 1) -> str:
    """How a flow's integers were made continuous, as `Estimate.protocol` has it; empty for continuous data."""
    if not isinstance(flow, BijectiveFlow) or flow.dequantizer is None:
        return ""
    return f"{flow.dequantizer.protocol}, {draws} {'draw' if draws == 1 else 'draws'}"


def call_with(method: Callable[..., Result], batch: Batch) -> Result:
    """Calls a method of a flow with the fields of a batch: ``method(x, context, **others)``.

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
    """Log-probability of every example, by one or several draws of dequantisation noise.

    With ``draws`` K > 1 this is the importance-weighted bound ``log 1/K sum_k p(x + u_k) / q(u_k | x)`` (Burda et al.
    2016, arXiv:1509.00519; for dequantisation Hoogeboom et al. 2020, arXiv:2001.11235). It is still a lower bound, in
    expectation never looser than with fewer draws, and tends to the log-probability as K grows. Compare figures only
    at equal K.

    The noise depends on the seed, the batch's index and its size alone, so that a run can be repeated. Processes at one
    task (see `core.processes`) share the batches, and each gets all results.

    Args:
        flow: The flow, on the device to compute on. It computes in evaluation mode.
        batches: Batches of examples, on any device.
        draws: K, the number of dequantisation draws; more than one only makes sense for a bound.
        seed: Seed of the dequantisation noise.

    Returns:
        Log-probabilities in nats, float64, on the CPU, in the order of the examples.

    Raises:
        UserError: If ``draws`` is not positive, or is more than one where there is no noise to draw.
    """
    if draws < 1:
        raise UserError(f"draws is {draws}: give the number of dequantisation draws, 1 or more.")
    if draws > 1 and flow.likelihood != "bound":
        raise UserError(f"draws is {draws}, but this model's likelihood is not a bound: leave draws at 1.")
    device = flow.device

    def of_batch(index: int, batch: Batch) -> Tensor:
        moved = {name: field.to(device, non_blocking=True) for name, field in batch.items()}
        with fixed_noise(seed_of(seed, "log_prob", index), device):
            total = call_with(flow.log_prob, moved).cpu().double()
            for _ in range(draws - 1):
                total = torch.logaddexp(total, call_with(flow.log_prob, moved).cpu().double())
        return total - math.log(draws)

    with evaluating(flow):
        results = list(distributed_map(batches, of_batch))
    return torch.cat(results) if results else torch.empty(0, dtype=torch.float64)


@dataclass(frozen=True)
class Reference:
    """How a model scores its training data, kept so that new examples can be judged without that data.

    Attributes:
        scores: Sorted scores (bits/dim or nats, lower is likelier) of a sample of training examples.
        mean: Their mean: an estimate of the model's entropy in the same unit, if the model fits its data.
    """

    scores: np.ndarray
    mean: float

    @classmethod
    def of(cls, scores: Float[Tensor, " count"]) -> "Reference":
        """Keeps the scores of a sample of training examples."""
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
        """The reference as plain values, for JSON; six digits are kept."""
        return {"mean": self.mean, "sample": [float(f"{score:.6g}") for score in self.scores]}

    def percentile(self, scores: np.ndarray) -> np.ndarray:
        """The share in percent of training examples that are likelier than each score (ties count half).

        Args:
            scores: Scores of new examples, any shape.

        Returns:
            Percentiles in [0, 100], same shape: near 100 means less likely than almost all training examples.
        """
        below = np.searchsorted(self.scores, scores, side="left")
        up_to = np.searchsorted(self.scores, scores, side="right")
        return 50.0 * (below + up_to) / len(self.scores)

    def typicality(self, scores: np.ndarray) -> np.ndarray:
        """Distance of groups of examples from the typical set (Nalisnick et al. 2019, arXiv:1906.02994).

        ``|1/M sum_m score_m - mean|``. Out-of-distribution inputs may be *likelier* than the training data, as SVHN is
        under a CIFAR-10 flow; they are then not typical. The larger the group, the sharper the test.

        Args:
            scores: Scores of shape (..., M); M = 1 judges single examples.

        Returns:
            The statistic in the scores' unit, shape (...); 0 is perfectly typical.
        """
        return np.abs(scores.mean(-1) - self.mean)
