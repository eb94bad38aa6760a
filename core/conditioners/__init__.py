"""Networks that produce the parameters of elementwise maps."""

from arflows.core.conditioners.autoregressive import AutoregressiveConditioner
from arflows.core.conditioners.convolutional import GatedResidualCNN, ResidualCNN, ShallowCNN, ZeroConv
from arflows.core.conditioners.dense import MLP
from arflows.core.conditioners.guided import Guided
from arflows.core.conditioners.masked_mlp import MaskedMLP
from arflows.core.conditioners.transformer import CausalTransformer

__all__ = [
    "MLP",
    "AutoregressiveConditioner",
    "CausalTransformer",
    "GatedResidualCNN",
    "Guided",
    "MaskedMLP",
    "ResidualCNN",
    "ShallowCNN",
    "ZeroConv",
]
