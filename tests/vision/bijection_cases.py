"""Cases of the bijections of vision, see tests/core/bijection_cases.py."""

import torch

from arflows.core.bijections import Autoregressive, Chain, LocationScale
from arflows.core.conditioners import CausalTransformer
from arflows.vision.tarflow import Patches, Patchwise
from tests.core.bijection_cases import Case


def patchwise() -> Patchwise:
    """A small transformer flow over the 4 patches of an image."""
    patches = Patches((1, 4, 4), 2)
    network = CausalTransformer(patches.count, patches.size, LocationScale.parameter_count, 8, layers=1, heads=2)
    order = torch.arange(patches.count).flip(0)
    return Patchwise(patches, Chain(Autoregressive(LocationScale(), network, order)))


CASES = {"patchwise": Case(patchwise, (1, 4, 4))}
