"""Networks that produce the parameters of elementwise maps."""

from arflows.core.conditioners.autoregressive import AutoregressiveConditioner
from arflows.core.conditioners.convolutional import GatedResidualCNN, ResidualCNN, ShallowCNN, ZeroConv
from arflows.core.conditioners.dense import MLP
from arflows.core.conditioners.made import MADE

__all__ = ["MADE", "MLP", "AutoregressiveConditioner", "GatedResidualCNN", "ResidualCNN", "ShallowCNN", "ZeroConv"]
