"""Cases of the bijections of audio, see tests/core/bijection_cases.py."""

import torch

from arflows.audio.folding import Folded
from arflows.core.bijections import Affine, Autoregressive
from tests.core.bijection_cases import WAVENET_HALF_PRECISION, Case, wavenet


def folded() -> Folded:
    """Two flows over waveforms folded to 3 rows, the second from the last row on."""
    orders = torch.arange(3), torch.arange(3).flip(0)
    return Folded(3, [Autoregressive(Affine(), wavenet(order=order), order) for order in orders])


CASES = {"folded": Case(folded, (12,), identity=True, half_precision=WAVENET_HALF_PRECISION)}
