"""What all flows over waveforms have in common: their conditions, and what may be asked of them."""

from __future__ import annotations

from arflows.audio.representation import MelSpec
from arflows.core.flow import Flow
from arflows.core.runtime.pretrained import Pretrained


class SpeechFlow(Flow, Pretrained):
    """A flow over waveforms in [−1, 1], given mel spectrograms and speakers or not.

    Attributes:
        spec: settings of the mel spectrograms.
        conditional: whether mel spectrograms are given.
        speakers: number of speakers that are told apart; 0 for none.
        lead: frames before a training segment that are context alone, and frames of its mel spectrogram beyond both
            ends that a training segment comes with.
    """

    spec: MelSpec
    conditional: bool
    speakers: int
    lead: int = 0
    surroundings: int = 0
