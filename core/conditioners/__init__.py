"""Networks that produce the parameters of elementwise maps."""

from typing import TYPE_CHECKING, Any

from arflows.core.conditioners.autoregressive import AutoregressiveConditioner
from arflows.core.conditioners.convolutional import GatedResidualCNN, ResidualCNN, ShallowCNN, ZeroConv
from arflows.core.conditioners.dense import MLP
from arflows.core.conditioners.guided import Guided
from arflows.core.conditioners.masked_mlp import MaskedMLP
from arflows.core.conditioners.transformer import CausalTransformer

if TYPE_CHECKING:
    from arflows.core.conditioners.wavenet import WaveNet

__all__ = [
    "MLP",
    "AutoregressiveConditioner",
    "CausalTransformer",
    "GatedResidualCNN",
    "Guided",
    "MaskedMLP",
    "ResidualCNN",
    "ShallowCNN",
    "WaveNet",
    "ZeroConv",
]


def __getattr__(name: str) -> Any:
    if name != "WaveNet":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from arflows.core.conditioners.wavenet import WaveNet  # brings a compiler, which is slow to import

    return WaveNet
