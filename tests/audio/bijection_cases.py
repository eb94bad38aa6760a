"""Cases of the bijections of audio, see tests/core/bijection_cases.py."""

from dataclasses import dataclass

import torch
from torch import Tensor

from arflows.audio.folding import Folded
from arflows.audio.linear_prediction import LinearPrediction
from arflows.core.bijections import Affine, Autoregressive
from tests.core.bijection_cases import WAVENET_HALF_PRECISION, Case, wavenet


def folded() -> Folded:
    """Two flows over waveforms folded to 3 rows, the second from the last row on."""
    orders = torch.arange(3), torch.arange(3).flip(0)
    return Folded(3, [Autoregressive(Affine(), wavenet(order=order), order) for order in orders])


@dataclass(frozen=True)
class LinearPredictionCase(Case):
    """Linear prediction, whose context has coefficients for each sub-frame."""

    def context(self, batch: int, dtype: torch.dtype, seed: int = 3) -> Tensor:
        """Three sub-frames of stable filters of order 4, with their log-gains."""
        generator = torch.Generator().manual_seed(seed)
        coefficients = 0.2 * torch.randn(batch, 3, 4, generator=generator, dtype=torch.float64)
        log_gains = torch.randn(batch, 3, 1, generator=generator, dtype=torch.float64)
        return torch.cat([coefficients, log_gains], 2).to(dtype)


CASES = {
    "linear_prediction": LinearPredictionCase(LinearPrediction, (12,)),
    "folded": Case(folded, (12,), identity=True, half_precision=WAVENET_HALF_PRECISION),
}
