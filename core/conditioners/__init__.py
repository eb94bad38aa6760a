"""Networks that produce the parameters of elementwise maps."""

from arflows.core.conditioners.convolutional import GatedResidualCNN, ResidualCNN, ShallowCNN, ZeroConv

__all__ = ["GatedResidualCNN", "ResidualCNN", "ShallowCNN", "ZeroConv"]
