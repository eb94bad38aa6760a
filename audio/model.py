"""List of the flows for speech.

Importing this module imports all of them, which `SpeechFlow.from_pretrained` needs to find them by name.
"""

from arflows.audio.predictive import PredictiveFlow
from arflows.audio.speech_flow import SpeechFlow
from arflows.audio.waveflow import WaveFlow

__all__ = ["PredictiveFlow", "SpeechFlow", "WaveFlow"]
