"""Monotone maps of the real line built from the cumulative distribution functions of mixtures."""

import math
from abc import abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from arflows.core.bijections.elementwise import Elementwise, bounded
from arflows.core.runtime.torch_compat import is_transformed

_NEWTON_STEPS_WITH_GRADIENT = 2
"""Number of differentiable Newton steps; each doubles the order to which derivatives are exact, so two give three."""

_FLATTEST = -40.0
"""Smallest log-derivative in a Newton step; keeps the step's derivatives, which contain its square, in float32."""


class MixtureCDF(Elementwise):
    """z = Q(Σ_k π_k F((x − μ_k) · exp(−s_k))) for a symmetric distribution F with quantile function Q.

    The cumulative distribution function of the mixture, followed by the quantile function of F, is a bijection of the
    real line. If z is distributed as F, x is distributed as the mixture. All terms are computed from log F(t) and
    log F(−t), so both tails are exact at any distance.

    The inverse finds the root within a bracket by Newton's method and bisection, to the precision of the dtype. Its
    derivatives are those of the implicit function.

    Parameters of an element: ``components`` logits of π, means μ and log-scales, the last bounded by ±``bound``.

    Components that start equal get equal gradients and stay equal for ever. With ``spread`` > 0, zero parameters give a
    mixture of distinct components, which can be trained, and the map is then not the identity.

    Args:
        components: number of components K.
        spread: the means of zero parameters are evenly spaced on [−spread, spread]; with 0 the map is the identity.
        bound: largest absolute log-scale of a component.

    Raises:
        ValueError: if ``components`` is below 1, or below 2 with a ``spread``.
    """

    def __init__(self, components: int, spread: float = 0.0, bound: float = 7.0) -> None:
        super().__init__()
        if components < 1 or (spread and components < 2):
            raise ValueError(f"a mixture needs at least 1 component, and 2 for a spread, got {components}")
        self.components = components
        self.spread = spread
        self.bound = bound
        self.parameter_count = 3 * components

    @staticmethod
    @abstractmethod
    def _log_cdfs(t: Tensor) -> tuple[Tensor, Tensor]:
        """Return log F(t) and log F(−t)."""

    @staticmethod
    @abstractmethod
    def _log_hazard(t: Tensor) -> Tensor:
        """Return log(F′(t) / F(−t)), without cancellation for t > 0."""

    @staticmethod
    @abstractmethod
    def _quantile(log_cdf: Tensor, log_survival: Tensor) -> Tensor:
        """Return Q(u), given log u and log(1 − u)."""

    def _mixture(
        self, parameters: Float[Tensor, "*shape parameters"]
    ) -> tuple[Float[Tensor, "*shape k"], Float[Tensor, "*shape k"], Float[Tensor, "*shape k"]]:
        """Split parameters into log-weights, means and bounded log-scales."""
        logits, means, raw_log_scales = parameters.split(self.components, -1)
        if self.spread:
            number = torch.arange(self.components, dtype=parameters.dtype, device=parameters.device)
            means = means + self.spread * (2 * number / (self.components - 1) - 1)
        return F.log_softmax(logits, -1), means, bounded(raw_log_scales, self.bound)

    def forward(self, values: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Data → latent."""
        return self._forward(values, *self._mixture(parameters))

    def _forward(self, values: Tensor, log_weights: Tensor, means: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor]:
        t = (values.unsqueeze(-1) - means) * (-log_scales).exp()
        log_cdfs, log_survivals = self._log_cdfs(t)
        log_cdf = (log_weights + log_cdfs).logsumexp(-1)
        log_survival = (log_weights + log_survivals).logsumexp(-1)
        z = self._quantile(log_cdf, log_survival)

        # dz/dx = Σ_k π_k f(t_k) exp(−s_k) / f(z). In terms of the nearer tail and hazards h(t) = f(t) / F(−t) it is
        # Σ_k ρ_k h(t_k) exp(−s_k) / h(z), where ρ_k is the share of component k in the tail's probability. This avoids
        # differences of numbers that grow with the distance.
        right = log_survival < log_cdf
        tail = torch.where(right, log_survival, log_cdf).unsqueeze(-1)
        right_of_each = right.unsqueeze(-1)
        log_shares = log_weights + torch.where(right_of_each, log_survivals, log_cdfs) - tail
        log_hazards = self._log_hazard(torch.where(right_of_each, t, -t))
        log_derivative = (log_shares + log_hazards - log_scales).logsumexp(-1)
        return z, log_derivative - self._log_hazard(torch.where(right, z, -z))

    def inverse(self, values: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Latent → data."""
        mixture = self._mixture(parameters)
        with torch.no_grad():
            log_weights, means, log_scales = mixture
            # The inverses of the single components bracket the inverse of the mixture.
            alone = means + values.unsqueeze(-1) * log_scales.exp()
            start = (log_weights.exp() * alone).sum(-1)
            x = _root(lambda x: self._forward(x, *mixture), values, alone.amin(-1), alone.amax(-1), start)
        x = solution = x.detach()  # without forward-mode derivatives too
        for _ in range(_NEWTON_STEPS_WITH_GRADIENT):
            z, log_derivative = self._forward(x, *mixture)
            step = (z - values) * (-log_derivative.clamp_min(_FLATTEST)).exp()
            # Keep only the derivatives of the step: the solution is exact, and the value of the step is rounding.
            x = x - step
            x = solution + (x - x.detach())
        return x, -self._forward(x, *mixture)[1]

    def extra_repr(self) -> str:
        """Shown when the module is printed."""
        return f"components={self.components}, spread={self.spread}, bound={self.bound}"


class LogisticMixture(MixtureCDF):
    """z = logit(Σ_k π_k σ((x − μ_k) · exp(−s_k))).

    Ho, Chen, Srinivas, Duan & Abbeel, "Flow++", 2019 (arXiv:1902.00275), section 3.2. Flow++ follows it by an affine
    map: ``ElementwiseChain(LogisticMixture(32, spread=1.0), Affine())``.

    >>> mixture = LogisticMixture(2, spread=1.0)
    >>> z, log_derivative = mixture(torch.tensor([0.5]), torch.zeros(1, 6))
    >>> x, _ = mixture.inverse(z, torch.zeros(1, 6))
    >>> x
    tensor([0.5000])
    """

    @staticmethod
    def _log_cdfs(t: Tensor) -> tuple[Tensor, Tensor]:
        return F.logsigmoid(t), F.logsigmoid(-t)

    @staticmethod
    def _log_hazard(t: Tensor) -> Tensor:
        return F.logsigmoid(t)

    @staticmethod
    def _quantile(log_cdf: Tensor, log_survival: Tensor) -> Tensor:
        return log_cdf - log_survival


class GaussianMixture(MixtureCDF):
    """z = Φ⁻¹(Σ_k π_k Φ((x − μ_k) · exp(−s_k))).

    With a standard normal base and parameters from an autoregressive network it is MADE MoG as a flow (Papamakarios,
    Pavlakou & Murray, "Masked autoregressive flow for density estimation", 2017, arXiv:1705.07057, section 4).

    >>> z, log_derivative = GaussianMixture(1)(torch.tensor([-30.0, 2.0]), torch.zeros(2, 3))
    >>> z
    tensor([-30.,   2.])
    """

    @staticmethod
    def _log_cdfs(t: Tensor) -> tuple[Tensor, Tensor]:
        # The gradient of torch.special.log_ndtr is wrong in the tails (from 1e4 on in float32).
        negative = t < 0
        tail = _log_normal_tail(torch.where(negative, -t, t))
        rest = torch.log1p(-tail.exp())
        return torch.where(negative, tail, rest), torch.where(negative, rest, tail)

    @staticmethod
    def _log_hazard(t: Tensor) -> Tensor:
        negative = t < 0
        magnitude = torch.where(negative, -t, t)
        scaled_tail = _log_scaled_normal_tail(magnitude)
        # For t < 0: log φ(t) − log Φ(|t|), with Φ(|t|) = 1 − Φ(−|t|) from the same tail.
        rest = torch.log1p(-(scaled_tail - 0.5 * magnitude.square()).exp())
        return -_HALF_LOG_2PI - torch.where(negative, 0.5 * magnitude.square() + rest, scaled_tail)

    @staticmethod
    def _quantile(log_cdf: Tensor, log_survival: Tensor) -> Tensor:
        right = log_survival < log_cdf
        tail = torch.where(right, log_survival, log_cdf)
        # Solve log Φ(−y) = tail ≤ log ½ for y = −z. Because Φ(−y) ≤ ½ exp(−y²/2), the start is at least the root, and
        # because log Φ is concave, Newton's method converges monotonically from there.
        with torch.no_grad():
            y = (-2 * (tail + math.log(2))).clamp_min(0).sqrt()
            for _ in range(4):
                y = _closer_to_tail(y, tail)
        y = y.detach()  # without forward-mode derivatives too
        for _ in range(_NEWTON_STEPS_WITH_GRADIENT):
            y = _closer_to_tail(y, tail)
        return torch.where(right, y, -y)


_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def _log_scaled_normal_tail(y: Tensor) -> Tensor:
    """Logarithm of Φ(−y) · exp(y²/2) for y ≥ 0."""
    return torch.special.erfcx(y * math.sqrt(0.5)).log() - math.log(2)


def _log_normal_tail(y: Tensor) -> Tensor:
    """Logarithm of Φ(−y) for y ≥ 0."""
    return _log_scaled_normal_tail(y) - 0.5 * y.square()


def _closer_to_tail(y: Tensor, tail: Tensor) -> Tensor:
    """Do one Newton step towards the y ≥ 0 with log Φ(−y) = tail."""
    scaled = _log_scaled_normal_tail(y)
    # The slope of log Φ(−y) is −φ(y) / Φ(−y) = −exp(−½ log 2π − scaled).
    return y + (scaled - 0.5 * y.square() - tail) * (scaled + _HALF_LOG_2PI).exp()


def _root(
    function: Callable[[Tensor], tuple[Tensor, Tensor]],
    values: Tensor,
    low: Tensor,
    high: Tensor,
    start: Tensor,
    iterations: int = 100,
) -> Tensor:
    """Solve function(x) = value elementwise for an increasing function.

    Newton's method with a bisection wherever a step leaves the bracket or is more than half of the one before (Press et
    al., "Numerical Recipes", section 9.4), so that every element converges.

    Args:
        function: x → function values and log-derivatives.
        values: target values.
        low: lower end of the bracket; function(low) ≤ value.
        high: upper end of the bracket; function(high) ≥ value.
        start: first guess, in the bracket.
        iterations: largest number of evaluations; bisection alone needs 60 in float64.

    Returns:
        The x with the smallest |function(x) − value| of all evaluations.
    """
    epsilon = torch.finfo(values.dtype).eps

    def unfinished(left: Tensor, done: Tensor, *state: Tensor) -> Tensor:
        return (left > 0) & ~done.all()

    def improve(
        left: Tensor, done: Tensor, x: Tensor, last: Tensor, low: Tensor, high: Tensor, best: Tensor, error: Tensor
    ) -> tuple[Tensor, ...]:
        """Do one step of Newton's method or bisection for every element.

        Args:
            left: number of evaluations left.
            done: True for elements that have converged.
            x: points of this evaluation.
            last: steps that led to ``x``.
            low: lower ends of the brackets.
            high: upper ends of the brackets.
            best: points with the smallest residuals so far.
            error: absolute residuals of ``best``.
        """
        reached, log_slope = function(x)
        residual = reached - values
        better = residual.abs() < error
        best, error = torch.where(better, x, best), torch.where(better, residual.abs(), error)
        low, high = torch.where(residual < 0, x, low), torch.where(residual > 0, x, high)
        step = -residual * (-log_slope.clamp_min(_FLATTEST)).exp()
        # A small step that does not reduce the residual means that only rounding errors are left.
        stalled = ~better & (step.abs() <= math.sqrt(epsilon) * (1 + x.abs()))
        done = stalled | (error <= 2 * epsilon * (1 + values.abs())) | (step.abs() <= 2 * epsilon * x.abs())
        newton = x + step
        take = (newton >= low) & (newton <= high) & (2 * step.abs() <= last.abs())
        proposal = torch.where(take, newton, 0.5 * low + 0.5 * high)
        return left - 1, done, torch.where(done, x, proposal), proposal - x, low, high, best, error

    state: tuple[Tensor, ...] = (
        torch.tensor(iterations, device=values.device),
        torch.zeros_like(values, dtype=torch.bool),
        start,
        high - low,
        low,
        high,
        start.clone(),
        torch.full_like(values, math.inf),
    )
    if torch.compiler.is_compiling():
        state = torch.while_loop(unfinished, improve, state)
    elif is_transformed():
        for _ in range(iterations):
            state = improve(*state)
    else:
        while unfinished(*state):
            state = improve(*state)
    return state[-2]
