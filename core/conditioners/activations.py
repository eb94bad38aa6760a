"""Nonlinearities of the networks over vectors, by name."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Activation = Literal["relu", "tanh", "elu", "silu"]


def silu_(x: Tensor) -> Tensor:
    """SiLU in place, x · σ(x)."""
    return F.silu(x, inplace=True)


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "tanh": torch.tanh_,
    "elu": F.elu_,
    "silu": silu_,
}


def activation_function(name: str) -> Callable[[Tensor], Tensor]:
    """Return the in-place function of a nonlinearity; in place, because streams compute in buffers.

    Raises:
        ValueError: if there is no nonlinearity of that name.

    >>> activation_function("relu")(torch.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """
    if name not in _FUNCTIONS:
        raise ValueError(f"activation must be one of {', '.join(_FUNCTIONS)}, got {name!r}")
    return _FUNCTIONS[name]
