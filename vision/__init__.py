"""Flows for images, with exact densities and likelihoods of discrete images.

>>> from arflows.vision import RealNVP
>>> model = RealNVP(image_size=32, channels=3, scales=2, blocks=8, width=64)

The models are imported when they are first used, so that the command line can answer without loading PyTorch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arflows.vision.model import MADE, MAF, FlowPlusPlus, Glow, ImageFlow, RealNVP, TarFlow
    from arflows.vision.representation import ImageSpec

__all__ = ["MADE", "MAF", "FlowPlusPlus", "Glow", "ImageFlow", "ImageSpec", "RealNVP", "TarFlow"]

_HOMES = dict.fromkeys(__all__, "arflows.vision.model") | {"ImageSpec": "arflows.vision.representation"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
