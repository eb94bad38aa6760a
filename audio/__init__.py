"""Flows for speech: exact densities of waveforms, optionally conditioned on mel spectrograms.

>>> from arflows.audio import WaveFlow
>>> vocoder = WaveFlow.from_preset("h16_c64")

Models are imported lazily, so that the command line starts without loading PyTorch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arflows.audio.inpainting import inpaint
    from arflows.audio.model import SpeechFlow, WaveFlow
    from arflows.audio.predictive import PredictiveFlow
    from arflows.audio.representation import MelSpec, log_mel

__all__ = ["MelSpec", "PredictiveFlow", "SpeechFlow", "WaveFlow", "inpaint", "log_mel"]

_HOMES = {
    "MelSpec": "arflows.audio.representation",
    "PredictiveFlow": "arflows.audio.predictive",
    "SpeechFlow": "arflows.audio.model",
    "WaveFlow": "arflows.audio.model",
    "inpaint": "arflows.audio.inpainting",
    "log_mel": "arflows.audio.representation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
