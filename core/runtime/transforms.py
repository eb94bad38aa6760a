"""Detection of the transforms of torch.func and of forward-mode differentiation."""

import torch
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """True inside a transform of `torch.func` (vmap, grad, jvp, …) and at a level of forward-mode differentiation.

    Code that reads values or leaves PyTorch then has to step aside for plain operations.

    >>> torch.func.vmap(lambda x: x + is_transformed())(torch.zeros(2))
    tensor([1., 1.])
    >>> is_transformed()
    False
    """
    if torch.compiler.is_compiling():  # the compiler has traced the transform and cannot trace the question
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
