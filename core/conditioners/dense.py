"""Multilayer perceptron that produces the parameters of a coupling on vectors."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arflows.core.conditioners.activations import Activation, activation_function
from arflows.core.conditioners.autoregressive import check_context


class MLP(nn.Module):
    """Multilayer perceptron whose last layer starts at zero, so that a coupling starts as the identity.

    Args:
        in_features: size of the input.
        out_features: number of parameters returned.
        hidden_features: widths of the hidden layers.
        context_features: size of the context, which is joined to the input; 0 for none.
        activation: nonlinearity between the layers.

    Raises:
        ValueError: if there is no such activation.

    >>> MLP(in_features=2, out_features=6, hidden_features=(16, 16))(torch.randn(5, 2)).shape
    torch.Size([5, 6])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_features: Sequence[int],
        context_features: int = 0,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.context_features = context_features
        self.activate = activation_function(activation)
        widths = [in_features + context_features, *hidden_features, out_features]
        layers = [nn.Linear(*pair) for pair in pairwise(widths)]
        nn.init.zeros_(layers[-1].weight)
        nn.init.zeros_(layers[-1].bias)
        self.layers = nn.ModuleList(layers)

    def forward(
        self, x: Float[Tensor, "batch in_features"], context: Float[Tensor, "batch context"] | None = None
    ) -> Float[Tensor, "batch out_features"]:
        """Compute the parameters."""
        if self.context_features:
            check_context(context, self.context_features)
            assert context is not None
            x = torch.cat([x, context], 1)
        *hidden, last = self.layers
        for layer in hidden:
            x = self.activate(layer(x))
        return last(x)
